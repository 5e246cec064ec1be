"""A script in the place of main, whose arguments are the workdir and the config file.

It writes the times of its start and end and the files of a run; or fails; or waits for a signal, saves, and ends once
it is started again.
"""

from __future__ import annotations

MAIN = """
import json, pathlib, signal, sys, time
folder, config = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
began = time.monotonic()
if config == "waits.py" and not (folder / "saved").exists():
    def stop(number, frame):
        (folder / "saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (folder / "began").touch()
    time.sleep(60)
if config == "fails.py":
    print("some output")
    sys.exit("switokd_jax: config.epochs is 0")
time.sleep(0.5)
network = {"final_top1": 90.0, "best_top1": 91.0, "updates": 5}
summary = {"networks": {"student": network}, "switch": {}, "training_flops": 2e9, "seconds": 4.0}
(folder / "summary.json").write_text(json.dumps(summary))
rows = [{"split": "train", "epoch": 0.5 * step, "step": step, "loss": float(step)} for step in (1, 2)]
rows.append({"split": "test", "epoch": 1.0, "step": 2, "top1": 90.0})
source = next((flag.partition("=")[2] for flag in sys.argv if ".init_from=" in flag), "")
networks = {"teacher": {"init_from": source}, "student": {"init_from": ""}}
(folder / "config.json").write_text(json.dumps({"data": {"dir": "/data", "name": "digits"}, "networks": networks}))
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(folder / "times").write_text(f"{began} {time.monotonic()}")
"""

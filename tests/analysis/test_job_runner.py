"""Many runs: order, what is skipped, what fails, how they stop. The runs are a script that writes what main would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import gap_study, grids, study
from experiments.table_cifar import STUDY
from switokd_jax import sweep
from switokd_jax.analysis import job_runner
from switokd_jax.analysis.job_runner import Job
from switokd_jax.analysis.tables import MeanStd
from switokd_jax.errors import UserError

ROOT = Path(__file__).parents[2]
# Stands in for main: writes when it began and ended, and a summary; or fails, or waits to be told to stop.
MAIN = """
import json, pathlib, signal, sys, time
folder, config = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
began = time.monotonic()
if config == "waits.py":
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
(folder / "times").write_text(f"{began} {time.monotonic()}")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    monkeypatch.setattr(
        Job, "command", lambda job, folder: [sys.executable, str(script), str(folder / job.name), job.config]
    )
    return tmp_path / "grid"


def times(folder: Path, name: str) -> tuple[float, float]:
    began, ended = map(float, (folder / name / "times").read_text().split())
    return began, ended


def test_order_and_number_at_a_time(stand_in: Path) -> None:
    jobs = [Job("last", "works.py", depends_on=("a", "b")), *(Job(name, "works.py") for name in "abc")]
    said: list[str] = []
    assert job_runner.run(jobs, stand_in, max_parallel=2, say=said.append) == {}
    spans = {name: times(stand_in, name) for name in ("a", "b", "c", "last")}
    assert spans["last"][0] > max(spans["a"][1], spans["b"][1])
    together = max(sum(began <= moment < ended for began, ended in spans.values()) for moment, _ in spans.values())
    assert together == 2
    assert len(said) == 4
    assert "[4/4]" in said[-1]
    assert "student 90.00 %" in said[0]
    kept = json.loads((stand_in / "results" / "last.json").read_text())
    assert (kept["config"], kept["summary"]["networks"]["student"]["best_top1"]) == ("works.py", 91.0)


def test_what_is_done_is_skipped(stand_in: Path) -> None:
    jobs = [Job("a", "works.py", ("--config.seed=0", "--config.data.dir=here"))]
    job_runner.run(jobs, stand_in, say=lambda line: None)
    before = times(stand_in, "a")
    said: list[str] = []
    moved = [Job("a", "works.py", ("--config.seed=0", "--config.data.dir=there")), Job("b", "works.py")]
    job_runner.run(moved, stand_in, say=said.append)
    assert said[0] == "1 of 2 runs are done"
    assert times(stand_in, "a") == before
    with pytest.raises(UserError, match=r"seed=0.*not works.py --config.seed=1; choose another --workdir"):
        job_runner.run([Job("a", "works.py", ("--config.seed=1",))], stand_in)


def test_what_fails_keeps_the_others_running(stand_in: Path) -> None:
    jobs = [Job("bad", "fails.py"), Job("needs_it", "works.py", depends_on=("bad",)), Job("good", "works.py")]
    failed = job_runner.run(jobs, stand_in, say=lambda line: None)
    assert failed == {"bad": "config.epochs is 0", "needs_it": "it needs bad, which failed"}
    assert job_runner.result(jobs[2], stand_in) is not None
    assert "some output" in (stand_in / "logs" / "bad.txt").read_text()


def test_carry_out_writes_what_there_is_and_ends_with_the_failure(stand_in: Path) -> None:
    jobs = sweep.jobs("works.py", {"batch_size": ["32", "64"]}, [0, 1], [])
    flat = [job for of in jobs.values() for job in of]
    assert [job.name for job in flat][:2] == ["batch_size=32_seed=0", "batch_size=32_seed=1"]
    assert flat[2].flags == ("--config.batch_size=64", "--config.seed=0")
    bad = Job("bad", "fails.py")

    def make(results: dict[str, object]) -> sweep.Table:
        found = {values: [results[job.name] for job in of] for values, of in jobs.items()}
        return sweep.table("A sweep", ["batch_size"], found, "")  # type: ignore[arg-type]

    with pytest.raises(UserError, match="1 of 5 runs failed; bad"):
        sweep.run_and_tabulate([*flat, bad], stand_in, 2, make)  # type: ignore[arg-type]
    assert "| 64 | 90.00 ± 0.00 | 91.00 ± 0.00 | - |" in (stand_in / "table.md").read_text()
    with pytest.raises(UserError, match="no run succeeded; bad"):
        sweep.run_and_tabulate([bad], stand_in, 1, make)  # type: ignore[arg-type]


def test_plan(stand_in: Path) -> None:
    jobs = [Job("a", "works.py", flops=3e9), Job("b", "works.py", flops=90e9)]
    text = job_runner.plan(jobs, stand_in, max_parallel=1, flops_per_second=1e9, start=10.0)
    assert [line.split() for line in text.splitlines()[1:3]] == [
        ["a", "to", "do", "13", "s"],
        ["b", "to", "do", "2", "min"],
    ]
    assert text.splitlines()[-1] == "2 of 2 runs, about 2 min with 1 at a time (1 GFLOP/s, assumed)"
    job_runner.run(jobs[:1], stand_in, say=lambda line: None)  # 2 GFLOP in 4 s
    text = job_runner.plan(jobs, stand_in, max_parallel=2, flops_per_second=1e9, start=10.0)
    assert text.splitlines()[-1] == "1 of 2 runs, about 2 min with 2 at a time (0 GFLOP/s, as those done)"
    assert job_runner.plan([Job("new", "works.py")], stand_in, 1).splitlines()[-1] == "1 of 1 runs"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_has_the_jobs_save(tmp_path: Path, number: signal.Signals) -> None:
    script, folder = tmp_path / "main.py", tmp_path / "grid"
    script.write_text(MAIN)
    driver = f"""
import sys
from pathlib import Path
from switokd_jax.analysis import job_runner
job_runner.Job.command = lambda job, folder: [sys.executable, {str(script)!r}, str(folder / job.name), job.config]
jobs = [job_runner.Job("one", "waits.py"), job_runner.Job("two", "waits.py")]
job_runner.run(jobs, Path({str(folder)!r}), max_parallel=2)
"""
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, start_new_session=True)
    limit = time.monotonic() + 30
    while not all((folder / name / "began").exists() for name in ("one", "two")):
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(timeout=30) != 0
    assert all((folder / name / "saved").exists() for name in ("one", "two"))


def test_study_jobs() -> None:
    """Every arm of the smoke table is a config that parses; offline arms read the vanilla run of their seed."""
    folder = Path("runs/somewhere")
    made = grids.jobs(STUDY.smoke, [], [0, 1], folder)
    assert len(made) == 2 * len(STUDY.smoke[0].arms)
    for job, place in made.items():
        config = grids.parsed(job)
        assert (config.seed, config.epochs) == (place.seed, 5.0)
        assert config.networks["student"].milestones == (3.5, 4.75)  # epochs 11 and 16 of the recipe's 20
        assert study.run_flops(config) > 0
        if place.setting.arms[place.arm].taught:
            assert job.depends_on == (f"digits_vanilla_seed{place.seed}",)
            assert config.networks["teacher"].frozen
            assert job.depends_on[0] in config.networks["teacher"].init_from
    note = study._note(made, "GFLOP")
    assert "seeds 0, 1. 5 epochs of 1,437 images of digits in batches of 64. 'final'" in note
    assert "for kdcl_general of the one that is best on images held out of training" in note
    rco = next(job for job in made if "rco" in job.name)
    assert [anchor.rpartition("@")[2] for anchor in grids.parsed(rco).hyperparameters.anchors] == ["46", "69", "latest"]


def test_study_chooses_arms_and_lengths() -> None:
    made = grids.jobs(STUDY.full[:1], ["kd"], [3], Path("runs/x"), epochs=29.9, flags=["--config.dtype=bfloat16"])
    assert [place.arm for place in made.values()] == ["vanilla", "kd"]
    config = grids.parsed(next(iter(made)))
    assert (config.epochs, config.dtype) == (29.9, "bfloat16")
    assert config.networks["teacher"].milestones == pytest.approx((14.9, 20.9, 25.9), abs=1e-3)
    with pytest.raises(UserError, match="--arms 'switokdd' is none of"):
        grids.jobs(STUDY.full, ["switokdd"], [0], Path("runs/x"))


def test_share_of_expert_steps_over_seeds() -> None:
    """The mean of a run's pairs, then of the runs; those that switch nothing have none."""
    seeds = [{"switch": {"a->s": {"expert_fraction": a}, "b->s": {"expert_fraction": 0.5}}} for a in (0.1, 0.3)]
    spread = sweep.expert_share([*seeds, {"switch": {}}])
    assert isinstance(spread, MeanStd)
    assert spread.values == pytest.approx((30.0, 40.0))
    assert spread.text() == "35.0 ± 7.1"
    assert sweep.expert_share([{"switch": {}}]) is None


def test_gap_study_measures(tmp_path: Path) -> None:
    """Gaps of the last epoch alone, by arm and teacher, in the order of arms and sizes; other runs are left out."""
    for name, gaps in (
        ("dml_seed0", (9.0, 1.0, 2.0)),
        ("dml_seed1", (9.0, 3.0, 4.0)),
        ("vanilla_seed0", ()),
        ("other_seed0", (5.0,)),
    ):
        folder = tmp_path / f"digits_{name}"
        folder.mkdir()
        networks = {
            "teacher": {"model": "wrn_10_1", "parameters": 77898},
            "student": {"final_top1": 80.0 + 2 * int(name[-1])},
        }
        (folder / "summary.json").write_text(json.dumps({"networks": networks, "epochs": 2.0}))
        (folder / "config.json").write_text("{}")
        lines = [
            {"split": "train", "epoch": epoch, "teacher->student/gap": gap}
            for epoch, gap in zip((1.0, 1.5, 2.0), gaps, strict=False)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    vanilla, dml = gap_study.measured(tmp_path)
    assert (vanilla.arm, vanilla.top1.values, vanilla.gap.values) == ("vanilla", (80.0,), ())
    assert (dml.arm, dml.teacher, dml.parameters) == ("dml", "wrn_10_1", 77898)
    assert (dml.top1.values, dml.gap.values) == ((80.0, 82.0), (1.5, 3.5))
    assert [path.name for path in gap_study.finish(tmp_path)] == ["gap.png", "gap.md", "gap.csv", "gap.tex"]
    row = (tmp_path / "gap.md").read_text().splitlines()[5]
    assert row == "| dml | wrn_10_1 | 77,898 | 81.00 ± 1.41 | 2.500 ± 1.414 |"


def test_a_route_takes_four_epochs() -> None:
    with pytest.raises(UserError, match=r"arm 'rco' goes through 4 checkpoints .* at least --epochs=4"):
        grids.jobs(STUDY.smoke, [], [0], Path("runs/x"), epochs=3)
    made = grids.jobs(STUDY.smoke, ["kd"], [0], Path("runs/x"), epochs=1)
    assert [place.arm for place in made.values()] == ["vanilla", "kd"]
    assert {grids.parsed(job).epochs for job in made} == {1.0}


def test_a_smoke_table_for_real(tmp_path: Path) -> None:
    """Vanilla, then KD from its teacher, and again: nothing is left to do."""
    command = [sys.executable, "experiments/table_cifar.py", "--smoke", f"--workdir={tmp_path}", "--arms", "kd"]
    command += ["--seeds", "0", "--epochs=1", "--", "--config.networks.teacher.model=resnet8"]
    for expected in ("[2/2] digits_kd_seed0", "2 of 2 runs are done"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
        assert expected in done.stdout
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| digits")]
    assert [row.split(" | ")[1] for row in rows] == ["vanilla", "kd"]
    assert (tmp_path / "table.tex").exists()
    assert (tmp_path / "results" / "digits_kd_seed0.json").exists()

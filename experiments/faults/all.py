"""Runs all proofs of reliability, each in a process of its own, and prints the table of docs/reliability.md.

python experiments/faults/all.py            # about an hour on two cores
python experiments/faults/all.py --share=0.1

Exit status 1 if one of them finds a fault; its output is printed then.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
TIMEOUT_S = 3600.0  # of one proof


@dataclasses.dataclass(frozen=True)
class Proof:
    """One proof.

    Attributes:
      text: what is tried, for the table.
      script: its file.
      flag: the flag with the number of trials.
      trials: their number.
    """

    text: str
    script: str
    flag: str
    trials: int


PROOFS = (
    Proof("SIGKILL at a random moment, half of them within a save", "storm.py", "kills", 30),
    Proof("a full disk at a random moment", "full_disk.py", "fillings", 20),
    Proof("a signal to the process group: memory, stream, two processes, sweep", "group_signals.py", "signals", 40),
    Proof("two starts in one workdir", "double_starts.py", "starts", 10),
    Proof("odd or damaged image files, both pipelines and predict", "image_files.py", "files", 3000),
    Proof("a workdir with a damaged or replaced file", "workdir_files.py", "workdirs", 2000),
)


def run(proof: Proof, trials: int) -> tuple[str, str]:
    """Runs a proof; returns its line of the table, and its output if it found faults."""
    begin = time.monotonic()
    command = [sys.executable, "-m", f"experiments.faults.{Path(proof.script).stem}", f"--{proof.flag}={trials}"]
    try:
        done = subprocess.run(
            command, cwd=FOLDER.parents[1], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        output, result = done.stdout + done.stderr, "no fault" if done.returncode == 0 else "FAULTS"
    except subprocess.TimeoutExpired as error:
        output, result = str(error.stdout), "NO END"
    line = f"| {proof.text} | {trials:,} | {(time.monotonic() - begin) / 60:.0f} min | {result} |"
    return line, "" if result == "no fault" else output


def main() -> None:
    """Reads the flags and prints the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the trials, for a shorter run")
    share = parser.parse_args().share
    print("| What is tried | How often | Time | Result |\n|---|---|---|---|", flush=True)
    outputs = []
    for proof in PROOFS:
        line, output = run(proof, max(round(share * proof.trials), 1))
        print(line, flush=True)
        outputs += [f"\n{proof.script}:\n{output[-4000:]}"] * bool(output)
    print("".join(outputs))
    sys.exit(1 if outputs else 0)


if __name__ == "__main__":
    main()

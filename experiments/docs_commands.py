"""Runs the commands of README.md, CONTRIBUTING.md and docs/, and the notebook, to find what no longer works.

python experiments/docs_commands.py            # all that this machine can run, shortened: 40 minutes on two cores
python experiments/docs_commands.py --list     # each command, and how it is run
python experiments/docs_commands.py --only docs/own_method.md --whole    # a page unchanged, nothing shortened

The commands of a page run in their order, in a scratch folder that links to configs/, examples/ and the like of the
repository, and that holds the files which the page asks its reader to write. The exit status is 1 if a command fails,
or if no rule of `WAYS` matches it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("index", "glossary", "training", "methods", "results", "papers")),
    *(f"docs/{name}.md" for name in ("short_runs", "when_teachers_pause", "own_method")),
    *(
        f"docs/{name}.md"
        for name in ("architecture", "measured", "performance", "scaling", "pods", "reliability", "api")
    ),
)
PROGRAMS = ("python ", "make ", "pip ", "mkdocs ", "sbatch ", "experiments/launch/tpu_slice.sh --")
TIMEOUT_S = 1800.0  # of one command
TIMED_OUT = 124  # exit status of such a command, as that of `timeout`


@dataclasses.dataclass(frozen=True)
class Command:
    """A command on a page.

    Attributes:
      text: the command as one line, without the comment after it.
      page: path of the page, relative to the repository.
      line: number of its first line, from 1.
    """

    text: str
    page: str
    line: int


@dataclasses.dataclass(frozen=True)
class Way:
    """Rule for running all commands that start in the same way.

    Attributes:
      start: a regular expression that the start of a command matches.
      more: flags that shorten the command; the last one of a repeated flag takes effect.
      quick: whether the tests run the command too.
      needs: a module or program that the command requires.
      elsewhere: what runs the command, if this script does not.
    """

    start: str
    more: str = ""
    quick: bool = False
    needs: str = ""
    elsewhere: str = ""


SMALL = "--config.networks.teacher.model=resnet8 --config.networks.student.model=resnet8"
MAIN, SPEED = r"python -m switokd_jax\.main", r"python experiments/speed"
GRID = r"python experiments/(table_\w+|ablation_threshold|gap_study|switch_study)\.py"
# The first rule that matches applies. Published recipes run on digits: their own data sets are large downloads, and
# they train for days.
WAYS = (
    Way(r"make demo"),
    Way(r"make test|pip check", elsewhere=".ci/run"),
    Way(r"pip install (-r|--no-deps)", elsewhere="make demo"),
    Way(r"pip install -e", elsewhere="tests/test_docs.py compares the extras with setup.cfg"),
    Way(r"mkdocs build", elsewhere="tests/test_docs.py"),
    Way(r"make (bench|table|newest)", "--dry-run"),
    Way(r"(PROJECT=\S+ .*|)experiments/launch/tpu_slice\.sh|sbatch ", elsewhere="tests/parallel/test_launch.py"),
    Way(MAIN + r" \.\.\. --coordinator", elsewhere="tests/parallel/test_multihost.py"),
    Way(MAIN + r" --help", quick=True),
    Way(MAIN + r" --config=my_method", "--config.epochs=1 --dry_run", quick=True),
    Way(MAIN + r" --config=configs/cifar100_offline\.py", elsewhere="tests/train/test_method_steps.py"),
    Way(MAIN + r" --config=configs/(cifar100|online\.py:cifar100)", "--config.data.name=digits --config.steps=10"),
    Way(MAIN + r" .*--config\.data\.name=folder", elsewhere="tests/data/test_folder.py"),
    Way(MAIN + r" --config=configs/digits", f"--config.steps=2 {SMALL}", quick=True),
    Way(MAIN, "--config.epochs=1"),
    Way(r"python -m switokd_jax\.(evaluate|predict|export) --workdir=runs/digits", quick=True),
    # A grid of days of training.
    Way(r"python -m switokd_jax\.figures runs/gap_study", elsewhere="tests/figures/test_figures.py"),
    Way(r"python -m switokd_jax\.(figures|report)"),
    Way(r"python -m switokd_jax\.sweep .* -- ", "--config.epochs=1"),
    Way(r"python -m switokd_jax\.sweep", "-- --config.epochs=1"),
    Way(GRID + " --plan"),
    Way(GRID + " --smoke", "--seeds 0 --epochs=4"),
    Way(GRID, "--plan"),
    Way(r"python experiments/keep_best\.py", elsewhere="tests/analysis/test_keep_best.py"),
    Way(r"python experiments/card\.py.* --smoke", "--seconds=600 --seeds 0 -- --config.epochs=1"),
    Way(r"python experiments/card\.py", elsewhere="tests/analysis/test_card.py"),
    Way(r"python experiments/pretrained_logits\.py", needs="timm"),
    Way(r"python experiments/docs_commands\.py", "--list"),
    Way(r"python experiments/faults/slurm_grid\.py", needs="slurmctld"),
    Way(r"python experiments/faults/storm\.py", "--kills=2"),
    Way(r"python experiments/faults/full_disk\.py", "--fillings=2"),
    Way(r"python experiments/faults/reruns\.py", "--config.epochs=1"),
    Way(r"python experiments/faults/all\.py", "--share=0.02"),
    Way(r"python experiments/faults/(group_signals|double_starts|image_files|workdir_files)\.py", "--seed=0"),
    Way(r"python experiments/look\.py", needs="chromium"),
    Way(r"python experiments/launch/launch_local\.py", "--config.epochs=1"),
    Way(r"python experiments/scale/compile_pod\.py", "--topology=cpu:2 --batch_per_chip=2"),
    Way(r"python experiments/scale/scaling\.py", elsewhere="tests/test_scaling.py"),
    Way(SPEED + r"/compare_torch\.py", "--rounds=1 --steps=1 --device=cpu", needs="torch"),
    Way(SPEED + r"/stream\.py", "--rounds=1 --images=128 --files=64", needs="torch"),
    Way(SPEED + r"/convolutions\.py", "--rounds=1"),
    Way(SPEED + r"/gpu_ways\.py", "--teacher=resnet8 --student=resnet8 --dtypes=float32 --steps=1 --rounds=1"),
    Way(SPEED + r"/packing\.py", "--config=configs/digits.py --config.steps=20"),
    Way(SPEED + r"/switching_cost\.py", "--rounds=1 --steps=1"),
    Way(SPEED + r"/live\.py", "--rounds=1 --epochs=1"),
    Way(SPEED + r"/start\.py .*-- FLAGS OF MAIN", "--config=configs/digits.py --config.epochs=1"),
    Way(SPEED + r"/start\.py", "--config.data.name=digits"),
    Way(SPEED + r"/trace_table\.py"),
    Way(SPEED + r"/method_cost\.py", "--arms one"),
)
# Placeholders for something of the reader's own, and their substitutes.
PLACEHOLDERS = {"IMAGE...": "image.png", "--set ...": "", "FLAGS OF MAIN": ""}


def commands(page: str) -> list[Command]:
    """Returns the commands of a page: from indented blocks and backquotes; commands joined by && are split."""
    text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), (ROOT / page).read_text(), flags=re.M | re.S)
    blocks = re.finditer(r"^ {4}((?:.*\\\n)*.+)", text, re.M)
    spans = re.finditer(r"`([^`]+)`", text)
    result = []
    for match in sorted([*blocks, *spans], key=lambda match: match.start()):
        joined = " ".join(match[1].replace("\\\n", " ").split(" #")[0].split())
        line = text.count("\n", 0, match.start()) + 1
        if re.sub(r"^([A-Z]+=\S+ )+", "", joined).startswith(PROGRAMS):
            result += [Command(command, page, line) for command in joined.split(" && ")]
    return result


def files(page: str) -> dict[str, str]:
    """Returns the files that a page asks its reader to write, content by name.

    These are the Python blocks that follow a line such as "Write `my_method.py`:".
    """
    blocks = re.finditer(r"^Write `(\w+\.py)`:\n\n```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return {block[1]: block[2] for block in blocks}


def way(command: Command) -> Way | None:
    """Returns the rule for a command; None if there is none."""
    return next((way for way in WAYS if re.match(way.start, command.text)), None)


def make_scratch(folder: Path) -> None:
    """Fills a scratch folder with links to the repository and the files that readers of its pages have besides."""
    for path in ROOT.iterdir():
        if path.name != "runs" and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    for page in PAGES:
        for name, text in files(page).items():
            (folder / name).write_text(text)
    gradient = np.add.outer(np.arange(24), np.arange(24)).astype(np.uint8) * 5
    Image.fromarray(gradient).save(folder / PLACEHOLDERS["IMAGE..."])


def run(command: Command, folder: Path, *, whole: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs one command in a scratch folder, with this Python.

    Args:
      command: one that has a rule, and is not run elsewhere.
      folder: filled by `make_scratch`.
      whole: runs the command unchanged, not shortened.

    Returns:
      The finished process; its status is `TIMED_OUT` if it took longer than `TIMEOUT_S`.
    """
    rule = way(command)
    assert rule is not None
    text = command.text if whole else f"{command.text} {rule.more}"
    for placeholder, substitute in PLACEHOLDERS.items():
        text = text.replace(placeholder, substitute)
    words = [sys.executable if word == "python" else word for word in shlex.split(text)]
    try:
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(words, TIMED_OUT, "", f"not done after {late.timeout:.0f} s")


def _is_available(needed: str) -> bool:
    return not needed or importlib.util.find_spec(needed) is not None or shutil.which(needed) is not None


def _run_all(page_commands: list[Command], folder: Path, *, whole: bool) -> Iterator[bool]:
    """Runs commands one after another and prints the outcome; yields whether each succeeded."""
    started: set[str] = set()
    for command in page_commands:
        location = f"{command.page}:{command.line}"
        rule = way(command)
        if rule is None:
            print(f"{'unknown':8} {'':6} {location} {command.text}")
            yield False
        elif rule.elsewhere or not _is_available(rule.needs):
            print(f"{'skipped':8} {'':6} {location} {command.text}: {rule.elsewhere or 'needs ' + rule.needs}")
        elif command.text not in started:
            started.add(command.text)
            start = time.monotonic()
            done = run(command, folder, whole=whole)
            outcome = "ok" if done.returncode == 0 else f"status {done.returncode}"
            print(f"{outcome:8} {time.monotonic() - start:5.0f}s {location} {command.text}", flush=True)
            if done.returncode:
                print((done.stdout + done.stderr)[-2000:])
            yield done.returncode == 0


def run_notebook(path: Path) -> None:
    """Runs a notebook in its folder, as readers open it.

    Raises:
      CellExecutionError: for a cell that fails.
    """
    import nbformat  # of the packages for developers, as is the next
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": path.parent}}).execute()
    print(f"{'ok':8} {path.relative_to(ROOT)}")


def main() -> None:
    """Reads the flags, runs the commands and prints how many succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES), help="these pages")
    parser.add_argument("--whole", action="store_true", help="run the commands unchanged, not shortened")
    parser.add_argument("--list", action="store_true", help="print each command and how it is run")
    args = parser.parse_args()
    if args.list:
        for command in [command for page in args.only for command in commands(page)]:
            rule = way(command)
            how = "unknown" if rule is None else rule.elsewhere or rule.more or "unchanged"
            print(f"{command.page}:{command.line} {command.text}\n    {how}")
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    succeeded: list[bool] = []
    for page in args.only:
        with tempfile.TemporaryDirectory() as scratch:
            make_scratch(Path(scratch))
            succeeded += _run_all(commands(page), Path(scratch), whole=args.whole)
    if args.only == list(PAGES):
        run_notebook(ROOT / "examples" / "quickstart.ipynb")
    print(f"{sum(succeeded)} of {len(succeeded)} succeeded")
    sys.exit(0 if all(succeeded) else 1)


if __name__ == "__main__":
    main()

"""Runs the commands of README.md, CONTRIBUTING.md and docs/, so that none of them rots.

python experiments/docs_commands.py            # all that this machine can run, made short: 40 minutes on two cores
python experiments/docs_commands.py --list     # each command, and how it is run
python experiments/docs_commands.py --only docs/own_method.md --whole    # a page as it stands, nothing made short

The commands of a page run in their order, in a scratch folder where configs/, examples/ and the like are the
repository's, beside the files that the page has its reader write. Exit status 1 if a command fails, or if none of
`WAYS` says how to run it.
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
    *(f"docs/{name}.md" for name in ("index", "glossary", "training", "results", "own_method")),
    *(f"docs/{name}.md" for name in ("architecture", "measured", "performance", "pods", "api")),
)
PROGRAMS = ("python ", "make ", "pip ", "mkdocs ", "sbatch ", "experiments/launch/tpu_slice.sh --")
PATIENCE = 1800.0  # seconds, for one command


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as a page has it.

    Attributes:
      text: one line, without the comment behind it.
      page: relative to the repository.
      line: its first, from 1.
    """

    text: str
    page: str
    line: int


@dataclasses.dataclass(frozen=True)
class Way:
    """How commands are run that start like this.

    Attributes:
      start: a regular expression.
      more: flags that make them short; of a flag given twice the last holds.
      quick: whether the tests run them too.
      needs: a module or program without which they do not run.
      elsewhere: what runs them, in place of this script.
    """

    start: str
    more: str = ""
    quick: bool = False
    needs: str = ""
    elsewhere: str = ""


MAIN, SPEED = r"python -m switokd_jax\.main", r"python experiments/speed"
GRID = r"python experiments/(table_\w+|ablation_threshold|gap_study)\.py"
# The first that fits. Published recipes take digits' images: their own are a download, and days of training.
WAYS = (
    Way(r"make demo"),
    Way(r"make test|pip check", elsewhere=".ci/run"),
    Way(r"pip install (-r|--no-deps)", elsewhere="make demo"),
    Way(r"pip install -e", elsewhere="tests/test_docs.py compares the extras with setup.cfg"),
    Way(r"mkdocs build", elsewhere="tests/test_docs.py"),
    Way(r"make (bench|table)", "--dry-run"),
    Way(r"(PROJECT=\S+ .*|)experiments/launch/tpu_slice\.sh|sbatch ", elsewhere="tests/parallel/test_launch.py"),
    Way(MAIN + r" \.\.\. --coordinator", elsewhere="tests/parallel/test_multihost.py"),
    Way(MAIN + r" --help", quick=True),
    Way(MAIN + r" --config=my_method", "--config.epochs=1 --dry_run", quick=True),
    Way(MAIN + r" --config=configs/cifar100", "--config.data.name=digits --config.steps=10"),
    Way(MAIN + r" .*--config\.data\.name=folder", elsewhere="tests/data/test_folder.py"),
    Way(MAIN + r" --config=configs/digits", "--config.epochs=1", quick=True),
    Way(MAIN, "--config.epochs=1"),
    Way(r"python -m switokd_jax\.(figures|evaluate|predict|export|report) (--workdir=)?runs/digits", quick=True),
    Way(r"python -m switokd_jax\.(figures|report)"),
    Way(r"python -m switokd_jax\.sweep .* -- ", "--config.epochs=1"),
    Way(r"python -m switokd_jax\.sweep", "-- --config.epochs=1"),
    Way(GRID + " --plan", quick=True),
    Way(GRID + " --smoke", "--seeds 0 --epochs=4"),
    Way(GRID, "--plan"),
    Way(r"python experiments/docs_commands\.py", "--list"),
    Way(r"python experiments/faults/storm\.py", "--kills=2"),
    Way(r"python experiments/faults/full_disk\.py", "--fillings=2"),
    Way(r"python experiments/faults/reruns\.py", "--config.epochs=1"),
    Way(r"python experiments/look\.py", needs="chromium"),
    Way(r"python experiments/launch/launch_local\.py", "--config.epochs=1"),
    Way(r"python experiments/scale/compile_pod\.py", "--topology=cpu:2 --batch_per_chip=2"),
    Way(SPEED + r"/compare_torch\.py", "--rounds=1 --steps=1 --device=cpu", needs="torch"),
    Way(SPEED + r"/stream\.py", "--rounds=1 --images=128 --files=64", needs="torch"),
    Way(SPEED + r"/switching_cost\.py", "--rounds=1 --steps=1"),
    Way(SPEED + r"/live\.py", "--rounds=1 --epochs=1"),
    Way(SPEED + r"/start\.py .*-- FLAGS OF MAIN", "--config=configs/digits.py --config.epochs=1"),
    Way(SPEED + r"/start\.py", "--config.data.name=digits"),
    Way(SPEED + r"/trace_table\.py"),
)
# Words that stand for something of the reader's own.
MEANT = {"IMAGE...": "image.png", "--set ...": "", "FLAGS OF MAIN": ""}


def commands(page: str) -> list[Command]:
    """The commands of a page: in indented blocks, and between backquotes; those joined by && one by one."""
    text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), (ROOT / page).read_text(), flags=re.M | re.S)
    blocks = re.finditer(r"^ {4}((?:.*\\\n)*.+)", text, re.M)
    spans = re.finditer(r"`([^`]+)`", text)
    found = []
    for each in sorted([*blocks, *spans], key=lambda each: each.start()):
        whole = " ".join(each[1].replace("\\\n", " ").split(" #")[0].split())
        line = text.count("\n", 0, each.start()) + 1
        if re.sub(r"^([A-Z]+=\S+ )+", "", whole).startswith(PROGRAMS):
            found += [Command(one, page, line) for one in whole.split(" && ")]
    return found


def files(page: str) -> dict[str, str]:
    """What a page has its reader write: the Python blocks that follow a line such as "Write `my_method.py`:"."""
    found = re.finditer(r"^Write `(\w+\.py)`:\n\n```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return {each[1]: each[2] for each in found}


def way(command: Command) -> Way | None:
    """How it is run."""
    return next((way for way in WAYS if re.match(way.start, command.text)), None)


def make_scratch(folder: Path) -> None:
    """Links to the repository, and what the readers of its pages have besides."""
    for path in ROOT.iterdir():
        if path.name != "runs" and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    for page in PAGES:
        for name, text in files(page).items():
            (folder / name).write_text(text)
    gradient = np.add.outer(np.arange(24), np.arange(24)).astype(np.uint8) * 5
    Image.fromarray(gradient).save(folder / MEANT["IMAGE..."])


def run(command: Command, folder: Path, *, whole: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs one command in a scratch folder, with this Python.

    Args:
      command: one that has a way, and no other place.
      folder: of `make_scratch`.
      whole: as it stands, not made short.
    """
    found = way(command)
    assert found is not None
    text = command.text if whole else f"{command.text} {found.more}"
    for word, meant in MEANT.items():
        text = text.replace(word, meant)
    words = [sys.executable if word == "python" else word for word in shlex.split(text)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)


def _present(needed: str) -> bool:
    return not needed or importlib.util.find_spec(needed) is not None or shutil.which(needed) is not None


def _carry_out(chosen: list[Command], folder: Path, *, whole: bool) -> Iterator[bool]:
    """Runs and prints one after another; whether each is well."""
    seen: set[str] = set()
    for command in chosen:
        where = f"{command.page}:{command.line}"
        found = way(command)
        if found is None:
            print(f"{'unknown':8} {'':6} {where} {command.text}")
            yield False
        elif found.elsewhere or not _present(found.needs):
            print(f"{'left':8} {'':6} {where} {command.text}: {found.elsewhere or 'needs ' + found.needs}")
        elif command.text not in seen:
            seen.add(command.text)
            start = time.monotonic()
            done = run(command, folder, whole=whole)
            said = "ok" if done.returncode == 0 else f"status {done.returncode}"
            print(f"{said:8} {time.monotonic() - start:5.0f}s {where} {command.text}", flush=True)
            if done.returncode:
                print((done.stdout + done.stderr)[-2000:])
            yield done.returncode == 0


def main() -> None:
    """Reads flags, runs, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES), help="these pages")
    parser.add_argument("--whole", action="store_true", help="as they stand, nothing made short")
    parser.add_argument("--list", action="store_true", help="print each command and how it is run")
    given = parser.parse_args()
    if given.list:
        for command in [each for page in given.only for each in commands(page)]:
            found = way(command)
            how = "unknown" if found is None else found.elsewhere or found.more or "as it stands"
            print(f"{command.page}:{command.line} {command.text}\n    {how}")
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    well: list[bool] = []
    for page in given.only:
        with tempfile.TemporaryDirectory() as scratch:
            make_scratch(Path(scratch))
            well += _carry_out(commands(page), Path(scratch), whole=given.whole)
    print(f"{sum(well)} of {len(well)} ran well")
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()

"""What the pages tell their readers to do: commands, flags, Python and the notebook."""

from __future__ import annotations

import configparser
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import nbformat
import pytest

import compile_flags
import tiny_runs
from experiments import docs_commands, grids
from experiments.docs_commands import PAGES, Command
from switokd_jax import config as configs
from switokd_jax.methods import METHODS

ROOT = Path(__file__).parents[1]
# Flags of more than one program: of all commands, and of all grids.
SHARED = (ROOT / "switokd_jax" / "cli.py", ROOT / "experiments" / "study.py", ROOT / "switokd_jax" / "sweep.py")
GRIDS = ("table_", "gap_", "ablation_", "switch_", "sweep")
COMMANDS = [command for page in PAGES for command in docs_commands.commands(page)]


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that tests start are a reader's; this one has its devices already."""
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", compile_flags.COMPILE_FLAGS)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tiny_runs.CACHE))


def test_commands_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, over several lines, between backquotes over two; not in prose, not in Python."""
    page = tmp_path / "page.md"
    page.write_text(
        "A `make\nthing`, a `word`:\n\n    python a.py --x \\\n        --y  # why\n"
        "    X=1 sbatch b && pip c\n    runs/a\n\n```python\n    python d.py\n```\n\n"
        "Write `e.py`:\n\n```python\n1\n```\n"
    )
    monkeypatch.setattr(docs_commands, "ROOT", tmp_path)
    found = [(command.text, command.line) for command in docs_commands.commands("page.md")]
    assert found == [("make thing", 1), ("python a.py --x --y", 4), ("X=1 sbatch b", 6), ("pip c", 6)]
    assert docs_commands.files("page.md") == {"e.py": "1\n"}


def test_all_pages_are_read() -> None:
    assert {*PAGES} == {"README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}


def test_every_method_is_on_the_page_of_methods() -> None:
    """In a row of its own, and with its cost if it is an online one."""
    rows = {
        match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", (ROOT / "docs/methods.md").read_text(), re.M)
    }
    assert {*METHODS} == {*rows}
    for name, method in METHODS.items():
        assert method.offline or re.search(r"\| \d[.\d]*, \d[.\d]* \|", rows[name]), name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: f"{each.page}:{each.line}")
def test_somebody_runs_every_command(command: Command) -> None:
    """This file, the script, or what the script names; and its own flags and files are there."""
    way = docs_commands.way(command)
    assert way is not None, f"add {command.text!r} to WAYS of experiments/docs_commands.py"
    for named in re.findall(r"tests/[\w/]+\.py", way.elsewhere):
        assert (ROOT / named).exists()
    words = command.text.split(" -- ")[0].split()
    if match := re.match(r"python (?:-m (switokd_jax\.\w+)|(experiments/\S+\.py))", command.text):
        where = ROOT / (match[1].replace(".", "/") if match[1] else match[2])
        source = "".join(
            path.read_text()
            for path in (where.with_suffix(".py"), where / "__main__.py", *SHARED)
            if path.exists() and (path.name not in ("study.py", "sweep.py") or where.name.startswith(GRIDS))
        )
        flags = {word[2:].split("=")[0] for word in words if word.startswith("--")}
        assert [flag for flag in flags if "." not in flag and not re.search(rf'"(--)?{flag}"', source)] in (
            [],
            ["help"],
        )


FLAG_LINES = [
    (page, line)
    for page in PAGES
    for line in re.sub(r"\\\n", " ", (ROOT / page).read_text()).splitlines()
    if re.search(r"--config\.[\w.]+=", line)
]


@pytest.mark.usefixtures("own_additions")
@pytest.mark.parametrize(("page", "line"), FLAG_LINES, ids=lambda each: str(each)[:60])
def test_every_field_is_one(page: str, line: str, tmp_path: Path) -> None:
    """Each line's fields in one config: names, types, values and what goes together."""
    docs_commands.make_scratch(tmp_path)
    file = re.search(r"--config=(\S+\.py)", line)
    flags = re.findall(r"--config\.((?:\w+\.)*\w+=(?:\"[^\"]*\"|[^\s`,)|]+))", line)
    flags = [flag.replace("NAME", "teacher").replace("=K", "=4").replace('"', "") for flag in flags]
    assert len(flags) == len(re.findall(r"--config\.[\w.]+=", line))
    config = grids.load(str(tmp_path / (file[1] if file else "configs/digits.py")), flags)
    configs.parse(config)


def test_extras_are_in_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = {extra for page in PAGES for extra in re.findall(r"-e '\.\[(\w+)\]'", (ROOT / page).read_text())}
    assert named
    assert named <= {*setup["options.extras_require"]}


@pytest.mark.slow
def test_quick_commands_run(tmp_path: Path) -> None:
    """In one folder: a run, then whatever reads it."""
    docs_commands.make_scratch(tmp_path)
    pages = ("docs/results.md", "docs/training.md", "docs/own_method.md")
    chosen = {each.text: each for page in pages for each in docs_commands.commands(page)}.values()
    quick = [each for each in chosen if (way := docs_commands.way(each)) and way.quick]
    programs = {" ".join(each.text.split()[2:4]) for each in quick}
    assert programs >= {
        "switokd_jax.main --help",
        "switokd_jax.main --config=configs/digits.py",
        "switokd_jax.main --config=my_method.py",
        *(f"switokd_jax.{reader} --workdir=runs/digits" for reader in ("evaluate", "predict", "export")),
    }
    for command in quick:
        done = docs_commands.run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert '"resnet14"' in block
    assert '"resnet8"' in block
    monkeypatch.chdir(tmp_path)
    exec(compile(re.sub("resnet14|resnet8", "two_layers", block), "README.md", "exec"), {})
    assert float(capsys.readouterr().out.splitlines()[-1]) > 20.0
    assert (tmp_path / "runs" / "from_python" / "summary.json").exists()


@pytest.mark.slow
def test_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the training of its second method, in small; experiments/docs_commands.py runs it as it is."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook trains
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", 4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for whole, small in (
        ("c.epochs = 3.0", "c.steps = 2"),
        ('"resnet14"', '"two_layers"'),
        ('"resnet8"', '"one_layer"'),
        ('("switokd", "dml")', '("switokd",)'),
        ("%pip", "#"),
    ):
        assert whole in source
        source = source.replace(whole, small)
    block = re.search(r"^if importlib.*\n.*\n", source, re.M)
    assert block
    pictures: list[Any] = []
    monkeypatch.setattr("IPython.display.display", pictures.append)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source.replace(block[0], ""), "quickstart.ipynb", "exec"), {})
    assert len(pictures) >= 4
    assert "gives logits (5, 10)" in printed.getvalue()


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    api = (tmp_path / "site" / "api.html").read_text()
    assert "switokd_jax.switching.switch" in api

"""The command line in real processes: output, exit status, and the files that they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_runs

ROOT = Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py"


def command(
    *flags: str,
    devices: int = 1,
    start: tuple[str, ...] = ("-m", "switokd_jax.main"),
    before: tuple[str, ...] = (),
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, *start, *flags],
        cwd=ROOT,
        env=tiny_runs.environment(devices),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown config field": ((DIGITS, "--config.sede=1"), "config.sede is not a field; did you mean 'seed'?"),
    "unknown data set": ((DIGITS, "--config.data.name=cifar1000"), "no data set 'cifar1000'; did you mean 'cifar100'?"),
    "batch and devices": ((DIGITS, "--config.batch_size=65"), "config.batch_size is 65, which 2 devices do not divide"),
    "unwritable workdir": ((DIGITS, "--workdir=/proc/run"), "--workdir /proc/run cannot be written"),
    "another run": ((DIGITS, "--workdir={another}"), "holds a run with config.seed = 7, not 0; choose another folder"),
    "no such config": (("--config=configs/nope.py",), "No such file or directory: 'configs/nope.py'"),
    "no config": ((), "--config is missing"),
    "no such flag": ((DIGITS, "--workdri=x"), "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
    "not a number": ((DIGITS, "--config.seed=x"), "flag --config.seed=x: invalid literal for int()"),
    "not a flag": ((DIGITS, "digits"), "'digits' is not a flag"),
    "no such block": (
        (DIGITS, "--config.networks.assistant.model=resnet8"),
        "there is no config.networks.assistant; add it to the config file",
    ),
    "pattern in the workdir": (
        (DIGITS, "--workdir={another}/run[lr=0.1]"),
        "contains '[', with which no checkpoint",
    ),
    "seed beyond 32 bits": (
        (DIGITS, "--config.seed=9223372036854775808"),
        "config.seed is 9223372036854775808; it",
    ),
    "huge batch": ((DIGITS, "--config.batch_size=1000000000000000000"), "config.batch_size is 1000000000000000000; it"),
    "workdir that is no text": (
        (DIGITS, "--workdir={another}/\udcff"),
        r"/another/\udcff' is not valid UTF-8, which checkpoints need; choose another name",
    ),
    "folder that is a file": ((DIGITS, "--workdir=setup.cfg"), "--workdir setup.cfg is a file; choose a folder"),
}


# Imports the program once, and forks a process that runs it for each line of the input: arguments, and files for its
# output. Prints their exit statuses.
FORK = """
import json, os, runpy, sys
import switokd_jax.train.loop
for line in sys.stdin:
    arguments, *files = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["switokd_jax.main", *arguments]
        runpy.run_module("switokd_jax.main", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    """Runs every bad input; returns exit status, stdout, stderr, and the files that it left in its folder."""
    config = json.loads(tiny_runs.config_file("digits").get_config().to_json_best_effort())
    folders, lines = [], []
    for flags, _ in BAD.values():
        folder = tmp_path_factory.mktemp("bad")
        (folder / "given" / "another").mkdir(parents=True)
        (folder / "given" / "another" / "config.json").write_text(json.dumps(config | {"seed": 7}))
        given = [flag.format(another=folder / "given" / "another") for flag in flags]
        if not any(flag.startswith("--workdir") for flag in given):
            given.append(f"--workdir={folder / 'given' / 'new'}")
        folders.append(folder)
        lines.append(json.dumps([given, str(folder / "stdout"), str(folder / "stderr")]))
    done = command(devices=2, start=("-c", FORK), stdin="\n".join(lines))
    statuses = [int(line) for line in done.stdout.splitlines()]
    return {
        name: (
            status,
            (folder / "stdout").read_text(),
            (folder / "stderr").read_text(),
            sorted(str(path.relative_to(folder / "given")) for path in (folder / "given").rglob("*")),
        )
        for name, status, folder in zip(BAD, statuses, folders, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_one_line(name: str, results: dict[str, tuple[int, str, str, list[str]]]) -> None:
    status, stdout, stderr, files = results[name]
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("switokd_jax: ")
    assert BAD[name][1] in lines[0]
    assert status == 1
    assert stdout == ""
    assert files == ["another", "another/config.json"]


@pytest.mark.slow
def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    process = command(DIGITS, "--dry_run", f"--workdir={tmp_path / 'run'}", "--config.switokd.epsilon=0.5")
    assert process.returncode == 0, process.stderr
    for line in ("460: 20 epochs of 23", "epsilon = 0.5", "wrn_16_2, 692,522 parameters", "1437 train"):
        assert line in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 80
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_trains_from_prepared_tfds_without_tensorflow(tmp_path: Path) -> None:
    """The process itself lists its imported modules."""
    script = (
        "import sys, pathlib\n"
        "from switokd_jax import main\n"
        "main.cli()\n"
        "pathlib.Path(sys.argv[-1].partition('=')[2], 'modules').write_text('\\n'.join(sys.modules))\n"
    )
    process = command(
        DIGITS,
        "--config.data.name=tiny_images",
        f"--config.data.dir={ROOT / 'tests/data/tfds'}",
        "--config.networks.teacher.model=resnet8",
        "--config.networks.student.model=resnet8",
        "--config.batch_size=25",
        "--config.steps=2",
        "--config.log.tensorboard=False",
        f"--workdir={tmp_path / 'run'}",
        start=("-c", script),
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    modules = (tmp_path / "run" / "modules").read_text().splitlines()
    assert "tensorflow_datasets" in modules
    assert not [name for name in modules if name.split(".")[0] in ("tensorflow", "torch")]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "gpu", "nonsense"])
def test_a_backend_that_is_not_there_is_named(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    process = command(DIGITS, "--dry_run")
    assert process.returncode == 1
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith(f"switokd_jax: JAX cannot use JAX_PLATFORMS='{platform}' here (")


@pytest.mark.slow
def test_a_user_without_home_and_entry_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under docker run --user."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    script = (
        "import pwd, sys\n"
        "def nobody(uid): raise KeyError(f'getpwuid(): uid not found: {uid}')\n"
        "pwd.getpwuid = nobody\n"
        "from switokd_jax import main\n"
        "main.cli()\n"
    )
    process = command(DIGITS, "--dry_run", start=("-c", script))
    assert process.returncode == 0, process.stderr
    assert "student: wrn_10_1" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("ulimit -n 64", "64 files may be open at a time; raise the limit to 256 or more with `ulimit -n`"),
        ("ulimit -f 8", "no checkpoint could be written: a file may hold 0.01 MiB, and one takes up to 0."),
    ],
)
def test_limits_of_the_shell_are_named(limit: str, message: str, tmp_path: Path) -> None:
    flags = ("--config=tests/tiny_digits.py", "--config.epochs=1", f"--workdir={tmp_path / 'run'}")
    own_cache = f"JAX_COMPILATION_CACHE_DIR={tmp_path / 'cache'}"  # JAX leaves what it cannot write whole
    process = command(*flags, before=("env", own_cache, "bash", "-c", f'{limit}; exec "$@"', "bash"))
    assert process.returncode == 1
    lines = process.stderr.strip().splitlines()
    assert lines[-1].startswith(f"switokd_jax: {message}")
    assert len(lines) < 10
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_run_survives_warnings_of_other_packages(tmp_path: Path) -> None:
    """`python -W error` raises them; ours are errors still."""
    flags = ("--config=tests/tiny_digits.py", "--config.epochs=1", f"--workdir={tmp_path / 'run'}")
    process = command(*flags, start=("-W", "error", "-m", "switokd_jax.main"))
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_little_shared_memory_is_named(tmp_path: Path) -> None:
    """As in a container of few megabytes of /dev/shm: the kernel ends a worker, and its status alone says nothing."""
    tiny_runs.photographs(tmp_path / "images", 64)
    data = ("name=folder", f"dir={tmp_path / 'images'}", "pipeline=stream", "image_size=160", "workers=1")
    flags = ["--config=tests/tiny_digits.py", *(f"--config.data.{field}" for field in data)]
    flags += ["--config.batch_size=28", f"--workdir={tmp_path / 'run'}"]
    small = 'mount -t tmpfs -o size=1m shm /dev/shm && exec "$@"'
    process = command(*flags, before=("unshare", "--map-root-user", "--mount", "sh", "-c", small, "sh"))
    if "unshare" in process.stderr or "mount" in process.stderr:
        pytest.skip(f"no tmpfs can be mounted here: {process.stderr}")
    assert process.returncode == 1
    assert "/dev/shm is full: lower config.data.workers or config.batch_size" in process.stderr
    assert "Traceback" not in process.stderr

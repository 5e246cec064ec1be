"""The package as a wheel: built, installed in a folder and run from another one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGING = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "switokd_jax", source / "switokd_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", source / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in PACKAGING:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert held == {
        str(path.relative_to(source))
        for path in (source / "switokd_jax").rglob("*")
        if path.suffix == ".py" or path.name in ("py.typed", "report.html")
    } | {f"switokd_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=120
    )
    # As a user without the repository has it: a config of his own, in a folder of his own.
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(
        "from switokd_jax import config\n\n\ndef get_config():\n    c = config.default()\n"
        "    c.networks.teacher.model = 'resnet8'\n    return c\n"
    )
    main = [sys.executable, "-P", "-m", "switokd_jax.main"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [*main, "--config=mine.py", "--dry_run"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "teacher: resnet8, 75,002 parameters" in done.stdout
    where = [sys.executable, "-P", "-c", "import switokd_jax; print(switokd_jax.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site)
    # The command that pip has installed, and a config of the package by its name.
    small = [f"--config.networks.{name}.model=resnet8" for name in ("teacher", "student")]
    command = [str(site / "bin" / "switokd"), "train", "--config=digits", "--workdir=w", "--config.steps=1"]
    flags = [*small, "--config.log.tensorboard=False"]
    done = subprocess.run(
        [*command, *flags], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "w" / "summary.json").exists()
    done = subprocess.run([*main, "--workdir=x"], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--config is missing; give a file" in done.stderr

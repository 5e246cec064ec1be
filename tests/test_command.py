"""The command `switokd`: its subcommands, its help, mistakes, completion, and configs by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from switokd_jax import __main__ as command
from switokd_jax import cli
from switokd_jax.config_files import find_config, package_configs

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["switokd", *arguments])
    command.main()


def test_every_module_that_is_a_command_has_a_subcommand() -> None:
    modules = {path.stem for path in (ROOT / "switokd_jax").glob("*.py") if "def main" in path.read_text()}
    modules |= {path.parent.name for path in (ROOT / "switokd_jax").glob("*/__main__.py")}
    assert {*command.commands()} == modules - {"__main__", "main"} | {"train"}
    assert all(len(text) > 15 for text in command.commands().values())


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_the_help_lists_all_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    run(monkeypatch, *arguments)
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in command.commands())
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("name", "hint"), [("trian", "did you mean 'train'"), ("x", "commands are evaluate, export, figures, predict")]
)
def test_a_mistyped_command_is_told_so(monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    with pytest.raises(SystemExit, match=f"switokd_jax: '{name}' is no command; {hint}"):
        run(monkeypatch, name)


@pytest.mark.slow
def test_a_subcommand_is_its_module() -> None:
    """With the module's own help and exit status, from any folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", "switokd_jax"]
    done = subprocess.run([*start, "export", "--help"], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--format" in done.stdout
    done = subprocess.run([*start, "train", "--config=digts"], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("switokd_jax: --config: ")
    assert "\n" not in done.stderr.strip()


def test_bash_completes_commands_and_configs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--completion")
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        array = " ".join(f"'{word}'" for word in words)
        call = f"COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _switokd; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        text = subprocess.run(["bash", "-c", f"{script}\n{call}"], capture_output=True, text=True, check=True).stdout
        return text.split()

    assert completed("switokd", "e") == ["evaluate", "export"]
    assert completed("switokd", "train", "--config", "=", "digits_c") == ["digits_chain3", "digits_chain4"]
    assert completed("switokd", "train", "--config", "digits_c") == ["digits_chain3", "digits_chain4"]
    assert completed("switokd", "train", "--dr") == ["--dry_run"]


def test_configs_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the package from any folder; a file of that path comes first, and an argument stays."""
    monkeypatch.chdir(tmp_path)
    digits = str(ROOT / "configs" / "digits.py")
    assert {find_config(name) for name in ("digits", "digits.py", "configs/digits.py")} == {digits}
    assert find_config("online:digits,dml") == f"{ROOT / 'configs' / 'online.py'}:digits,dml"
    assert {path.stem for path in package_configs()} == {path.stem for path in (ROOT / "configs").glob("*.py")}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").touch()
    assert find_config("configs/digits.py") == "configs/digits.py"
    assert find_config("digits") == digits
    assert find_config("digts") == "digts"
    words = ["main", "--config=digits", "--config.seed=1", "-config", "digits", "--workdir", "digits"]
    assert cli.with_config_path(words) == [
        *("main", f"--config={digits}", "--config.seed=1", "-config", digits, "--workdir", "digits")
    ]

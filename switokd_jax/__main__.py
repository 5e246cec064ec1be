"""The command `switokd`: one subcommand for each module that is a command.

switokd train --config=digits --workdir=runs/digits
switokd report runs/digits

`switokd COMMAND ...` is `python -m switokd_jax.MODULE ...`. `switokd COMMAND --help` explains the command, and
`switokd --completion` prints what bash and zsh need to complete commands and configs: eval "$(switokd --completion)".
"""

from __future__ import annotations

import difflib
import runpy
import sys

# By command: its module, and what it does.
COMMANDS = {
    "train": ("main", "trains the networks of a config, and resumes"),
    "evaluate": ("evaluate", "accuracy, loss and calibration of a run's networks"),
    "predict": ("predict", "classes of image files"),
    "export": ("export", "one network as StableHLO, safetensors or PyTorch file"),
    "figures": ("figures", "figures of one run or several"),
    "report": ("report", "one HTML file with all of a run"),
    "sweep": ("sweep", "runs over seeds and values, and their table"),
}
COMPLETION = """_switokd() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [ "$before" = --config ] || {{ [ "$before" = = ] && [ "${{COMP_WORDS[COMP_CWORD-2]}}" = --config ]; }}; then
        COMPREPLY=($(compgen -W "{configs}" -- "$word") $(compgen -f -X '!*.py' -- "$word"))
    else COMPREPLY=($(compgen -f -W "--config --workdir --dry_run --help" -- "$word")); fi
}}
[ -n "$ZSH_VERSION" ] && autoload -Uz bashcompinit && bashcompinit
complete -o default -F _switokd switokd"""


def main() -> None:
    """Runs a subcommand in this process."""
    name, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help", "help"):
        print(help_text())
    elif name == "--version":
        from switokd_jax import __version__

        print(f"switokd_jax {__version__}")
    elif name == "--completion":
        from switokd_jax.config_files import package_configs

        names = " ".join(sorted(path.stem for path in package_configs()))
        print(COMPLETION.format(commands=" ".join(COMMANDS), configs=names))
    elif name in COMMANDS:
        sys.argv = [f"switokd {name}", *rest]
        runpy.run_module(f"switokd_jax.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(COMMANDS)}"
        sys.exit(f"switokd_jax: {name!r} is no command; {hint}")


def help_text() -> str:
    """Returns the description and the list of commands."""
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([(__doc__ or "").strip(), "", "commands:", *lines])


if __name__ == "__main__":
    main()

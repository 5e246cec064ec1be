"""The command `switokd`: one subcommand for each module that is a command.

switokd train --config=digits --workdir=runs/digits
switokd report runs/digits

`switokd COMMAND ...` is `python -m switokd_jax.MODULE ...`. `switokd COMMAND --help` explains the command, and
`switokd --completion` prints what bash and zsh need to complete commands and configs: eval "$(switokd --completion)".
"""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent
START = 'if __name__ == "__main__":'  # of the part of a module that makes it a command
COMPLETION = """_switokd() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [ "$before" = --config ] || {{ [ "$before" = = ] && [ "${{COMP_WORDS[COMP_CWORD-2]}}" = --config ]; }}; then
        COMPREPLY=($(compgen -W "{configs}" -- "$word") $(compgen -f -X '!*.py' -- "$word"))
    else COMPREPLY=($(compgen -f -W "--config --workdir --dry_run --help" -- "$word")); fi
}}
[ -n "$ZSH_VERSION" ] && autoload -Uz bashcompinit && bashcompinit
complete -o default -F _switokd switokd"""


def commands() -> dict[str, str]:
    """Returns what each command does, by name: the beginning of the docstring of its module, which is not imported."""
    paths = {path.stem: path for path in PACKAGE.glob("[!_]*.py")}
    paths |= {path.parent.name: path for path in PACKAGE.glob("*/__main__.py")}
    texts = {name: path.read_text() for name, path in paths.items()}
    first_lines = {
        module: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].partition(":")[0].rstrip(".")
        for module, text in texts.items()
        if START in text
    }
    return {command_name(module): first_lines[module] for module in sorted(first_lines, key=command_name)}


def command_name(module: str) -> str:
    """Returns the command of a module: its name, but for `main`.

    >>> command_name("main"), command_name("report")
    ('train', 'report')
    """
    return "train" if module == "main" else module


def main() -> None:
    """Runs a subcommand in this process."""
    known = commands()
    name, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help", "help"):
        print(help_text(known))
    elif name == "--version":
        from switokd_jax import __version__

        print(f"switokd_jax {__version__}")
    elif name == "--completion":
        from switokd_jax.config_files import package_configs

        names = " ".join(sorted(path.stem for path in package_configs()))
        print(COMPLETION.format(commands=" ".join(known), configs=names))
    elif name in known:
        sys.argv = [f"switokd {name}", *rest]
        module = "main" if name == "train" else name
        runpy.run_module(f"switokd_jax.{module}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(known)}"
        sys.exit(f"switokd_jax: {name!r} is no command; {hint}")


def help_text(known: dict[str, str]) -> str:
    """Returns the description and the list of commands."""
    lines = [f"  {name:<10}{text}" for name, text in known.items()]
    return "\n".join([(__doc__ or "").strip(), "", "commands:", *lines])


if __name__ == "__main__":
    main()

"""Errors that end a run with one line, and the phrases that such lines are made of."""

from __future__ import annotations

import difflib
import importlib
import signal
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

# Exit status after a signal. 75 is EX_TEMPFAIL of sysexits.h: try again later. Shells report 128 + 2 after Ctrl-C.
EXIT_STATUS = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}


class UserError(ValueError):
    """A setting, file or input that the user can correct; the message is one line that names it and says what to do."""


class SaveError(Exception):
    """The last checkpoint, or another result of a run, could not be written."""


class NonFiniteError(Exception):
    """A loss or gradient that is not finite.

    Attributes:
      network: name of the network where it began.
      step: global step, from 1.
    """

    def __init__(self, network: str, step: int):
        super().__init__(f"network {network!r}: its loss or gradient is not finite at step {step}")
        self.network, self.step = network, step


class Stopped(Exception):
    """The run was asked to stop by a signal, and has saved.

    Attributes:
      status: exit status for the process.
    """

    def __init__(self, signum: signal.Signals, step: int, total_steps: int, workdir: Path):
        super().__init__(
            f"stopped by {signum.name} after step {step} of {total_steps}, saved in {workdir}; "
            "repeat the command to resume"
        )
        self.status = EXIT_STATUS[signum]


def one_line(error: object) -> str:
    """Formats an error as one line of at most 200 characters; the name of its type if it has no text.

    >>> one_line(ValueError("shape mismatch:\\n  (2, 3) and (3,)"))
    'shape mismatch: (2, 3) and (3,)'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."


def import_extra(module: str, extra: str, asked_by: str, *, otherwise: str = "") -> ModuleType:
    """Imports a package that only an extra of ours installs.

    Args:
      module: its name.
      extra: the extra of setup.cfg.
      asked_by: the field, flag or file that needs it.
      otherwise: what else the user can do.

    Raises:
      UserError: if it is not installed, with the command that installs it.

    >>> import_extra("no_such_module", "hf", "config.field", otherwise="leave it empty")
    Traceback (most recent call last):
    switokd_jax.errors.UserError: config.field needs no_such_module: pip install 'switokd_jax[hf]', or leave it empty
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        alternative = f", or {otherwise}" if otherwise else ""
        raise UserError(f"{asked_by} needs {module}: pip install 'switokd_jax[{extra}]'{alternative}") from None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Suggests the closest option and lists all of them in their order.

    >>> did_you_mean("switok", ["vanilla", "switokd"])
    "did you mean 'switokd'? known: vanilla, switokd"
    """
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(options)}"

"""Errors that end a run with one line, and the words that such lines are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A setting, file or input that the user can correct; the message is one line that names it and says what to do."""


def one_line(error: object) -> str:
    """Formats an error as one line of at most 200 characters; the name of its type if it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Suggests the closest option ('did you mean ...?') and lists all of them in their order."""
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(options)}"

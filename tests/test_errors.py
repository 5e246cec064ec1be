"""Phrases of one-line messages."""

from __future__ import annotations

import pytest

from switokd_jax.errors import did_you_mean, one_line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n  b"), "a b"),
        (KeyError(), "KeyError"),
        ("x" * 300, "x" * 200 + " ..."),
    ],
)
def test_an_error_is_formatted_as_one_line(error: object, text: str) -> None:
    assert one_line(error) == text


def test_the_closest_option_is_suggested() -> None:
    assert did_you_mean("sede", ["epochs", "seed"]) == "did you mean 'seed'? known: epochs, seed"


def test_nothing_is_suggested_if_no_option_is_close() -> None:
    assert did_you_mean("xyz", ["epochs", "seed"]) == "known: epochs, seed"

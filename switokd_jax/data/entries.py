"""Entries of config fields that name functions, perhaps with options: 'cutout(size=16)'."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from switokd_jax.errors import UserError, did_you_mean

Function = Callable[..., Any]


def get_functions(
    field: str, entries: Sequence[str], registry: Mapping[str, Function], inputs: int
) -> dict[str, Function]:
    """Looks up functions by name, and binds their options; the result keeps the order.

    Args:
      field: name of the config field, for messages.
      entries: names, or names with the options that follow a function's inputs: 'rand_augment(2, magnitude=9)'.
      registry: functions by name.
      inputs: number of positional inputs of each function, before its options.

    Raises:
      UserError: naming the first entry that is unknown, repeated, or no name with numbers.
    """
    found: dict[str, Function] = {}
    for entry in entries:
        name, args, options = _parse(field, entry, registry)
        if name not in registry:
            raise UserError(f"config.{field}: {name!r} is unknown; {did_you_mean(name, registry)}")
        if name in found:
            raise UserError(f"config.{field} names {name!r} twice; name it once")
        try:
            inspect.signature(registry[name]).bind(*[None] * inputs, *args, **options)
        except TypeError as error:
            raise UserError(f"config.{field}: {entry!r}: {error}") from None
        found[name] = _with_options(registry[name], args, options)
    return found


def _parse(field: str, entry: str, registry: Mapping[str, Function]) -> tuple[str, list[Any], dict[str, Any]]:
    """Parses NAME or NAME(NUMBER, OPTION=NUMBER)."""
    if entry in registry:
        return entry, [], {}
    try:
        node = ast.parse(str(entry), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        args = [ast.literal_eval(arg) for arg in node.args]
        options = {option.arg: ast.literal_eval(option.value) for option in node.keywords if option.arg}
        if not all(isinstance(value, int | float) for value in [*args, *options.values()]):
            raise ValueError
        return node.func.id, args, options
    except (ValueError, SyntaxError):
        raise UserError(
            f"config.{field}: {entry!r} is neither a name nor a name with numbers, as in 'NAME(OPTION=0.5)'; "
            f"known: {', '.join(registry)}"
        ) from None


def _with_options(function: Function, args: Sequence[Any], options: Mapping[str, Any]) -> Function:
    return lambda *inputs: function(*inputs, *args, **options)

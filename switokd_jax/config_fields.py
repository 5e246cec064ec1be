"""Validated fields of frozen dataclasses: one declaration gives default, type, bounds and error message."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from switokd_jax.errors import UserError, did_you_mean

T = TypeVar("T")
ADAPTIVE = "adaptive"


def text(default: str = "") -> Any:
    """A string."""
    return dataclasses.field(default=default, metadata={"check": _text})


def boolean(default: bool) -> Any:
    """A boolean."""
    return dataclasses.field(default=default, metadata={"check": _boolean})


def choice(default: str, *options: str) -> Any:
    """One of some words; the default is one of them."""
    return key(default, options)


def key(default: str, options: Collection[str]) -> Any:
    """One of some words, or of a dict's keys, as these are when the value is checked: users may have added some."""

    def check(value: Any, path: str) -> str:
        word = _text(value, path)
        if word not in options:
            raise UserError(f"{path} is {word!r}; {did_you_mean(word, options)}")
        return word

    return dataclasses.field(default=default, metadata={"check": check})


def number(default: float, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Any:
    """A finite number with low <= x <= high and x > above."""

    def check(value: Any, path: str) -> float:
        return _bounded(value, path, low, high, above)

    return dataclasses.field(default=float(default), metadata={"check": check})


def integer(default: int, *, low: int) -> Any:
    """A whole number of at least `low`."""

    def check(value: Any, path: str) -> int:
        x = _bounded(value, path, low, math.inf, -math.inf)
        if x != int(x):
            raise UserError(f"{path} is {value!r}; it must be a whole number")
        return int(x)

    return dataclasses.field(default=default, metadata={"check": check})


def adaptive(*, low: float = -math.inf, high: float = math.inf) -> Any:
    """'adaptive' (None after validation) or a number; from the command line both come as text."""

    def check(value: Any, path: str) -> float | None:
        if value is None or value == ADAPTIVE:
            return None
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{path} is {value!r}; it must be 'adaptive' or a number") from None
        return _bounded(value, path, low, high, -math.inf)

    return dataclasses.field(default=None, metadata={"check": check, "shown": ADAPTIVE})


def sequence(default: Iterable[Any] = ()) -> Any:
    """A tuple of anything."""

    def check(value: Any, path: str) -> tuple[Any, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise UserError(f"{path} is {value!r}; it must be a tuple")
        return tuple(value)

    return dataclasses.field(default=tuple(default), metadata={"check": check})


def from_mapping(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Makes the dataclass from raw values, or raises ConfigError for the first that does not fit.

    Args:
      cls: a dataclass whose fields come from this module or are dataclasses themselves.
      values: raw values by name; missing ones keep their defaults.
      path: where the values stand, for messages ('config.data').
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is {values!r}; it is a block of fields")
    specs = config_fields(cls)
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in specs:
            raise UserError(f"{path}.{name} is not a field; {did_you_mean(name, specs)}")
        spec, where = specs[name], f"{path}.{name}"
        if "check" in spec.metadata:
            made[name] = spec.metadata["check"](value, where)
        else:
            made[name] = from_mapping(spec.default_factory, value, where)  # type: ignore[arg-type]
    return cls(**made)


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The raw default values of a dataclass as a user would write them, nested blocks included."""
    return {
        name: spec.metadata.get("shown", spec.default) if "check" in spec.metadata else defaults(spec.default_factory)  # type: ignore[arg-type]
        for name, spec in config_fields(cls).items()
    }


def config_fields(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that a user sets: those made by this module, and blocks of such fields."""
    return {
        spec.name: spec
        for spec in dataclasses.fields(cls)
        if "check" in spec.metadata or dataclasses.is_dataclass(spec.default_factory)
    }


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path} is {value!r}; it must be text")
    return value


def _boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{path} is {value!r}; it must be True or False")
    return value


def _bounded(value: Any, path: str, low: float, high: float, above: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{path} is {value!r}; it must be a number")
    bounds = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
    bounds += [f"above {above:g}"] * (above > -math.inf)
    if not math.isfinite(value) or value < low or value > high or value <= above:
        raise UserError(f"{path} is {value!r}; it must be {' and '.join(['a finite number', *bounds])}")
    return float(value)

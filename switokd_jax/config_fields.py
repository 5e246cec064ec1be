"""Validated fields of frozen dataclasses: each declaration states default, type and bounds.

The functions return a `dataclasses.field`, typed Any as `dataclasses.field` itself is for type checkers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from switokd_jax.errors import UserError, did_you_mean

T = TypeVar("T")
ADAPTIVE = "adaptive"


def text(default: str = "") -> Any:
    """Declares a string."""
    return dataclasses.field(default=default, metadata={"check": _text})


def boolean(default: bool) -> Any:
    """Declares a boolean."""
    return dataclasses.field(default=default, metadata={"check": _boolean})


def choice(default: str, *options: str) -> Any:
    """Declares one of the words `options`, of which `default` is one."""
    return key(default, options)


def key(default: str, options: Collection[str]) -> Any:
    """Declares one of `options`: words or the keys of a registry.

    The options are read when a value is checked, so a config file can add to the registry first.
    """

    def check(value: Any, path: str) -> str:
        word = _text(value, path)
        if word not in options:
            raise UserError(f"{path} is {word!r}; {did_you_mean(word, options)}")
        return word

    return dataclasses.field(default=default, metadata={"check": check})


def number(default: float, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Any:
    """Declares a finite number x with low <= x <= high and x > above."""

    def check(value: Any, path: str) -> float:
        return _bounded(value, path, low, high, above)

    return dataclasses.field(default=float(default), metadata={"check": check})


MAX_INT32 = 2**31 - 1


def integer(default: int, *, low: int, high: int = MAX_INT32) -> Any:
    """Declares a whole number from `low` to `high`."""

    def check(value: Any, path: str) -> int:
        _bounded(value, path, low, high, -math.inf)
        if value != int(value):
            raise UserError(f"{path} is {value!r}; it must be a whole number")
        return int(value)

    return dataclasses.field(default=default, metadata={"check": check})


def adaptive(*, low: float = -math.inf, high: float = math.inf) -> Any:
    """Declares 'adaptive' (None after validation) or a number with low <= x <= high, possibly as text (flags)."""

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
    """Declares a tuple of any values."""

    def check(value: Any, path: str) -> tuple[Any, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise UserError(f"{path} is {value!r}; it must be a tuple")
        return tuple(value)

    return dataclasses.field(default=tuple(default), metadata={"check": check})


def from_mapping(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Creates the dataclass from raw values.

    Args:
      cls: dataclass whose fields are declared by this module or are dataclasses themselves.
      values: raw values by name; missing fields keep their defaults.
      path: name of the block in messages ('config.data').

    Raises:
      UserError: one line that names the first field or value that cannot be used.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is {values!r}; it is a block of fields")
    specs = config_fields(cls)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in specs:
            raise UserError(f"{path}.{name} is not a field; {did_you_mean(name, specs)}")
        spec, where = specs[name], f"{path}.{name}"
        if "check" in spec.metadata:
            checked[name] = spec.metadata["check"](value, where)
        else:
            checked[name] = from_mapping(spec.default_factory, value, where)  # type: ignore[arg-type]
    return cls(**checked)


def defaults(cls: type[Any]) -> dict[str, Any]:
    """Returns the default values of a dataclass as a user would write them, nested blocks included."""
    return {
        name: spec.metadata.get("shown", spec.default) if "check" in spec.metadata else defaults(spec.default_factory)  # type: ignore[arg-type]
        for name, spec in config_fields(cls).items()
    }


def config_fields(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Returns the fields that a user can set: those declared by this module, and blocks of such fields."""
    return {
        spec.name: spec
        for spec in dataclasses.fields(cls)
        if "check" in spec.metadata or dataclasses.is_dataclass(spec.default_factory)
    }


def _show(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) and bound >= 10_000 else f"{bound:g}"


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
    bounds = [f"at least {_show(low)}"] * (low > -math.inf) + [f"at most {_show(high)}"] * (high < math.inf)
    bounds += [f"above {_show(above)}"] * (above > -math.inf)
    if (isinstance(value, float) and not math.isfinite(value)) or value < low or value > high or value <= above:
        raise UserError(f"{path} is {value!r}; it must be {' and '.join(['a finite number', *bounds])}")
    return float(value)

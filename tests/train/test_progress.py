"""The console table: within 80 columns, with any metric in a row."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

from switokd_jax.train.progress import Progress, ProgressStats, format_duration, format_loss


def line(names: list[str], split: str = "test", epoch: float = 3.0) -> dict[str, Any]:
    scores = {f"{name}/{key}": value for name in names for key, value in (("loss", 0.0384), ("top1", 99.16))}
    return {"split": split, "epoch": epoch, "step": 7, **scores, "grad_norm": 1.0, "teacher/distillation/loss": 2.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stats(rate: float, eta: float, expert: float | None, epochs: float = 5.0) -> ProgressStats:
    return ProgressStats(epochs, rate, eta, expert)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0:00"), (59.7, "1:00"), (3599.4, "59:59"), (3661, "1:01:01"), (45296, "12h34m")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_table_fits_80_columns(count: int) -> None:
    names = ["teacher", "a_name_that_is_long", "c", "d"][:count]
    out = io.StringIO()
    table = Progress(100, 0, names, shown=True, file=out)
    table.print_header()
    table.update(line(names, "train"), stats(1000.0, 60.0, 0.5))  # a log file has no live row
    table.add_eval_row(line(names, "validation", 138.7), stats(123456.0, 45296.0, 0.438, 299.0))
    head, row = out.getvalue().splitlines()
    assert len(head) == len(row) <= 80
    assert row.split() == ["val", "139/299", *["0.038", "99.2"] * count, "44", "123456", "12h34m"]
    # Each name stands over the end of its column.
    assert head[: 12 + 12 * count].split()[1:] == [name[:11] for name in names]


def test_no_switch_no_share() -> None:
    out = io.StringIO()
    Progress(100, 0, ["a"], shown=True, file=out).add_eval_row(line(["a"]), stats(10.0, 5.0, None))
    assert out.getvalue().split()[-3:] == ["-", "10", "0:05"]


def test_a_loss_takes_five_characters() -> None:
    shown = {0.0451: "0.045", 9.9996: "10.00", 38.594: "38.59", 385.94: "385.9", 38594.2: "38594", 4e6: "4e+06"}
    assert {loss: format_loss(loss) for loss in shown} == shown
    assert format_loss(math.nan).strip() == "nan"
    out = io.StringIO()
    table = Progress(100, 0, ["a"], shown=True, file=out)
    table.add_eval_row({**line(["a"]), "epoch": 1100.0, "a/loss": 7e9}, stats(10.0, 5.0, None, 1200.0))
    assert "1100/1200 7e+09 " in out.getvalue()


def test_live_row_on_a_terminal() -> None:
    out = Terminal()
    table = Progress(10, 0, ["a"], shown=True, file=out)
    table.print_header()
    table.update(line(["a"], "train"), stats(10.0, 5.0, 0.25))
    table.close()
    assert "\r" in out.getvalue()
    assert "now      3/5 0.038  99.2   25     10    0:05" in out.getvalue()


def test_silence() -> None:
    out = Terminal()
    table = Progress(10, 0, ["a"], shown=False, file=out)
    table.print_header()
    table.update(line(["a"]), stats(1.0, 1.0, None))
    table.add_eval_row(line(["a"]), stats(1.0, 1.0, None))
    table.close()
    assert out.getvalue() == ""

"""Tables in three forms; means and deviations by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from switokd_jax.analysis import tables
from switokd_jax.analysis.tables import MeanStd, Table

TABLE = Table(
    title="Two arms & a half",
    head=("arm", "top-1 %", "published %"),
    rows=(
        ("kd_100%", MeanStd((90.0, 91.0, 95.0)), 92.5),
        ("alone", MeanStd((80.0,)), None),
        ("none", MeanStd(()), 1.0),
    ),
    note="3 seeds.",
)


def test_spread() -> None:
    spread = MeanStd((90.0, 91.0, 95.0))
    assert spread.mean == 92.0
    assert spread.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert spread.text() == "92.00 ± 2.65"
    assert (MeanStd((80.0,)).text(), MeanStd(()).text(), MeanStd((1.0, 2.0), 1).text()) == ("80.00", "-", "1.5 ± 0.7")


def test_markdown() -> None:
    assert tables.markdown(TABLE).splitlines() == [
        "Two arms & a half",
        "",
        "| arm | top-1 % | published % |",
        "| --- | --- | --- |",
        "| kd_100% | 92.00 ± 2.65 | 92.50 |",
        "| alone | 80.00 | - |",
        "| none | - | 1.00 |",
        "",
        "3 seeds.",
    ]


def test_comma_separated() -> None:
    head, first, second, third = csv.reader(tables.comma_separated(TABLE).splitlines())
    assert head == ["arm", "top-1 % mean", "top-1 % deviation", "top-1 % seeds", "published %"]
    assert (first[0], float(first[1]), first[3], first[4]) == ("kd_100%", 92.0, "3", "92.5")
    assert float(first[2]) == pytest.approx(math.sqrt(7))
    assert second == ["alone", "80.0", "", "1", ""]
    assert third == ["none", "", "", "0", "1.0"]


def test_latex() -> None:
    text = tables.latex(TABLE)
    assert r"kd\_100\% & $92.00 \pm 2.65$ & 92.50 \\" in text
    assert r"\caption{Two arms \& a half 3 seeds.}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert text.count(r"\\") == 1 + len(TABLE.rows)


def test_written(tmp_path: Path) -> None:
    paths = tables.write(TABLE, tmp_path / "new" / "table")
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    assert paths[0].read_text() == tables.markdown(TABLE)


def test_aligned() -> None:
    assert tables.aligned([("run", "time"), ("a_long_one", "3 s")]) == "run         time\na_long_one   3 s"


def test_console() -> None:
    """What does not fit stands below, under the same names."""
    assert tables.console(TABLE, 80).splitlines() == [
        "Two arms & a half",
        "",
        "arm           top-1 %  published %",
        "kd_100%  92.00 ± 2.65        92.50",
        "alone           80.00            -",
        "none                -         1.00",
        "",
        "3 seeds.",
    ]
    narrow = tables.console(TABLE, 30)
    assert narrow.split("\n\n")[1:3] == [
        "arm           top-1 %\nkd_100%  92.00 ± 2.65\nalone           80.00\nnone                -",
        "arm      published %\nkd_100%        92.50\nalone              -\nnone            1.00",
    ]
    assert "top-1 %" in tables.console(TABLE, 1)  # too narrow for any column, which is no reason to lose one
    text_only = Table("Names", ("a", "b"), (("x", "y"),))
    assert tables.console(text_only, 80) == "Names\n\na  b\nx  y\n"

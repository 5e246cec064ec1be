"""Tables for files and terminals; means and standard deviations computed by hand."""

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


def test_std_is_that_of_a_sample() -> None:
    seeds = MeanStd((90.0, 91.0, 95.0))
    assert seeds.mean == 92.0
    assert seeds.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        (MeanStd((90.0, 91.0, 95.0)), "92.00 ± 2.65"),
        (MeanStd((80.0,)), "80.00"),
        (MeanStd(()), "-"),
        (MeanStd((1.0, 2.0), digits=1), "1.5 ± 0.7"),
    ],
)
def test_mean_and_std_as_text(seeds: MeanStd, text: str) -> None:
    assert seeds.text() == text


def test_markdown() -> None:
    assert tables.to_markdown(TABLE).splitlines() == [
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


def test_csv_has_mean_std_and_number_of_seeds() -> None:
    head, first, second, third = csv.reader(tables.to_csv(TABLE).splitlines())
    assert head == ["arm", "top-1 % mean", "top-1 % deviation", "top-1 % seeds", "published %"]
    assert (first[0], float(first[1]), first[3], first[4]) == ("kd_100%", 92.0, "3", "92.5")
    assert float(first[2]) == pytest.approx(math.sqrt(7))
    assert second == ["alone", "80.0", "", "1", ""]
    assert third == ["none", "", "", "0", "1.0"]


def test_latex_escapes_and_aligns() -> None:
    text = tables.to_latex(TABLE)
    assert r"kd\_100\% & $92.00 \pm 2.65$ & 92.50 \\" in text
    assert r"\caption{Two arms \& a half 3 seeds.}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert text.count(r"\\") == 1 + len(TABLE.rows)


def test_write_makes_a_file_in_each_format(tmp_path: Path) -> None:
    paths = tables.write(TABLE, tmp_path / "new" / "table")
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    assert paths[0].read_text() == tables.to_markdown(TABLE)


def test_console_aligns_names_left_and_numbers_right() -> None:
    assert tables.to_console(TABLE, 80).splitlines() == [
        "Two arms & a half",
        "",
        "arm           top-1 %  published %",
        "kd_100%  92.00 ± 2.65        92.50",
        "alone           80.00            -",
        "none                -         1.00",
        "",
        "3 seeds.",
    ]


def test_columns_beyond_the_width_follow_below_with_the_row_names() -> None:
    assert tables.to_console(TABLE, 30).split("\n\n")[1:3] == [
        "arm           top-1 %\nkd_100%  92.00 ± 2.65\nalone           80.00\nnone                -",
        "arm      published %\nkd_100%        92.50\nalone              -\nnone            1.00",
    ]


def test_a_column_wider_than_the_terminal_is_not_lost() -> None:
    assert "92.00 ± 2.65" in tables.to_console(TABLE, 1)


def test_a_table_of_ten_columns_fits_80_columns() -> None:
    names = [f"network_{i} {score} %" for i in range(4) for score in ("final", "best")]
    table = Table("Wide", ("arm", *names), (("switokd", *(MeanStd((90.0, 91.0)) for _ in names)),))
    text = tables.to_console(table, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("90.50 ± 0.71") == 8


def test_a_table_without_numbers_has_one_block() -> None:
    text_only = Table("Names", ("a", "b"), (("x", "y"),))
    assert tables.to_console(text_only, 80) == "Names\n\na  b\nx  y\n"


def test_brackets_in_names_are_no_markup() -> None:
    assert tables.align_columns([("run", "time"), ("[bold]a", "3 s")]) == "run      time\n[bold]a   3 s"


def test_cells_of_other_formats_meaning_are_escaped() -> None:
    """A bar would begin another cell of Markdown, and a spreadsheet would compute a formula."""
    table = tables.Table("t", ("arm", "x"), (("a|b", 1.0), ("=1+1", 2.0)), "")
    assert r"| a\|b | 1.00 |" in tables.to_markdown(table)
    assert [row[0] for row in csv.reader(tables.to_csv(table).splitlines())] == ["arm", "a|b", "'=1+1"]

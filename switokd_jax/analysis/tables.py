"""Tables of results: means and standard deviations over seeds beside published numbers, in three forms."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from switokd_jax.files import atomic_write

MISSING = "-"


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Values of several seeds; `digits` behind the point."""

    values: tuple[float, ...]
    digits: int = 2

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None of one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, plus_minus: str = "\N{PLUS-MINUS SIGN}") -> str:
        """'mean ± deviation', or the one value."""
        if not self.values:
            return MISSING
        mean = f"{self.mean:.{self.digits}f}"
        return mean if self.deviation is None else f"{mean} {plus_minus} {self.deviation:.{self.digits}f}"


Cell = str | float | int | None | MeanStd


@dataclasses.dataclass(frozen=True)
class Table:
    """Attributes:

    title: one line.
    head: names of the columns.
    rows: a cell for each column; the first ones say what the row is.
    note: what a reader has to know, such as the size of the runs.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def markdown(table: Table) -> str:
    """As Markdown."""
    lines = [table.head, ["---"] * len(table.head), *([_plain(cell) for cell in row] for row in table.rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table.title}\n\n{body}\n" + (f"\n{table.note}\n" if table.note else "")


def comma_separated(table: Table) -> str:
    """As CSV: a column of spreads becomes three, mean, deviation and number of seeds."""
    spread = [any(isinstance(row[i], MeanStd) for row in table.rows) for i in range(len(table.head))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            name
            for i, head in enumerate(table.head)
            for name in ((f"{head} mean", f"{head} deviation", f"{head} seeds") if spread[i] else (head,))
        ]
    )
    for row in table.rows:
        cells: list[object] = []
        for i, cell in enumerate(row):
            if isinstance(cell, MeanStd):
                cells += [cell.mean if cell.values else "", cell.deviation, len(cell.values)]
            else:
                cells += [cell, *(("", "") if spread[i] else ())]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


def latex(table: Table) -> str:
    """As a LaTeX table for the package booktabs."""
    heads = [*table.head]
    left = [not _numbers(table, i) for i in range(len(heads))]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escaped(table.title)}{' ' + _escaped(table.note) if table.note else ''}}}",
        rf"  \begin{{tabular}}{{{''.join('l' if is_text else 'r' for is_text in left)}}}",
        r"    \toprule",
        f"    {' & '.join(map(_escaped, heads))} " + r"\\",
        r"    \midrule",
        *(f"    {' & '.join(map(_in_latex, row))} " + r"\\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


FORMS = {".md": markdown, ".csv": comma_separated, ".tex": latex}


def write(table: Table, stem: Path) -> list[Path]:
    """Writes STEM.md, STEM.csv and STEM.tex."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    made = []
    for suffix, form in FORMS.items():
        path, text = stem.with_name(stem.name + suffix), form(table)
        atomic_write(path, lambda p, text=text: p.write_text(text))  # type: ignore[misc]
        made.append(path)
    return made


def console(table: Table, width: int) -> str:
    """For a terminal of `width` columns: what does not fit beside the rest stands below it, under the same names of
    rows. A single column may be wider."""
    names = max(1, next((i for i in range(len(table.head)) if _numbers(table, i)), len(table.head)))
    rows = [table.head, *([_plain(cell) for cell in row] for row in table.rows)]
    blocks: list[str] = []
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(table.head))]
    left = [*range(names, len(table.head))]
    while left or not blocks:
        taken = [*range(names)]
        while left and (len(taken) == names or sum(widths[i] for i in [*taken, left[0]]) - 2 <= width):
            taken.append(left.pop(0))
        blocks.append(aligned([[row[i] for i in taken] for row in rows], names))
    note = [textwrap.fill(table.note, width)] if table.note else []
    return "\n\n".join([table.title, *blocks, *note]) + "\n"


def aligned(rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Columns as wide as their widest cell, the first `names` to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _numbers(table: Table, column: int) -> bool:
    return any(isinstance(row[column], MeanStd | float | int) for row in table.rows)


def _plain(cell: Cell) -> str:
    if isinstance(cell, MeanStd):
        return cell.text()
    if isinstance(cell, float):
        return f"{cell:.2f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return MISSING if cell is None else str(cell)


def _in_latex(cell: Cell) -> str:
    if isinstance(cell, MeanStd) and cell.values:
        return "$" + cell.text(r"\pm") + "$"
    return _escaped(_plain(cell))


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)

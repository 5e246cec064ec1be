"""Tables of results: mean and standard deviation over seeds, for the terminal and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.measure
import rich.table
from rich.text import Text

from switokd_jax.files import atomic_write

MISSING = "-"


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Values of several seeds, shown as their mean and standard deviation.

    Attributes:
      values: one for each seed; may be empty.
      digits: decimal places in the text.
    """

    values: tuple[float, ...]
    digits: int = 2

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, plus_minus: str = "\N{PLUS-MINUS SIGN}") -> str:
        """Formats the values as 'mean ± std', as 'mean' for one value, or as '-' for none.

        >>> MeanStd((90.0, 91.0, 95.0)).text()
        '92.00 ± 2.65'
        """
        if not self.values:
            return MISSING
        mean = f"{self.mean:.{self.digits}f}"
        return mean if self.std is None else f"{mean} {plus_minus} {self.std:.{self.digits}f}"


Cell = str | float | int | None | MeanStd


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
      title: one line.
      head: names of the columns.
      rows: one cell for each column; the first columns, up to the first with numbers, name the row.
      note: what a reader has to know, such as the size of the runs.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def to_markdown(table: Table) -> str:
    """Formats a table as GitHub's Markdown."""
    rows = [[_plain(cell).replace("|", r"\|") for cell in row] for row in table.rows]
    lines = [[head.replace("|", r"\|") for head in table.head], ["---"] * len(table.head), *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table.title}\n\n{body}\n" + (f"\n{table.note}\n" if table.note else "")


def to_csv(table: Table) -> str:
    """Formats a table as CSV. A column of `MeanStd` becomes three: mean, standard deviation and number of seeds."""
    is_mean_std = [any(isinstance(row[i], MeanStd) for row in table.rows) for i in range(len(table.head))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    # 'deviation', not 'std': readers of files from earlier versions look for it.
    writer.writerow(
        [
            name
            for i, head in enumerate(table.head)
            for name in ((f"{head} mean", f"{head} deviation", f"{head} seeds") if is_mean_std[i] else (head,))
        ]
    )
    for row in table.rows:
        cells: list[object] = []
        for i, cell in enumerate(row):
            if isinstance(cell, MeanStd):
                cells += [cell.mean if cell.values else "", cell.std, len(cell.values)]
            else:
                cells += [cell, *(("", "") if is_mean_std[i] else ())]
        writer.writerow(["" if cell is None else _no_formula(cell) for cell in cells])
    return out.getvalue()


def _no_formula(cell: object) -> object:
    """Returns a cell that a spreadsheet does not take for a formula: text that begins like one gets an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def to_latex(table: Table) -> str:
    """Formats a table as LaTeX, for the package booktabs."""
    alignment = "".join("r" if _is_numeric(table, i) else "l" for i in range(len(table.head)))
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escape_latex(table.title)}{' ' + _escape_latex(table.note) if table.note else ''}}}",
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        f"    {' & '.join(map(_escape_latex, table.head))} " + r"\\",
        r"    \midrule",
        *(f"    {' & '.join(map(_latex_cell, row))} " + r"\\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


FORMATTERS = {".md": to_markdown, ".csv": to_csv, ".tex": to_latex}


def write(table: Table, stem: Path) -> list[Path]:
    """Writes STEM.md, STEM.csv and STEM.tex, and returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, formatter in FORMATTERS.items():
        path, text = stem.with_name(stem.name + suffix), formatter(table)
        atomic_write(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        paths.append(path)
    return paths


def to_console(table: Table, width: int) -> str:
    """Formats a table for a terminal: text to the left, numbers to the right.

    Columns that do not fit side by side follow in blocks below, each with the row names again. No cell is broken or
    truncated: a single column that is too wide for the terminal stays wider.

    Args:
      table: any table.
      width: of the terminal, in columns.
    """
    num_names = max(1, next((i for i in range(len(table.head)) if _is_numeric(table, i)), len(table.head)))
    rows = [[_plain(cell) for cell in row] for row in table.rows]

    def block(columns: Sequence[int]) -> rich.table.Table:
        return _rich_table([[row[i] for i in columns] for row in [[*table.head], *rows]], num_names)

    names = [*range(num_names)]
    blocks, columns = [], names
    for column in range(num_names, len(table.head)):
        if columns != names and _width(block([*columns, column])) > width:
            blocks.append(block(columns))
            columns = names
        columns = [*columns, column]
    blocks.append(block(columns))
    note = [textwrap.fill(table.note, width)] if table.note else []
    return "\n\n".join([table.title, *map(_render, blocks), *note]) + "\n"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of text, the first of which is the head, with the first column to the left and others to the right.

    >>> print(align_columns([("run", "time"), ("a_long_one", "3 s")]))
    run         time
    a_long_one   3 s
    """
    return _render(_rich_table(rows, num_names=1))


def _rich_table(rows: Sequence[Sequence[str]], num_names: int) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, head in enumerate(rows[0]):
        # Text, not str: a name in brackets is no markup.
        table.add_column(Text(head), justify="left" if i < num_names else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _width(table: rich.table.Table) -> int:
    console = _plain_console()
    return rich.measure.Measurement.get(console, console.options, table).maximum


def _render(table: rich.table.Table) -> str:
    console = _plain_console()
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _plain_console() -> rich.console.Console:
    """Returns a console without colors or a width of its own, so that the text is the same in terminals and files."""
    return rich.console.Console(width=10_000, file=io.StringIO(), color_system=None, force_terminal=False)


def _is_numeric(table: Table, column: int) -> bool:
    return any(isinstance(row[column], MeanStd | float | int) for row in table.rows)


def _plain(cell: Cell) -> str:
    if isinstance(cell, MeanStd):
        return cell.text()
    if isinstance(cell, float):
        return f"{cell:.2f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return MISSING if cell is None else str(cell)


def _latex_cell(cell: Cell) -> str:
    if isinstance(cell, MeanStd) and cell.values:
        return "$" + cell.text(r"\pm") + "$"
    return _escape_latex(_plain(cell))


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)

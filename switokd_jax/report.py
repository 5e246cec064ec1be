"""Writes a report of a run, or of several side by side, as one self-contained HTML file:

python -m switokd_jax.report runs/digits
python -m switokd_jax.report runs/table_cifar_smoke --output=runs/comparison.html

A folder that is not itself a workdir is searched for finished runs; runs that differ in their seed only are averaged.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
import string
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from switokd_jax import cli
from switokd_jax.analysis.runs import Run, check_run, differences, find_runs, group_by_settings
from switokd_jax.analysis.tables import MeanStd
from switokd_jax.errors import UserError
from switokd_jax.figures import draw_all, style
from switokd_jax.figures.style import Picture, Theme
from switokd_jax.files import atomic_write
from switokd_jax.metrics import expert_share_of_summary
from switokd_jax.models import flops

MAX_LOSSLESS_RATIO = 2.0  # size of a lossless image, relative to the lossy one, up to which it is preferred


def report(folders: Sequence[str | Path], output: str | Path = "", examples: Sequence[int] = (0, 1, 2, 3)) -> Path:
    """Writes the report and returns its path.

    Args:
      folders: workdirs, or folders of workdirs.
      output: the HTML file; report.html in the first folder unless given.
      examples: indices in the test split of the images that get heat maps. If the images or networks cannot be read,
        the report says so and has no heat maps.

    Raises:
      UserError: naming a folder without a finished run, or a file that cannot be written.
    """
    runs = [*map(check_run, find_runs(folders))]
    path = Path(output) if output else Path(folders[0]) / "report.html"
    if path.suffix != ".html":
        raise UserError(f"--output {path} does not end in .html")
    page = _page(runs, examples)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda p: p.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); name another file") from None
    return path


def _page(runs: Sequence[Run], examples: Sequence[int]) -> str:
    """Fills the template. Texts are escaped here, and the content of elements where they are serialized."""
    groups = group_by_settings(runs)
    title = f"{runs[0].folder.name}" if len(runs) == 1 else f"{len(runs)} runs of {len(groups)} experiments"
    data_sets = ", ".join(dict.fromkeys(str(run.config["data"]["name"]) for run in runs))
    settings_title, settings = _settings(runs, groups)
    texts = {"title": title, "data_sets": data_sets, "settings_title": settings_title}
    elements = {
        "results": _results(groups),
        "pictures": _pictures(runs, examples),
        "settings": [settings],
        "runs": [_runs_table(runs)],
    }
    template = importlib.resources.files("switokd_jax").joinpath("report.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        {name: html.escape(text) for name, text in texts.items()},
        **{name: "\n".join(map(_serialize, content)) for name, content in elements.items()},
    )


def _results(groups: Mapping[str, Sequence[Run]]) -> list[ElementTree.Element]:
    """Builds the table of networks, a row for each network of each experiment, its notes, and the table of pairs."""
    runs = [run for seeds in groups.values() for run in seeds]
    unit, size = flops.unit(max(run.summary.get("training_flops", 0.0) for run in runs))
    # The first columns are those that a phone shows without scrolling.
    head = ["experiment", "network", "final top-1 %", "best top-1 %", "updates %", unit, "parameters", "model"]
    rows = [[label, name, *_scores(seeds, name, size)] for label, seeds in groups.items() for name in seeds[0].networks]
    steps, epochs = (_range(run.summary[field] for run in runs) for field in ("steps", "epochs"))
    selection_splits = ", ".join(sorted({run.summary["best_selected_on"] for run in runs}))
    reported_splits = " or ".join(sorted({run.reported_split for run in runs}))
    note = (
        f"{epochs} epochs ({steps} steps); top-1 on the {reported_splits} split, best by {selection_splits}; "
        f"{unit} of the whole run, paused steps without their backward pass."
    )
    if any(run.reported_split != "test" for run in runs):
        note += " A data set without a test split reports its held-out validation images."
    if any(len(seeds) > 1 for seeds in groups.values()):
        seeds_text = ", ".join(str(seed) for seed in sorted({run.config["seed"] for run in runs}))
        note += f" Mean and standard deviation of the seeds {seeds_text}."
    elements = [_table(head, rows, num_text_columns=2), _element("p", note, class_="soft")]
    shares = {label: [expert_share_of_summary(run.summary) for run in seeds] for label, seeds in groups.items()}
    pair_rows = [
        [label, pair, MeanStd(tuple(100 * share[pair] for share in seeds), digits=1).text()]
        for label, seeds in shares.items()
        for pair in seeds[0]
    ]
    if pair_rows:
        elements.append(_table(["experiment", "pair", "expert steps %"], pair_rows, num_text_columns=2))
    return elements


def _scores(seeds: Sequence[Run], name: str, flops_unit: float) -> list[str]:
    """Formats what the table of networks shows of one network, after its name."""
    summaries = [run.summary for run in seeds]
    networks = [summary["networks"][name] for summary in summaries]
    updates = tuple(100 * network["updates"] / s["steps"] for network, s in zip(networks, summaries, strict=True))
    return [
        MeanStd(tuple(network["final_top1"] for network in networks)).text(),
        MeanStd(tuple(network["best_top1"] for network in networks)).text(),
        MeanStd(updates, digits=1).text(),
        MeanStd(tuple(summary.get("training_flops", 0.0) / flops_unit for summary in summaries), digits=1).text(),
        f"{networks[0]['parameters']:,}",
        networks[0]["model"],
    ]


def _range(values: Iterable[float]) -> str:
    """Formats the range of numbers: '5', or '5 to 20'."""
    low, *others = sorted({*values})
    return f"{low:g} to {others[-1]:g}" if others else f"{low:g}"


def _pictures(runs: Sequence[Run], examples: Sequence[int]) -> list[ElementTree.Element]:
    """Draws all figures, each for light and for dark pages; a note says why heat maps are missing."""
    heatmaps, note = None, ""
    try:
        heatmaps = draw_all.compute_heatmaps(group_by_settings(runs), examples)
    except UserError as error:
        note = f"No heat maps: {error}"
    pictures: dict[Theme, list[Picture]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for theme in style.THEMES:
            with style.theme(theme):
                pictures[theme] = draw_all.draw(runs, Path(folder) / theme, heatmaps)
        elements = [_figure(light, dark) for light, dark in zip(pictures["light"], pictures["dark"], strict=True)]
    return [*elements, _element("p", note, class_="soft")] if note else elements


def _figure(light: Picture, dark: Picture) -> ElementTree.Element:
    """Builds a figure element with both variants of a picture embedded; the browser shows one of them."""
    picture = _element("picture")
    picture.append(_element("source", media="(prefers-color-scheme: dark)", srcset=_data_url(dark.path)))
    width = f"--full: {_display_width(light.path)}px"
    picture.append(_element("img", src=_data_url(light.path), style=width, alt=light.caption))
    figure = _element("figure")
    figure.extend([picture, _element("figcaption", light.caption)])
    return figure


def _data_url(path: Path) -> str:
    """Encodes an image as WebP, in a data URL.

    Lossless, unless that is more than `MAX_LOSSLESS_RATIO` times as large: it suits line drawings, whereas heat maps
    without visible loss take a fifth of their PNGs.
    """
    with Image.open(path) as image:
        rgb = image.convert("RGB")
        lossless, lossy = _webp(rgb, lossless=True), _webp(rgb, quality=90)
    content = lossless if len(lossless) <= MAX_LOSSLESS_RATIO * len(lossy) else lossy
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def _webp(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _display_width(path: Path) -> int:
    """Returns the width in CSS pixels at which the text of a figure, drawn at 200 dpi, is as large as the page's."""
    with Image.open(path) as image:
        return image.width // 2


def _settings(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]]) -> tuple[str, ElementTree.Element]:
    """Returns title and content: the settings in which the experiments differ, or all settings of a single one."""
    if len(groups) == 1:
        rows = [[name, _setting(value)] for name, value in sorted(runs[0].settings.items())]
        return "Config", _details_element(f"{len(rows)} settings", _table(["field", "value"], rows, num_text_columns=2))
    differing = differences([seeds[0] for seeds in groups.values()])
    rows = [[name, *map(_setting, values)] for name, values in differing.items()]
    return "What the configs differ in", _table(["field", *groups], rows, num_text_columns=1 + len(groups))


def _setting(value: Any) -> str:
    return "-" if value is None else str(value)


def _runs_table(runs: Sequence[Run]) -> ElementTree.Element:
    """Builds the table of what it takes to reproduce each run: seed, commit, devices and versions."""
    rows = []
    for run in runs:
        record = run.summary.get("record", {})
        devices = json.dumps(record.get("devices", "-"))
        versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
        rows.append([str(run.folder), str(run.config["seed"]), str(record.get("commit") or "-"), devices, versions])
    table = _table(["workdir", "seed", "commit", "devices", "versions"], rows, num_text_columns=5)
    return _details_element(f"{len(rows)} runs" if len(rows) > 1 else "1 run", table)


def _details_element(summary: str, content: ElementTree.Element) -> ElementTree.Element:
    """Builds an element that shows its summary, and the content after a click."""
    details = _element("details")
    details.extend([_element("summary", summary), content])
    return details


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], num_text_columns: int) -> ElementTree.Element:
    """Builds a table that scrolls by itself on narrow pages; its first columns are text, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> ElementTree.Element:
        row = _element("tr")
        row.extend(_element(tag, cell, class_="text" if i < num_text_columns else "") for i, cell in enumerate(cells))
        return row

    thead, tbody, table, scroll = (
        _element("thead"),
        _element("tbody"),
        _element("table"),
        _element("div", class_="scroll"),
    )
    thead.append(line(head, "th"))
    tbody.extend(line(row, "td") for row in rows)
    table.extend([thead, tbody])
    scroll.append(table)
    return scroll


def _element(tag: str, text: str = "", class_: str = "", **attributes: str) -> ElementTree.Element:
    element = ElementTree.Element(tag, {**({"class": class_} if class_ else {}), **attributes})
    element.text = text
    return element


def _serialize(element: ElementTree.Element) -> str:
    return ElementTree.tostring(element, encoding="unicode", method="html")


def main() -> None:
    """Reads the flags and writes the report."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--output", default="", help="the HTML file (WORKDIR/report.html)")
    parser.add_argument("--examples", nargs="*", type=int, default=[0, 1, 2, 3], help="test images for heat maps")
    args = parser.parse_args()
    cli.run(lambda: f"wrote {report(args.workdirs, args.output, args.examples)}", args.config)


if __name__ == "__main__":
    main()

"""Writes a report of a run, or of several side by side, as one HTML file that needs nothing else:

python -m switokd_jax.report runs/digits
python -m switokd_jax.report runs/table_cifar_smoke --output=runs/comparison.html

A folder without a run of its own stands for all runs in it; runs that differ in their seed only are averaged.
"""

from __future__ import annotations

import base64
import html
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from switokd_jax import cli
from switokd_jax.analysis.runs import Run, differences, find_runs, group_by_settings
from switokd_jax.analysis.tables import MeanStd
from switokd_jax.errors import UserError
from switokd_jax.figures import draw_all, style
from switokd_jax.files import atomic_write
from switokd_jax.models import flops
from switokd_jax.workdir.layout import Workdir

DEARER = 2.0  # times the bytes that a picture without loss may have

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #222222; --soft: #5c6470; --line: #dddddd; --head: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e4e6ea; --soft: #a0a7b3; --line: #3a3e46; --head: #1f2329; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--head); font-weight: 600; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; }
td:first-child { background: var(--paper); }
figure { margin: 1.4rem 0; }
figure picture { display: block; overflow-x: auto; }
figure img { display: block; width: var(--full); max-width: 100%; height: auto; margin: 0 auto; }
@media (max-width: 40rem) { figure img { max-width: max(100%, .6 * var(--full)); } }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; text-align: center; }
details { margin: .6rem 0; } summary { cursor: pointer; }
code { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; }
"""


def report(folders: Sequence[str | Path], output: str | Path = "", examples: Sequence[int] = (0, 1, 2, 3)) -> Path:
    """Writes the report.

    Args:
      folders: workdirs, or folders of workdirs.
      output: the HTML file; report.html in the first folder unless given.
      examples: places in the test split of the images that get heat maps. Where the images or networks cannot be read,
        the report says so and has no heat maps.

    Raises:
      ConfigError: naming a folder without a finished run, or a file that cannot be written.
    """
    runs = find_runs(folders)
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
    groups = group_by_settings(runs)
    title = f"{runs[0].folder.name}" if len(runs) == 1 else f"{len(runs)} runs of {len(groups)} experiments"
    data = ", ".join(dict.fromkeys(str(run.config["data"]["name"]) for run in runs))
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{html.escape(data)}; made by switokd_jax</p>',
        "<h2>Results</h2>",
        _results(groups),
        *_pictures(runs, examples),
        *_settings(runs, groups),
        "<h2>To do it again</h2>",
        _record(runs),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _results(groups: dict[str, list[Run]]) -> str:
    """A row for each network of each experiment."""
    runs = [run for of in groups.values() for run in of]
    unit, size = flops.unit(max(run.summary.get("training_flops", 0.0) for run in runs))
    # What a phone shows without scrolling comes first.
    head = ["experiment", "network", "final top-1 %", "best top-1 %", "updates %", unit, "parameters", "model"]
    rows = []
    for label, of in groups.items():
        for name in of[0].networks:
            each = [(run.summary, run.summary["networks"][name]) for run in of]
            rows.append(
                [
                    label,
                    name,
                    MeanStd(tuple(network["final_top1"] for _, network in each)).text(),
                    MeanStd(tuple(network["best_top1"] for _, network in each)).text(),
                    MeanStd(tuple(100 * network["updates"] / run["steps"] for run, network in each), 1).text(),
                    MeanStd(tuple(run.get("training_flops", 0.0) / size for run, _ in each), 1).text(),
                    f"{each[0][1]['parameters']:,}",
                    each[0][1]["model"],
                ]
            )
    switches = [
        [label, pair, MeanStd(tuple(100 * run.summary["switch"][pair]["expert_fraction"] for run in of), 1).text()]
        for label, of in groups.items()
        for pair in of[0].summary["switch"]
    ]
    notes = [
        f"{_span(run.summary['epochs'] for run in runs)} epochs ({_span(run.summary['steps'] for run in runs)} steps); "
        f"top-1 on the test split, best by {', '.join(sorted({run.summary['best_selected_on'] for run in runs}))}; "
        f"{unit} of the whole run, paused steps without their backward pass."
    ]
    if any(len(of) > 1 for of in groups.values()):
        seeds = sorted({run.config["seed"] for run in runs})
        notes.append(f"Mean and standard deviation of the seeds {', '.join(map(str, seeds))}.")
    made = _table(head, rows, texts=2) + f'<p class="soft">{html.escape(" ".join(notes))}</p>'
    return made + (_table(["experiment", "pair", "expert steps %"], switches, texts=2) if switches else "")


def _span(values: Iterable[float]) -> str:
    """'5', or '5 to 20'."""
    low, *rest = sorted({*values})
    return f"{low:g} to {rest[-1]:g}" if rest else f"{low:g}"


def _pictures(runs: Sequence[Run], examples: Sequence[int]) -> list[str]:
    """Every picture twice, for light and for dark pages."""
    seen, note = None, ""
    try:
        seen = draw_all.compute_heatmaps(group_by_settings(runs), examples)
    except UserError as error:
        note = f"No heat maps: {error}"
    drawn: dict[style.Theme, list[draw_all.Picture]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for theme in style.PAPER:
            with style.theme(theme):
                drawn[theme] = draw_all.draw(runs, Path(folder) / theme, seen)
        made = ["<h2>Pictures</h2>"]
        for light, dark in zip(drawn["light"], drawn["dark"], strict=True):
            caption = html.escape(light.caption)
            made.append(
                "<figure><picture>"
                f'<source media="(prefers-color-scheme: dark)" srcset="{_embedded(dark.path)}">'
                f'<img src="{_embedded(light.path)}" style="--full: {_width(light.path)}px" alt="{caption}"></picture>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return [*made, f'<p class="soft">{html.escape(note)}</p>'] if note else made


def _embedded(path: Path) -> str:
    """As WebP: lines lossless, where that costs little; heat maps are a fifth of their PNGs, and look the same."""
    with Image.open(path) as image:
        lossless, lossy = (_webp(image.convert("RGB"), **kind) for kind in ({"lossless": True}, {"quality": 90}))
    chosen = lossless if len(lossless) <= DEARER * len(lossy) else lossy
    return f"data:image/webp;base64,{base64.b64encode(chosen).decode()}"


def _webp(image: Image.Image, **kind: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", **kind)
    return out.getvalue()


def _width(path: Path) -> int:
    """At which the letters of a picture are as large as those around it: it has 200 pixels an inch."""
    with Image.open(path) as image:
        return image.width // 2


def _settings(runs: Sequence[Run], groups: dict[str, list[Run]]) -> list[str]:
    """What the experiments differ in; all settings of a single one."""
    if len(groups) == 1:
        rows = [[name, _shown(value)] for name, value in sorted(runs[0].settings.items())]
        return ["<h2>Config</h2>", _folded(f"{len(rows)} settings", _table(["field", "value"], rows, texts=2))]
    differing = differences([of[0] for of in groups.values()])
    rows = [[name, *map(_shown, values)] for name, values in differing.items()]
    return ["<h2>What the configs differ in</h2>", _table(["field", *groups], rows, texts=1 + len(groups))]


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _record(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        found = run.summary.get("record", {})
        devices = json.dumps(found.get("devices", "-"))
        versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
        rows.append([str(run.folder), str(run.config["seed"]), str(found.get("commit") or "-"), devices, versions])
    table = _table(["workdir", "seed", "commit", "devices", "versions"], rows, texts=5)
    count = f"{len(rows)} runs" if len(rows) > 1 else "1 run"
    paths = Workdir(Path())
    return f"<p>Each workdir's {paths.record} and {paths.config} have more.</p>{_folded(count, table)}"


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """A table that scrolls by itself where a page is narrow; its first columns are text."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="text"' if i < texts else "" for i in range(len(cells)))
        made = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def main() -> None:
    """Reads flags, writes."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--output", default="", help="the HTML file (WORKDIR/report.html)")
    parser.add_argument("--examples", nargs="*", type=int, default=[0, 1, 2, 3], help="test images for heat maps")
    given = parser.parse_args()
    cli.run(lambda: f"wrote {report(given.workdirs, given.output, given.examples)}", given.config)


if __name__ == "__main__":
    main()

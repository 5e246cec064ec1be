"""Runs that have ended: read, grouped, drawn side by side, and put into a report."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import report
from switokd_jax.analysis import runs as finished_runs
from switokd_jax.errors import UserError
from switokd_jax.figures import __main__ as figures_command
from switokd_jax.figures import compare, draw_all, style
from switokd_jax.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of SwitOKD, one of DML."""
    made = tmp_path_factory.mktemp("report")
    for method, seed in (("switokd", 0), ("switokd", 1), ("dml", 0)):
        c = tiny_runs.tiny_config("one_layer", "one_layer", method=method, seed=seed, epochs=2.0, batch_size=360)
        loop.train_and_evaluate(c, made / f"{method}_{seed}", jax.devices()[:1])
    return made


def test_seeds_are_one_experiment(folder: Path) -> None:
    found = finished_runs.find_runs([folder])
    assert [run.folder.name for run in found] == ["dml_0", "switokd_0", "switokd_1"]
    groups = finished_runs.group_by_settings(found)
    assert {label: len(of) for label, of in groups.items()} == {"dml": 1, "switokd": 2}
    differing = finished_runs.differences([of[0] for of in groups.values()])
    assert differing["method"] == ["dml", "switokd"]
    # Of the methods' blocks each experiment shows its own.
    assert differing["switokd.alpha"] == [None, 1.0]
    assert "seed" not in differing


def labelled(tmp_path: Path, *changes: dict[str, object]) -> list[str]:
    """Labels of runs whose configs differ so."""
    base = json.loads(tiny_runs.tiny_config().to_json_best_effort())
    made = []
    for i, change in enumerate(changes):
        config = json.loads(json.dumps(base))
        for name, value in change.items():
            block, _, field = name.rpartition(".")
            (config[block] if block else config)[field] = value
        made.append(finished_runs.Run(tmp_path / f"run{i}", config, {}))
    return [*finished_runs.group_by_settings(made)]


def test_labels(tmp_path: Path) -> None:
    assert labelled(tmp_path, {}, {"method": "dml"}) == ["switokd", "dml"]
    assert labelled(tmp_path, {}, {"switokd.epsilon": 1}, {"seed": 4}) == [
        "switokd, epsilon=adaptive",
        "switokd, epsilon=1.0",
    ]
    # One setting that tells all apart is enough, the method's own first.
    assert labelled(
        tmp_path, {"batch_size": 32, "switokd.alpha": 1.0}, {"batch_size": 64, "switokd.alpha": 2.0}, {"method": "dml"}
    ) == ["switokd, alpha=1.0", "switokd, alpha=2.0", "dml"]
    # Two that do so together.
    assert labelled(tmp_path, {"epochs": 1.0}, {"epochs": 2.0}, {"epochs": 2.0, "batch_size": 8}) == [
        "switokd, batch_size=64, epochs=1.0",
        "switokd, batch_size=64, epochs=2.0",
        "switokd, batch_size=8, epochs=2.0",
    ]


def test_folders_without_a_run_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"nothing holds no run \(config.json: No such file"):
        finished_runs.find_runs([tmp_path / "nothing"])
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text((folder / "dml_0" / "config.json").read_text())
    with pytest.raises(UserError, match="a run that has not ended; start its command again"):
        finished_runs.find_runs([begun])
    (begun / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is not JSON"):
        finished_runs.find_runs([begun])


def test_bands_are_the_seeds_deviation(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn, not how: mean and deviation of the two seeds at every evaluation."""
    groups = finished_runs.group_by_settings(finished_runs.find_runs([folder]))
    drawn: list[tuple[str, int]] = []
    monkeypatch.setattr(compare, "banded", lambda axes, curves, colour, label, ends: drawn.append((label, len(curves))))
    compare.draw_accuracy(groups, tmp_path)
    assert drawn == [("dml", 1), ("switokd", 2)] * 2
    monkeypatch.undo()
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    x, y = np.array([1.0, 2.0, 3.0]), np.array([[10.0, 20.0, 30.0], [14.0, 20.0, 36.0]])
    compare.banded(axes, [(x, y[0]), (x[:2], y[1][:2])], "red", "one", ends=False)
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), float), [12.0, 20.0])
    vertices = np.asarray(axes.collections[0].get_paths()[0].vertices, float)
    assert vertices[:, 1].max() == pytest.approx(20.0)
    assert vertices[:, 1].min() == pytest.approx(12.0 - np.sqrt(8.0))


def test_many_experiments_have_a_panel_each(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than colours can tell apart: a picture for each network or pair, in which every experiment is once in
    front."""
    dml, switokd, _ = finished_runs.find_runs([folder])
    groups = {f"switokd {i}": [switokd] for i in range(style.TOGETHER)}
    assert [each.path.name for each in compare.draw_accuracy(groups, tmp_path)] == ["accuracy.png"]
    groups["dml"] = [dml]
    drawn: list[str] = []
    monkeypatch.setattr(compare, "banded", lambda axes, curves, colour, label, ends: drawn.append(label))
    made = compare.draw_accuracy(groups, tmp_path) + compare.draw_costs(groups, tmp_path)
    stems = [f"{stem}_{name}" for stem in ("accuracy", "cost") for name in ("teacher", "student")]
    assert [each.path.stem for each in made] == stems
    assert drawn == 4 * [*groups]
    assert made[0].caption == "Top-1 over the epochs, teacher"
    # What does not switch has no share of expert steps, which leaves few enough for one panel.
    assert [each.path.name for each in compare.draw_shares(groups, tmp_path)] == ["expert_share.png"]
    monkeypatch.undo()
    for each in compare.draw_accuracy(groups, tmp_path):
        with Image.open(each.path) as image:
            assert image.size == (round(200 * 2.3 * 4), round(200 * (0.3 + 1.7 * 2)))
            assert np.asarray(image.convert("L"), float).std() > 5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_of_one_and_of_several(folder: Path, tmp_path: Path, theme: style.Theme) -> None:
    every = finished_runs.find_runs([folder])
    with style.theme(theme):
        one = draw_all.draw(every[1:2], tmp_path / "one")
        several = draw_all.draw(every, tmp_path / "several")
    assert [each.path.name for each in one] == ["curves.png", "switching.png", "expert_share.png", "cost.png"]
    assert [each.path.name for each in several] == [
        "accuracy.png",
        "switching_switokd.png",
        "expert_share.png",
        "cost.png",
    ]
    for each in (*one, *several):
        with Image.open(each.path) as image:
            pixels = np.asarray(image.convert("L"), float)
        assert (pixels[0, 0] < 60) == (theme == "dark"), each.path
        assert pixels.std() > 5, each.path


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; keeps tables and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    assert page.open == []
    return page


def test_report_of_several(folder: Path, tmp_path: Path) -> None:
    path = report.report([folder], tmp_path / "new" / "report.html", examples=[0, 5])
    page = read(path)
    summaries = [json.loads((folder / f"switokd_{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    tops = [of["networks"]["student"]["final_top1"] for of in summaries]
    (row,) = (row for row in page.rows if row[:2] == ["switokd", "student"])
    assert row[2] == f"{np.mean(tops):.2f} ± {np.std(tops, ddof=1):.2f}"
    assert row[-2:] == ["94", "one_layer"]
    assert ["method", "dml", "switokd"] in page.rows
    # Nothing is fetched from anywhere; every picture is there for both themes, the heat maps of both networks too.
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert len(page.sources) == 2 * (4 + 2 * 2)
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()


def test_pictures_of_a_report_are_small_and_look_the_same(tmp_path: Path) -> None:
    """Lines to the bit; photographs nearly, in a fraction of the bytes."""
    down, across = np.meshgrid(np.linspace(0, 3, 200), np.linspace(0, 5, 300), indexing="ij")
    waves = 128 + 90 * np.sin(down) * np.cos(across) + np.random.default_rng(0).normal(0, 6, (200, 300))
    photograph = np.clip(waves[..., None] * (1.0, 0.7, 0.4), 0, 255).astype(np.uint8)
    lines = np.full((200, 300, 3), 255, np.uint8)
    lines[50:52], lines[:, 80:82] = (0, 114, 178), (213, 94, 0)
    for pixels, most in ((lines, 0.0), (photograph, 6.0)):
        path = tmp_path / "picture.png"
        Image.fromarray(pixels).save(path)
        content = base64.b64decode(report._embedded(path).partition(",")[2])
        assert len(content) < path.stat().st_size / 2
        with Image.open(io.BytesIO(content)) as made:
            assert made.format == "WEBP"
            apart = np.asarray(made.convert("RGB"), float) - pixels
        assert np.sqrt(np.mean(apart**2)) <= most


def test_report_of_one(folder: Path) -> None:
    path = report.report([folder / "dml_0"], examples=())
    assert path == folder / "dml_0" / "report.html"
    page = read(path)
    assert ["batch_size", "360"] in page.rows
    assert "No heat maps" not in path.read_text()


def test_a_report_says_what_it_could_not_read(folder: Path, tmp_path: Path) -> None:
    text = report.report([folder], tmp_path / "report.html", examples=[360]).read_text()
    assert re.search("No heat maps: test image 360 does not exist; choose from 0 to 359", text)
    with pytest.raises(UserError, match=r"report.pdf does not end in .html"):
        report.report([folder], tmp_path / "report.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        report.report([folder], tmp_path / "file" / "report.html", examples=())


def test_commands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures", str(folder / "dml_0"), f"--output={tmp_path}", "--examples", "3"])
    figures_command.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cost.png", "curves.png", "heat.png", "surfaces.png"]
    assert capsys.readouterr().out.count("wrote") == 4
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"switokd_jax: .*nowhere holds no run"):
        report.main()

"""Finished runs: read, grouped, drawn side by side, and put into a report."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
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
    """Three finished runs: two seeds of SwitOKD, one of DML."""
    runs = tmp_path_factory.mktemp("report")
    for method, seed in (("switokd", 0), ("switokd", 1), ("dml", 0)):
        c = tiny_runs.tiny_config("one_layer", "one_layer", method=method, seed=seed, epochs=2.0, batch_size=360)
        loop.train_and_evaluate(c, runs / f"{method}_{seed}", jax.devices()[:1])
    return runs


@pytest.mark.slow
def test_a_folder_of_workdirs_is_searched_for_runs(folder: Path) -> None:
    runs = finished_runs.find_runs([folder])
    assert [run.folder.name for run in runs] == ["dml_0", "switokd_0", "switokd_1"]


@pytest.mark.slow
def test_seeds_are_one_experiment(folder: Path) -> None:
    groups = finished_runs.group_by_settings(finished_runs.find_runs([folder]))
    assert {label: len(seeds) for label, seeds in groups.items()} == {"dml": 1, "switokd": 2}


@pytest.mark.slow
def test_differences_show_each_methods_own_settings(folder: Path) -> None:
    groups = finished_runs.group_by_settings(finished_runs.find_runs([folder]))
    differing = finished_runs.differences([seeds[0] for seeds in groups.values()])
    assert differing["method"] == ["dml", "switokd"]
    assert differing["switokd.alpha"] == [None, 1.0]
    assert "seed" not in differing


def labelled(tmp_path: Path, *changes: dict[str, object]) -> list[str]:
    """Labels of runs, each with its own changes to the same config."""
    base = json.loads(tiny_runs.tiny_config().to_json_best_effort())
    runs = []
    for i, change in enumerate(changes):
        config = json.loads(json.dumps(base))
        for name, value in change.items():
            block, _, field = name.rpartition(".")
            (config[block] if block else config)[field] = value
        runs.append(finished_runs.Run(tmp_path / f"run{i}", config, {}))
    return [*finished_runs.group_by_settings(runs)]


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        pytest.param([{}, {"method": "dml"}], ["switokd", "dml"], id="the method where it is enough"),
        pytest.param(
            [{}, {"switokd.epsilon": 1}, {"seed": 4}],
            ["switokd, epsilon=adaptive", "switokd, epsilon=1.0"],
            id="the setting that differs",
        ),
        pytest.param(
            [
                {"batch_size": 32, "switokd.alpha": 1.0},
                {"batch_size": 64, "switokd.alpha": 2.0},
                {"method": "dml"},
            ],
            ["switokd, alpha=1.0", "switokd, alpha=2.0", "dml"],
            id="the method's own setting first",
        ),
        pytest.param(
            [{"epochs": 1.0}, {"epochs": 2.0}, {"epochs": 2.0, "batch_size": 8}],
            [
                "switokd, batch_size=64, epochs=1.0",
                "switokd, batch_size=64, epochs=2.0",
                "switokd, batch_size=8, epochs=2.0",
            ],
            id="two settings that differ together",
        ),
    ],
)
def test_labels_name_what_differs(tmp_path: Path, changes: list[dict[str, object]], labels: list[str]) -> None:
    assert labelled(tmp_path, *changes) == labels


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing holds no run \(config.json: No such file"):
        finished_runs.find_runs([tmp_path / "nothing"])


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an unfinished run; repeat its command to resume it"):
        finished_runs.find_runs([tmp_path])


def test_a_broken_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is not JSON"):
        finished_runs.find_runs([tmp_path])


@pytest.mark.slow
def test_every_network_has_the_curves_of_all_seeds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = finished_runs.group_by_settings(finished_runs.find_runs([folder]))
    drawn: list[tuple[str, int]] = []
    monkeypatch.setattr(
        compare, "plot_mean_std", lambda axes, curves, color, label, mark_end: drawn.append((label, len(curves)))
    )
    compare.draw_accuracy(groups, tmp_path)
    assert drawn == [("dml", 1), ("switokd", 2)] * 2


def test_bands_are_the_standard_deviation_of_the_seeds() -> None:
    """As far as both curves go."""
    axes = Figure().subplots()
    x, y = np.array([1.0, 2.0, 3.0]), np.array([[10.0, 20.0, 30.0], [14.0, 20.0, 36.0]])
    compare.plot_mean_std(axes, [(x, y[0]), (x[:2], y[1][:2])], "red", "one", mark_end=False)
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), float), [12.0, 20.0])
    vertices = np.asarray(axes.collections[0].get_paths()[0].vertices, float)
    assert vertices[:, 1].max() == pytest.approx(20.0)
    assert vertices[:, 1].min() == pytest.approx(12.0 - np.sqrt(8.0))


@pytest.fixture
def many_experiments(folder: Path) -> dict[str, list[finished_runs.Run]]:
    """One more than colors can tell apart."""
    dml, switokd, _ = finished_runs.find_runs([folder])
    return {**{f"switokd {i}": [switokd] for i in range(style.MAX_LINES_PER_PANEL)}, "dml": [dml]}


@pytest.mark.slow
def test_a_few_experiments_share_panels(many_experiments: dict[str, list[finished_runs.Run]], tmp_path: Path) -> None:
    del many_experiments["dml"]
    assert [picture.path.name for picture in compare.draw_accuracy(many_experiments, tmp_path)] == ["accuracy.png"]


@pytest.mark.slow
def test_each_of_many_experiments_has_a_panel(
    many_experiments: dict[str, list[finished_runs.Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(compare, "plot_mean_std", lambda axes, curves, color, label, mark_end: drawn.append(label))
    pictures = compare.draw_accuracy(many_experiments, tmp_path) + compare.draw_costs(many_experiments, tmp_path)
    stems = [f"{stem}_{name}" for stem in ("accuracy", "cost") for name in ("teacher", "student")]
    assert [picture.path.stem for picture in pictures] == stems
    assert drawn == 4 * [*many_experiments]
    assert pictures[0].caption == "Top-1 over the epochs, teacher"


@pytest.mark.slow
def test_experiments_that_do_not_switch_do_not_count_for_shares(
    many_experiments: dict[str, list[finished_runs.Run]], tmp_path: Path
) -> None:
    pictures = compare.draw_expert_shares(many_experiments, tmp_path)
    assert [picture.path.name for picture in pictures] == ["expert_share.png"]


@pytest.mark.slow
def test_panels_of_many_experiments_fill_a_picture(
    many_experiments: dict[str, list[finished_runs.Run]], tmp_path: Path
) -> None:
    for picture in compare.draw_accuracy(many_experiments, tmp_path):
        with Image.open(picture.path) as image:
            assert image.size == (round(200 * 2.3 * 4), round(200 * (0.3 + 1.7 * 2)))
            assert np.asarray(image.convert("L"), float).std() > 5


@pytest.mark.slow
def test_figures_of_one_run(folder: Path, tmp_path: Path) -> None:
    pictures = draw_all.draw(finished_runs.find_runs([folder / "switokd_0"]), tmp_path)
    assert [picture.path.name for picture in pictures] == [
        "curves.png",
        "switching.png",
        "expert_share.png",
        "gradients.png",
        "cost.png",
    ]


@pytest.mark.slow
def test_figures_of_several_runs(folder: Path, tmp_path: Path) -> None:
    pictures = draw_all.draw(finished_runs.find_runs([folder]), tmp_path)
    names = ["accuracy.png", "switching_switokd.png", "expert_share.png", "gradients.png", "cost.png"]
    assert [picture.path.name for picture in pictures] == names


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_have_the_background_of_their_theme(folder: Path, tmp_path: Path, theme: style.Theme) -> None:
    with style.theme(theme):
        pictures = draw_all.draw(finished_runs.find_runs([folder]), tmp_path)
    for picture in pictures:
        with Image.open(picture.path) as image:
            pixels = np.asarray(image.convert("L"), float)
        assert (pixels[0, 0] < 60) == (theme == "dark"), picture.path
        assert pixels.std() > 5, picture.path


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; keeps the rows of tables, the sources of images and the names of all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
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


@pytest.fixture(scope="module")
def report_of_several(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read(report.report([folder], tmp_path_factory.mktemp("several") / "new" / "report.html", examples=[0, 5]))


@pytest.mark.slow
def test_a_report_has_the_mean_and_std_of_the_seeds(folder: Path, report_of_several: Page) -> None:
    summaries = [json.loads((folder / f"switokd_{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    tops = [summary["networks"]["student"]["final_top1"] for summary in summaries]
    (row,) = (row for row in report_of_several.rows if row[:2] == ["switokd", "student"])
    assert row[2] == f"{np.mean(tops):.2f} ± {np.std(tops, ddof=1):.2f}"
    assert row[-2:] == ["94", "one_layer"]


@pytest.mark.slow
def test_a_report_has_the_expert_share_of_each_pair(folder: Path, report_of_several: Page) -> None:
    summaries = [json.loads((folder / f"switokd_{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    shares = [100 * summary["switch"]["teacher->student"]["expert_fraction"] for summary in summaries]
    text = f"{np.mean(shares):.1f} ± {np.std(shares, ddof=1):.1f}"
    assert ["switokd", "teacher->student", text] in report_of_several.rows


@pytest.mark.slow
def test_a_report_of_several_has_what_their_configs_differ_in(report_of_several: Page) -> None:
    assert ["method", "dml", "switokd"] in report_of_several.rows


@pytest.mark.slow
def test_a_report_fetches_nothing(report_of_several: Page) -> None:
    assert all(source.startswith("data:image/webp;base64,") for source in report_of_several.sources)


@pytest.mark.slow
def test_a_report_has_every_figure_for_both_themes(report_of_several: Page) -> None:
    """Five figures, and two of heat maps for each network."""
    assert len(report_of_several.sources) == 2 * (5 + 2 * 2)
    for source in report_of_several.sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()


@pytest.mark.slow
def test_a_report_of_one_run_has_all_its_settings(folder: Path) -> None:
    path = report.report([folder / "dml_0"], examples=())
    assert path == folder / "dml_0" / "report.html"
    assert ["batch_size", "360"] in read(path).rows
    assert "No heat maps" not in path.read_text()


@pytest.mark.slow
def test_text_of_a_run_cannot_become_markup(folder: Path, tmp_path: Path) -> None:
    """Folder, data set, model and settings: a run may come from anybody."""
    hostile = "<script>alert('1')</script> & $title \"quoted\""
    workdir = tmp_path / "<b>run & $title"
    shutil.copytree(folder / "dml_0", workdir)
    config, summary = (json.loads((workdir / name).read_text()) for name in ("config.json", "summary.json"))
    config["data"]["name"] = summary["networks"]["student"]["model"] = summary["record"]["commit"] = hostile
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "summary.json").write_text(json.dumps(summary))
    page = read(report.report([workdir], tmp_path / "report.html", examples=()))
    assert not {"script", "b"} & page.tags
    assert sum(hostile in row for row in page.rows) == 3  # model, data set, commit


@pytest.mark.slow
def test_a_report_shows_the_metrics_of_a_users_own_method(folder: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(folder / "switokd_0", workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    own = {"grad_norm": 1.5, "teacher/distillation/loss": 0.5}
    text = "".join(json.dumps(row | (own if row["split"] == "train" else {})) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text)
    path = report.report([workdir], tmp_path / "report.html", examples=())
    assert "Other metrics over the epochs" in path.read_text()
    assert len(read(path).sources) == 2 * 6


def picture_of(pixels: np.ndarray, path: Path) -> tuple[bytes, float]:
    """The bytes of an image as the report embeds it, and its root mean square error in gray levels."""
    Image.fromarray(pixels).save(path)
    content = base64.b64decode(report._data_url(path).partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "WEBP"
        error = np.asarray(image.convert("RGB"), float) - pixels
    return content, float(np.sqrt(np.mean(error**2)))


def test_line_drawings_are_embedded_without_loss(tmp_path: Path) -> None:
    pixels = np.full((200, 300, 3), 255, np.uint8)
    pixels[50:52], pixels[:, 80:82] = (0, 114, 178), (213, 94, 0)
    content, error = picture_of(pixels, tmp_path / "picture.png")
    assert len(content) < (tmp_path / "picture.png").stat().st_size / 2
    assert error == 0


def test_photographs_are_embedded_in_few_bytes(tmp_path: Path) -> None:
    y, x = np.meshgrid(np.linspace(0, 3, 200), np.linspace(0, 5, 300), indexing="ij")
    waves = 128 + 90 * np.sin(y) * np.cos(x) + np.random.default_rng(0).normal(0, 6, (200, 300))
    photograph = np.clip(waves[..., None] * (1.0, 0.7, 0.4), 0, 255).astype(np.uint8)
    content, error = picture_of(photograph, tmp_path / "picture.png")
    assert len(content) < (tmp_path / "picture.png").stat().st_size / 2
    assert error <= 6


@pytest.mark.slow
def test_a_report_says_why_it_has_no_heat_maps(folder: Path, tmp_path: Path) -> None:
    text = report.report([folder], tmp_path / "report.html", examples=[360]).read_text()
    assert re.search("No heat maps: test image 360 does not exist; choose from 0 to 359", text)


@pytest.mark.slow
def test_a_report_is_an_html_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report.pdf does not end in .html"):
        report.report([folder], tmp_path / "report.pdf")


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        report.report([folder], tmp_path / "file" / "report.html", examples=())


@pytest.mark.slow
def test_the_figures_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures", str(folder / "dml_0"), f"--output={tmp_path}", "--examples", "3"])
    figures_command.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cost.png", "curves.png", "heat.png", "surfaces.png"]
    assert capsys.readouterr().out.count("wrote") == 4


def test_the_report_command_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"switokd_jax: .*nowhere holds no run"):
        report.main()

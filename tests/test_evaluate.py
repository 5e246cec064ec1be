"""The commands that ask the networks of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config, evaluate, predict
from switokd_jax.analysis import trained_network
from switokd_jax.errors import UserError
from switokd_jax.train import loop


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    c = tiny_runs.tiny_config(batch_size=96, steps=12)
    c.data.validation_fraction = 0.1
    loop.train_and_evaluate(c, folder)
    return folder


def command(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
    main()


@pytest.mark.slow
def test_scores_are_those_of_the_run(workdir: Path) -> None:
    found = evaluate.evaluate(workdir, "latest")
    summary = json.loads((workdir / "summary.json").read_text())
    assert found["examples"] == 360
    for name, of in summary["networks"].items():
        assert found["networks"][name]["top1"] == pytest.approx(of["final_top1"], abs=1e-4)
        assert found["networks"][name]["loss"] == pytest.approx(of["final_loss"], abs=1e-5)


@pytest.mark.slow
def test_every_example_of_a_split_counts_once(workdir: Path) -> None:
    """Against the logits of the whole split at once."""
    spec = config.DataConfig(validation_fraction=0.1)
    for split, data in zip(("train", "validation"), tiny_runs.resident_splits(spec), strict=False):
        found = evaluate.evaluate(workdir, split=split)
        assert found["examples"] == len(data)
        logits = {
            name: np.asarray(jax.jit(trained_network.read(workdir, name).logits)(data.images), np.float64)
            for name in ("teacher", "student")
        }
        mean = np.mean([np.asarray(jax.nn.softmax(z)) for z in logits.values()], axis=0)
        assert found["ensemble"]["top1"] == pytest.approx(100.0 * np.mean(mean.argmax(axis=1) == data.labels))
        likelihood = mean[np.arange(len(mean)), data.labels]
        assert found["ensemble"]["loss"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)
        choices = {name: z.argmax(axis=1) for name, z in logits.items()}
        agree = 100.0 * np.mean(choices["teacher"] == choices["student"])
        assert found["agreement"] == {"teacher, student": pytest.approx(agree)}
        for name, z in logits.items():
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            of = found["networks"][name]
            assert of["top1"] == pytest.approx(100.0 * np.mean(choices[name] == data.labels))
            assert of["loss"] == pytest.approx(-np.log(p[np.arange(len(p)), data.labels]).mean(), rel=1e-5)
            five = (np.argsort(-z, axis=1)[:, :5] == data.labels[:, None]).any(axis=1)
            assert of["top5"] == pytest.approx(100.0 * five.mean())
            confidence, error = p.max(axis=1), 0.0
            for i in range(15):
                here = (confidence > i / 15) & (confidence <= (i + 1) / 15)
                if here.any():
                    hits = (choices[name] == data.labels)[here]
                    error += here.mean() * abs(hits.mean() - confidence[here].mean())
            assert of["calibration_error"] == pytest.approx(error, abs=1e-5)


def test_the_table_fits_a_console(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(evaluate.main, monkeypatch, f"--workdir={workdir}", f"--json={tmp_path / 'scores.json'}")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    found = json.loads((tmp_path / "scores.json").read_text())
    assert lines[0] == "360 examples"
    assert f"{found['networks']['student']['top1']:.2f}" in lines[3]
    assert lines[4].split()[:4] == ["ensemble", "of", "all", f"{found['ensemble']['top1']:.2f}"]
    assert lines[-1] == f"teacher, student agree on {found['agreement']['teacher, student']:.2f} %"


def pictures(folder: Path, count: int, side: int, classes: range) -> list[Path]:
    """Digits as image files, in a folder of a data set."""
    made = []
    train, _, _ = tiny_runs.resident_splits(config.DataConfig())
    for split in ("train", "test"):
        for label in classes:
            for i in np.flatnonzero(train.labels == label)[:count]:
                path = folder / split / str(label) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = (train.images[i, ..., 0] * (255 / 16)).round().astype(np.uint8)
                Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(path)
                made.append(path)
    return made


@pytest.mark.slow
def test_another_data_set(workdir: Path, tmp_path: Path) -> None:
    """With the same classes; of others the error tells."""
    pictures(tmp_path / "alike", 1, 8, range(10))
    assert evaluate.evaluate(workdir, data="folder", data_dir=str(tmp_path / "alike"))["examples"] == 10
    pictures(tmp_path / "fewer", 1, 8, range(9))
    assert evaluate.evaluate(workdir, data="folder", data_dir=str(tmp_path / "fewer"))["examples"] == 9
    pictures(tmp_path / "other", 1, 8, range(2))
    (tmp_path / "other" / "test" / "1").rename(tmp_path / "other" / "test" / "one")
    with pytest.raises(UserError, match=r"test/one is a class that the run does not have"):
        evaluate.evaluate(workdir, data="folder", data_dir=str(tmp_path / "other"))


@pytest.mark.slow
def test_another_data_set_needs_no_training_images_and_no_channels(workdir: Path, tmp_path: Path) -> None:
    """Colour is turned into grey and pixels of 0 to 255 count as those of 0 to 16: the scores are those of the run."""
    _, _, test = tiny_runs.resident_splits(config.DataConfig(validation_fraction=0.1))
    for i, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        path = tmp_path / "test" / str(label) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[..., 0] * 15).astype(np.uint8)).convert("RGB").save(path)
    scores = evaluate.evaluate(workdir, data="folder", data_dir=str(tmp_path))
    assert scores["examples"] == 360
    own = evaluate.evaluate(workdir)["networks"]
    for name, network in scores["networks"].items():
        assert network["top1"] == pytest.approx(own[name]["top1"], abs=5.0)  # 15 / 255 is a little less than 1 / 16


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    loop.train_and_evaluate(tiny_runs.alone_config(batch_size=96, steps=1), tmp_path / "run")
    with pytest.raises(UserError, match="--split validation: the run held no images out"):
        evaluate.evaluate(tmp_path / "run", split="validation")


def test_an_image_is_what_it_was_in_the_data_set(workdir: Path, tmp_path: Path) -> None:
    """Of its own size its pixels come back; larger ones are brought to it."""
    network = trained_network.read(workdir, "student")
    train, _, _ = tiny_runs.resident_splits(config.DataConfig())
    for side in (8, 32):
        path = pictures(tmp_path / str(side), 1, side, range(1))[0]
        pixels = predict.read_image(path, network)
        assert pixels.shape == tiny_runs.SHAPE
        if side == 8:
            np.testing.assert_array_equal(pixels, train.images[np.flatnonzero(train.labels == 0)[0]])
    seen = predict.predict([network], [path])
    np.testing.assert_allclose(seen[0, 0], jax.nn.softmax(network.logits(pixels[None]))[0], atol=1e-6)


def test_predictions_are_printed(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = pictures(tmp_path, 1, 8, range(2))[:2]
    command(predict.main, monkeypatch, f"--workdir={workdir}", "--top=2", *paths)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (1 + 2 * 2)
    networks = [trained_network.read(workdir, name) for name in ("teacher", "student")]
    seen = predict.predict(networks, paths)
    best = int(seen[1, 0].argmax())
    assert lines[3].split() == ["student", f"{100 * seen[1, 0, best]:.2f}", "%", str(best)]


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_file_that_is_no_image_is_named(content: bytes, workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.png cannot be decoded"):
        predict.read_image(tmp_path / "x.png", trained_network.read(workdir, "student"))

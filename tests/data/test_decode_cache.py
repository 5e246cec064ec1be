"""Cache of decoded splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_runs
from switokd_jax.data import decode_cache

SPLIT = tiny_runs.random_split(9)


class CountingDecoder:
    """Decodes one shard through the cache, counts how often it has to, and checks each result."""

    def __init__(self, shard: Path) -> None:
        self.shard, self.calls = shard, 0

    def decode(self) -> decode_cache.Arrays:
        self.calls += 1
        return SPLIT.images, SPLIT.labels

    def load(self) -> None:
        arrays = decode_cache.load_or_decode("some train", [self.shard], self.decode)
        tiny_runs.assert_same_bits(arrays, (SPLIT.images, SPLIT.labels))


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingDecoder:
    """A decoder with an empty cache in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "shard").write_bytes(b"abc")
    return CountingDecoder(tmp_path / "shard")


def test_a_second_start_decodes_nothing(decoder: CountingDecoder) -> None:
    decoder.load()
    decoder.load()
    assert decoder.calls == 1


def test_a_changed_shard_is_decoded_again(decoder: CountingDecoder) -> None:
    decoder.load()
    decoder.shard.write_bytes(b"abcd")
    decoder.load()
    decoder.load()
    assert decoder.calls == 2


def test_a_damaged_cache_entry_is_decoded_and_written_again(decoder: CountingDecoder, tmp_path: Path) -> None:
    decoder.load()
    (cache_path,) = (tmp_path / "cache").rglob("*.npz")
    cache_path.write_bytes(cache_path.read_bytes()[:-100])
    decoder.load()
    decoder.load()
    assert decoder.calls == 2


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file in place of the folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arrays = decode_cache.load_or_decode("some train", [], lambda: (SPLIT.images, SPLIT.labels))
    tiny_runs.assert_same_bits(arrays, (SPLIT.images, SPLIT.labels))
    assert "some train will be decoded again at the next start" in caplog.text


def test_images_and_labels_keep_their_dtypes(decoder: CountingDecoder) -> None:
    decoder.load()
    images, labels = decode_cache.load_or_decode("some train", [decoder.shard], decoder.decode)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)

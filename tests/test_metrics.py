"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from switokd_jax.errors import UserError
from switokd_jax.metrics import classification_metrics, classification_sums, merge_metrics, sort_metrics

# Two classes: logits (log p, log (1 - p)) give the first class the probability p.
PROBABILITIES = np.array([0.51, 0.55, 0.9, 0.99, 0.7])
LABELS = np.array([0, 1, 0, 0, 0])
MASK = np.array([1.0, 1.0, 1.0, 1.0, 0.0], np.float32)  # the last example is padding


def totals() -> dict[str, np.ndarray]:
    logits = jnp.asarray(np.log(np.stack([PROBABILITIES, 1.0 - PROBABILITIES], axis=1)), jnp.float32)
    sums = classification_sums(logits, jnp.asarray(LABELS), jnp.asarray(MASK))
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}


def test_accuracy_and_loss_by_hand() -> None:
    metrics = classification_metrics(totals())
    assert metrics["count"] == 4
    assert metrics["top1"] == pytest.approx(75.0)
    assert metrics["top5"] == pytest.approx(100.0)
    assert metrics["loss"] == pytest.approx(-np.mean(np.log([0.51, 0.45, 0.9, 0.99])), rel=1e-6)
    assert metrics["class_top1"].tolist() == [100.0, 0.0]


def test_calibration_error_by_hand() -> None:
    """With bins of 1/15, every example has a bin of its own."""
    gaps = [abs(1 - 0.51), abs(0 - 0.55), abs(1 - 0.9), abs(1 - 0.99)]
    assert classification_metrics(totals())["calibration_error"] == pytest.approx(sum(gaps) / 4, rel=1e-5)


def test_errors_of_one_bin_cancel() -> None:
    """Two examples of confidence 0.55, one right and one wrong: accuracy 0.5, error |0.5 - 0.55|."""
    logits = jnp.asarray(np.log([[0.55, 0.45], [0.55, 0.45]]), jnp.float32)
    sums = classification_sums(logits, jnp.asarray([0, 1]), jnp.ones(2, jnp.float32))
    metrics = classification_metrics({name: np.asarray(value, np.float64) for name, value in sums.items()})
    assert metrics["calibration_error"] == pytest.approx(0.05, rel=1e-5)


def test_own_metrics_have_any_name() -> None:
    merged = merge_metrics({"a/loss": jnp.zeros(())}, {"grad_norm": jnp.ones(()), "a/distillation/loss": jnp.ones(())})
    assert [*merged] == ["a/loss", "grad_norm", "a/distillation/loss"]
    assert sort_metrics(merged, ["a"]) == ["a/distillation/loss", "a/loss", "grad_norm"]


@pytest.mark.parametrize("name", ["a/loss", "step", "split", "epoch"])
def test_own_metrics_take_no_name_of_another(name: str) -> None:
    with pytest.raises(UserError, match=f"metric '{name}' has the name of another metric"):
        merge_metrics({"a/loss": jnp.zeros(())}, {name: jnp.ones(())})


def test_own_metrics_are_scalars() -> None:
    with pytest.raises(UserError, match=r"metric 'norms' has shape \(3,\); it must be a scalar"):
        merge_metrics({}, {"norms": jnp.ones(3)})

"""Rows of metrics.jsonl: from the arrays that the devices return to one dict for each step."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from switokd_jax.errors import NonFiniteError
from switokd_jax.metrics import finite_key, sort_metrics
from switokd_jax.state import pair_name
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.workdir.metric_writers import MetricsRow


def row_prefix(split: str, run: RunSpec, step: int) -> MetricsRow:
    """The fields that every row begins with: split, epoch, step."""
    return {"split": split, "epoch": round(run.epoch(step), 6), "step": step}


def fetch_rows(run: RunSpec, calls: list[tuple[range, Mapping[str, jax.Array]]]) -> list[MetricsRow]:
    """Fetches the metrics of several calls from the devices, and returns a row for each step.

    Args:
      run: all that is static in the run.
      calls: of each call the global steps, counted from 1, and the metrics [max_steps] by name.

    Raises:
      NonFiniteError: see `metric_rows`.
    """
    fetched = jax.device_get([metrics for _, metrics in calls])
    return [row for (steps, _), metrics in zip(calls, fetched, strict=True) for row in metric_rows(run, steps, metrics)]


def metric_rows(run: RunSpec, steps: range, metrics: Mapping[str, np.ndarray]) -> list[MetricsRow]:
    """Converts the metrics of one call to a row of JSON values for each step.

    The columns go network by network in the topology's order, then pair by pair, then come a method's own metrics.

    Args:
      run: all that is static in the run.
      steps: global steps of the call, counted from 1.
      metrics: [max_steps] by name; values beyond the steps are padding.

    Raises:
      NonFiniteError: if a step was not finite. If the config skips such steps, their rows have the split 'skipped' and
        the names of those networks in place of metrics.
    """
    finite_keys = {finite_key(name): name for name in run.topology.nodes}
    names = sort_metrics(metrics.keys() - finite_keys.keys(), [*run.topology.nodes, *map(pair_name, run.pairs)])
    values = {name: metrics[name].tolist() for name in names}
    rows = []
    for i, step in enumerate(steps):
        row = {**row_prefix("train", run, step), **{name: value[i] for name, value in values.items()}}
        if bad := [name for key, name in finite_keys.items() if not metrics[key][i]]:
            if run.config.on_nonfinite == "stop":
                raise NonFiniteError(_first_nonfinite(bad, row), step)
            row = {**row_prefix("skipped", run, step), "networks": bad}
        rows.append(row)
    return rows


def _first_nonfinite(bad: list[str], row: MetricsRow) -> str:
    """The network whose own cross-entropy is not finite, if there is one; otherwise the first.

    A NaN can reach a network through another network's logits.
    """
    return next((name for name in bad if not np.isfinite(row[f"{name}/cross_entropy"])), bad[0])

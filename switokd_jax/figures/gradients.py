"""Figure `gradients`: how far the gradient of a student's KL term is from that of its cross-entropy, over the epochs.

At the logits of the student the KL term to its teacher (temperature 1) has the gradient p_s - p_t, and the
cross-entropy p_s - y. In each example their L1 norms are what the switch measures: the gap G and the student's distance
d_s. Their difference is p_t - y, whose norm is the teacher's distance d_t. A teacher that is far ahead makes the two
equal, and the distillation is lost (SwitOKD, ECCV 2022, figures 1 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from switokd_jax.analysis.runs import Run, is_number
from switokd_jax.figures import style
from switokd_jax.figures.curves import epoch_means
from switokd_jax.figures.style import Picture
from switokd_jax.workdir.metric_writers import MetricsRow

# Metrics of a pair and what their means over a batch are.
NORMS = {
    "gap": "KL term: gap G",
    "student_distance": r"cross-entropy: $d_s$",
    "teacher_distance": r"their difference: $d_t$",
}


def draw_gradients(groups: Mapping[str, Sequence[Run]], folder: Path) -> list[Picture]:
    """Draws the norms of the two gradients at the student's logits and of their difference: means of each epoch.

    Args:
      groups: runs that differ in their seed only, by label; the first run of each is drawn.
      folder: for the PNGs.

    Returns:
      One picture with a row of panels for each group; none if no run has pairs whose distances are logged at
      temperature 1.
    """
    drawn = {
        label: pairs
        for label, seeds in groups.items()
        if seeds[0].config.get("switokd", {}).get("temperature", 1.0) == 1.0
        and (pairs := [pair for pair in seeds[0].pairs if _rows(seeds[0], pair)])
    }
    if not drawn:
        return []
    columns = max(map(len, drawn.values()))
    figure = Figure(figsize=(max(4.0 * columns, 5.0), 0.6 + 2.3 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), columns, squeeze=False, sharex=True, sharey=True)
    for row, (label, pairs) in zip(panels, drawn.items(), strict=True):
        for axes in row[len(pairs) :]:
            axes.set_visible(False)
        for axes, pair in zip(row, pairs, strict=False):
            _draw_panel(axes, groups[label][0], pair)
            axes.set_title(" ".join(filter(None, (label, style.display_name(pair)))), fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(NORMS), frameon=False, fontsize=8)
    caption = "Gradients at the student's logits, in L1 norm: the KL term's, the cross-entropy's, and their difference"
    return [Picture(style.save(figure, folder / "gradients.png"), caption)]


def _rows(run: Run, pair: str) -> list[MetricsRow]:
    """Returns the rows of training steps that have all norms of a pair."""
    return [row for row in run.rows("train") if all(is_number(row.get(f"{pair}/{key}")) for key in NORMS)]


def _draw_panel(axes: Axes, run: Run, pair: str) -> None:
    rows = _rows(run, pair)
    for (key, label), color in zip(NORMS.items(), style.colors([*NORMS]).values(), strict=True):
        epochs, means = epoch_means(rows, f"{pair}/{key}")
        axes.plot(epochs, means, color=color, marker="o" if len(epochs) < 20 else None, markersize=3, label=label)
    style.style_axes(axes, "epoch", "mean L1 norm")
    axes.set_ylim(bottom=0.0)

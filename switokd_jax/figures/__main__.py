"""Draws all pictures of a run, or compares runs:

python -m switokd_jax.figures runs/digits
python -m switokd_jax.figures runs/table_cifar_smoke --output=runs/comparison --examples 0 1 2

A folder without a run of its own stands for all runs in it; runs that differ in their seed only are averaged.
"""

from __future__ import annotations

from pathlib import Path

from switokd_jax import cli
from switokd_jax.analysis.runs import find_runs, group_by_settings
from switokd_jax.figures import draw_all, style
from switokd_jax.workdir.layout import Workdir


def main() -> None:
    """Reads flags, draws."""
    parser = cli.make_parser(__doc__, "python -m switokd_jax.figures")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--output", type=Path, help="a folder for the pictures (WORKDIR/figures)")
    parser.add_argument("--examples", nargs="*", type=int, default=[0, 1, 2, 3], help="test images for heat maps")
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="of the page they are for")
    given = parser.parse_args()

    def command() -> str:
        found = find_runs(given.workdirs)
        looks = draw_all.compute_heatmaps(group_by_settings(found), given.examples)
        with style.theme(given.theme):
            drawn = draw_all.draw(found, given.output or Workdir(Path(given.workdirs[0])).figures, looks)
        return "\n".join(f"wrote {picture.path}" for picture in drawn)

    cli.run(command, given.config)


if __name__ == "__main__":
    main()

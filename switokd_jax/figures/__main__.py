"""Draws all figures of a run, or compares runs:

python -m switokd_jax.figures runs/digits
python -m switokd_jax.figures runs/table_cifar_smoke --output=runs/comparison --examples 0 1 2

A folder that is not itself a workdir is searched for finished runs; runs that differ in their seed only are averaged.
"""

from __future__ import annotations

from pathlib import Path

from switokd_jax import cli
from switokd_jax.analysis.runs import check_run, find_runs, group_by_settings
from switokd_jax.figures import draw_all, style
from switokd_jax.workdir.layout import Workdir


def main() -> None:
    """Reads the flags and draws."""
    parser = cli.make_parser(__doc__, "python -m switokd_jax.figures")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--output", type=Path, help="a folder for the pictures (WORKDIR/figures)")
    parser.add_argument("--examples", nargs="*", type=int, default=[0, 1, 2, 3], help="test images for heat maps")
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="of the page they are for")
    args = parser.parse_args()

    def command() -> str:
        runs = [*map(check_run, find_runs(args.workdirs))]
        heatmaps = draw_all.compute_heatmaps(group_by_settings(runs), args.examples)
        with style.theme(args.theme):
            pictures = draw_all.draw(runs, args.output or Workdir(Path(args.workdirs[0])).figures, heatmaps)
        return "\n".join(f"wrote {picture.path}" for picture in pictures)

    cli.run(command, args.config)


if __name__ == "__main__":
    main()

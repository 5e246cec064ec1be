"""Draws all pictures of a run, or compares runs:

python -m switokd_jax.figures runs/digits
python -m switokd_jax.figures runs/table_cifar_smoke --output=runs/comparison --examples 0 1 2

A folder without a run of its own stands for all runs in it; runs that differ in their seed only are averaged.
"""

from __future__ import annotations

from pathlib import Path

from switokd_jax import commands, finished
from switokd_jax.figures import album, style


def main() -> None:
    """Reads flags, draws."""
    parser = commands.reader(__doc__, "python -m switokd_jax.figures")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--output", type=Path, help="a folder for the pictures (WORKDIR/figures)")
    parser.add_argument("--examples", nargs="*", type=int, default=[0, 1, 2, 3], help="test images for heat maps")
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="of the page they are for")
    given = parser.parse_args()

    def command() -> str:
        runs = finished.within(given.workdirs)
        looks = album.look(finished.groups(runs), given.examples)
        with style.theme(given.theme):
            drawn = album.draw(runs, given.output or Path(given.workdirs[0]) / "figures", looks)
        return "\n".join(f"wrote {picture.path}" for picture in drawn)

    commands.run(command, given.config)


if __name__ == "__main__":
    main()

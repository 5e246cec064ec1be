"""Writes a trained network for other programs:

python -m switokd_jax.export --workdir=runs/digits --network=student --format=stablehlo

'stablehlo' takes uint8 images of any batch size and gives logits; 'safetensors' and 'torch' (.pth, with PyTorch
installed) hold the weights under the official PyTorch names.
"""

from __future__ import annotations

from pathlib import Path

from switokd_jax import cli
from switokd_jax.analysis import trained_network
from switokd_jax.errors import UserError
from switokd_jax.interop import pytorch, stablehlo
from switokd_jax.workdir.layout import Workdir

SUFFIXES = {"stablehlo": ".stablehlo", "safetensors": ".safetensors", "torch": ".pth"}


def export(workdir: str | Path, network: str, form: str, which: str = "best", output: str | Path = "") -> Path:
    """Writes one file.

    Args:
      workdir: of the run.
      network: its name there.
      form: a key of `SUFFIXES`.
      which: 'best', 'latest', or a saved step.
      output: the file; NETWORK and the form's suffix in the workdir's folder 'exports' unless given.

    Returns:
      The file's path.

    Raises:
      ConfigError: naming what cannot be read or written.
    """
    network_of_run = trained_network.read(workdir, network, which)
    path = Path(output) if output else Workdir(Path(workdir)).exports / f"{network}{SUFFIXES[form]}"
    if path.suffix != SUFFIXES[form]:
        raise UserError(f"--output {path} does not end in {SUFFIXES[form]}, as files of --format={form} do")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "stablehlo":
            stablehlo.write(path, network_of_run.logits, network_of_run.facts)
        else:
            pytorch.write(path, network_of_run.variables)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); name another file") from None
    return path


def main() -> None:
    """Reads flags and writes."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="of a run")
    parser.add_argument("--network", required=True, help="its name in the run, such as student")
    parser.add_argument("--format", required=True, choices=SUFFIXES)
    parser.add_argument("--which", default="best", help="best, latest, or a saved step")
    parser.add_argument("--output", default="", help="the file (WORKDIR/exports/NETWORK.SUFFIX)")
    given = parser.parse_args()
    cli.run(
        lambda: f"wrote {export(given.workdir, given.network, given.format, given.which, given.output)}", given.config
    )


if __name__ == "__main__":
    main()

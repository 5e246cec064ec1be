"""Exports a trained network for other programs:

python -m switokd_jax.export --workdir=runs/digits --network=student --format=stablehlo
python -m switokd_jax.export --workdir=runs/one --network=ensemble --which=latest --format=stablehlo

'stablehlo' takes uint8 images of any batch size and gives logits; 'safetensors' and 'torch' (.pth, with PyTorch
installed) hold the weights under the official PyTorch names. The network 'ensemble' is all networks of the run
together: by the method's own modules, as ONE's gate, or by their mean probability. It has no PyTorch names.
"""

from __future__ import annotations

from pathlib import Path

from switokd_jax import cli
from switokd_jax.errors import UserError
from switokd_jax.interop import pytorch, stablehlo
from switokd_jax.train.trained_ensemble import TrainedEnsemble, read_classifier
from switokd_jax.workdir.layout import Workdir

SUFFIXES = {"stablehlo": ".stablehlo", "safetensors": ".safetensors", "torch": ".pth"}


def export(
    workdir: str | Path,
    network: str,
    file_format: str,
    version: str = "best",
    output: str | Path = "",
    *,
    overwrite: bool = False,
) -> Path:
    """Writes a network of a run to one file.

    Args:
      workdir: workdir of the run.
      network: name of the network in the run, or 'ensemble'.
      file_format: a key of `SUFFIXES`.
      version: checkpoint to export: 'best', 'latest', or a saved step.
      output: path of the file; by default WORKDIR/exports/NETWORK with the suffix of the format.
      overwrite: whether to replace a file that is there already.

    Returns:
      Path of the file.

    Raises:
      UserError: naming what cannot be read or written.
    """
    trained = read_classifier(workdir, network, version)
    suffix = SUFFIXES[file_format]
    path = Path(output) if output else Workdir(Path(workdir)).exports / f"{network}{suffix}"
    if path.suffix != suffix:
        raise UserError(f"--output {path} does not end in {suffix}, as files of --format={file_format} do")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} is there already; give --overwrite to replace it, or another file")
    if isinstance(trained, TrainedEnsemble) and file_format != "stablehlo":
        raise UserError("an ensemble has no PyTorch names; export it with --format=stablehlo, or each of its networks")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(trained, TrainedEnsemble) or file_format == "stablehlo":
            stablehlo.write(path, trained.logits, trained.model_info)
        else:
            pytorch.write(path, trained.variables)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); name another file") from None
    return path


def main() -> None:
    """Parses the flags, writes the file and prints its path."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="workdir of a run")
    parser.add_argument("--network", required=True, help="name in the run, such as student, or ensemble")
    parser.add_argument("--format", required=True, choices=SUFFIXES)
    parser.add_argument("--which", default="best", help="checkpoint: best, latest, or a saved step")
    parser.add_argument("--output", default="", help="path of the file (default: WORKDIR/exports/NETWORK.SUFFIX)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    args = parser.parse_args()

    def command() -> str:
        path = export(args.workdir, args.network, args.format, args.which, args.output, overwrite=args.overwrite)
        if args.format == "stablehlo":
            until = stablehlo.read(path).model_info.readable_until
            return f"wrote {path}; new releases of JAX promise to read it until {until}"
        return f"wrote {path}"

    cli.run(command, args.config)


if __name__ == "__main__":
    main()

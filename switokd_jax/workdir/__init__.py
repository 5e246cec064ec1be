"""The files of one run: checkpoints, metrics, provenance, and resuming from them."""

"""Training: from a config to a finished run."""

from switokd_jax.train.loop import dry_run, train_and_evaluate

__all__ = ["dry_run", "train_and_evaluate"]

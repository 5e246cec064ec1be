"""Switchable Online Knowledge Distillation (SwitOKD, ECCV 2022) in JAX and Flax."""

__version__ = "0.2.0"

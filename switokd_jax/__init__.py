"""Switchable Online Knowledge Distillation (SwitOKD, ECCV 2022) in JAX and Flax."""

import time

__version__ = "0.2.0"
IMPORT_TIME = time.time()
"""Before the import of every other module: source files that are older are what this process runs [s since 1970]."""

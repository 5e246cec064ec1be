"""Config of runs in processes of their own: configs/digits.py with networks that compile in a few seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parent))

import tiny_runs


def get_config() -> ConfigDict:
    """Two layers teach one, and pause in half of the steps; nothing on the console, no TensorBoard."""
    config = tiny_runs.config_file("digits").get_config()
    config.networks.teacher.model, config.networks.student.model = "two_layers", "one_layer"
    config.networks.teacher.learning_rate, config.networks.student.learning_rate = 0.3, 0.02
    config.switokd.threshold = 0.02
    config.log.tensorboard = config.log.progress = False
    return config

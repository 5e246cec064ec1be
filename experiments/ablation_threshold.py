"""The paper's ablations of the switch: fixed epsilon, fixed threshold, one mode only, temperature and weights.

python experiments/ablation_threshold.py --smoke --jobs=2
python experiments/ablation_threshold.py --plan

'adaptive' is the full method; the other arms are those of configs/cifar100_ablations.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from experiments.grids import Arm, Setting
from experiments.study import Study, main
from switokd_jax.cli import config_module

CONFIG = "configs/cifar100_ablations.py"
ARMS = {
    "adaptive": Arm(),
    **{
        name: Arm((f"switokd.{field}={value}",))
        for name, (field, value) in config_module(ROOT / CONFIG).ABLATIONS.items()
    },
}

STUDY = Study(
    title="Ablations of the switch",
    full=(
        Setting(
            name="cifar100",
            config=CONFIG,
            arms=ARMS,
            published={"adaptive": {"student": 67.24, "teacher": 73.90}},
        ),
    ),
    smoke=(
        Setting(
            name="digits",
            config="configs/digits.py",
            arms=ARMS,
            flags=("networks.teacher.model=resnet14", "networks.student.model=resnet8"),
            epochs=5,
        ),
    ),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

"""CIFAR-10 and CIFAR-100: every method on the pairs of the SwitOKD paper (table_uniokd.py has those of UniOKD).

python experiments/table_cifar.py --smoke --jobs=2            # all methods on digits, three seeds, in minutes
python experiments/table_cifar.py --plan                      # what would run, and how long
python experiments/table_cifar.py --settings cifar100 --arms vanilla dml kdcl switokd
python experiments/table_cifar.py --settings cifar100_short   # ten epochs; finished runs are kept in results/

Offline methods learn from the frozen teacher of the arm 'vanilla' with the same seed, at its last step. Every method
has its published defaults; nothing is tuned. Published numbers are means of 3 seeds, of the best test epoch.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.grids import KDCL, OFFLINE, ONLINE, Arm, Setting
from experiments.study import Study, main

ALL = {**ONLINE, **KDCL, **OFFLINE}
# Those of the other online methods that take a pair. Ramp-ups of 80 of 300 epochs become as much of ten.
SHORT_RAMPUP = 2.67
SHORT: dict[str, Arm] = {
    **ONLINE,
    "kd": OFFLINE["kd"],
    "cl_ilr": Arm(("method=cl_ilr",)),
    "mcl": Arm(("method=mcl", "data.sampler=class_pairs")),
    "ffl": Arm(("method=ffl", f"ffl.rampup_epochs={SHORT_RAMPUP}")),
    "pcl": Arm(
        (
            "method=pcl",
            f"pcl.rampup_epochs={SHORT_RAMPUP}",
            *(
                f"networks.{name}.{field}"
                for name in ("teacher", "student")
                for field in ("ema=0.999", "ema_warmup=True")
            ),
        )
    ),
    "afd": Arm(("method=afd",)),
    "shake": OFFLINE["shake"],
}

STUDY = Study(
    title="CIFAR: top-1 of students and teachers",
    full=(
        Setting(
            name="cifar100",
            config="configs/cifar100_wrn16_2_mobilenetv2.py",
            arms=ALL,
            published={
                "vanilla": {"student": 60.07, "teacher": 72.90},
                "dml": {"student": 66.23, "teacher": 73.85},
                "kdcl": {"student": 66.83, "teacher": 73.75},
                "switokd": {"student": 67.24, "teacher": 73.90},
                "uniokd": {"student": 67.83, "teacher": 74.28},
            },
        ),
        Setting(
            name="cifar10",
            config="configs/cifar10_wrn16_8_wrn16_1.py",
            arms=ALL,
            published={
                "vanilla": {"student": 91.45, "teacher": 95.21},
                "dml": {"student": 91.96, "teacher": 95.06},
                "kdcl": {"student": 91.86, "teacher": 95.33},
                "switokd": {"student": 92.50, "teacher": 94.76},
            },
        ),
        Setting(name="cifar100_small", config="configs/cifar100_small.py", arms=ALL),
        Setting(name="cifar100_short", config="configs/cifar100_short.py", arms=SHORT, keeps_results=True),
    ),
    smoke=(
        Setting(
            name="digits",
            config="configs/digits.py",
            arms=ALL,
            flags=("networks.teacher.model=resnet14", "networks.student.model=resnet8"),
            epochs=5,
        ),
    ),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

"""Tiny-ImageNet: the two pairs of the SwitOKD paper.

python experiments/table_tiny_imagenet.py --smoke --jobs=2
python experiments/table_tiny_imagenet.py --plan

Published numbers are means of 3 seeds, of the best test epoch; the recipe of the second pair is not published.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.grids import ONLINE, Setting
from experiments.study import Study, main

STUDY = Study(
    title="Tiny-ImageNet: top-1 of students and teachers",
    full=(
        Setting(
            name="tiny_resnet34",
            config="configs/tiny_imagenet_resnet34_mobilenetv2.py",
            arms=ONLINE,
            published={
                "vanilla": {"student": 50.98, "teacher": 63.18},
                "dml": {"student": 55.70, "teacher": 64.49},
                "kdcl": {"student": 57.79, "teacher": 65.47},
                "switokd": {"student": 58.71, "teacher": 63.31},
            },
        ),
        Setting(
            name="tiny_wrn16_2",
            config="configs/tiny_imagenet_wrn16_2_resnet20.py",
            arms=ONLINE,
            published={
                "vanilla": {"student": 52.35, "teacher": 56.59},
                "dml": {"student": 53.98, "teacher": 57.45},
                "kdcl": {"student": 53.74, "teacher": 57.71},
                "switokd": {"student": 55.03, "teacher": 57.41},
            },
        ),
    ),
    smoke=tuple(
        Setting(
            name=f"digits_{teacher}",
            config="configs/digits.py",
            arms=ONLINE,
            flags=(f"networks.teacher.model={teacher}", f"networks.student.model={student}"),
            epochs=5,
        )
        for teacher, student in (("resnet14", "resnet8"), ("wrn_10_2", "resnet8"))
    ),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

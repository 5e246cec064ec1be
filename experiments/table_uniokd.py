"""CIFAR-100: the online methods on the pairs of the UniOKD paper, with the recipes of its public code.

python experiments/table_uniokd.py --smoke --jobs=2
python experiments/table_uniokd.py --plan
python experiments/table_uniokd.py --settings wrn_40_2_rd-resnet32_rd --arms switokd uniokd

A setting is TEACHER-STUDENT. The paper's tables are images in its public repository; the numbers entered here are
those that our sources quote, and so are the pairs `QUOTED`. `IMPORTED` are the usual pairs of RepDistiller among the
networks that the public main.py imports, and `STUDENTS` the other students that the tables are known to have; their
teachers are our choice. Published numbers are of the best test epoch.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.grids import ONLINE, Setting
from experiments.study import Study, main

QUOTED = {
    "wrn_16_2_rd-mobilenetv2_0.5": {
        "vanilla": {"student": 60.07, "teacher": 72.90},
        "dml": {"student": 66.23, "teacher": 73.85},
        "kdcl": {"student": 66.83, "teacher": 73.75},
        "switokd": {"student": 67.24, "teacher": 73.90},
        "uniokd": {"student": 67.83, "teacher": 74.28},
    },
    "wrn_40_2_rd-resnet32_rd": {
        "vanilla": {"student": 71.28, "teacher": 76.60},
        "dml": {"student": 73.20, "teacher": 77.85},
        "kdcl": {"student": 72.94, "teacher": 77.49},
        "switokd": {"student": 73.59, "teacher": 74.68},
        "uniokd": {"student": 73.69, "teacher": 76.90},
    },
}
IMPORTED = (
    "wrn_40_2_rd-wrn_16_2_rd",
    "wrn_40_2_rd-wrn_40_1_rd",
    "resnet56_rd-resnet20_rd",
    "resnet110_rd-resnet20_rd",
    "resnet110_rd-resnet32_rd",
    "resnet32x4-resnet8x4",
    "resnet50_cifar-mobilenetv2_0.5",
)
STUDENTS = ("resnet50_cifar-vgg16", "wrn_40_2_rd-densenet_40_12")
TRANSFORMERS = (
    "swin_tiny-resnet18_cifar",  # as in the paper's table
    "resnet18_cifar-swin_tiny",  # as in the public script
    "resnet18_cifar-vit_small",
    "resnet18_cifar-vit_base",
)


def _setting(pair: str, script: str) -> Setting:
    """The setting of a pair TEACHER-STUDENT with the recipe of one of the public code's scripts."""
    return Setting(
        name=pair,
        config=f"configs/{script}.py:{pair.replace('-', ',')}",
        arms=ONLINE,
        published=QUOTED.get(pair, {}),
    )


STUDY = Study(
    title="UniOKD's pairs on CIFAR-100: top-1 of students and teachers",
    full=(
        *(_setting(pair, "cifar100_uniokd") for pair in (*QUOTED, *IMPORTED, *STUDENTS)),
        *(_setting(pair, "cifar100_uniokd_transformers") for pair in TRANSFORMERS),
    ),
    smoke=tuple(
        Setting(
            name=f"digits_{teacher}",
            config="configs/digits.py",
            arms=ONLINE,
            flags=(f"networks.teacher.model={teacher}", f"networks.student.model={student}"),
            epochs=5,
        )
        for teacher, student in (("wrn_10_2_rd", "resnet8_rd"), ("resnet8x4", "wrn_10_1_rd"))
    ),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

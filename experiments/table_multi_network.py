"""Three and four networks: stars and chains beside independent training, DML and KDCL.

python experiments/table_multi_network.py --smoke --jobs=2
python experiments/table_multi_network.py --plan

Published numbers (table 7 of the SwitOKD paper) are of mobilenet, wrn_16_2 and wrn_16_10 on CIFAR-100; the chain is
ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.grids import ONLINE, Arm, Setting
from experiments.study import Study, main

APART = {name: ONLINE[name] for name in ("vanilla", "dml", "kdcl")}
CHAIN = "topology.names=('teacher', 'student_wide', 'student_mobile')"

STUDY = Study(
    title="Several networks: top-1 by model",
    columns="model",
    full=(
        Setting(
            name="cifar100",
            config="configs/cifar100_1t2s.py",
            arms={
                **APART,
                "switokd_1t2s": Arm(),
                "switokd_2t1s": Arm(config="configs/cifar100_2t1s.py"),
                "switokd_chain": Arm(("topology.kind=chain", CHAIN)),
            },
            published={
                "vanilla": {"mobilenet": 58.65, "wrn_16_2": 73.37, "wrn_16_10": 79.45},
                "dml": {"mobilenet": 63.75, "wrn_16_2": 74.30, "wrn_16_10": 77.82},
                "kdcl": {"mobilenet": 62.13, "wrn_16_2": 73.94, "wrn_16_10": 80.71},
                "switokd_1t2s": {"mobilenet": 64.62, "wrn_16_2": 75.02, "wrn_16_10": 77.33},
                "switokd_2t1s": {"mobilenet": 65.03, "wrn_16_2": 71.73, "wrn_16_10": 77.07},
            },
        ),
    ),
    smoke=(
        Setting(
            name="digits",
            config="configs/digits_1t2s.py",
            epochs=6,
            arms={
                **APART,
                "switokd_1t2s": Arm(),
                "switokd_2t1s": Arm(config="configs/digits_2t1s.py"),
                "switokd_chain3": Arm(config="configs/digits_chain3.py"),
                "switokd_chain4": Arm(config="configs/digits_chain4.py"),
            },
        ),
    ),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

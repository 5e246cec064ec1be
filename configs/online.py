"""Online methods on equal terms: four networks of one kind, or four branches of one network, learn from each other.

python -m switokd_jax.main --config=configs/online.py:cifar100,one --workdir=runs/cifar100_one
python -m switokd_jax.main --config=configs/online.py:digits,dml --workdir=runs/digits_dml
python -m switokd_jax.main --config=configs/online.py:cifar100,dml,branches --workdir=runs/cifar100_dml_branches

The argument is DATA,METHOD[,networks|branches]. DATA is cifar100, with resnet32 and the recipe that the papers of
branches share (300 epochs, batch 128, SGD with Nesterov momentum, rate 0.1, a tenth of it at 150 and at 225 epochs,
decay 5e-4), or digits, with resnet8 for 20 epochs. Nodes are named student_1 to student_4 in both ways.
"""

from typing import Any

from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.errors import UserError
from switokd_jax.methods import METHODS

PEERS = 4
ON_BRANCHES = ("cl_ilr", "one", "okddip", "ffl", "pcl")  # as published


def get_config(argument: str = "cifar100,dml") -> ConfigDict:
    data, _, rest = argument.partition(",")
    method, _, kind = rest.partition(",")
    if data not in ("cifar100", "digits") or method not in METHODS or kind not in ("", "networks", "branches"):
        raise UserError(f"--config argument {argument!r} is not cifar100 or digits, a method, and networks or branches")
    c = config.default()
    c.method, c.data.name = method, data
    recipe: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 5e-4, "nesterov": True}
    if data == "cifar100":
        c.epochs, c.batch_size = 300.0, 128
        recipe |= {"model": "resnet32", "milestones": (151, 226)}
    else:
        c.epochs, c.batch_size = 20.0, 64
        recipe |= {"model": "resnet8", "milestones": (11, 16), "learning_rate": 0.05}
        if "rampup_epochs" in c[method]:
            c[method].rampup_epochs = 5.0
    if METHODS[method].mean_teachers:
        recipe |= {"ema": 0.999 if data == "cifar100" else 0.95, "ema_warmup": True}
    if method == "mcl":
        c.data.sampler = "class_pairs"
    if method == "kdcl":
        c.data.views = "per_network"
    if method == "pcl":
        c.data.views = "per_branch"
    c.networks = ConfigDict()
    if (kind or ("branches" if method in ON_BRANCHES else "networks")) == "branches":
        c.networks.student = config.network(branches=PEERS, **recipe)
        c.networks.student.trunk_gradient = "mean" if method == "cl_ilr" else "sum"
    else:
        for i in range(1, PEERS + 1):
            c.networks[f"student_{i}"] = config.network(**recipe)
    c.topology.kind = "complete"
    if METHODS[method].switches:  # a star: the first network teaches the others
        c.topology.kind = "star"
        c.topology.teachers = ("student_1",)
        c.topology.students = tuple(f"student_{i}" for i in range(2, PEERS + 1))
    return c

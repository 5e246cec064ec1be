"""Recordings in the format of tests/data/parity, made by a plain PyTorch training loop of our own.

The loop is written from the paper's formulas, network by network, without looking at the package: it knows
nothing of topologies, gates or edges.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import torch_networks

CLASSES, BATCH = 5, 12
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
# (teacher, student) by kind, as indices; all other ordered pairs learn from each other ungated.
PAIRS = {"pair": [(0, 1)], "2t1s": [(0, 2), (1, 2)], "1t2s": [(0, 1), (0, 2)]}


def record(kind: str, networks: list[str], steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A run on a few fixed random images in float64, which the networks soon know by heart."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2 * BATCH, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, 2 * BATCH)
    order = np.stack([rng.permutation(2 * BATCH)[:BATCH] for _ in range(steps)])
    made = [torch_networks.create(name, CLASSES).double().train() for name in networks]
    rates = [0.02 * 0.5**i for i in range(len(made))]
    optimizers = [
        torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        for net, rate in zip(made, rates, strict=True)
    ]
    meta = {
        "kind": kind,
        "networks": networks,
        "learning_rate": rates,
        "weight_decay": [5e-4] * len(made),
        "momentum": 0.9,
        "batch_size": BATCH,
        "steps": steps,
        "mean": MEAN,
        "std": STD,
        "num_classes": CLASSES,
        "temperature": 1.0,
    }
    out: dict[str, Any] = {"meta": np.asarray(json.dumps(meta)), "images": images[order], "labels": labels[order]}
    for i, net in enumerate(made):
        out |= {f"init/{i}/{name}": value.numpy().copy() for name, value in net.state_dict().items()}
    rows: dict[str, list[list[float]]] = {
        key: [] for key in ("gap", "threshold", "epsilon", "student_dist", "teacher_dist", "expert", "losses")
    }
    for chosen in order:
        step(made, optimizers, normalised(images[chosen]), torch.tensor(labels[chosen]), PAIRS[kind], rows)
    losses = rows.pop("losses")
    out |= {f"switch/{key}": np.asarray(values) for key, values in rows.items()} | {"losses": np.asarray(losses)}
    out["eval_images"] = images[:4]
    for i, net in enumerate(made):
        for name, value in net.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                out[f"final_norm/{i}/{name}"] = np.asarray(float(value.norm()))
                out[f"final_head/{i}/{name}"] = value.flatten()[:8].numpy().copy()
        with torch.no_grad():
            out[f"eval_logits/{i}"] = net.eval()(normalised(images[:4])).numpy()
    return out


def normalised(images: np.ndarray) -> Tensor:
    x = (images.astype(np.float64) / 255 - MEAN) / STD
    return torch.tensor(x.transpose(0, 3, 1, 2).copy())


def step(
    networks: list[nn.Module],
    optimizers: list[torch.optim.SGD],
    images: Tensor,
    labels: Tensor,
    pairs: list[tuple[int, int]],
    rows: dict[str, list[list[float]]],
) -> None:
    logits = [net(images) for net in networks]
    p = [functional.softmax(z.detach(), dim=1) for z in logits]
    truth = functional.one_hot(labels, CLASSES).double()
    seen: dict[str, list[float]] = {key: [] for key in rows}
    paused = dict.fromkeys(pairs, False)
    for teacher, student in pairs:
        d_t, d_s, gap = (l1(p[teacher], truth), l1(p[student], truth), l1(p[teacher], p[student]))
        epsilon = np.exp(-d_t / (d_s + d_t))
        delta = d_s - epsilon * d_t
        paused[teacher, student] = gap > delta and d_t < d_s
        values = (gap, delta, epsilon, d_s, d_t, paused[teacher, student])
        for key, value in zip(
            ("gap", "threshold", "epsilon", "student_dist", "teacher_dist", "expert"), values, strict=True
        ):
            seen[key].append(value)
    losses = []
    for i, z in enumerate(logits):
        loss = functional.cross_entropy(z, labels)
        for j in range(len(logits)):
            if j != i and not paused.get((i, j), False):
                loss = loss + functional.kl_div(functional.log_softmax(z, 1), p[j], reduction="batchmean")
        losses.append(loss)
        seen["losses"].append(float(loss.detach()))
    for i, (loss, optimizer) in enumerate(zip(losses, optimizers, strict=True)):
        own = [paused[pair] for pair in pairs if pair[0] == i]
        if not own or not all(own):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for key, row in seen.items():
        rows[key].append(row)


def l1(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum(1).mean())

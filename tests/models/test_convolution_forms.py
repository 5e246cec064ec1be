"""The implementations that experiments/speed/convolutions.py compares compute the same numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speed import convolutions


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_all_forms_of_a_layer_agree(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "BATCH", 8)
    side, channels, features = 6, 3, 2
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = {
            "x": (8, side, side, channels),
            "kernel": (3, 3, channels, features),
            "g": (8, side // stride, side // stride, features),
        }
        x, kernel, g = (jnp.asarray(rng.normal(size=shape)) for shape in shapes.values())
        arguments = {"forward": (x, kernel), "input gradient": (g, kernel), "kernel gradient": (x, g)}
        compared = 0
        for name, forms in convolutions.passes(side, channels, stride).items():
            expected = forms.pop("ours")(*arguments[name])
            for form in forms.values():
                np.testing.assert_allclose(form(*arguments[name]), expected, rtol=1e-10, atol=1e-11)
                compared += 1
    assert compared == 5

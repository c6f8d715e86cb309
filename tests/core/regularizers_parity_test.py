"""Core's operators and losses against the entmax package (fixtures/entmax.npz).

`tests/parity/entmax_reference.py` writes the fixture.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import regularizers

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "entmax.npz"


@pytest.fixture(scope="module")
def entmax() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return dict(file)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def results(divergence: regularizers.Divergence, theta, labels, cotangent) -> dict[str, jax.Array]:
    """Computes the fixture's values by our functions."""
    loss, pull_back_loss = jax.vjp(lambda x: regularizers.loss(x, labels, divergence), theta)
    p, pull_back_p = jax.vjp(lambda x: regularizers.softargmax(x, divergence), theta)
    (gradient,), (vjp,) = pull_back_loss(jnp.ones_like(loss)), pull_back_p(cotangent)
    return {"p": p, "loss": loss, "gradient": gradient, "vjp": vjp}


@pytest.mark.parametrize("index, alpha", [(0, 1.25), (1, 1.5), (2, 2.0)])
def test_equals_entmax(entmax: dict[str, np.ndarray], index: int, alpha: float):
    assert entmax["alphas"][index] == alpha
    compiled = jax.jit(lambda *arrays: results(regularizers.alpha(alpha), *arrays))
    got = compiled(*(jnp.asarray(entmax[name]) for name in ("theta", "labels", "cotangent")))
    for name, value in got.items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, entmax[name][index], rtol=0, atol=1e-12, err_msg=name)


def test_the_fixture_has_sparse_and_dense_rows(entmax: dict[str, np.ndarray]):
    support = np.sum(entmax["p"] > 0, -1)  # [n, N]
    assert support.min() == 1 and support.max() == entmax["theta"].shape[-1]

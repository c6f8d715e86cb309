"""Tests of core/impala.py, beside loops, the paper's numbers and NumPy."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import heads, impala, networks, spectral, types
from tests.states import random_params

KEY = jax.random.key(0)
FRAMES = types.Spec(shape=(4, 84, 84), dtype=np.uint8, num_actions=18, frame_stack=4)


def pooled(x: np.ndarray) -> np.ndarray:
    """Takes maxima over 3 x 3 at every second pixel, one by one."""
    batch, height, width, channels = x.shape
    y = np.zeros((batch, -(-height // 2), -(-width // 2), channels), x.dtype)
    for i, j in np.ndindex(y.shape[1:3]):
        rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2)
        y[:, i, j] = x[:, rows, columns].max((1, 2))
    return y


max_pool = jax.jit(impala.max_pool)
adaptive_max_pool = jax.jit(impala.adaptive_max_pool, static_argnums=1)


@pytest.mark.parametrize("size", [(5, 8), pytest.param((1, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("sign", [0, 1, -1], ids=["constant", "positive", "negative"])
def test_max_pool_pads_what_is_never_the_maximum(size, sign):
    drawn = np.abs(np.random.default_rng(0).normal(size=(2, *size, 3))).astype(np.float32)
    x = sign * drawn if sign else np.full_like(drawn, -2)
    np.testing.assert_array_equal(max_pool(x), pooled(x))


def test_the_gradient_of_max_pool_goes_to_the_maxima():
    x = np.random.default_rng(0).permutation(35).reshape(1, 5, 7, 1).astype(np.float32)
    grads = jax.jit(jax.grad(lambda x: jnp.sum(impala.max_pool(x))))(x)
    expected = np.zeros_like(x)
    for maximum in pooled(x).ravel():  # No two pixels are equal.
        expected[x == maximum] += 1
    np.testing.assert_array_equal(grads, expected)


@pytest.mark.parametrize(("size", "bins"), [(11, 6), (6, 6), (5, 6), (2, 3)])
def test_adaptive_max_pool_has_the_bins_of_pytorch(size, bins):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32) - 3
    expected = np.zeros((2, bins, bins, 3), np.float32)
    starts = [int(np.floor(i * size / bins)) for i in range(bins)]
    ends = [int(np.ceil((i + 1) * size / bins)) for i in range(bins)]
    if size == 11:
        assert list(zip(starts, ends, strict=True)) == [
            (0, 2), (1, 4), (3, 6), (5, 8), (7, 10), (9, 11)
        ]  # fmt: skip
    for i, j in np.ndindex(bins, bins):
        expected[:, i, j] = x[:, starts[i] : ends[i], starts[j] : ends[j]].max((1, 2))
    np.testing.assert_array_equal(adaptive_max_pool(x, bins), expected)


def network(num_actions: int, config: impala.Config = impala.Config()) -> heads.QuantileNetwork:
    torso = networks.torso("impala", FRAMES, hidden=False, residual=config)
    return heads.implicit_quantiles(torso, num_actions, hidden=512, first_cosine=0, dueling=True)


@pytest.mark.parametrize(
    ("num_actions", "expected"), [(4, 2_901_669), (6, 2_902_695), (18, 2_908_851)]
)
def test_the_network_has_the_papers_number_of_parameters(num_actions, expected):
    """The paper: 2.91 million for 18 actions, means of noisy layers alone."""
    params = jax.eval_shape(network(num_actions).init, KEY, FRAMES.zeros())
    vectors = {m for m, leaves in params.items() if leaves.pop(spectral.VECTOR, None)}
    assert sum(x.size for x in jax.tree.leaves(params)) == expected
    # Those of the residual units are normalised: four in each of three blocks, after its first.
    assert vectors == {f"conv2_d_{i}" for i in range(15) if i % 5}


GRID = types.Spec(shape=(10, 10, 10), dtype=np.bool_, num_actions=6)  # Channels come last.
ALL_CELLS = impala.Config(adaptive_pool=0)


@pytest.mark.parametrize(
    ("name", "of", "fields", "expected"),
    [
        ("impala", FRAMES, {}, 512),
        ("impala", FRAMES, {"hidden": False}, 36 * 64),
        ("impala", FRAMES, {"hidden": False, "residual": ALL_CELLS}, 11 * 11 * 64),
        ("impala_small", GRID, {}, 128),
        ("impala_small", GRID, {"hidden": False}, 5 * 5 * 32),
    ],
)
def test_features_are_those_of_the_last_maximum_or_of_a_hidden_layer(name, of, fields, expected):
    transformed = hk.without_apply_rng(hk.transform(networks.torso(name, of, **fields)))
    params = jax.eval_shape(transformed.init, KEY, of.zeros())
    assert params["conv2_d"]["w"].shape[2] == (4 if of is FRAMES else 10)
    assert jax.eval_shape(transformed.apply, params, of.zeros()).shape == (1, expected)


def convolved(x: np.ndarray, leaves: dict) -> np.ndarray:
    """Convolves with one pixel of zeros on each side, from the definition, in float64.

    Where weights are normalised, it sets the vector to the singular one, so that they are so
    exactly.
    """
    w = np.asarray(leaves["w"], np.float64)
    if spectral.VECTOR in leaves:
        left, values, _ = np.linalg.svd(w.reshape(-1, w.shape[-1]).T, full_matrices=False)
        leaves[spectral.VECTOR] = left[:, 0].astype(np.float32)
        w = w / values[0]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((*x.shape[:3], w.shape[-1])) + np.asarray(leaves["b"], np.float64)
    for i, j in np.ndindex(3, 3):
        y += padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ w[i, j]
    return y


@pytest.mark.parametrize("name", [pytest.param("impala", marks=pytest.mark.slow), "impala_small"])
def test_the_torso_is_that_of_the_paper(name):
    shape = (36, 38, 3) if name == "impala" else (6, 5, 10)
    of = types.Spec(shape=shape, dtype=np.uint8, num_actions=2, largest_byte=63)
    config = impala.Config(width=1, adaptive_pool=2)
    built = networks.torso(name, of, hidden=False, residual=config)
    transformed = hk.without_apply_rng(hk.transform(built))
    params = random_params(transformed.init, KEY, of.zeros())
    x = np.random.default_rng(0).integers(0, 64, (2, *shape), np.uint8)
    left = [params["conv2_d" + (f"_{i}" if i else "")] for i in range(len(params))]
    y = x / 63
    for channels, halves in impala.BLOCKS[name]:
        y = convolved(y, left.pop(0))
        assert y.shape[-1] == channels
        y = pooled(y) if halves else y
        for _ in range(2):
            inner = convolved(np.maximum(y, 0), left.pop(0))
            y = y + convolved(np.maximum(inner, 0), left.pop(0))
    y = np.asarray(adaptive_max_pool(np.maximum(y, 0), 2))
    got = jax.jit(transformed.apply)(params, x)
    np.testing.assert_allclose(got, y.reshape(2, -1), rtol=1e-3, atol=1e-4)
    assert not left and np.std(got) > 1e-3


@pytest.mark.parametrize("fields", [{"width": 0}, {"adaptive_pool": -1}])
def test_settings_are_checked(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} must be >= "):
        impala.Config(**fields)

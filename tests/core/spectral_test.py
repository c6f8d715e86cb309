"""Tests of core/spectral.py, beside NumPy's singular values."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import layers, spectral

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
NORMALISED = hk.without_apply_rng(
    hk.transform(lambda x: layers.Conv2D(7, 3, 1, "SAME", spectral_norm=True)(x))
)


def largest(w) -> float:
    """Returns the largest singular value of a convolution's matrix [O, k k C]."""
    return np.linalg.svd(np.asarray(w, np.float64).reshape(-1, w.shape[-1]).T)[1][0]


def test_weights_are_over_the_largest_singular_value_from_the_start_and_the_bias_is_not():
    (name,), params = (lambda p: (list(p), p))(NORMALISED.init(KEY, IMAGES))
    leaves = params[name]
    assert leaves[spectral.VECTOR].shape == (7,)
    np.testing.assert_allclose(np.linalg.norm(leaves[spectral.VECTOR]), 1, rtol=1e-5)
    w = spectral.normalised(leaves["w"], leaves[spectral.VECTOR])
    assert 0.95 < largest(w) < 1.05 and abs(largest(leaves["w"]) - 1) > 0.05
    plain = hk.without_apply_rng(hk.transform(lambda x: layers.Conv2D(7, 3, 1, "SAME")(x)))
    expected = plain.apply({name: {"w": w, "b": leaves["b"]}}, IMAGES)
    np.testing.assert_allclose(NORMALISED.apply(params, IMAGES), expected, atol=1e-6)
    # Weights below 1 are divided as well: twice the weights are the same weights.
    half = {name: {**leaves, "w": leaves["w"] / 9}}
    np.testing.assert_allclose(NORMALISED.apply(half, IMAGES), expected, atol=1e-6)


def test_iterations_find_the_largest_singular_value_and_leave_all_else():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(3, 3, 2, 5)).astype(np.float32)
    u = np.eye(5, dtype=np.float32)[0]
    params = {"a": {"b": {"w": w, spectral.VECTOR: u, "b": u}}, "c": {"w": w}}
    once = spectral.iterate(params)
    matrix = w.reshape(-1, 5).T.astype(np.float64)
    v = matrix.T @ u
    expected = matrix @ (v / np.linalg.norm(v))
    moved = once["a"]["b"].pop(spectral.VECTOR)
    np.testing.assert_allclose(moved, expected / np.linalg.norm(expected), rtol=1e-5)
    del params["a"]["b"][spectral.VECTOR]
    jax.tree.map(np.testing.assert_array_equal, once, params)
    for _ in range(200):
        moved = spectral.iterate({"w": w, spectral.VECTOR: moved})[spectral.VECTOR]
    np.testing.assert_allclose(largest(spectral.normalised(jnp.asarray(w), moved)), 1, rtol=1e-4)
    assert spectral.iterate(w) is w  # A tree of one array.


def test_the_gradient_is_that_of_w_over_its_norm_and_the_vector_has_none():
    """At the singular vectors themselves sigma's gradient is u v^T; by differences in float64."""
    rng = np.random.default_rng(2)
    w, out = rng.normal(size=(2, 6, 5)).astype(np.float32)
    u = np.linalg.svd(w.T.astype(np.float64))[0][:, 0].astype(np.float32)

    def loss(w, u):
        return jnp.sum(out * spectral.normalised(w, u))

    gradient, of_vector = jax.jit(jax.grad(loss, (0, 1)))(w, u)
    assert not np.any(of_vector)
    differences = np.zeros((6, 5))
    for at in np.ndindex(6, 5):
        step = np.zeros((6, 5))
        step[at] = 1e-6
        ends = [np.sum(out * x) / largest(x) for x in (w + step, w - step)]
        differences[at] = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(gradient, differences, atol=1e-4)

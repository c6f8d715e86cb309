"""Tests of core/convolution.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import convolution

SHAPES = pytest.mark.parametrize(
    ("size", "kernel", "stride", "channels", "padding"),
    [
        (84, 8, 4, 4, "VALID"),  # Of the layers of the Nature network the first,
        (11, 3, 1, 64, "SAME"),  # and the last, as Dopamine pads it.
        (11, 4, 2, 3, "VALID"),  # A column that no patch reaches.
        (9, 3, 2, 3, "VALID"),  # A stride that does not divide the kernel.
        *(
            pytest.param(*shape, marks=pytest.mark.slow)
            for shape in (
                (20, 4, 2, 32, "VALID"),  # The other layers.
                (9, 3, 1, 64, "VALID"),
                (84, 8, 4, 4, "SAME"),
                (21, 4, 2, 32, "SAME"),
                (10, 3, 1, 4, "VALID"),  # MinAtar's.
                (7, 5, 5, 2, "VALID"),  # One patch.
                (6, 1, 1, 3, "VALID"),
            )
        ),
    ],
)


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def naive(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    """Computes the convolution as a sum, from its definition, in float64."""
    kernel, size = w.shape[0], (x.shape[1] - w.shape[0]) // stride + 1
    y = np.zeros((len(x), size, size, w.shape[-1]))
    for i in range(size):
        for j in range(size):
            rows, columns = i * stride, j * stride
            patch = x[:, rows : rows + kernel, columns : columns + kernel].astype(np.float64)
            y[:, i, j] = np.einsum("bijc,ijco->bo", patch, w.astype(np.float64))
    return y


def by_xla(x: jax.Array, w: jax.Array, stride: int, padding: str) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_it_is_the_sum_that_defines_it():
    x, w = drawn(2, 13, 13, 3), drawn(4, 4, 3, 5, seed=1)
    y = convolution.conv2d(x, w, 2)
    np.testing.assert_allclose(y, naive(np.asarray(x), np.asarray(w), 2), rtol=1e-4, atol=1e-4)


@SHAPES
def test_value_and_gradients_are_those_of_xla(size, kernel, stride, channels, padding):
    x, w = drawn(3, size, size, channels), drawn(kernel, kernel, channels, 8, seed=1)
    y, pull_back = jax.vjp(jax.jit(lambda x, w: convolution.conv2d(x, w, stride, padding)), x, w)
    expected, expected_pull_back = jax.vjp(lambda x, w: by_xla(x, w, stride, padding), x, w)
    dy = drawn(*expected.shape, seed=2)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)
    for mine, theirs in zip(pull_back(dy), expected_pull_back(dy), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-3)


@SHAPES
def test_bytes_give_what_their_floats_give(size, kernel, stride, channels, padding):
    x = np.random.default_rng(0).integers(0, 256, (2, size, size, channels)).astype(np.uint8)
    w = drawn(kernel, kernel, channels, 8, seed=1)
    y = convolution.conv2d(jnp.asarray(x), w, stride, padding)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, convolution.conv2d(jnp.float32(x), w, stride, padding))


@pytest.mark.slow
def test_seeds_side_by_side_equal_one_by_one():
    x, w = drawn(4, 3, 10, 10, 4), drawn(4, 3, 3, 4, 16, seed=1)

    def gradient(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.grad(lambda w: jnp.sum(jnp.sin(convolution.conv2d(x, w, 1))))(w)

    together = jax.vmap(gradient)(x, w)
    for i in range(4):
        np.testing.assert_allclose(together[i], gradient(x[i], w[i]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("platform", "is_product"), [("cpu", 1), ("gpu", 1), ("tpu", 0)])
def test_each_platform_gets_its_form(monkeypatch, platform, is_product):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    program = jax.make_jaxpr(lambda x, w: convolution.conv2d(x, w, 4))
    primitives = [
        str(eqn.primitive) for eqn in program(drawn(1, 84, 84, 4), drawn(8, 8, 4, 32)).eqns
    ]
    assert ("conv_general_dilated" in primitives) != is_product


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@SHAPES
def test_channels_first_is_the_same(size, kernel, stride, channels, padding, dtype):
    """Bytes too, which move as words where the stride has the length of one."""
    frames = np.random.default_rng(0).integers(0, 256, (2, channels, size, size)).astype(dtype)
    w = drawn(kernel, kernel, channels, 8, seed=1)
    got = jax.jit(lambda x, w: convolution.conv2d(x, w, stride, padding, channels_first=True))(
        frames, w
    )
    images = jnp.asarray(np.moveaxis(frames, 1, -1), jnp.float32)
    expected = by_xla(images, w, stride, padding)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-2)

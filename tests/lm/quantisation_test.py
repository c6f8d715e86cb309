"""Tests of weights in few bits: each format against its definition, ggml's bytes and its bounds."""

import functools
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import gemma, quantisation

NAMES = (*quantisation.FORMATS,)
SOME = [n if n in ("int4", "sfp8") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
W = np.random.default_rng(0).normal(size=(128, 96)).astype(np.float32)  # [I, O].


static = functools.partial(jax.jit, static_argnums=(1, 2))
encode, decode = static(quantisation.encode), static(quantisation.decode)
_round_trip = static(quantisation.round_trip)


def round_trip(w: Any, name: Any, axis: int = -2) -> np.ndarray:
    return np.asarray(_round_trip(w, name, axis))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("int8", 0.00788), ("q8_0", 0.00535), ("sfp8", 0.0265), ("q4_0", 0.0860), ("int4", 0.1429)],
)
def test_the_error_on_normal_numbers_is_known(name: Any, expected: float):
    w = np.random.default_rng(1).normal(size=(1024, 256)).astype(np.float32)
    error = np.sqrt(np.mean((round_trip(w, name) - w) ** 2) / np.mean(w**2))
    assert error == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("name", "kind"), [("q8_0", "Q8_0"), ("q4_0", "Q4_0")])
def test_blocks_are_ggmls_to_the_byte(name: Any, kind: str):
    w = np.random.default_rng(2).normal(size=(100, 3200)).astype(np.float32)
    w[0, :32], w[1, :32], w[2, 4], w[2, 7] = 0.0, 1.5, -9.0, 9.0  # Of equal sizes the first counts.
    raw = gguf.quants.quantize(w, gguf.GGMLQuantizationType[kind]).reshape(100, 100, -1)
    stored = encode(w, name, -1)
    scales = np.asarray(stored.scales).view(np.uint8).reshape(100, 100, 2)
    codes = np.asarray(stored.codes).view(np.uint8).reshape(100, 100, -1)
    np.testing.assert_array_equal(np.concatenate([scales, codes], -1), raw)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_is_held_again(name: Any):
    once = round_trip(W, name)
    np.testing.assert_allclose(round_trip(once, name), once, rtol=1e-6)
    if name == "q4_0":
        np.testing.assert_array_equal(round_trip(once, name), once)


def test_bounds_of_the_error():
    for name, levels in (("int8", 127), ("int4", 7)):
        scale = np.abs(W).max(0, keepdims=True) / levels
        assert np.all(np.abs(round_trip(W, name) - W) <= scale / 2 * (1 + 1e-5))
    scale = np.abs(W).max(0, keepdims=True) / 1.875
    size, error = np.abs(W / scale), np.abs(round_trip(W, "sfp8") - W) / scale
    assert np.all(error <= np.where(size >= 2**-7, size / 16, size / 8) + 2**-24)
    blocks, held = (x.T.reshape(-1, 32) for x in (W, round_trip(W, "q4_0")))
    d = np.abs(blocks).max(-1, keepdims=True) / 8
    assert np.all(np.abs(held - blocks) <= 1.002 * d)


def test_the_numbers_of_eight_bits_are_those_of_bfloat16():
    # gemma.cpp decodes a code into the two bytes of a bfloat16.
    codes = np.array([c for c in range(256) if c != 128], np.uint8)
    e, sign = codes & 127, codes & 128
    small = e < 64
    high = np.where(small, 0x34 + (e >> 3), 0x38 + (e >> 4)) | sign
    low = np.where(small, e << 5, e << 4) & 255
    expected = ((high.astype(np.uint32) << 8 | low) << 16).view(np.float32)
    expected[e == 0] = 0
    stored = quantisation.Codes(jnp.asarray(codes[None]), jnp.ones((1, 1)))
    numbers = np.asarray(decode(stored, "sfp8", -1))
    np.testing.assert_array_equal(numbers[0], expected)
    assert expected.max() == 1.875 and expected[e == 1].max() == np.float32(1.25 * 2**-23)
    # All are fixed points, since the largest is among them.
    again = encode(numbers, "sfp8", -1)
    np.testing.assert_array_equal(np.asarray(again.codes)[0], codes)
    assert float(again.scales[0, 0]) == 1


def test_of_two_numbers_as_near_the_even_code_is_taken():
    numbers = np.sort(round_trip(np.linspace(0, 1.875, 4000)[None], "sfp8", -1)[0])
    pair = numbers[numbers > 1][:2]
    held = round_trip(np.array([[1.875, pair.mean()]]), "sfp8", -1)[0, 1]
    assert held == (pair[0] if int((pair[0] - 1) * 8) % 2 == 0 else pair[1])


@pytest.mark.parametrize("name", SOME)
def test_output_channels_are_apart_and_inputs_by_format(name: Any):
    rng = np.random.default_rng(3)
    outputs, inputs = rng.permutation(W.shape[1]), rng.permutation(W.shape[0])
    held = round_trip(W, name)
    np.testing.assert_array_equal(round_trip(W[:, outputs], name), held[:, outputs])
    commutes = np.array_equal(round_trip(W[inputs], name), held[inputs])
    assert commutes == (name not in ("q4_0", "q8_0"))
    doubled = W * np.where(np.arange(W.shape[1]) == 5, 2, 1).astype(np.float32)
    expected = held * np.where(np.arange(W.shape[1]) == 5, 2, 1)
    np.testing.assert_array_equal(round_trip(doubled, name), expected)
    np.testing.assert_array_equal(round_trip(W.T, name, -1), held.T)


@pytest.mark.parametrize("name", SOME)
def test_a_channel_of_zeros_is_zeros(name: Any):
    w = np.where(np.arange(96) == 7, 0, W)
    held = round_trip(w, name)
    assert np.all(held[:, 7] == 0) and np.all(np.isfinite(held))


@pytest.mark.parametrize("name", SOME)
def test_the_gradient_is_that_of_the_float_loss_at_what_is_held(name: Any):
    x = np.random.default_rng(4).normal(size=(8, 128)).astype(np.float32)

    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    @jax.jit
    def both(w: jax.Array, held: jax.Array) -> Any:
        simulated = jax.value_and_grad(lambda w: loss(quantisation.simulate(w, name)))(w)
        return loss(w), simulated, jax.value_and_grad(loss)(held)

    plain, (value, gradient), (at_value, at_gradient) = both(W, round_trip(W, name))
    np.testing.assert_allclose(value, at_value, rtol=1e-6)
    assert abs(value - plain) > 1e-7
    np.testing.assert_allclose(gradient, at_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [-1, -2])
def test_bytes_are_those_of_the_arrays(name: Any, axis: int):
    stack = np.stack([W, W])
    stored = encode(stack, name, axis)
    assert stored.codes.nbytes + stored.scales.nbytes == quantisation.num_bytes(
        stack.shape, name, axis
    )
    # The layer axis leads, and a layer is decoded by itself.
    first = jax.tree.map(lambda x: np.asarray(x)[0], stored)
    np.testing.assert_array_equal(decode(first, name, axis), round_trip(stack, name, axis)[0])


def test_matrices_are_known_by_their_place():
    config = gemma.PRESETS["gemma3-270m"]
    params = jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    seen: dict[str, tuple[int, int, str]] = {}

    def note(w: Any, name: Any, axis: int, path: tuple[str, ...]) -> Any:
        seen["/".join(path)] = (w.ndim, axis, name)
        return w

    quantisation.map_matrices(note, params, quantisation.Scheme("int4"))
    assert set(seen.values()) == {(3, -2, "int4")}
    layers = sum(depth for _, depth in config.blocks.values())
    assert len(seen) == layers * len(quantisation.MATRICES)
    quantisation.map_matrices(note, params, quantisation.Scheme("int4", "q8_0"))
    assert seen["embedding"] == (2, -1, "q8_0")
    # Of a value network beside the policy nothing changes.
    seen.clear()
    quantisation.map_matrices(note, {"value": params}, quantisation.Scheme("int4", "q8_0"))
    assert not seen


def test_what_has_no_such_format_is_refused():
    with pytest.raises(ValueError, match="q4_0 takes 32 weights at a time: 40 of shape"):
        quantisation.encode(jnp.zeros((40, 64)), "q4_0")
    with pytest.raises(ValueError, match="format must be one of int8, int4"):
        quantisation.num_bytes((4, 4), "nf3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected a matrix"):
        quantisation.encode(jnp.zeros(32), "int8")

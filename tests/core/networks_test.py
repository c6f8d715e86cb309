"""Tests of core/networks.py: which torso takes what, and how it reads it."""

import dataclasses
from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

from kullback.core import networks, types
from tests.states import random_params

KEY = jax.random.key(0)
HUGE = float(np.finfo(np.float32).max)


def spec(*shape: int, dtype: Any = np.uint8, **fields: Any) -> types.Spec:
    return types.Spec(shape=shape, dtype=dtype, num_actions=2, **fields)


def features(name, of: types.Spec, observation, params=None, hidden=True) -> np.ndarray:
    network = hk.without_apply_rng(hk.transform(networks.torso(name, of, hidden=hidden)))
    params = random_params(network.init, KEY, of.zeros()) if params is None else params
    return np.asarray(jax.jit(network.apply)(params, observation))


def names_of(torso) -> tuple:
    """Returns function and padding of a torso."""
    padding = torso.keywords.get("padding", "VALID")
    return torso.func.__name__, padding, torso.keywords.get("hidden")


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (spec(4, 84, 84, frame_stack=4), "nature"),  # Ours.
        pytest.param(  # gymnasium's FrameStackObservation.
            spec(4, 84, 84), "nature", marks=pytest.mark.slow
        ),
        pytest.param(spec(84, 84, 4), "nature", marks=pytest.mark.slow),
        pytest.param(spec(64, 64, 3), "nature", marks=pytest.mark.slow),
        pytest.param(spec(210, 160, 3), "nature", marks=pytest.mark.slow),
        pytest.param(spec(3, 64, 64, dtype=np.float32), "nature", marks=pytest.mark.slow),
        (spec(4, 20, 20, frame_stack=4), "nature_same"),
        (spec(10, 10, 4, dtype=np.bool_), "minatar"),  # MinAtar's.
        pytest.param(spec(40, 40, 4, dtype=np.bool_), "minatar", marks=pytest.mark.slow),
        (spec(7, 7, 3, largest_byte=10), "minatar"),  # A grid of categories.
        (spec(2, 10, 3), "minatar_linear"),
        (spec(128), "mlp"),
    ],
)
def test_auto_picks_by_the_shape_and_the_features_depend_on_the_observation(of, expected):
    picked, wanted = networks.torso("auto", of), networks.torso(expected, of)
    assert names_of(picked) == names_of(wanted)
    rng = np.random.default_rng(0)
    observation = rng.integers(0, 2 if of.dtype == np.bool_ else 11, (2, *of.shape))
    x = features("auto", of, observation.astype(of.dtype))
    assert x.ndim == 2 and not np.array_equal(x[0], x[1])
    without = networks.torso("auto", of, hidden=False)
    begin = hk.without_apply_rng(hk.transform(without)).init
    assert jax.eval_shape(begin, KEY, of.zeros())


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        ("nature", spec(20, 20, 3), "which is 20 x 20 with 3 channels; set torso=minatar, or"),
        ("nature_conv", spec(3, 35, 99), "at least 36 x 36, got shape (3, 35, 99), which is 35 x"),
        ("nature", spec(4, 20, 20, frame_stack=4), "set torso=nature_same"),
        ("nature", spec(8), "takes observations of rank 3, got shape (8,); set torso=mlp"),
        ("minatar", spec(4, 84, 84), "looks like frames with the channels first; set torso=nature"),
        ("minatar_linear", spec(3, 64, 64), "got shape (3, 64, 64), which looks like frames with"),
        ("minatar", spec(2, 2, 5), "of at least 3 x 3, got shape (2, 2, 5); set torso=minatar_li"),
        ("impala", spec(20, 20, 3), "which is 20 x 20 with 3 channels; set torso=minatar, or"),
        ("impala_small", spec(4, 84, 84), "looks like frames with the channels first; set torso=n"),
        ("mlp", spec(10, 10, 4, dtype=np.bool_), "takes observations of rank 1, got shape (10, 10"),
        ("mlp", spec(84, 84), "expected [n], [H, W, C] or [C, H, W]; reshape them, or pass"),
        ("auto", spec(), "no torso takes observations of shape ()"),
    ],
)
def test_a_torso_that_does_not_fit_names_shape_layout_and_one_that_does(name, of, message):
    with pytest.raises(ValueError) as error:
        networks.torso(name, of)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_frames_with_channels_last_are_the_same_frames():
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 44, 4), np.uint8)
    last, first = spec(40, 44, 4), spec(4, 40, 44)
    expected = features("nature", first, np.moveaxis(frames, -1, 1))
    np.testing.assert_allclose(features("nature", last, frames), expected, atol=1e-5)
    assert np.std(expected) > 1e-3


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("nature", (4, 84, 84)),
        ("nature", (84, 84, 4)),
        ("nature_same", (4, 20, 20)),
        ("minatar", (10, 10, 4)),
        ("minatar_linear", (10, 10, 4)),
        ("mlp_small", (6,)),
    ],
)
def test_bytes_are_fractions_of_what_is_declared_the_largest(name, shape, largest=63):
    of = spec(*shape, largest_byte=largest)
    x = np.random.default_rng(0).integers(0, largest + 1, (2, *shape)).astype(np.uint8)
    as_floats = dataclasses.replace(of, dtype=np.float32)
    expected = features(name, as_floats, x.astype(np.float32) / np.float32(largest))
    np.testing.assert_allclose(features(name, of, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "largest"),
    [("nature", (4, 84, 84), 255), ("minatar", (10, 10, 4), 1), ("mlp", (6,), 1)],
)
def test_a_run_of_version_0_1_reads_bytes_as_it_did(name, shape, largest):
    x = np.random.default_rng(0).integers(0, 99, (2, *shape)).astype(np.uint8)
    old = spec(*shape, largest_byte=99, input_rules=1)
    same = spec(*shape, largest_byte=largest)
    np.testing.assert_array_equal(features(name, old, x), features(name, same, x))
    assert np.any(features(name, spec(*shape, largest_byte=99), x) != features(name, old, x))


def test_a_run_of_version_0_1_has_the_torso_that_it_had():
    for shape in ((64, 64, 3), (4, 84, 84)):
        assert names_of(networks.torso("auto", spec(*shape, input_rules=1)))[0] == "minatar_cnn"
        networks.torso("minatar", spec(*shape, input_rules=1))


BOUNDS = ((-1.0, 0.0, -HUGE, 3.0, -1e300, 5.0, 0.0), (3.0, 2.0**24, HUGE, 3.0, 1e300, 4.0, 3e7))


def test_only_sensible_widths_scale():
    assert networks.unscalable(BOUNDS) == [2, 3, 4, 5, 6]
    assert networks.unscalable(((0.0, 0.0), (float("inf"), float("nan")))) == [0, 1]
    # In float32 these are one number.
    assert networks.unscalable(((1.0,), (1.0 + 1e-12,))) == [0]
    of = spec(7, dtype=np.float32, bounds=BOUNDS)
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    network = hk.without_apply_rng(hk.transform(networks.torso("mlp_small", of)))
    params = random_params(network.init, KEY, of.zeros())
    got = np.asarray(jax.jit(network.apply)(params, x))
    scaled = x.copy()
    scaled[:, 0] = (x[:, 0] + 1) / 2 - 1
    scaled[:, 1] = x[:, 1] * 2 / 2**24 - 1
    plain = spec(7, dtype=np.float32)
    np.testing.assert_allclose(got, features("mlp_small", plain, scaled, params), rtol=1e-4)
    grads = jax.jit(jax.grad(lambda p: network.apply(p, x).sum()))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    # Different observations are different to the network.
    assert len({row.tobytes() for row in got}) == 4


def test_a_run_of_version_0_1_is_scaled_as_it_was():
    wide = ((-HUGE / 4, -1.0), (HUGE / 4, 1.0))
    old = spec(2, dtype=np.float32, bounds=wide, input_rules=1)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    other = np.stack([x[::-1, 0], x[:, 1]], axis=1)
    outputs = features("mlp", old, x)
    np.testing.assert_array_equal(outputs, features("mlp", old, other))  # Its first is a constant.
    assert not np.array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("value", [0, 256])
def test_the_largest_byte_is_one(value):
    with pytest.raises(ValueError, match=r"largest_byte must lie in \[1, 255\]"):
        spec(3, largest_byte=value)


def layer_norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-6)


@pytest.mark.slow
def test_normalised_layers_are_those_of_pqn():
    of = spec(5, 5, 2, dtype=np.bool_)
    network = hk.without_apply_rng(hk.transform(networks.torso("minatar_ln", of)))
    params = network.init(KEY, of.zeros())
    observation = np.random.default_rng(0).integers(0, 2, (3, 5, 5, 2)).astype(bool)
    w = np.asarray(params["conv2_d"]["w"])  # [3, 3, C, 16]
    patches = np.lib.stride_tricks.sliding_window_view(observation, (3, 3), axis=(1, 2))
    x = np.einsum("bhwcij,ijco->bhwo", patches.astype(np.float32), w)  # Biases begin at 0.
    x = np.maximum(layer_norm(x), 0).reshape(3, -1)  # Over channels alone.
    x = np.maximum(layer_norm(x @ np.asarray(params["linear"]["w"])), 0)
    np.testing.assert_allclose(network.apply(params, observation), x, 1e-4, 1e-5)
    assert np.std(params["linear"]["w"]) == pytest.approx(np.sqrt(2 / 144), rel=0.05)
    biases = [p["b"] for name, p in params.items() if "b" in p]
    assert len(biases) == 2 and all(np.all(np.asarray(b) == 0) for b in biases)

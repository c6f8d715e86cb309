"""Tests of core/heads.py and of the torsos without a hidden layer."""

import functools

import haiku as hk
import jax
import numpy as np
import pytest

from kullback.core import heads, networks, types
from tests.states import random_params

SPEC = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
TORSO = networks.torso("mlp_small", SPEC)
OBSERVATION = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
KEY = jax.random.key(0)
FEATURES = jax.jit(hk.without_apply_rng(hk.transform(TORSO)).apply)


@pytest.mark.parametrize(
    ("dueling", "hidden"),
    [
        (False, 0),
        (True, 7),
        pytest.param(False, 7, marks=pytest.mark.slow),
        pytest.param(True, 0, marks=pytest.mark.slow),
    ],
)
def test_without_noise_logits_need_no_key(hidden, dueling):
    network = heads.categorical(TORSO, 4, 5, hidden=hidden, dueling=dueling)
    params, apply = random_params(network.init, KEY, SPEC.zeros()), jax.jit(network.apply)
    logits = apply(params, KEY, OBSERVATION)
    assert logits.shape == (6, 4, 5)
    np.testing.assert_array_equal(logits, apply(params, jax.random.key(1), OBSERVATION))


def test_dueling_logits_are_the_value_and_advantages_of_no_mean():
    plain = heads.categorical(TORSO, 4, 5)
    dueling = heads.categorical(TORSO, 4, 5, dueling=True)
    params = random_params(dueling.init, KEY, SPEC.zeros())
    *shared, value = sorted(params)  # linear, linear_1: the torso; linear_2: A; linear_3: V.
    of_actions = {name: params[name] for name in shared}
    advantages = np.asarray(jax.jit(plain.apply)(of_actions, KEY, OBSERVATION))
    v = FEATURES(params, OBSERVATION) @ params[value]["w"] + params[value]["b"][None]
    expected = v[:, None] + advantages - np.mean(advantages, axis=1, keepdims=True)
    got = jax.jit(dueling.apply)(params, KEY, OBSERVATION)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(np.mean(got, axis=1), v, atol=1e-5)


def test_noise_has_the_mean_and_the_spread_of_its_parameters():
    layer = hk.transform(lambda x: heads.noisy_linear(3, 0.5)(x))
    x = np.array([[1.0, -2.0, 0.5, 3.0]], np.float32)
    params = jax.tree.map(np.asarray, jax.jit(layer.init)(KEY, x))
    scales = params["noise"]
    np.testing.assert_allclose(scales["w"], 0.25)  # 0.5 over the root of 4 inputs.
    np.testing.assert_allclose(scales["b"], 0.25)
    rows = jax.vmap(layer.apply, in_axes=(None, 0, None))
    draw = jax.jit(lambda params: rows(params, jax.random.split(KEY, 20_000), x)[:, 0])
    draws = np.asarray(draw(params))  # [20000, 3]
    mean = x @ params["linear"]["w"] + params["linear"]["b"]
    # E f(e)^2 = E|e| = sqrt(2 / pi): each of the four products has the square of that as variance.
    second = np.sqrt(2 / np.pi)
    deviation = 0.25 * np.sqrt(second**2 * np.sum(x**2) + second)
    np.testing.assert_allclose(np.mean(draws, 0), mean[0], atol=4 * deviation / np.sqrt(20_000))
    np.testing.assert_allclose(np.std(draws, axis=0), deviation, rtol=0.05)
    still = {**params, "noise": jax.tree.map(np.zeros_like, scales)}
    np.testing.assert_allclose(jax.jit(layer.apply)(still, KEY, x), mean, rtol=1e-5)


def test_fixed_quantiles_stand_in_the_middles_of_equal_parts():
    network = heads.quantiles(TORSO, 4, 5)
    fractions = np.asarray(network.fractions(KEY, 6, 99))
    np.testing.assert_allclose(fractions, np.tile([0.1, 0.3, 0.5, 0.7, 0.9], (6, 1)), rtol=1e-6)
    params = jax.eval_shape(network.init, KEY, SPEC.zeros())
    assert jax.eval_shape(network.apply, params, KEY, OBSERVATION, fractions).shape == (6, 5, 4)


def test_noise_of_many_quantiles_is_that_of_one_row_each():
    """Weights are formed where x has rows of quantiles, and not where it has rows: one result."""
    layer = hk.transform(lambda x: heads.noisy_linear(3, 0.5)(x))
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    params, apply = random_params(layer.init, KEY, x[0]), jax.jit(layer.apply)
    jax.tree.map(np.testing.assert_array_equal, params, random_params(layer.init, KEY, x))
    keys = jax.random.key(1), jax.random.key(2)
    got, other = (np.asarray(apply(params, key, x)) for key in keys)
    expected = np.asarray(apply(params, keys[0], x.reshape(10, 4))).reshape(2, 5, 3)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(got - other)) > 0.1


@pytest.mark.parametrize(("make", "hidden"), [("implicit_quantiles", 9), ("quantiles", 0)])
def test_dueling_quantiles_are_the_value_and_advantages_of_no_mean(make, hidden):
    """Noise is one draw a key, whatever rows and fractions; without it the means are left."""
    fixed = make == "quantiles"
    build = functools.partial(
        getattr(heads, make),
        TORSO,
        4,
        hidden=hidden,
        dueling=True,
        **({"num_quantiles": 2} if fixed else {"num_cosines": 8}),
    )
    network, plain = build(noise=0.5), build()
    params = random_params(network.init, KEY, SPEC.zeros())
    u = np.random.default_rng(1).random((6, 2), np.float32)
    run, run_plain = jax.jit(network.apply), jax.jit(plain.apply)
    apply = lambda *given: np.asarray(run(*given))  # noqa: E731  # As its sibling.
    apply_plain = lambda *given: np.asarray(run_plain(*given))  # noqa: E731
    z = apply(params, KEY, OBSERVATION, u)
    assert z.shape == (6, 2, 4)
    swapped = apply(params, KEY, OBSERVATION[::-1], u[::-1])
    np.testing.assert_allclose(z, swapped[::-1], rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(z - apply(params, jax.random.key(1), OBSERVATION, u))) > 1e-3
    still = network.without_noise(params)
    means = apply(still, KEY, OBSERVATION, u)
    np.testing.assert_array_equal(means, apply(still, jax.random.key(1), OBSERVATION, u))
    # The same layers without noise; the last of each stream moves all actions alike, or not at all.
    mu = {name: leaves for name, leaves in params.items() if not name.startswith("noise")}
    np.testing.assert_allclose(means, apply_plain(mu, KEY, OBSERVATION, u), rtol=1e-4, atol=1e-5)
    last = len(mu) - 1
    for at, is_value in ((last, True), (last - 1 - (hidden > 0), False)):
        layer = mu[f"linear_{at}"]
        raised = {**mu, f"linear_{at}": {**layer, "b": layer["b"] + 1}}
        moved = apply_plain(raised, KEY, OBSERVATION, u) - means
        np.testing.assert_allclose(moved, np.full((6, 2, 4), float(is_value)), atol=1e-5)


@pytest.mark.parametrize(
    ("hidden", "first"),
    [
        (0, 0),
        (9, 1),
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(9, 0, marks=pytest.mark.slow),
    ],
)
def test_implicit_quantiles_are_those_of_the_paper(first, hidden):
    network = heads.implicit_quantiles(TORSO, 4, hidden=hidden, num_cosines=8, first_cosine=first)
    params = random_params(network.init, KEY, SPEC.zeros())
    u = np.random.default_rng(1).random((6, 2), np.float32)
    got = np.asarray(jax.jit(network.apply)(params, KEY, OBSERVATION, u))
    features = np.asarray(FEATURES(params, OBSERVATION))
    layers = [params[name] for name in sorted(params)][2:]  # Those after the torso's two.
    for b in range(6):
        for n in range(2):
            waves = np.cos(np.pi * np.arange(first, first + 8) * u[b, n])
            phi = np.maximum(waves @ layers[0]["w"] + layers[0]["b"], 0)
            x = features[b] * phi
            if hidden:
                x = np.maximum(x @ layers[1]["w"] + layers[1]["b"], 0)
            np.testing.assert_allclose(
                got[b, n], x @ layers[-1]["w"] + layers[-1]["b"], rtol=1e-3, atol=1e-5
            )
    drawn = np.asarray(network.fractions(KEY, 1000, 2))
    assert drawn.shape == (1000, 2) and 0 <= drawn.min() and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.03 and abs(drawn.var() - 1 / 12) < 0.01


@pytest.mark.parametrize(
    ("shape", "stack", "size"), [((4, 84, 84), 4, 3_136), ((10, 10, 6), 1, 1_024)]
)
def test_where_the_head_has_the_hidden_layer_auto_picks_a_torso_without(shape, stack, size):
    spec = types.Spec(shape=shape, dtype=np.uint8, num_actions=4, frame_stack=stack)
    for hidden, expected in ((False, size), (True, 512 if stack > 1 else 128)):
        torso = networks.torso("auto", spec, hidden=hidden)
        params = jax.eval_shape(hk.transform(torso).init, KEY, spec.zeros(2))
        apply = hk.without_apply_rng(hk.transform(torso)).apply
        assert jax.eval_shape(apply, params, spec.zeros(2)).shape == (2, expected)

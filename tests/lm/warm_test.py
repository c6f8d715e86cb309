"""Tests of lm/warm.py: populations of reward models, and their average."""

import dataclasses
import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.core import averaging
from kullback.lm import memory, reward_model, tuning, warm

LEARNING = tuning.Config(batch_size=8, warmup_steps=0, learning_rate=4e-5, max_grad_norm=10.0)


def linear(params: Any, x: jax.Array) -> jax.Array:
    """Returns features W x; with the head it is a linear network of two layers."""
    return jnp.einsum("df,bf->bd", params["w"], x)


LAYERS = reward_model.on_features(
    lambda key: {"w": jax.random.normal(key, (4, 3))}, linear, width=4
)
FIXED = reward_model.on_features(lambda key: {"w": jnp.zeros(0)}, lambda params, x: x, width=3)
LAYERS, FIXED = (model._replace(rewards=jax.jit(model.rewards)) for model in (LAYERS, FIXED))


def drawn(model: reward_model.Model, seed: int) -> Any:
    params = jax.jit(model.init)(jax.random.key(seed))
    width = len(params["head"]["w"])
    w = jax.random.normal(jax.random.key(seed + 100), (width,))
    return {**params, "head": {"w": w, "b": jnp.float32(seed)}}


def between(first: Any, other: Any, share: float) -> Any:
    """Returns (1 - share) first + share other."""
    return averaging.mean([first, other], [1 - share, share])


@functools.cache
def inputs() -> jax.Array:
    return jax.random.normal(jax.random.key(7), (6, 3))


@hypothesis.settings(deadline=None)
@hypothesis.given(share=st.floats(0, 1, width=32, allow_subnormal=False), seed=st.integers(0, 5))
def test_of_a_linear_model_both_averages_are_one(share: float, seed: int):
    one, other = drawn(FIXED, seed), drawn(FIXED, seed + 10)
    averaged = FIXED.rewards(between(one, other, share), inputs())
    ensembled = (1 - share) * FIXED.rewards(one, inputs())
    ensembled += share * FIXED.rewards(other, inputs())
    np.testing.assert_allclose(averaged, ensembled, atol=1e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(share=st.floats(0, 1, width=32, allow_subnormal=False), seed=st.integers(0, 5))
def test_of_two_layers_they_differ_by_the_product_of_differences(share: float, seed: int):
    """WA - ENS = -lambda (1 - lambda) (w_1 - w_2)' (W_1 - W_2) x, exactly."""
    one, other = drawn(LAYERS, seed), drawn(LAYERS, seed + 10)
    gap = LAYERS.rewards(between(one, other, share), inputs())
    gap -= (1 - share) * LAYERS.rewards(one, inputs()) + share * LAYERS.rewards(other, inputs())
    heads, layers = (
        np.asarray(a, np.float64) - np.asarray(b, np.float64)
        for a, b in (
            (one["head"]["w"], other["head"]["w"]),
            (one["decoder"]["w"], other["decoder"]["w"]),
        )
    )
    expected = -share * (1 - share) * (heads @ layers @ np.asarray(inputs(), np.float64).T)
    np.testing.assert_allclose(gap, expected, atol=2e-5)


def test_the_average_is_uniform_and_in_any_order():
    members = [drawn(LAYERS, seed) for seed in range(5)]
    mean = warm.average(iter(members))
    exact = jax.tree.map(lambda *x: np.mean(np.asarray(x, np.float64), 0), *members)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, exact)
    turned = warm.average(members[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, turned)
    same = warm.average([members[0]] * 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), same, members[0])
    two = warm.average(members[:2])
    expected = between(members[0], members[1], 0.5)
    jax.tree.map(np.testing.assert_array_equal, two, expected)
    for function in (warm.average, warm.stacked):
        with pytest.raises(ValueError, match="no member"):
            function([])


def test_the_ensemble_is_the_mean_of_predictions():
    members = [drawn(LAYERS, seed) for seed in range(3)]
    ensemble = jax.jit(functools.partial(warm.ensemble, LAYERS))
    got = ensemble(warm.stacked(members), inputs())
    expected = np.mean([LAYERS.rewards(one, inputs()) for one in members], 0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_average_keeps_what_members_agree_on():
    """Section 4.3 of the paper, exactly for M members: p^2 + p (1 - p) / M of feature j, not p.

    A featurizer has each orthogonal feature with probability p; its best head has the same ones.
    """
    p, count = np.array([0.9, 0.5, 0.1]), 4
    chosen = np.random.default_rng(0).random((20_000, count, 3)) < p
    features = jnp.asarray(chosen, jnp.float32)
    mean = averaging.mean([{"f": features[:, m], "w": features[:, m]} for m in range(count)])
    weight_share = np.mean(mean["f"] * mean["w"], 0)
    np.testing.assert_allclose(weight_share, p**2 + p * (1 - p) / count, atol=0.01)
    reward_share = np.mean(chosen.astype(float), (0, 1))
    np.testing.assert_allclose(reward_share, p, atol=0.01)
    assert np.all(weight_share < reward_share + 1e-9)


def test_members_draw_all_there_is_and_the_same_again():
    config = warm.Config(starts=(100, 200, 300))
    members = [warm.draw(config, seed) for seed in range(60)]
    assert members == [warm.draw(config, seed) for seed in range(60)]
    pairs = {(member.learning_rate, member.dropout) for member in members}
    assert pairs == {(a, b) for a in config.learning_rates for b in config.dropouts}
    assert [member.start for member in members[:4]] == [100, 200, 300, 100]
    assert warm.draw(warm.Config(), 3).start is None
    member = warm.member_config(config, 5)
    assert (member.learning.learning_rate, member.dropout) == members[5][:2]
    assert member.learning.batch_size == config.learning.batch_size


def test_memory_is_known_before():
    needs = memory.Needs(parameters=10, moments=20, frozen=0, gradients=10, activations=7, logits=0)
    assert warm.peak_bytes(needs, 6) == warm.Peak(47, 30, 60)
    assert warm.peak_bytes(needs, 6).total == 60
    assert warm.peak_bytes(needs, 6, together=True).total == 6 * 47


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warm.Config(learning_rates=()), "learning_rates must have one value at least"),
        (lambda: warm.Config(dropouts=()), "dropouts must have one value at least"),
        (lambda: warm.Config(learning_rates=(1e-5, 0.0)), "learning_rate must be > 0"),
        (lambda: warm.Config(dropouts=(1.0,)), "dropout must lie in"),
        (lambda: warm.Config(starts=(-1,)), "starts must be steps >= 0"),
        (
            lambda: warm.Config(reward=reward_model.Config(dropout=0.2)),
            "dropout is drawn from dropouts",
        ),
        (
            lambda: warm.Config(
                reward=reward_model.Config(learning=dataclasses.replace(LEARNING, learning_rate=1))
            ),
            "learning_rate is drawn from learning_rates",
        ),
    ],
)
def test_settings_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()

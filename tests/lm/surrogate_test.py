"""Tests of lm/surrogate.py."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import policy_gradient, surrogate

PPO = surrogate.Rule(clip_low=0.2, clip_high=0.3)
RNG = np.random.default_rng(0)
# Texts of 1, 3, 5 and 2 tokens, after a prompt.
MASK = np.arange(7) < np.array([[1], [3], [5], [2]])
MASK = np.roll(MASK, 1, 1)
OLD = np.where(MASK, RNG.uniform(-3, -0.5, MASK.shape), 0)
NEW = np.where(MASK, OLD + RNG.normal(size=MASK.shape) * 0.4, 0)
ADVANTAGES = np.broadcast_to(np.array([[1.5], [-0.7], [0.4], [-2.0]]), MASK.shape)


def losses(log_pi: Any, old: Any, advantages: Any, rule: surrogate.Rule) -> jax.Array:
    """Returns the losses of texts of one token each."""
    x, y, a = (
        jnp.atleast_1d(jnp.asarray(v, jnp.float32))[:, None] for v in (log_pi, old, advantages)
    )
    ratio = surrogate.log_ratios(x, y, jnp.ones_like(x, bool), rule.ratio)
    return surrogate.surrogate(x, ratio, a, rule)[0][:, 0]


def slope(rho: float, advantage: float, rule: surrogate.Rule = PPO) -> float:
    """Returns the gradient of a token's loss with respect to log pi."""
    return float(jax.grad(lambda x: losses(x, 0.0, advantage, rule)[0])(np.log(rho)))


@pytest.mark.parametrize(
    ("rho", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),  # REINFORCE's: -A.
        (1.0, -2.0, 2.0),
        (1.25, 2.0, -2.5),  # Inside the bounds: -rho A.
        (1.31, 2.0, 0.0),  # Good, and probable enough.
        (0.5, 2.0, -1.0),  # Good, and too improbable: not clipped.
        (0.79, -2.0, 0.0),  # Bad, and improbable enough.
        (3.0, -2.0, 6.0),  # Bad, and too probable: not clipped.
        (3.0, 0.0, 0.0),
    ],
)
def test_golden_slopes_of_the_clipped_surrogate(rho: float, advantage: float, expected: float):
    np.testing.assert_allclose(slope(rho, advantage), expected, atol=1e-5)


def test_golden_values_and_other_bounds():
    np.testing.assert_allclose(
        losses(np.log([2.0, 2.0, 0.5]), np.zeros(3), np.array([1.0, -1.0, -1.0]), PPO),
        [-1.3, 2.0, 0.8],
        rtol=1e-6,
    )
    two_sided = surrogate.Rule(clip_low=0.2, clip_high=0.3, limit=4.0)
    assert slope(3.9, -2.0, two_sided) == pytest.approx(7.8, rel=1e-5)
    assert slope(4.1, -2.0, two_sided) == 0.0
    np.testing.assert_allclose(losses(np.log(5.0), 0.0, -2.0, two_sided), [8.0], rtol=1e-6)
    unbounded = surrogate.Rule(clip_low=0.0, clip_high=0.0)
    for rho in (0.01, 100.0):
        for advantage in (-2.0, 2.0):
            assert slope(rho, advantage, unbounded) == pytest.approx(-rho * advantage, rel=1e-4)


def test_a_detached_ratio_is_a_weight_that_stops_no_gradient():
    cispo = surrogate.Rule(clip_low=0.0, clip_high=4.0, detach=True)
    for rho, held in ((0.1, 0.1), (3.0, 3.0), (9.0, 5.0)):
        for advantage in (-2.0, 2.0):
            assert slope(rho, advantage, cispo) == pytest.approx(-held * advantage, rel=1e-5)
            value = losses(np.log(rho), 0.0, advantage, cispo)[0]
            np.testing.assert_allclose(value, -held * advantage * np.log(rho), rtol=1e-5)


def test_without_a_ratio_it_is_the_policy_gradient_whatever_there_was_before():
    rule = surrogate.Rule(ratio="none")
    got = losses(np.array([-1.0, -2.0]), np.array([-9.0, 4.0]), np.array([3.0, -1.0]), rule)
    np.testing.assert_array_equal(got, [3.0, -2.0])
    assert slope(7.0, 3.0, rule) == -3.0


def objective(log_pi: np.ndarray, ratio: str, normalisation: str) -> float:
    """Computes the objective by its definition, in float64, a text at a time."""
    total, tokens = 0.0, MASK.sum()
    for x, old, mask, a in zip(log_pi, OLD, MASK, ADVANTAGES[:, 0], strict=True):
        log_rho = (x - old)[mask]
        if ratio != "token":
            log_rho = np.array([log_rho.sum() / (mask.sum() if ratio == "sequence" else 1)])
        each = [
            -min(np.exp(r) * a, min(max(np.exp(r), 0.8), 1.3) * a) for r in log_rho.astype(float)
        ]
        share = {"none": len(MASK), "length": len(MASK) * mask.sum(), "tokens": tokens}
        weight = 1 / (share[normalisation] if ratio == "token" else len(MASK))
        total += weight * sum(each)
    return total


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(lambda f: f, id="eager", marks=pytest.mark.slow),
        pytest.param(jax.jit, id="jit"),
    ],
)
@pytest.mark.parametrize(
    ("ratio", "normalisation"),
    [
        ("token", "none"),
        ("token", "length"),
        ("token", "tokens"),
        ("sequence", "length"),
        ("product", "none"),
    ],
)
def test_oracle_is_the_objective_of_the_papers_and_its_differences(
    ratio: Any, normalisation: Any, variant: Any
):
    rule = surrogate.Rule(ratio=ratio, clip_low=0.2, clip_high=0.3)
    weights = policy_gradient.token_weights(jnp.asarray(MASK), jnp.ones(len(MASK)), normalisation)

    def loss(log_pi: jax.Array) -> jax.Array:
        rho = surrogate.log_ratios(log_pi, jnp.asarray(OLD), jnp.asarray(MASK), ratio)
        advantages = jnp.asarray(ADVANTAGES, log_pi.dtype)
        return jnp.sum(weights * surrogate.surrogate(log_pi, rho, advantages, rule)[0])

    got = variant(jax.grad(loss))(jnp.asarray(NEW, jnp.float32))
    step = 1e-6
    expected = np.zeros(MASK.shape)
    for place in zip(*np.nonzero(MASK), strict=True):
        ends = [NEW.copy(), NEW.copy()]
        ends[0][place], ends[1][place] = NEW[place] + step, NEW[place] - step
        above, below = (objective(end, ratio, normalisation) for end in ends)
        expected[place] = (above - below) / (2 * step)
    assert np.any(expected[MASK] == 0) and np.any(expected != 0), "some ratios are clipped"
    np.testing.assert_allclose(got, expected, atol=1e-5)
    if (ratio, normalisation) != ("product", "none"):  # Each token of a text has the value of it.
        value = variant(loss)(jnp.asarray(NEW, jnp.float32))
        np.testing.assert_allclose(value, objective(NEW, ratio, normalisation), rtol=1e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    log_rho=st.floats(-2, 2, width=32), advantage=st.floats(-3, 3, width=32, allow_subnormal=False)
)
def test_where_all_tokens_have_one_ratio_gspo_is_the_ratio_of_tokens(
    log_rho: float, advantage: float
):
    mask, old = jnp.asarray(MASK), jnp.asarray(OLD, jnp.float32)
    log_pi = old + log_rho
    by = {}
    for ratio in ("token", "sequence"):
        rule = surrogate.Rule(ratio=ratio)
        log_ratio = surrogate.log_ratios(log_pi, old, mask, ratio)
        by[ratio] = surrogate.surrogate(log_pi, log_ratio, jnp.full(mask.shape, advantage), rule)
    near_a_bound = min(abs(np.exp(log_rho) - bound) for bound in (0.8, 1.2)) < 1e-4
    if not near_a_bound:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), by["token"], by["sequence"]
        )


@hypothesis.settings(deadline=None)
@hypothesis.given(rho=st.floats(0.01, 50), advantage=st.floats(-3, 3))
def test_the_surrogate_is_no_better_than_without_bounds(rho: float, advantage: float):
    free = surrogate.Rule(clip_low=0.0, clip_high=0.0)
    bounded, unbounded = (
        float(losses(np.log(rho), 0.0, advantage, rule)[0]) for rule in (PPO, free)
    )
    assert bounded >= unbounded - 1e-5 * abs(unbounded)


def test_ratios_of_a_long_text_stay_finite_with_their_gradients():
    mask = jnp.ones((2, 500), bool)
    old = jnp.full((2, 500), -3.0)
    for shift in (-2.9, 2.9):
        rule = surrogate.Rule(ratio="product", clip_low=0.0, clip_high=0.0)

        def loss(log_pi: jax.Array, rule: surrogate.Rule = rule) -> jax.Array:
            ratio = surrogate.log_ratios(log_pi, old, mask, rule.ratio)
            return jnp.sum(surrogate.surrogate(log_pi, ratio, jnp.ones_like(ratio), rule)[0])

        value, gradient = jax.value_and_grad(loss)(old + shift)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_golden_corrections_of_another_sampler():
    # Ratios pi / sampler: 2 and 1/2 in the first text, 4 and 2 in the second, of 8 in all.
    mask = jnp.asarray([[False, True, True], [False, True, True]])
    sampler = jnp.zeros((2, 3)).at[:, 0].set(9.0)
    policy = jnp.log(jnp.asarray([[7.0, 2.0, 0.5], [7.0, 4.0, 2.0]]))
    by = {
        name: surrogate.corrected(policy, sampler, mask, name, 3.0)
        for name in ("none", "truncate", "mask")
    }
    np.testing.assert_allclose(by["truncate"].weights[:, 1:], [[2, 0.5], [3, 2]], rtol=1e-6)
    np.testing.assert_allclose(by["mask"].weights[:, 1:], [[1, 1], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(by["none"].weights, np.ones((2, 3)))
    np.testing.assert_array_equal(by["truncate"].is_cut, [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(by["mask"].is_cut, [[0, 0, 0], [0, 1, 1]])
    assert not np.any(by["none"].is_cut)
    for one in by.values():
        np.testing.assert_allclose(one.sampler_kl, [0, -np.log(8)], atol=1e-6)
        np.testing.assert_allclose(one.largest, [2, 4], rtol=1e-6)


def test_weights_of_texts_make_expectations_those_of_the_policy():
    """By enumeration of a bandit: E_sampler[w f] = E_pi[f] where no ratio is above the limit."""
    logits = RNG.normal(size=(2, 6))
    log_pi, log_sampler = (x - np.log(np.exp(x).sum()) for x in logits)
    f = RNG.normal(size=6)
    ones = jnp.ones((6, 1), bool)
    policy, sampler = (jnp.asarray(x, jnp.float32)[:, None] for x in (log_pi, log_sampler))
    weights = surrogate.corrected(policy, sampler, ones, "mask", 1e6).weights[:, 0]
    got = np.sum(np.exp(log_sampler) * np.asarray(weights) * f)
    np.testing.assert_allclose(got, np.sum(np.exp(log_pi) * f), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: surrogate.Rule(ratio="text"), "unknown ratio 'text'"),  # pyright: ignore[reportArgumentType]
        (lambda: surrogate.Rule(clip_low=1.0), r"clip_low must lie in \[0, 1\), got 1.0"),
        (lambda: surrogate.Rule(clip_high=-0.1), "clip_high must be >= 0, got -0.1"),
        (lambda: surrogate.Rule(limit=1.1), "ratio_limit must be 0, or above 1 . clip_high=1.2"),
        (lambda: surrogate.check_correction("drop", 2.0), "unknown correction 'drop'"),  # pyright: ignore[reportArgumentType]
        (lambda: surrogate.check_correction("mask", 0.5), "correction_limit must be >= 1, got 0.5"),
    ],
)
def test_settings_are_checked(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_are_checked():
    row = jnp.zeros((2, 3))
    with pytest.raises(AssertionError):
        surrogate.log_ratios(row, row[:1], jnp.ones((2, 3), bool), "token")
    with pytest.raises(AssertionError):
        surrogate.surrogate(row, row, row[:, :1], PPO)

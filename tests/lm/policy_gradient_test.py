"""Tests of lm/policy_gradient.py: expectations by enumeration of a bandit with six actions."""

import functools
import itertools
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import policy_gradient

ACTIONS = 6
RNG = np.random.default_rng(0)
LOGITS, REFERENCE, REWARD = RNG.normal(size=(3, ACTIONS)).astype(np.float32)
log_ref = jax.nn.log_softmax(REFERENCE)


def log_pi(logits: Any) -> jax.Array:
    return jax.nn.log_softmax(logits)


def reverse_kl(logits: Any) -> jax.Array:
    return jnp.sum(jnp.exp(log_pi(logits)) * (log_pi(logits) - log_ref))


def forward_kl(logits: Any) -> jax.Array:
    return jnp.sum(jnp.exp(log_ref) * (log_ref - log_pi(logits)))


def estimates(logits: Any, name: Any) -> jax.Array:
    """Returns the KL estimate of each action, [A]."""
    return policy_gradient.kl_estimate(log_pi(logits) - log_ref, name)


P = np.exp(log_pi(LOGITS))  # Of drawing each action; no gradient flows through it.
SCORES = np.asarray(jax.jacobian(log_pi)(LOGITS))  # grad log pi(a), [A, A].


@pytest.mark.parametrize(("name", "is_unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_the_mean_of_an_estimator(name: Any, is_unbiased: bool):
    mean = np.sum(P * np.asarray(estimates(LOGITS, name)))
    assert (abs(mean - float(reverse_kl(LOGITS))) < 1e-6) == is_unbiased
    assert name == "k1" or np.all(np.asarray(estimates(LOGITS, name)) >= 0)


@pytest.mark.parametrize(
    ("name", "objective"), [("k1", None), ("k2", reverse_kl), ("k3", forward_kl)]
)
def test_the_gradient_of_an_estimator_in_the_loss(name: Any, objective: Any):
    """The samples are fixed, and the estimate is differentiated: the table of `kl_estimate`."""
    slope = jax.grad(lambda x: jnp.sum(P * estimates(x, name)))(LOGITS)
    expected = np.zeros(ACTIONS) if objective is None else jax.grad(objective)(LOGITS)
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "is_exact"), [("k1", True), ("k2", False), ("k3", False)])
def test_the_gradient_of_an_estimator_in_the_reward(name: Any, is_exact: bool):
    slope = (P * np.asarray(estimates(LOGITS, name))) @ SCORES
    off = np.max(np.abs(slope - np.asarray(jax.grad(reverse_kl)(LOGITS))))
    assert (off < 1e-6) == is_exact, off


def expected_gradient(advantages: Any, group_size: int) -> np.ndarray:
    """Computes E [mean_i A_i grad log pi(a_i)] over all groups of actions, by enumeration."""
    total = np.zeros(ACTIONS)
    for group in itertools.product(range(ACTIONS), repeat=group_size):
        actions = list(group)
        a = np.asarray(advantages(REWARD[actions]))
        total += np.prod(P[actions]) * (a @ SCORES[actions]) / group_size
    return total


@pytest.mark.parametrize("group_size", [2, 3])
def test_leave_one_out_has_no_bias_and_the_mean_of_a_group_has(group_size: int):
    exact = (P * REWARD) @ SCORES
    leave_one_out = jax.jit(functools.partial(policy_gradient.leave_one_out, group_size=group_size))
    np.testing.assert_allclose(expected_gradient(leave_one_out, group_size), exact, atol=1e-5)
    group_advantages = jax.jit(
        functools.partial(policy_gradient.group, group_size=group_size, scale=False)
    )
    shrunk = (group_size - 1) / group_size * exact
    np.testing.assert_allclose(expected_gradient(group_advantages, group_size), shrunk, atol=1e-5)


def test_golden_advantages():
    # Three of eight are right: 8/7 (1 - 3/8) and -8/7 3/8; over a deviation of sqrt(15/56).
    rewards = np.array([1, 0, 0, 1, 0, 0, 1, 0], np.float32)
    np.testing.assert_allclose(
        policy_gradient.leave_one_out(jnp.asarray(rewards), 8),
        np.where(rewards, 5 / 7, -3 / 7),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        policy_gradient.group(jnp.asarray(rewards), 8),
        np.where(rewards, 1.2076, -0.7246),
        atol=3e-4,
    )


leave_one_out = jax.jit(functools.partial(policy_gradient.leave_one_out, group_size=4))


@hypothesis.settings(deadline=None)
@hypothesis.given(
    returns=hnp.arrays(np.float32, 8, elements=st.floats(-9, 9, width=32, allow_subnormal=False))
)
def test_advantages_of_a_prompt_add_up_to_nothing(returns: np.ndarray):
    advantages = np.asarray(leave_one_out(returns)).reshape(2, 4)
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-4)
    others = [np.delete(row, i).mean() for row in returns.reshape(2, 4) for i in range(4)]
    np.testing.assert_allclose(advantages.ravel(), returns - others, atol=1e-4)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(lambda f: f, id="eager", marks=pytest.mark.slow),
        pytest.param(jax.jit, id="jit"),
    ],
)
@pytest.mark.parametrize("lambda_", [0.0, 0.4, 1.0])
def test_lambda_returns_are_their_recursion(variant: Any, lambda_: float):
    """Oracle: float64, one row and token at a time, rows that end early among them."""
    rewards, values = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32)
    is_answer = np.arange(5) < np.array([[5], [3], [1]])
    is_answer[2] = [False, False, True, True, False]  # After a prompt.
    got = variant(functools.partial(policy_gradient.lambda_returns, lambda_=lambda_))(
        rewards, values, is_answer
    )
    for b in range(3):
        following = 0.0
        for t in reversed(np.flatnonzero(is_answer[b])):
            more = t + 1 < 5 and is_answer[b, t + 1]
            mixed = (1 - lambda_) * values[b, t + 1] + lambda_ * following if more else 0.0
            following = float(rewards[b, t]) + mixed
            np.testing.assert_allclose(got[b, t], following, atol=1e-5)


def test_groups_of_equal_reward():
    returns = jnp.array([1.0, 1.0, 0.0, 1.0, -2.0, -2.0])
    got = policy_gradient.has_equal(returns, 2)
    np.testing.assert_array_equal(got, [True, True, False, False, True, True])
    order = policy_gradient.unequal_first(got, 2)
    np.testing.assert_array_equal(order, [2, 3, 0, 1, 4, 5])


def test_a_text_is_rewarded_at_its_last_token():
    is_answer = np.array([[False, True, True, False], [False, False, False, True]])
    got = policy_gradient.token_rewards(jnp.array([2.0, 3.0]), jnp.asarray(is_answer))
    np.testing.assert_array_equal(got, [[0, 0, 2, 0], [0, 0, 0, 3]])


def test_how_tokens_count():
    is_answer = jnp.array([[True, True, True, False], [True, False, False, False]])
    ones = jnp.ones(2)
    expected = {
        "none": (1 / 2, 1 / 2),
        "length": (1 / 6, 1 / 2),
        "tokens": (1 / 4, 1 / 4),
        "constant": (1 / 6, 1 / 6),  # Of texts of 3 tokens at most.
    }
    for name, (first, second) in expected.items():
        got = policy_gradient.token_weights(is_answer, ones, name, 3)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(got, [[first] * 3 + [0], [second, 0, 0, 0]])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([[5, 6, 7], [5, 6, 7]], 2 / 4),  # 56, 67, twice.
        ([[5, 5, 5], [5, 5]], 1 / 3),
        ([[5, 6], [6, 5]], 2 / 2),
        ([[5], [6]], 0),
    ],
)
def test_distinct_bigrams_by_hand(texts: list[list[int]], expected: float):
    tokens, is_answer = np.full((2, 4), 5, np.int32), np.zeros((2, 4), bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], is_answer[row, : len(text)] = text, True
    got = jax.jit(policy_gradient.distinct_bigrams, static_argnums=2)(tokens, is_answer, 2)
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: policy_gradient.leave_one_out(jnp.zeros(4), 1),
            "2 or more of each prompt, .* groups of 1",
        ),
        (
            lambda: policy_gradient.group(jnp.zeros(4), 3),
            "4 texts in groups of as many, got groups of 3",
        ),
        (lambda: policy_gradient.kl_estimate(jnp.zeros(1), "k4"), "unknown KL estimator 'k4'"),  # pyright: ignore[reportArgumentType]
        (
            lambda: policy_gradient.token_weights(jnp.ones((1, 1), bool), jnp.ones(1), "all"),  # pyright: ignore[reportArgumentType]
            "unknown normalisation 'all'",
        ),
    ],
)
def test_settings_are_checked(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()

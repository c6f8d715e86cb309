"""Tests of agents/munchausen.py."""

import dataclasses
import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import dqn, munchausen, munchausen_iqn
from kullback.core import networks, regularizers, types

PAPER = {"tau": 0.03, "alpha": 0.9, "l_0": -1.0}
target = jax.jit(munchausen.munchausen_target)  # Once, so that hypothesis pays no compilation.
entropy = jax.jit(munchausen.policy_entropy)
entropy_of_f = jax.jit(munchausen.policy_entropy, static_argnames=("tau", "divergence"))
target_of_f = jax.jit(
    munchausen.munchausen_target, static_argnames=("tau", "alpha", "l_0", "divergence")
)
q_values = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))


def oracle(q_tm1, a_tm1, r_t, discount_t, q_t, *, tau, alpha, l_0):
    """Computes the definition in float64: explicit softmax, the bootstrap a sum over actions."""

    def log_softmax(q):
        z = np.float64(q) / tau
        z = z - z.max()
        return z - np.log(np.sum(np.exp(z)))

    log_pi_tm1, log_pi_t = log_softmax(q_tm1), log_softmax(q_t)
    v_t = sum(np.exp(p) * (np.float64(q) - tau * p) for q, p in zip(q_t, log_pi_t, strict=True))
    return r_t + alpha * np.clip(tau * log_pi_tm1[a_tm1], l_0, 0) + discount_t * v_t


def test_golden():
    # tau ln pi(1|s) = -0.5 ln(1 + e^2) = -1.0635, floored at -1: the bonus is 0.9 * -1.
    # v_t = 0.5 ln(2) above max q = 3: 1 - 0.9 + 0.5 * (3 + 0.34657).
    got = target(
        np.array([1, 0], np.float32),
        1,
        1.0,
        0.5,
        np.array([3, 3], np.float32),
        tau=0.5,
        alpha=0.9,
        l_0=-1.0,
    )
    np.testing.assert_allclose(got, 1 - 0.9 + 0.5 * 3.3465736, rtol=1e-6)
    # The first action: -0.5 ln(1 + e^-2) = -0.0634640, inside the bounds; no bootstrap at an end.
    got = target(
        np.array([1, 0], np.float32),
        0,
        1.0,
        0.0,
        np.array([3, 3], np.float32),
        tau=0.5,
        alpha=0.9,
        l_0=-1.0,
    )
    np.testing.assert_allclose(got, 1 - 0.9 * 0.0634640, rtol=1e-6)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(q_tm1=q_values, q_t=q_values, action=st.integers(0, 2))
def test_oracle(q_tm1, q_t, action):
    got = target(q_tm1, action, 1.0, 0.99, q_t, **PAPER)
    np.testing.assert_allclose(got, oracle(q_tm1, action, 1.0, 0.99, q_t, **PAPER), atol=2e-5)


@pytest.mark.parametrize("tau", [1e-3, 0.03])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_oracle_at_extreme_values(tau, scale):
    rng = np.random.default_rng(0)
    settings = {**PAPER, "tau": tau}
    for spread in (1e-3, 1.0, 100.0):
        for base in (scale, -scale):
            q_tm1, q_t = (base + spread * rng.normal(size=(2, 4))).astype(np.float32)
            got = target(q_tm1, 2, -1.0, 0.99, q_t, **settings)
            expected = oracle(q_tm1, 2, -1.0, 0.99, q_t, **settings)
            # One unit in the last place of q is 1e-3 at 1e4; nothing more may be lost.
            np.testing.assert_allclose(got, expected, atol=2e-7 * scale + 1e-5, rtol=0)


@pytest.mark.parametrize("variant", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_without_bonus_and_as_tau_vanishes_it_is_the_target_of_dqn(variant):
    q_tm1, q_t = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    ones, actions = np.ones(5, np.float32), np.ones(5, np.int32)
    expected = jax.vmap(dqn.dqn_target)(*map(jnp.asarray, (q_tm1, actions, ones, ones, q_t)))
    for tau in (1.0, 0.1, 1e-2, 1e-4):
        soft = functools.partial(munchausen.munchausen_target, tau=tau, alpha=0.0, l_0=-1.0)
        above = variant(jax.vmap(soft))(q_tm1, actions, ones, ones, q_t) - expected
        # 0 <= tau ln sum exp(q / tau) - max q <= tau ln A, times gamma = 1.
        assert np.all(above >= -1e-6) and np.all(above <= tau * np.log(3) + 1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    q_tm1=q_values, q_t=q_values, shift=st.floats(-5, 5, width=32, allow_subnormal=False)
)
def test_a_shift_of_values_moves_the_bootstrap_and_not_the_bonus(q_tm1, q_t, shift):
    before = target(q_tm1, 0, 0.0, 0.9, q_t, **PAPER)
    np.testing.assert_allclose(target(q_tm1 + shift, 0, 0.0, 0.9, q_t, **PAPER), before, atol=1e-5)
    moved = target(q_tm1, 0, 0.0, 0.9, q_t + shift, **PAPER)
    np.testing.assert_allclose(moved, before + 0.9 * shift, atol=1e-5)


def test_equal_values_have_the_entropy_of_the_uniform_policy_and_distant_ones_none():
    np.testing.assert_allclose(entropy(np.zeros(4, np.float32), 0.03), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(entropy(np.array([1e4, 0, 0], np.float32), 1e-3), 0.0, atol=1e-6)
    q, tau = np.array([0.02, 0.0, -0.05], np.float32), 0.03
    p = np.exp(np.float64(q) / tau) / np.exp(np.float64(q) / tau).sum()
    np.testing.assert_allclose(entropy(q, tau), -np.sum(p * np.log(p)), rtol=1e-5)


def test_gradient_of_the_target_is_finite_where_the_policy_underflows():
    q = jnp.array([1e4, 0.0, -1e4], np.float32)
    grads = jax.grad(lambda q: target(q, 1, 0.0, 0.9, q, **PAPER))(q)
    assert np.all(np.isfinite(grads))


# f, by name: itself, the inverse of its derivative, and its derivative, as the papers write them.
BY_HAND = {
    "alpha-1.5": (
        lambda u: (u**1.5 - 1 - 1.5 * (u - 1)) / 0.75,
        lambda v: np.maximum(1 + v / 2, 0) ** 2,
        lambda u: 2 * (np.sqrt(u) - 1),
    ),
    "chi_squared": (lambda u: (u - 1) ** 2 / 2, lambda v: np.maximum(1 + v, 0), lambda u: u - 1),
    "hellinger": (
        lambda u: (np.sqrt(u) - 1) ** 2,
        lambda v: (1 - v) ** -2.0,
        lambda u: 1 - 1 / np.sqrt(u),
    ),
}


def greedy_by_bisection(name, q, tau):
    """Returns policy, value and Shannon entropy of argmax <pi, q> + tau H_f(pi), in float64."""
    f, inverse, derivative = BY_HAND[name]
    q = np.asarray(q, np.float64)
    low, high = q.max(), q.max() - tau * derivative(1 / len(q))
    for _ in range(200):
        middle = (low + high) / 2
        is_low = np.sum(inverse((q - middle) / tau)) > 1
        low, high = (middle, high) if is_low else (low, middle)
    pi = inverse((q - low) / tau)
    pi = pi / pi.sum()
    entropy_f = (len(q) - 1) * f(0.0) - np.sum(f(pi))  # f(1) = 0.
    return pi, pi @ q + tau * entropy_f, -np.sum(pi[pi > 0] * np.log(pi[pi > 0]))


@pytest.mark.parametrize("name", list(BY_HAND))
@hypothesis.settings(deadline=None)
@hypothesis.given(
    q_tm1=q_values, q_t=q_values, action=st.integers(0, 2), scale=st.sampled_from([0.01, 1.0])
)
def test_oracle_of_other_regularizers(name, q_tm1, q_t, action, scale):
    q_tm1, q_t = q_tm1 * np.float32(scale), q_t * np.float32(scale)
    got = target_of_f(q_tm1, action, 1.0, 0.99, q_t, **PAPER, divergence=regularizers.named(name))
    _, v_tm1, _ = greedy_by_bisection(name, q_tm1, 0.03)
    _, v_t, _ = greedy_by_bisection(name, q_t, 0.03)
    bonus = np.clip(np.float64(q_tm1[action]) - v_tm1, -1, 0)
    np.testing.assert_allclose(got, 1 + 0.9 * bonus + 0.99 * v_t, atol=1e-5)


def test_golden_of_sparsemax():
    # q / tau = (1.2, 0.6, -2): the policy is (0.8, 0.2, 0), H = (1 - 0.68) / 2 = 0.16 and
    # v = 0.5 (0.96 + 0.12 + 0.16) = 0.62. The bonuses q - v are -0.02, -0.32 and -1.62.
    q = np.array([0.6, 0.3, -1.0], np.float32)
    settings = {"tau": 0.5, "alpha": 0.5, "divergence": regularizers.chi_squared}
    got = [target_of_f(q, a, 1.0, 0.5, q, l_0=-1.0, **settings) for a in range(3)]
    np.testing.assert_allclose(got, 1 + 0.31 + 0.5 * np.array([-0.02, -0.32, -1.0]), rtol=1e-6)
    expected = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
    np.testing.assert_allclose(entropy_of_f(q, 0.5, regularizers.chi_squared), expected, rtol=1e-6)


@pytest.mark.parametrize("name", list(BY_HAND))
def test_other_regularizers_at_extreme_values(name):
    divergence = regularizers.named(name)
    rng = np.random.default_rng(0)
    for spread in (1e-3, 1.0, 1e3):
        for base in (1e3, -1e3):
            q = (base + spread * rng.normal(size=(2, 4))).astype(np.float32)
            got = target_of_f(q[0], 2, -1.0, 0.99, q[1], **PAPER, divergence=divergence)
            _, v_tm1, _ = greedy_by_bisection(name, q[0], 0.03)
            _, v_t, entropy_t = greedy_by_bisection(name, q[1], 0.03)
            expected = -1 + 0.9 * np.clip(q[0, 2] - v_tm1, -1, 0) + 0.99 * v_t
            np.testing.assert_allclose(got, expected, atol=1e-5, rtol=3e-7)
            entropy = entropy_of_f(q[1], 0.03, divergence)
            np.testing.assert_allclose(entropy, entropy_t, atol=1e-4)


def test_kl_by_the_general_path_is_the_target_of_m_dqn():
    # A divergence of its own, whose threshold is searched for.
    shannon = regularizers.from_function(lambda u: u * jnp.log(u), name="shannon", at_zero=0.0)
    rng = np.random.default_rng(1)
    q_tm1, q_t = 0.1 * rng.normal(size=(2, 50, 4)).astype(np.float32)
    rest = rng.integers(0, 4, 50), np.ones(50, np.float32), np.full(50, 0.9, np.float32)
    settings = [{**PAPER, "divergence": f} for f in (regularizers.kl, shannon)]
    targets = [functools.partial(munchausen.munchausen_target, **fields) for fields in settings]
    expected, got = (jax.jit(jax.vmap(f))(q_tm1, *rest, q_t) for f in targets)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    entropies = [entropy_of_f(q_t[0], 0.03, f) for f in (regularizers.kl, shannon)]
    np.testing.assert_allclose(*entropies, rtol=1e-5)


@pytest.mark.parametrize("name", ["alpha-1.5", "hellinger"])
def test_it_is_the_same_by_vmap_and_without_the_bonus_it_bootstraps_alone(name):
    settings = {**PAPER, "divergence": regularizers.named(name)}
    q_tm1, q_t = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    ones, actions = np.ones(7, np.float32), np.arange(7) % 3
    inputs = q_tm1, actions, ones, ones, q_t
    mapped = jax.jit(jax.vmap(functools.partial(munchausen.munchausen_target, **settings)))(*inputs)
    one_by_one = [target_of_f(*(x[i] for x in inputs), **settings) for i in range(7)]
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-6)
    above = [target_of_f(*(x[i] for x in inputs), **{**settings, "alpha": 0.0}) for i in range(7)]
    expected = 1 + np.array([greedy_by_bisection(name, q, 0.03)[1] for q in q_t])
    np.testing.assert_allclose(above, expected, rtol=1e-6)
    assert np.all(np.asarray(mapped) <= np.asarray(above))


SPEC = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)


def learnt(agent) -> tuple[types.LearnerState, types.Feedback]:
    """Returns the state before one update on made-up transitions, and the update's feedback."""
    rng = np.random.default_rng(0)
    ones = np.ones(8, np.float32)
    observation, next_observation = rng.normal(size=(2, 8, 3)).astype(np.float32)
    actions = np.arange(8, dtype=np.int32) % 4
    data = types.Transition(observation, actions, ones, 0.9 * ones, next_observation)
    state = agent.learner.init(jax.random.key(0))
    batch = types.Batch(data=data, indices=actions, probabilities=ones, weights=ones)
    return state, jax.jit(agent.learner.step)(state, batch, types.NO_CONSTANTS)[1]


def test_the_agent_learns_with_its_regularizer():
    settings = dataclasses.replace(munchausen.presets("toy"), temperature=0.5)
    config = dataclasses.replace(settings, regularizer="alpha-1.5")
    state, feedback = learnt(munchausen.make(None, SPEC, config))
    network = networks.action_values(networks.torso("mlp_small", SPEC), 4)
    observations = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    q, next_q = (np.asarray(network.apply(state.params, x)) for x in observations)
    greedy, nexts = ([greedy_by_bisection("alpha-1.5", x, 0.5) for x in y] for y in (q, next_q))
    np.testing.assert_allclose(
        feedback.metrics["policy_entropy"],
        np.mean([entropy for _, _, entropy in greedy]),
        rtol=1e-4,
    )
    q_a = q[np.arange(8), np.arange(8) % 4]
    bonus = np.clip(q_a - np.array([v for _, v, _ in greedy]), -1, 0)
    target_tm1 = 1 + 0.9 * bonus + 0.9 * np.array([v for _, v, _ in nexts])
    np.testing.assert_allclose(
        feedback.metrics["loss"], np.mean((target_tm1 - q_a) ** 2) / 2, rtol=1e-4
    )


@pytest.mark.slow
def test_m_iqn_learns_with_its_regularizer():
    # With the bonus both of the near uniform policies' entropies would cancel: alpha is gamma.
    settings = dataclasses.replace(munchausen_iqn.presets("toy"), log_policy_scale=0.1)
    losses = []
    for name in ("kl", "alpha-1.5"):
        config = dataclasses.replace(settings, temperature=0.5, regularizer=name)
        _, feedback = learnt(munchausen_iqn.make(None, SPEC, config))
        losses.append(float(feedback.metrics["loss"]))
        assert np.isfinite(feedback.metrics["policy_entropy"])
    assert np.all(np.isfinite(losses)) and abs(losses[0] - losses[1]) > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"log_policy_scale": 1.5}, "log_policy_scale must lie in"),
        ({"log_policy_min": 1.0}, "log_policy_min must be < 0"),
        ({"regularizer": "alpha1.5"}, "unknown divergence"),
        ({"regularizer": "reverse_kl"}, "must have a finite f"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        munchausen.Config(**fields)

"""Tests of agents/dcpi.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.agents import dcpi, dqn, q_learning
from kullback.core import types
from kullback.theory import conservative, convex, mdp, scheme

target = jax.jit(dcpi.conservative_target)
mixture = jax.jit(dcpi.mixture)
plain = jax.jit(dqn.dqn_target)
loss = {
    name: jax.jit(functools.partial(dcpi.conservative_loss, direction=name))
    for name in ("forward", "reverse")
}
gradient = {name: jax.jit(jax.grad(function)) for name, function in loss.items()}
values = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))
rates = st.floats(1 / 64, 63 / 64, width=32, allow_subnormal=False)


def softmax(x):
    p = np.exp(np.float64(x) - np.max(x))
    return p / p.sum()


def log32(p):
    return np.log(p).astype(np.float32)


def test_golden():
    # <pi, q> = 0.2 * 4 + 0.8 * 2 = 2.4.
    log_policy = np.log(np.array([0.2, 0.8], np.float32))
    got = target(1.0, 0.5, np.array([4, 2], np.float32), log_policy)
    np.testing.assert_allclose(got, 1 + 0.5 * 2.4, rtol=1e-6)
    # A quarter of the way to action 0: 0.75 * 0.2 + 0.25 and 0.75 * 0.8.
    got = mixture(np.array([4, 2], np.float32), log_policy, 0.25)
    np.testing.assert_allclose(got, [0.4, 0.6], rtol=1e-6)
    # Of equal values it is the first, not both.
    np.testing.assert_allclose(mixture(np.zeros(2, np.float32), log_policy, 1.0), [1, 0])
    # Uniform actor: ln 2 - H(mixture), and -ln 2 - (ln 0.4 + ln 0.6) / 2.
    mixed = np.array([0.4, 0.6], np.float32)
    flat = np.zeros(2, np.float32)
    np.testing.assert_allclose(loss["forward"](flat, mixed), 0.0201355, rtol=1e-4)
    np.testing.assert_allclose(loss["reverse"](flat, mixed), 0.0204110, rtol=1e-4)


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values, actor=values, old=values, rate=rates)
def test_oracle(q, actor, old, rate):
    prior, pi = softmax(old), softmax(actor)
    expected = 0.3 + 0.9 * sum(p * x for p, x in zip(prior, q.astype(np.float64), strict=True))
    np.testing.assert_allclose(target(0.3, 0.9, q, log32(prior)), expected, atol=2e-5)
    mixed = [(1 - rate) * p + rate * (a == q.argmax()) for a, p in enumerate(prior)]
    got = mixture(q, log32(prior), rate)
    np.testing.assert_allclose(got, mixed, atol=1e-6)
    forward = sum(m * np.log(m / p) for m, p in zip(mixed, pi, strict=True))
    reverse = sum(p * np.log(p / (m + 1e-8)) for m, p in zip(mixed, pi, strict=True))
    np.testing.assert_allclose(loss["forward"](actor, got), forward, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(loss["reverse"](actor, got), reverse, rtol=1e-4, atol=2e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(q=values, actor=values)
def test_with_rate_one_and_a_greedy_actor_it_is_dqn(q, actor):
    greedy = jnp.log(mixture(q, jax.nn.log_softmax(actor), 1.0))
    np.testing.assert_allclose(target(0.7, 0.9, q, greedy), plain(q, 0, 0.7, 0.9, q), atol=1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(actor=values)
def test_losses_are_least_at_the_mixture(actor):
    mixed = softmax(actor).astype(np.float32)
    other = softmax(actor + np.array([1, 0, 0])).astype(np.float32)
    for name, slope in gradient.items():
        np.testing.assert_allclose(slope(actor, mixed), np.zeros(3), atol=2e-6, err_msg=name)
        assert loss[name](actor, other) >= loss[name](actor, mixed) - 1e-6
    np.testing.assert_allclose(gradient["forward"](actor, other), mixed - other, atol=1e-6)


def test_gradients_are_finite_where_the_mixture_has_one_action():
    certain = np.array([1, 0, 0], np.float32)
    for actor in (np.array([0, 200, -200], np.float32), np.zeros(3, np.float32)):
        for name, slope in gradient.items():
            assert np.all(np.isfinite(slope(actor, certain))), name
    # What the actor has given up is seen by the forward direction alone.
    actor = np.array([-30, 0, 0], np.float32)
    assert gradient["forward"](actor, certain)[0] < -0.9
    assert np.abs(gradient["reverse"](actor, certain)[0]) < 1e-6


@hypothesis.settings(deadline=None)
@hypothesis.given(actor=values, q=values, rate=rates, count=st.integers(1, 20))
def test_exact_updates_approach_the_greedy_action_at_the_rate(actor, q, rate, count):
    first = policy = softmax(actor)
    for _ in range(count):
        # What underflows has no logarithm.
        some = np.maximum(policy, np.finfo(np.float32).tiny)
        policy = np.asarray(mixture(q, log32(some), rate), np.float64)
    best = q.argmax()
    np.testing.assert_allclose(policy[best], 1 - (1 - rate) ** count * (1 - first[best]), atol=1e-5)
    np.testing.assert_allclose(policy.sum(), 1, atol=1e-5)


def test_rates_are_those_of_the_exact_schemes():
    """On a ring, where a policy decides the reward and not the way: all states occur alike."""
    rng = np.random.default_rng(0)
    ring = np.broadcast_to(np.roll(np.eye(5), 1, axis=1)[:, None], (5, 3, 5))
    process = mdp.make(
        probabilities=ring, reward=rng.uniform(size=(5, 3)), discount=0.9, initial=np.full(5, 0.2)
    )
    q, policy = 50 * rng.normal(size=(5, 3)), rng.dirichlet(np.ones(3), 5)
    state = scheme.State(q, convex.Point(np.log(policy), np.zeros((), np.int32)))
    gains = jax.vmap(dcpi.greedy_gain)(jnp.asarray(q, jnp.float32), log32(policy))
    np.testing.assert_allclose(gains, q.max(1) - (policy * q).sum(1), rtol=1e-5)
    expected = conservative.optimal(process, state)
    assert 0 < expected < 1
    got = dcpi.cpi_rate(jnp.mean(gains), 0.9, float(np.max(process.reward)))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    distances = np.abs(np.eye(3)[q.argmax(1)] - policy).sum(1)
    expected = conservative.adaptive(process, state)
    assert 0 < expected < 1
    got = dcpi.spi_rate(gains, jnp.asarray(distances, jnp.float32), 0.9)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    # Nothing to gain, and a gain that costs nothing.
    assert dcpi.spi_rate(jnp.zeros(3), jnp.ones(3), 0.9) == 0
    assert dcpi.spi_rate(jnp.ones(3), jnp.ones(3), 0.9) == 1
    assert dcpi.cpi_rate(jnp.float32(1e9), 0.9, 1.0) == 1


@pytest.mark.parametrize(
    "rate",
    ["constant", "spi", *(pytest.param(x, marks=pytest.mark.slow) for x in ("cpi", "normalised"))],
)
def test_the_learner_mixes_at_the_rate_of_its_batch(rate):
    spec = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
    learning = q_learning.Config(learning_rate=1e-2)
    config = dcpi.Config(rate=rate, mixture_rate=0.4, rate_decay=0.5, learning=learning)
    agent = dcpi.make(lambda x: x, spec, config)
    state = agent.learner.init(jax.random.key(0))
    step = jax.jit(agent.learner.step)
    rng = np.random.default_rng(0)
    mean_gain = mean_span = 0.0
    for _ in range(3):
        x = rng.normal(size=(6, 3)).astype(np.float32)
        ones = np.ones(6, np.float32)
        t = types.Transition(x, ones.astype(np.int32), ones, 0.9 * ones, x)
        params, old = state.params["q"]["linear"], state.targets["periodic"]["actor"]["linear"]
        q = x @ np.asarray(params["w"]) + np.asarray(params["b"])
        policy = np.stack([softmax(z) for z in x @ np.asarray(old["w"]) + np.asarray(old["b"])])
        gains = q.max(1) - (policy * q).sum(1)
        mean_gain = 0.5 * mean_gain + 0.5 * gains.mean()
        mean_span = 0.5 * mean_span + 0.5 * (q.max(1) - q.min(1)).mean()
        distance = np.abs(np.eye(4)[q.argmax(1)] - policy).sum(1).max()
        expected = {
            "constant": 0.4,
            "cpi": 0.01**2 * gains.mean() / 4,
            "spi": min(1, 0.01 * gains.mean() / (0.99 * distance * (gains.max() - gains.min()))),
            "normalised": 0.4 * mean_gain / mean_span,
        }[rate]
        state, feedback = step(state, types.Batch(t, ones.astype(np.int32), ones, ones), None)
        np.testing.assert_allclose(feedback.metrics["mixture_rate"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": "best"}, "rate must be constant, cpi, spi or normalised, got best"),
        ({"mixture_rate": 0.0}, "mixture_rate must lie in"),
        ({"reward_max": -1.0}, "reward_max must be > 0"),
        ({"rate_decay": 1.0}, "rate_decay must lie in"),
        ({"direction": "both"}, "direction must be forward or reverse, got both"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        dcpi.Config(**fields)

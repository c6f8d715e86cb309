"""Tests of agents/munchausen_pqn.py."""

import functools

import jax
import numpy as np
import pytest

from kullback.agents import munchausen_pqn, pqn

# By hand, gamma 0.9, lambda 0.5, tau 0.5, alpha 0.9, l_0 -1; epsilon 0.2, actions 0, 1, 0.
Q = np.array([[1, 0], [2, 1.5], [0.5, 3], [4, 1]], np.float32)  # q(s_0) to q(s_3).
ACTIONS = np.array([0, 1, 0])
LOG_MU = np.log(np.array([0.9, 0.1, 0.1], np.float32))
SEEN = pqn.Seen(
    reward=np.array([1, 0, 2], np.float32),  # pyright: ignore[reportArgumentType]
    discount=np.full(3, 0.9, np.float32),  # pyright: ignore[reportArgumentType]
    last=np.zeros(3, bool),  # pyright: ignore[reportArgumentType]
    q_tm1=Q[:3],  # pyright: ignore[reportArgumentType]
    q_t=Q[1:],  # pyright: ignore[reportArgumentType]
)

label = functools.partial(
    jax.jit(munchausen_pqn.munchausen_returns, static_argnames=("tau", "alpha", "l_0", "trace")),
    trace_decay=0.5,
)
by_hand = functools.partial(label, SEEN, ACTIONS, LOG_MU, tau=0.5, alpha=0.9, l_0=-1.0)


def reference(seen: pqn.Seen, actions: np.ndarray, mu: np.ndarray, trace: str) -> np.ndarray:
    """Returns the labels by the equation, backwards in float64, at the values above."""
    tau, alpha, gamma_lambda = 0.5, 0.9, 0.5
    r, d, last, q, q_next = (np.asarray(x, np.float64) for x in seen)
    v = tau * np.log(np.exp(q / tau).sum(-1))
    v_next = tau * np.log(np.exp(q_next / tau).sum(-1))
    places = np.arange(len(r)), actions
    log_pi = (q[places] - v) / tau
    weight = gamma_lambda * (np.minimum(1, np.exp(log_pi) / mu) if trace == "retrace" else 1)
    weight = np.broadcast_to(weight, r.shape)
    result = np.empty(len(r))
    for t in reversed(range(len(r))):
        estimate = v_next[t]
        if t + 1 < len(r) and not last[t]:
            from_ = v_next[t] if trace == "peng" else q[t + 1, actions[t + 1]]
            estimate = v_next[t] + weight[t + 1] * (result[t + 1] - from_)
        result[t] = r[t] + alpha * np.clip(tau * log_pi[t], -1, 0) + d[t] * estimate
    return result


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ("retrace", [3.216212, 2.238583, 4.701114]),
        ("lambda", [4.010000, 4.002555, 4.701114]),
        ("peng", [3.207586, 2.876045, 4.701114]),
    ],
)
def test_labels_by_hand(trace: munchausen_pqn.Trace, expected: list[float]):
    labels = by_hand(trace=trace)
    np.testing.assert_allclose(labels.target, expected, 1e-6)
    np.testing.assert_allclose(labels.target, reference(SEEN, ACTIONS, np.exp(LOG_MU), trace), 1e-6)
    np.testing.assert_array_equal(labels.metrics["bonus_clipped"], [0, 0, 1])
    if trace == "retrace":  # pi / mu is above 1, above 1, and 0.0669.
        np.testing.assert_allclose(labels.metrics["trace_weight"][1:], [0.5, 0.033464], 1e-4)


@pytest.mark.parametrize("trace", ["retrace", "lambda", "peng"])
def test_ends_and_cuts_end_traces(trace: munchausen_pqn.Trace):
    rng = np.random.default_rng(1)
    last = np.array([False, True, False, True, False, False])
    seen = pqn.Seen(
        *rng.normal(size=(1, 6)).astype(np.float32),
        discount=np.where([True, False, True, True, True, True], 0.9, 0).astype(np.float32),  # pyright: ignore[reportArgumentType]
        last=last,  # pyright: ignore[reportArgumentType]
        q_tm1=rng.normal(size=(6, 2)).astype(np.float32),  # pyright: ignore[reportArgumentType]
        q_t=rng.normal(size=(6, 2)).astype(np.float32),  # pyright: ignore[reportArgumentType]
    )
    actions, mu = rng.integers(2, size=6), rng.uniform(0.1, 1, 6).astype(np.float32)
    result = label(seen, actions, np.log(mu), tau=0.5, alpha=0.9, l_0=-1.0, trace=trace).target
    np.testing.assert_allclose(result, reference(seen, actions, mu, trace), 2e-5)


def test_without_bonus_and_temperature_pengs_form_is_pqn():
    labels = label(SEEN, ACTIONS, LOG_MU, tau=1e-6, alpha=0.0, l_0=-1.0, trace="peng")
    expected = pqn.q_lambda_returns(SEEN.reward, SEEN.discount, SEEN.last, SEEN.q_t, 0.5)
    np.testing.assert_allclose(labels.target, expected, 1e-4)


@functools.cache
def world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns transitions [S, A, S], rewards [S, A] and the scheme's fixed point q [S, A]."""
    rng = np.random.default_rng(3)
    transition = rng.dirichlet(np.ones(5), size=(5, 3))
    reward, q = rng.normal(size=(5, 3)), np.zeros((5, 3))
    for _ in range(2_000):
        v = 0.1 * np.log(np.exp((q - q.max(-1, keepdims=True)) / 0.1).sum(-1)) + q.max(-1)
        q = reward + 0.9 * np.clip(q - v[:, None], -1, 0) + 0.9 * transition @ v
    return transition, reward, q


@pytest.mark.parametrize(("trace", "is_biased"), [("retrace", 0), ("lambda", 0), ("peng", 1)])
def test_at_the_fixed_point_corrected_traces_are_not_biased(
    trace: munchausen_pqn.Trace, is_biased: int
):
    # Expectations over all trajectories of two ticks from (s, a), weighted by their probability.
    transition, reward, q = world()
    epsilon, states, actions = 0.2, 5, 3
    mu = np.full((states, actions), epsilon / actions)
    mu[np.arange(states), q.argmax(-1)] += 1 - epsilon
    grid = np.stack(np.meshgrid(*map(range, (5, 3, 5, 3, 5)), indexing="ij")).reshape(5, -1)
    s0, a0, s1, a1, s2 = grid
    probability = transition[s0, a0, s1] * mu[s1, a1] * transition[s1, a1, s2]
    seen = pqn.Seen(
        *(
            np.asarray(x, dtype)
            for x, dtype in (
                (np.stack([reward[s0, a0], reward[s1, a1]], 1), np.float32),
                (np.full((len(s0), 2), 0.9), np.float32),
                (np.zeros((len(s0), 2)), bool),
                (np.stack([q[s0], q[s1]], 1), np.float32),
                (np.stack([q[s1], q[s2]], 1), np.float32),
            )
        )  # pyright: ignore[reportArgumentType]
    )
    log_mu = np.log(np.stack([mu[s0, a0], mu[s1, a1]], 1)).astype(np.float32)
    labels = jax.jit(
        jax.vmap(
            functools.partial(
                munchausen_pqn.munchausen_returns,
                tau=0.1,
                alpha=0.9,
                l_0=-1.0,
                trace_decay=0.65,
                trace=trace,
            )
        )
    )(seen, np.stack([a0, a1], 1), log_mu)
    expected = np.zeros((states, actions))
    np.add.at(expected, (s0, a0), probability * np.asarray(labels.target[:, 0], np.float64))
    bias = expected - q
    if is_biased:
        assert bias.mean() < -0.1
    else:
        assert np.max(np.abs(bias)) < 2e-5 * np.max(np.abs(q))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="temperature must be > 0"):
        munchausen_pqn.Config(temperature=0.0)
    with pytest.raises(ValueError, match="trace must be retrace, lambda or peng"):
        munchausen_pqn.Config(trace="none")  # pyright: ignore[reportArgumentType]

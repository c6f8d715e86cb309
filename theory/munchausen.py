"""Munchausen value iteration (M-VI): the reward is augmented with the log-policy.

Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.14430.
"""

import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, precision, scheme
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme, State, Temperature


def munchausen_vi(alpha: types.Array | float, tau: Temperature) -> Scheme:
    """Returns M-VI(alpha, tau).

        pi_{k+1} = argmax_pi <pi, q_k> + tau H(pi) = softmax(q_k / tau)
        q_{k+1}  = r + alpha tau ln pi_{k+1}
                     + gamma P <pi_{k+1}, q_k - tau ln pi_{k+1}> + eps_{k+1}

    It starts from q_0 = alpha tau ln pi_0, pi_0 uniform: then it is MD-VI(alpha tau,
    (1 - alpha) tau) from 0, seen through `to_mirror`, at every iteration and with the same errors
    (theorem 1). alpha = 0 is soft value iteration, alpha = 1 dynamic policy programming, whose
    values of bad actions fall without end.

    Args:
      alpha: scale of the log-policy, in [0, 1].
      tau: temperature > 0, in units of reward.
    """
    check(alpha, tau)

    def init(mdp: MDP) -> State:
        log_policy = scheme.uniform(mdp)
        return State(alpha * tau * log_policy, convex.Point(log_policy, jnp.zeros((), jnp.int32)))

    def step(mdp: MDP, state: State, error: types.Array, seen: MDP) -> State:
        del mdp
        log_policy, v = regularizers.greedy(state.q, state.log_policy, 0.0, tau)
        q = alpha * tau * log_policy + seen.backup(v) + error  # v is <pi, q - tau ln pi>.
        return State(q, convex.Point(log_policy, state.steps + 1))

    return scheme.make(init, step)


def check(alpha: types.Array | float, tau: Temperature) -> None:
    """Raises ValueError unless alpha is in [0, 1] and tau > 0, as far as they are numbers."""
    if isinstance(alpha, float | int) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}; the paper uses 0.9")
    if isinstance(tau, float | int) and not 0 < tau < float("inf"):
        raise ValueError(
            f"tau must be > 0 and finite, got {tau}; `advantage_learning` is the limit"
        )


def to_mirror(state: State, alpha: types.Array | float, tau: Temperature) -> types.Array:
    """Returns q_k - alpha tau ln pi_k, MD-VI(alpha tau, (1 - alpha) tau)'s action values, [S, A].

    The policy is the one that q_k was made with, not the one that is greedy for it.
    """
    return state.q - alpha * tau * state.log_policy


@precision.float64
def action_gap(q: types.Array) -> types.Array:
    """Returns each action's distance from the best one, max_b q(s, b) - q(s, a) >= 0, [..., A]."""
    return jnp.max(q, -1, keepdims=True) - q


def action_gap_ratio(alpha: float) -> float:
    """Returns the limit of M-VI's action gap over the optimal soft values' gap, 1 / (1 - alpha).

    Theorem 2 compares the gap of q_k, without errors and as k grows, with that of the optimal
    values q_* of the process with entropy (1 - alpha) tau. By theorem 1 the limit of
    q_k - alpha tau ln pi_k is q_*, and (1 - alpha) tau ln pi_* = q_* - v_*. Hence

        lim q_k - v_* = q_* - v_* + alpha / (1 - alpha) (q_* - v_*) = (q_* - v_*) / (1 - alpha)

    so that every gap is 1 / (1 - alpha) times as wide: 10 times for alpha = 0.9, without end for
    alpha = 1. The paper is remembered to print (1 + alpha) / (1 - alpha), 19 times for 0.9; that
    is not what its recursion gives, which a test shows.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}; there is no limit at 1")
    return 1 / (1 - alpha)

"""Advantage learning (AL): value iteration that widens the gaps between actions.

Bellemare, Ostrovski, Guez, Thomas & Munos, "Increasing the action gap", AAAI 2016,
https://arxiv.org/abs/1512.04860.
"""

import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, scheme
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme, State


def advantage_learning(alpha: types.Array | float) -> Scheme:
    """Returns AL(alpha), from q_0 = 0.

        pi_{k+1} = greedy for q_k
        q_{k+1}  = r + gamma P max_b q_k(., b) - alpha (max_b q_k(., b) - q_k) + eps_{k+1}

    The greedy policy converges to an optimal one for alpha < 1. It is the limit tau -> 0 of
    `munchausen.munchausen_vi`.

    Args:
      alpha: weight of the gap, in [0, 1]; 0 is value iteration.
    """
    if isinstance(alpha, float | int) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}; the paper uses 0.9")

    def init(mdp: MDP) -> State:
        point = convex.Point(scheme.uniform(mdp), jnp.zeros((), jnp.int32))
        return State(jnp.zeros_like(mdp.reward), point)

    def step(mdp: MDP, state: State, error: types.Array, seen: MDP) -> State:
        del mdp
        log_policy, v = regularizers.greedy(state.q, state.log_policy, 0.0, 0.0)
        q = seen.backup(v) + alpha * (state.q - v[:, None]) + error
        return State(q, convex.Point(log_policy, state.steps + 1))

    return scheme.make(init, step)

"""Momentum value iteration (MoVI): greedy for an average of the past action values.

Vieillard, Scherrer, Pietquin & Geist, "Momentum in Reinforcement Learning", AISTATS 2020,
https://arxiv.org/abs/1910.09322. Beside it stands Speedy Q-learning, which has the same policies
and another evaluation: Azar, Munos, Ghavamzadeh & Kappen, NeurIPS 2011.
"""

import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, scheme
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme, State


def momentum_vi(b: types.Array | float | None = None) -> Scheme:
    """Returns MoVI, from q_0 = h_0 = 0.

        pi_{k+1} = greedy for h_k
        q_{k+1}  = r + gamma P <pi_{k+1}, q_k> + eps_{k+1}
        h_{k+1}  = b_{k+1} h_k + (1 - b_{k+1}) q_{k+1}

    The average h_k is `state.point.memory`. T is applied to q_k, not to h_k. The errors enter by
    their average, so sampling does not stop it from converging as it stops value iteration.

    Args:
      b: weight of the past, in [0, 1); None is (k + 1) / (k + 2), with which h_k is the mean of
        q_0, ..., q_k and the scheme is the limit lambda -> 0 of DA-VI(lambda, 0) without the
        regularised evaluation. 0 is value iteration.
    """
    if isinstance(b, float | int) and not 0 <= b < 1:
        raise ValueError(f"b must lie in [0, 1), got {b}; None averages all of the past alike")
    evaluate = scheme.evaluation(1)

    def init(mdp: MDP) -> State:
        q = jnp.zeros_like(mdp.reward)
        return State(q, convex.Point(scheme.uniform(mdp), jnp.zeros((), jnp.int32), memory=q))

    def step(mdp: MDP, state: State, error: types.Array, seen: MDP) -> State:
        del mdp
        h = state.point.memory
        log_policy, _ = regularizers.greedy(h, state.log_policy, 0.0, 0.0)
        q = evaluate(seen, state.q, log_policy, state.log_policy) + error
        k = jnp.asarray(state.steps, q.dtype)  # A quotient of int32 would be float32.
        weight = (k + 1) / (k + 2) if b is None else b
        h = weight * h + (1 - weight) * q
        return State(q, convex.Point(log_policy, state.steps + 1, memory=h))

    return scheme.make(init, step)


def speedy_vi() -> Scheme:
    """Returns Speedy Q-learning with exact backups, from q_0 = 0.

        pi_{k+1} = greedy for h_k, the mean of q_0, ..., q_k
        q_{k+1}  = r + gamma P ((k + 1) max_a h_k - k max_a h_{k-1}) + eps_{k+1}

    It is the limit lambda -> 0 of MD-VI(lambda, 0) and DA-VI(lambda, 0) ("Leverage the Average",
    appendix B): there lambda KL(pi_{k+1} || pi_k) tends to what the last bracket is less than
    <pi_{k+1}, q_k>. The average h_k is `state.point.memory`.
    """

    def init(mdp: MDP) -> State:
        q = jnp.zeros_like(mdp.reward)
        return State(q, convex.Point(scheme.uniform(mdp), jnp.zeros((), jnp.int32), memory=q))

    def step(mdp: MDP, state: State, error: types.Array, seen: MDP) -> State:
        del mdp
        k = jnp.asarray(state.steps, state.q.dtype)
        total = (k + 1) * state.point.memory  # q_0 + ... + q_k.
        log_policy, best = regularizers.greedy(total, state.log_policy, 0.0, 0.0)
        q = seen.backup(best - jnp.max(total - state.q, -1)) + error
        return State(q, convex.Point(log_policy, state.steps + 1, memory=(total + q) / (k + 2)))

    return scheme.make(init, step)

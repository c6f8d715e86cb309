"""Conservative policy iteration (CPI): mixing the greedy policy in, step by step.

Kakade & Langford, "Approximately optimal approximate reinforcement learning", ICML 2002; rates
after Pirotta, Restelli, Pecorino & Calandriello, "Safe policy iteration", ICML 2013, and Vieillard,
Pietquin & Geist, "Deep conservative policy iteration", AAAI 2020,
https://arxiv.org/abs/1906.09784. The policy step is Frank-Wolfe's (convex.py).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, precision, scheme, solve
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme, State

Rate = Callable[[MDP, State], types.Array]  # (mdp, state_k) -> a_{k+1} in [0, 1], [].


def cpi(rate: types.Array | float | Rate, *, m: float = math.inf) -> Scheme:
    """Returns conservative policy iteration with a mixture rate.

        pi_{k+1} = (1 - a_{k+1}) pi_k + a_{k+1} pi'_{k+1},   pi'_{k+1} greedy for q_k
        q_{k+1}  = (T_{pi_{k+1}})^m q_k + eps_{k+1}

    Args:
      rate: a, in [0, 1], or one of the functions below; 1 gives modified policy iteration.
      m: backups, a whole number >= 1 (1 is the scheme of deep CPI), or math.inf.
    """
    if isinstance(rate, float | int) and not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate}")
    method = convex.frank_wolfe()

    def improve(mdp: MDP, state: State) -> convex.Point:
        size = rate(mdp, state) if callable(rate) else rate
        return method.step(state.point, -state.q, size)

    return scheme.alternate(method, improve, scheme.evaluation(m), m)


class Advantage(NamedTuple):
    """Advantage of the greedy policy pi' over pi, according to the action values q."""

    per_state: types.Array  # <pi' - pi, q>, [S].
    mean: types.Array  # Under the occupancy measure of pi, []: the papers' double A.
    distance: types.Array  # max_s sum_a |pi' - pi|, [].


@precision.float64
def advantage(mdp: MDP, state: State) -> Advantage:
    """Returns the advantage of the policy that is greedy for q_k over pi_k."""
    log_greedy, best = regularizers.greedy(state.q, state.log_policy, 0.0, 0.0)
    policy = jnp.exp(state.log_policy)
    per_state = best - jnp.sum(policy * state.q, -1)
    occupancy = solve.occupancy(mdp, state.log_policy)
    distance = jnp.max(jnp.sum(jnp.abs(jnp.exp(log_greedy) - policy), -1))
    return Advantage(per_state, jnp.sum(occupancy * per_state), distance)


@precision.float64
def harmonic(mdp: MDP, state: State) -> types.Array:
    """Returns the standard rate of Frank-Wolfe, 2 / (k + 2)."""
    del mdp
    # A quotient of int32 would be float32.
    return 2 / (jnp.asarray(state.steps, state.q.dtype) + 2)


@precision.float64
def optimal(mdp: MDP, state: State) -> types.Array:
    """Returns Kakade & Langford's rate, which maximises their bound on the gain.

    a = (1 - gamma) A / (4 v_max), with A the mean advantage, v_max = r_max / (1 - gamma) and
    rewards in [0, r_max]; the gain is A^2 / (8 v_max) at least. Theirs is for values that are
    multiplied by 1 - gamma.
    """
    v_max = jnp.max(jnp.abs(mdp.reward)) / (1 - mdp.discount)
    mean = advantage(mdp, state).mean
    return _ratio((1 - mdp.discount) * mean, 4 * v_max)


@precision.float64
def adaptive(mdp: MDP, state: State) -> types.Array:
    """Returns safe policy iteration's rate, which adapts to how much pi' differs from pi.

    a = min(1, (1 - gamma) A / (gamma T D)), with A the mean advantage, T the distance of the
    policies and D the span of the advantage over states.
    """
    gain = advantage(mdp, state)
    span = jnp.max(gain.per_state) - jnp.min(gain.per_state)
    return _ratio((1 - mdp.discount) * gain.mean, mdp.discount * gain.distance * span)


@precision.float64
def line_search(mdp: MDP, state: State) -> types.Array:
    """Returns the best rate for J = <mu, v> among 0, 2^-10, ..., 1/2, 1, by exact evaluations.

    Frank-Wolfe's line search; along a mixture J is a rational function, not a concave one.
    """
    rates = jnp.concatenate([jnp.zeros(1), 2.0 ** jnp.arange(-10, 1)])

    def value(rate: types.Array) -> types.Array:
        point = convex.frank_wolfe().step(state.point, -state.q, rate)
        v = solve.linear_values(mdp, point.log_x, jnp.zeros(mdp.num_states))
        return jnp.sum(mdp.initial * v)

    return rates[jnp.argmax(jax.vmap(value)(rates))]


RATES: dict[str, Rate] = {
    "harmonic": harmonic,
    "optimal": optimal,
    "adaptive": adaptive,
    "line-search": line_search,
}


def _ratio(numerator: types.Array, denominator: types.Array) -> types.Array:
    """Returns the ratio in [0, 1]; x / 0 is 1 for x > 0, and 0 / 0 is 0: nothing to gain."""
    numerator = jnp.maximum(numerator, 0)
    safe = jnp.where(denominator > 0, denominator, 1)
    ratio = jnp.where(denominator > 0, numerator / safe, jnp.where(numerator > 0, 1.0, 0.0))
    return jnp.minimum(ratio, 1)

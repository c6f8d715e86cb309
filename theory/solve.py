"""Exact solutions: values of a policy, optimal values with a certificate, occupancy measures.

Puterman, "Markov Decision Processes", 1994, chapter 6; with regularisers, Geist, Scherrer &
Pietquin, ICML 2019, https://arxiv.org/abs/1901.11275. All in float64, for one process or a batch
(a leading axis M on every field and on the results).

The certificate is MacQueen's. Let T be the (regularised) optimality operator, which is monotone
and obeys T(v + c) = T v + gamma c, and let low <= T v - v <= high. Applying T again and again
moves v by at least gamma low, gamma^2 low, ... further, hence

    T v + gamma low / (1 - gamma)  <=  v_*  <=  T v + gamma high / (1 - gamma)

and the middle of the two is within gamma (high - low) / (2 (1 - gamma)) of v_* in the supremum
norm. That is at most gamma ||T v - v|| / (1 - gamma), and far less where the process mixes:
differences of values converge long before the values do.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, precision
from kullback.theory.mdp import MDP

__all__ = [
    "Solution",
    "linear_values",
    "occupancy",
    "policy_iteration",
    "policy_values",
    "value_iteration",
]


class Solution(NamedTuple):
    """Optimal values and policy, with an error bound."""

    v: types.Array  # [S], within `error_bound` of v_* in the supremum norm.
    q: types.Array  # [S, A], r + gamma P v.
    log_policy: types.Array  # [S, A], (regularised) greedy for q; -inf off its support.
    num_iterations: types.Array  # int32, []: improvements of the policy.
    error_bound: types.Array  # [], above the tolerance if the solver gave up.


def vectorize(function: Callable[..., Any], mdp: MDP, *others: Any) -> Any:
    """Applies a function of a process and other arrays, over the leading axis of a batch."""
    if not mdp.batch_shape:
        return function(mdp, *others)
    if jax.default_backend() == "cpu":
        # One process after another is four times as fast: each stops when it has converged and
        # stays in the cache until then, where a vmap would go on until the last one stops.
        return jax.lax.map(lambda arguments: function(*arguments), (mdp, *others))
    return jax.vmap(function)(mdp, *others)


@precision.float64
def value_iteration(
    mdp: MDP,
    *,
    tolerance: float = 1e-8,
    tau: float = 0.0,
    divergence: regularizers.Divergence | None = None,
    num_sweeps: int = 1,
    max_iterations: int = 100_000,
) -> Solution:
    """Computes optimal values by (modified policy or) value iteration, in O(S A N) memory.

    It stops once the certificate of the module is within the tolerance.

    Args:
      mdp: the process, or a batch.
      tolerance: for max_s |v - v_*|, > 0, in units of reward.
      tau: temperature >= 0 of the entropy H_f, in units of reward; 0 gives v_* itself.
      divergence: f; None is KL, hence Shannon's entropy.
      num_sweeps: m >= 1, backups for each improvement; 1 is value iteration.
      max_iterations: improvements after which it gives up.
    """
    _check_tolerance(tolerance)
    if num_sweeps < 1:
        raise ValueError(f"num_sweeps must be >= 1, got {num_sweeps}; 1 is value iteration")
    settings = float(tau), divergence, num_sweeps
    return _value_iteration(mdp, tolerance, max_iterations, settings)


@precision.float64
def policy_iteration(
    mdp: MDP,
    *,
    tolerance: float = 1e-8,
    tau: float = 0.0,
    divergence: regularizers.Divergence | None = None,
    num_backups: int = 10,
    max_iterations: int = 100,
) -> Solution:
    """Computes optimal values by policy iteration with linear solves, in O(S^2) memory.

    It stops at the tolerance or when the values stay as they are, up to rounding. The first policy
    is the greedy one of `num_backups` backups, which cost less than one linear solve and save
    several: after 10, six of seven Garnets of 50 states have their optimal policy. The other
    arguments are those of `value_iteration`.
    """
    _check_tolerance(tolerance)
    if num_backups < 0:
        raise ValueError(f"num_backups must be >= 0, got {num_backups}; 0 is greedy for the reward")
    settings = float(tau), divergence, num_backups
    return _policy_iteration(mdp, tolerance, max_iterations, settings)


@precision.float64
def policy_values(
    mdp: MDP,
    log_policy: types.Array,
    *,
    tau: float = 0.0,
    divergence: regularizers.Divergence | None = None,
) -> tuple[types.Array, types.Array]:
    """Computes the values of a policy by a linear solve.

        v_pi = <pi, q_pi> + tau H_f(pi),   q_pi = r + gamma P v_pi

    Args:
      mdp: the process, or a batch.
      log_policy: [S, A], or [M, S, A] for a batch.
      tau, divergence: as for `value_iteration`.

    Returns:
      v_pi, [S], and q_pi, [S, A].
    """
    return _policy_values(mdp, log_policy, (float(tau), divergence))


@precision.float64
def occupancy(mdp: MDP, log_policy: types.Array) -> types.Array:
    """Returns the discounted state distribution of a policy [S, A], [S]; it sums to one.

    d = (1 - gamma) mu (I - gamma P_pi)^-1, with mu the initial distribution.
    """
    return _occupancy(mdp, log_policy)


@precision.float64
def objective_gradient(mdp: MDP, log_policy: types.Array) -> types.Array:
    """Returns the gradient of J = <mu, v_pi> by the probabilities of the policy, [S, A].

    dJ / dpi(a|s) = d(s) q_pi(s, a) / (1 - gamma), the policy gradient theorem.
    """
    return _objective_gradient(mdp, log_policy)


def linear_solve(matrix: types.Array, right: types.Array) -> jax.Array:
    """Returns the solution x [S] of matrix x = right, differentiable; matrix [S, S]."""
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x,
        right,
        solve=lambda _, right: _factorise(matrix, right),
        transpose_solve=lambda _, right: _factorise(matrix.T, right),
    )


# The systems of a batch are solved one after another, which is as fast: jaxlib's batched LAPACK
# calls wait for XLA's threads from inside them, so that on two cores two calls at once may
# deadlock.
@jax.custom_batching.sequential_vmap
def _factorise(matrix: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.linalg.solve(matrix, right)


def linear_values(mdp: MDP, log_policy: types.Array, bonus: types.Array) -> types.Array:
    """Solves v = <pi, r + gamma P v> + bonus for v [S], by an LU factorisation."""
    policy = jnp.exp(log_policy)
    matrix = jnp.eye(mdp.num_states) - mdp.discount * mdp.transitions(policy)
    return linear_solve(matrix, jnp.sum(policy * mdp.reward, -1) + bonus)


def _check_tolerance(tolerance: float) -> None:
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}; 1e-8 is a good one")


def _bracket(mdp: MDP, v: types.Array, backed_up: types.Array) -> tuple[types.Array, types.Array]:
    """Returns the midpoint of MacQueen's bounds, [S], and its distance from either, []."""
    residual = backed_up - v
    low, high = jnp.min(residual), jnp.max(residual)
    horizon = mdp.discount / (1 - mdp.discount)
    return backed_up + horizon * (low + high) / 2, horizon * (high - low) / 2


def _greedy(
    mdp: MDP, v: types.Array, tau: float, divergence: regularizers.Divergence | None
) -> tuple[types.Array, types.Array]:
    """Returns the greedy log-policy [S, A] of r + gamma P v, and its value T v [S]."""
    q = mdp.backup(v)
    return regularizers.greedy(q, jnp.zeros_like(q), 0.0, tau, divergence)


def _improve(mdp: MDP, v: types.Array, tau: float, divergence: Any) -> Solution:
    """Returns the solution after one application of T to v, with 0 iterations counted."""
    backed_up = _greedy(mdp, v, tau, divergence)[1]
    v, error_bound = _bracket(mdp, v, backed_up)
    q = mdp.backup(v)
    log_policy, _ = regularizers.greedy(q, jnp.zeros_like(q), 0.0, tau, divergence)
    return Solution(v, q, log_policy, jnp.zeros((), jnp.int32), error_bound)


def _evaluate(
    mdp: MDP, v: types.Array, settings: tuple[float, Any, int]
) -> tuple[types.Array, types.Array]:
    """Returns (T_pi)^m v for the greedy pi, and T v; both [S]."""
    tau, divergence, num_sweeps = settings
    if tau > 0:
        log_policy, backed_up = _greedy(mdp, v, tau, divergence)
        policy = jnp.exp(log_policy)
        bonus = -convex.penalty(log_policy, log_policy, 0.0, tau, divergence)

        def sweep(_: int, v: types.Array) -> types.Array:
            return jnp.sum(policy * mdp.backup(v), -1) + bonus
    else:
        q = mdp.backup(v)
        backed_up = jnp.max(q, -1)
        followed = mdp.follow(jnp.argmax(q, -1))  # One action a state: a sweep costs O(S N).

        def sweep(_: int, v: types.Array) -> types.Array:
            return followed.backup(v)[:, 0]

    return jax.lax.fori_loop(0, num_sweeps - 1, sweep, backed_up), backed_up


@functools.partial(jax.jit, static_argnames="settings")
def _value_iteration(
    mdp: MDP, tolerance: float, max_iterations: int, settings: tuple[float, Any, int]
) -> Solution:
    def solve(mdp: MDP) -> Solution:
        def is_running(carry: tuple[types.Array, ...]) -> types.Array:
            _, _, error_bound, steps = carry
            return (error_bound > tolerance) & (steps < max_iterations)

        def body(carry: tuple[types.Array, ...]) -> tuple[types.Array, ...]:
            _, v, _, steps = carry
            evaluated, backed_up = _evaluate(mdp, v, settings)
            return v, evaluated, _bracket(mdp, v, backed_up)[1], steps + 1

        v = jnp.zeros(mdp.num_states)
        carry = v, v, jnp.asarray(jnp.inf), jnp.zeros((), jnp.int32)
        v, _, _, steps = jax.lax.while_loop(is_running, body, carry)
        return _improve(mdp, v, *settings[:2])._replace(num_iterations=steps)

    return vectorize(solve, mdp)


@functools.partial(jax.jit, static_argnames="settings")
def _policy_iteration(
    mdp: MDP, tolerance: float, max_iterations: int, settings: tuple[float, Any, int]
) -> Solution:
    tau, divergence, num_backups = settings

    def solve(mdp: MDP) -> Solution:
        def is_running(carry: tuple[types.Array, ...]) -> types.Array:
            v, previous, error_bound, steps = carry
            rounding = 1e-14 * jnp.max(jnp.abs(v))
            is_moving = jnp.max(jnp.abs(v - previous)) > rounding
            return (error_bound > tolerance) & is_moving & (steps < max_iterations)

        def body(carry: tuple[types.Array, ...]) -> tuple[types.Array, ...]:
            v, _, _, steps = carry
            if tau > 0:
                log_policy, _ = _greedy(mdp, v, tau, divergence)
                bonus = -convex.penalty(log_policy, log_policy, 0.0, tau, divergence)
                improved = linear_values(mdp, log_policy, bonus)
            else:
                followed = mdp.follow(jnp.argmax(mdp.backup(v), -1))  # One action a state.
                improved = linear_values(followed, jnp.zeros((mdp.num_states, 1)), jnp.zeros(()))
            _, error_bound = _bracket(mdp, improved, _greedy(mdp, improved, tau, divergence)[1])
            return improved, v, error_bound, steps + 1

        def back_up(_: int, v: types.Array) -> types.Array:
            return _greedy(mdp, v, tau, divergence)[1]

        v = jax.lax.fori_loop(0, num_backups, back_up, jnp.zeros(mdp.num_states))
        carry = v, v - 1, jnp.asarray(jnp.inf), jnp.zeros((), jnp.int32)
        v, _, _, steps = jax.lax.while_loop(is_running, body, carry)
        return _improve(mdp, v, tau, divergence)._replace(num_iterations=steps)

    return vectorize(solve, mdp)


@functools.partial(jax.jit, static_argnames="settings")
def _policy_values(
    mdp: MDP, log_policy: types.Array, settings: tuple[float, Any]
) -> tuple[types.Array, types.Array]:
    def solve(mdp: MDP, log_policy: types.Array) -> tuple[types.Array, types.Array]:
        v = linear_values(mdp, log_policy, -convex.penalty(log_policy, log_policy, 0.0, *settings))
        return v, mdp.backup(v)

    return vectorize(solve, mdp, log_policy)


@jax.jit
def _occupancy(mdp: MDP, log_policy: types.Array) -> types.Array:
    def solve(mdp: MDP, log_policy: types.Array) -> types.Array:
        transitions = mdp.transitions(jnp.exp(log_policy))
        matrix = jnp.eye(mdp.num_states) - mdp.discount * transitions
        return linear_solve(matrix.T, (1 - mdp.discount) * mdp.initial)

    return vectorize(solve, mdp, log_policy)


@jax.jit
def _objective_gradient(mdp: MDP, log_policy: types.Array) -> types.Array:
    def solve(mdp: MDP, log_policy: types.Array) -> types.Array:
        v = linear_values(mdp, log_policy, jnp.zeros(mdp.num_states))
        weights = _occupancy(mdp, log_policy) / (1 - mdp.discount)
        return weights[:, None] * mdp.backup(v)

    return vectorize(solve, mdp, log_policy)

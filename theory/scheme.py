"""Schemes, and the two halves of most: a policy step and a partial evaluation.

A scheme is a pair of pure functions, `init` and `step`. From q_0 and a uniform pi_0 it alternates,
for k = 0, 1, ...,

    pi_{k+1} = an improvement of pi_k, given q_k
    q_{k+1}  = an evaluation of pi_{k+1}, from q_k + eps_{k+1}

Here eps_{k+1} is the error of an estimated evaluation. The policy step sees the process itself,
also where its rate depends on the dynamics; an evaluation may be given a sampled process. So
sampling affects a run through its errors only. `run.run` scans a scheme.
Shape letters: S states, A actions.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, precision, solve
from kullback.theory.mdp import MDP

__all__ = [
    "Evaluate",
    "Improve",
    "Scheme",
    "State",
    "Step",
    "Temperature",
    "alternate",
    "evaluation",
    "make",
    "uniform",
]

Temperature = types.Array | float  # In units of reward; a float that is 0 removes its term.


class State(NamedTuple):
    """Iterate k of a scheme."""

    q: types.Array  # [S, A]: q_k.
    point: convex.Point  # pi_k in the product of simplices.

    @property
    def log_policy(self) -> Any:
        """Logarithm of pi_k, [S, A]; -inf off its support."""
        return self.point.log_x

    @property
    def steps(self) -> Any:
        """Iterations done, k; int32, []."""
        return self.point.steps


class Step(Protocol):
    """One iteration."""

    def __call__(
        self, mdp: MDP, state: State, error: types.Array, seen: MDP | None = None, /
    ) -> State:
        """Returns iterate k + 1.

        Args:
          mdp: the process.
          state: iterate k.
          error: eps_{k+1}, [S, A].
          seen: the process that the evaluation sees, such as a sampled one; None is `mdp`.
        """
        ...


class Scheme(NamedTuple):
    """A scheme as two pure functions of one process, which compute in float64; see `make`."""

    init: Callable[[MDP], State]
    step: Step


Improve = Callable[[MDP, State], convex.Point]  # (mdp, state_k) -> pi_{k+1}.
# (mdp, q_k [S, A], ln pi_{k+1}, ln pi_k) -> q_{k+1} without error, [S, A].
Evaluate = Callable[[MDP, types.Array, types.Array, types.Array], types.Array]


def make(
    init: Callable[[MDP], State], step: Callable[[MDP, State, types.Array, MDP], State]
) -> Scheme:
    """Returns a scheme whose two functions compute in float64, whatever the process' default is.

    Args:
      init: (mdp) -> iterate 0.
      step: as `Step`, with `seen` always there.
    """

    def complete(mdp: MDP, state: State, error: types.Array, seen: MDP | None = None, /) -> State:
        return step(mdp, state, error, mdp if seen is None else seen)

    return Scheme(precision.float64(init), precision.float64(complete))


def uniform(mdp: MDP) -> types.Array:
    """Returns the uniform log-policy, [S, A]."""
    return jnp.full(mdp.reward.shape, -math.log(mdp.num_actions), mdp.reward.dtype)


def alternate(method: convex.Method, improve: Improve, evaluate: Evaluate, m: float) -> Scheme:
    """Returns the scheme that alternates a policy step and an evaluation.

    Args:
      method: makes the first point; `improve` calls its step.
      improve: the policy step.
      evaluate: the evaluation step.
      m: backups of an evaluation. q_0 is 0; for m = inf it is q of the uniform policy, so that
        pi_1 improves on pi_0.
    """

    def init(mdp: MDP) -> State:
        log_policy = uniform(mdp)
        q = jnp.zeros_like(mdp.reward)
        if m == math.inf:
            q = evaluate(mdp, q, log_policy, log_policy)
        return State(q, method.init(log_policy))

    def step(mdp: MDP, state: State, error: types.Array, seen: MDP) -> State:
        point = improve(mdp, state)
        q = evaluate(seen, state.q, point.log_x, state.log_policy)
        return State(q + error, point)

    return make(init, step)


def evaluation(
    m: float,
    lambda_: Temperature = 0.0,
    tau: Temperature = 0.0,
    divergence: regularizers.Divergence | None = None,
) -> Evaluate:
    """Returns the evaluation that applies m backups of the new policy, (T_{pi|prior})^m q.

        T_{pi|prior} q = r + gamma P (<pi, q> - lambda D_f(pi, prior) + tau H_f(pi))

    Args:
      m: whole number >= 1, or math.inf for the fixed point by a linear solve.
      lambda_, tau: 0 leaves a term out; both 0 evaluate without regularisation.
      divergence: f; None is KL.

    Raises:
      ValueError: for another m.
    """
    check_backups(m)

    def evaluate(
        mdp: MDP, q: types.Array, log_policy: types.Array, log_prior: types.Array
    ) -> types.Array:
        bonus = -convex.penalty(log_policy, log_prior, lambda_, tau, divergence)  # [S]
        if m == math.inf:
            return mdp.backup(solve.linear_values(mdp, log_policy, bonus))
        policy = jnp.exp(log_policy)

        def backup(_: int, q: types.Array) -> types.Array:
            return mdp.backup(jnp.sum(policy * q, -1) + bonus)

        return backup(0, q) if m == 1 else jax.lax.fori_loop(0, int(m), backup, q)

    return evaluate


def check_backups(m: float) -> None:
    """Raises ValueError unless m is a whole number >= 1 or infinite."""
    if not (m == math.inf or (m >= 1 and m == int(m))):
        raise ValueError(f"m must be a whole number >= 1 or math.inf, got {m}; 1 is VI, inf is PI")


def check_temperature(name: str, value: Temperature) -> None:
    """Raises ValueError for a negative number; the entries of an array are checked by `run.run`."""
    if isinstance(value, float | int) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be >= 0 and finite, got {value}")

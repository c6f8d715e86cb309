"""Politex: policy iteration by exponential weights, one expert problem a state.

Abbasi-Yadkori, Bartlett, Bhatia, Lazic, Szepesvari & Weisz, "POLITEX: regret bounds for policy
iteration using expert prediction", ICML 2019. That paper is about average reward; this is the
discounted scheme of https://arxiv.org/abs/1910.08476, dual averaging with policy evaluation as
its oracle.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, scheme
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme, State


def politex(
    eta: types.Array | float | Callable[[types.Array], types.Array],
    *,
    m: float = math.inf,
    divergence: regularizers.Divergence | None = None,
) -> Scheme:
    """Returns Politex with step size eta.

        pi_{k+1} = argmax_pi <pi, sum_{i <= k} q_i> + H_f(pi) / eta   (softmax(eta sum) for KL)
        q_{k+1}  = (T_{pi_{k+1}})^m q_k + eps_{k+1}

    With a constant eta it is DA-MPI(1 / eta, 0) without the regularised evaluation.

    Args:
      eta: step size > 0 in inverse units of reward; or a function of k (float64, []), such as
        `lambda k: 0.1 / jnp.sqrt(k + 1)`.
      m: backups; inf is the exact evaluation of the paper.
      divergence: f; None is KL.
    """
    if isinstance(eta, float | int) and not eta > 0:
        raise ValueError(f"eta must be > 0, got {eta}")
    method = convex.dual_averaging(0.0, divergence)

    def improve(mdp: MDP, state: State) -> convex.Point:
        del mdp
        # As a float: a quotient of int32 would be float32.
        k = jnp.asarray(state.steps, state.q.dtype)
        size = 1 / (eta(k) if callable(eta) else eta)
        return method.step(state.point, -state.q, size)

    return scheme.alternate(method, improve, scheme.evaluation(m), m)


def step_size(num_iterations: int, num_actions: int, v_max: float) -> float:
    """Returns the eta with the least regret over K iterations, sqrt(8 ln A / K) / v_max.

    It supposes action values in [0, v_max]; see `bounds.politex_regret`.
    """
    return math.sqrt(8 * math.log(num_actions) / num_iterations) / v_max

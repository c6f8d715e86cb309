"""Value, policy and modified policy iteration, and their regularised versions.

Puterman & Shin, "Modified policy iteration algorithms for discounted Markov decision problems",
1978; regularised by an entropy, Geist, Scherrer & Pietquin, "A theory of regularized Markov
decision processes", ICML 2019, https://arxiv.org/abs/1901.11275.
"""

import math

from kullback.core import regularizers
from kullback.theory import mirror
from kullback.theory.scheme import Scheme, Temperature


def modified_policy_iteration(
    m: float, tau: Temperature = 0.0, divergence: regularizers.Divergence | None = None
) -> Scheme:
    """Returns Reg-MPI: the greedy policy, then m backups of it.

        pi_{k+1} = argmax_pi <pi, q_k> + tau H_f(pi)
        q_{k+1}  = (T_{pi_{k+1}})^m q_k + eps_{k+1},  T_pi q = r + gamma P (<pi, q> + tau H_f(pi))

    It is MD-MPI without a pull to the previous policy.

    Args:
      m: backups, a whole number >= 1, or math.inf.
      tau: temperature >= 0; 0 is the method of Puterman & Shin, of equal values the first.
      divergence: f; None is KL, hence Shannon's entropy.
    """
    return mirror.md_mpi(0.0, tau, m=m, divergence=divergence)


def value_iteration(
    tau: Temperature = 0.0, divergence: regularizers.Divergence | None = None
) -> Scheme:
    """Returns approximate value iteration, m = 1: q_{k+1} = r + gamma P max_a q_k + eps_{k+1}."""
    return modified_policy_iteration(1, tau, divergence)


def policy_iteration(
    tau: Temperature = 0.0, divergence: regularizers.Divergence | None = None
) -> Scheme:
    """Returns approximate policy iteration (API), m = inf: q_{k+1} = q_{pi_{k+1}} + eps_{k+1}."""
    return modified_policy_iteration(math.inf, tau, divergence)

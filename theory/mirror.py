"""Mirror-descent and dual-averaging modified policy iteration: MD-MPI and DA-MPI.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average: an analysis of KL
regularization in RL", NeurIPS 2020, https://arxiv.org/abs/2003.14089. With tau = 0 the two kinds
of evaluation are types 1 and 2 of Geist et al., ICML 2019. The policy steps are those of
convex.py.
"""

from typing import TypeGuard

from kullback.core import regularizers, types
from kullback.theory import convex, precision, scheme
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme, State, Temperature


def md_mpi(
    lambda_: Temperature,
    tau: Temperature = 0.0,
    *,
    m: float = 1,
    regularized: bool = True,
    divergence: regularizers.Divergence | None = None,
) -> Scheme:
    """Returns MD-MPI(lambda, tau): greedy, but not far from the previous policy.

        pi_{k+1} = argmax_pi <pi, q_k> - lambda D_f(pi, pi_k) + tau H_f(pi)
        q_{k+1}  = (T_{pi_{k+1}|pi_k})^m q_k + eps_{k+1}

    For KL this is DA-MPI(lambda, tau), unless both are 0: then it is modified policy iteration,
    which is not the limit of vanishing lambda.

    Args:
      lambda_: temperature >= 0 of the pull to pi_k.
      tau: temperature >= 0 of the entropy. An f other than KL takes exactly one of the two.
      m: backups, a whole number >= 1, or math.inf: 1 is MD-VI, inf is MD-PI.
      regularized: evaluate with the same terms ("w/", type 1) or without ("w/o", type 2).
      divergence: f; None is KL.

    Raises:
      ValueError: for a negative temperature, or two temperatures with an f other than KL.
    """
    scheme.check_temperature("lambda_", lambda_)
    scheme.check_temperature("tau", tau)
    if _is_other(divergence) and convex.is_zero(lambda_) == convex.is_zero(tau):
        raise ValueError(
            f"{divergence.name} takes exactly one of lambda_ and tau > 0, got {lambda_} and {tau}; "
            "only kl combines both"
        )
    method = convex.mirror_descent(tau, divergence)

    def improve(mdp: MDP, state: State) -> convex.Point:
        del mdp
        return method.step(state.point, -state.q, lambda_)

    return scheme.alternate(
        method, improve, _evaluation(m, lambda_, tau, regularized, divergence), m
    )


def da_mpi(
    lambda_: Temperature,
    tau: Temperature = 0.0,
    *,
    m: float = 1,
    regularized: bool = True,
    divergence: regularizers.Divergence | None = None,
) -> Scheme:
    """Returns DA-MPI(lambda, tau): greedy for an average h_k of the past action values.

        pi_{k+1} = argmax_pi <pi, h_k> + lambda / (k + 1) H_f(pi)   if tau = 0
        pi_{k+1} = argmax_pi <pi, h_k> + tau H_f(pi)                if tau > 0
        q_{k+1}  = (T_{pi_{k+1}|pi_k})^m q_k + eps_{k+1}

    where h_k is the mean of q_0, ..., q_k if tau = 0, and the moving average
    h_k = beta h_{k-1} + (1 - beta) q_k from h_{-1} = 0 else, beta = lambda / (lambda + tau);
    `average` returns it. As lambda vanishes with tau = 0, it becomes `momentum.speedy_vi` with the
    regularised evaluation, whose lambda D_f(pi_{k+1}, pi_k) does not vanish, and
    `momentum.momentum_vi` without.

    Args:
      lambda_, tau, m, regularized, divergence: as for `md_mpi`.

    Raises:
      ValueError: for a regularised evaluation with lambda = tau = 0; or with lambda > 0 and an f
        whose policies are sparse: pi_{k+1} may leave the support of pi_k, where D_f is infinite;
        and for an f with an infinite f(0), which has no H_f.
    """
    scheme.check_temperature("lambda_", lambda_)
    scheme.check_temperature("tau", tau)
    if regularized and convex.is_zero(lambda_) and convex.is_zero(tau):
        raise ValueError(
            "with lambda_ = tau = 0 the evaluation is a limit of its own, `momentum.speedy_vi`; "
            "pass regularized=False for `momentum.momentum_vi`"
        )
    if _is_other(divergence) and convex.is_zero(lambda_) and convex.is_zero(tau):
        raise ValueError(f"{divergence.name} needs lambda_ or tau > 0; only kl goes without both")
    is_pulled = regularized and not convex.is_zero(lambda_)
    if divergence is not None and divergence.is_sparse and is_pulled:
        raise ValueError(
            f"{divergence.name} gives sparse policies, so D_f(pi_k+1, pi_k) may be infinite; "
            "pass regularized=False"
        )
    method = convex.dual_averaging(tau, divergence)

    def improve(mdp: MDP, state: State) -> convex.Point:
        del mdp
        return method.step(state.point, -state.q, lambda_)

    return scheme.alternate(
        method, improve, _evaluation(m, lambda_, tau, regularized, divergence), m
    )


@precision.float64
def average(state: State, lambda_: Temperature, tau: Temperature) -> types.Array:
    """Returns h_{k-1}, [S, A], the average for which pi_k of `da_mpi` is greedy (k >= 1)."""
    if convex.is_zero(tau):
        return state.point.memory / state.steps
    return tau / (lambda_ + tau) * state.point.memory


def md_vi(lambda_: Temperature, tau: Temperature = 0.0) -> Scheme:
    """Returns MD-VI(lambda, tau): `md_mpi` with m = 1, KL and the regularised evaluation."""
    return md_mpi(lambda_, tau)


def da_vi(lambda_: Temperature, tau: Temperature = 0.0) -> Scheme:
    """Returns DA-VI(lambda, tau): `da_mpi` with m = 1, KL and the regularised evaluation."""
    return da_mpi(lambda_, tau)


def _is_other(
    divergence: regularizers.Divergence | None,
) -> TypeGuard[regularizers.Divergence]:
    """Returns whether a divergence is not KL, the only one whose two terms combine."""
    return divergence is not None and divergence is not regularizers.kl


def _evaluation(
    m: float,
    lambda_: Temperature,
    tau: Temperature,
    regularized: bool,
    divergence: regularizers.Divergence | None,
) -> scheme.Evaluate:
    if not regularized:
        return scheme.evaluation(m)
    return scheme.evaluation(m, lambda_, tau, divergence)

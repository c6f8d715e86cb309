"""Munchausen value iteration with any f-divergence in the place of KL. Ours, after two papers.

Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.14430, with the regularisers of Roulet et al. 2025,
https://arxiv.org/abs/2501.18537. Let Omega = -H_f, which is sum_a f(pi(a)) up to a constant and 0
at every deterministic policy e_a; let pi be greedy, v = max_pi <pi, q> - tau Omega(pi). The bonus

    tau b(a) = -tau D_Omega(e_a, pi) = tau (Omega(pi) + <g, e_a - pi>) <= 0

is tau ln pi(a) for KL. D_Omega is the Bregman divergence and g a subgradient of Omega at pi, hence

    alpha tau <pi', b> = -alpha tau D_Omega(pi', pi) + alpha tau Omega(pi')   for every pi'

so that q' = q - alpha tau b turns the greedy step and its value into those of mirror descent with
alpha tau D_Omega to the last policy and the entropy (1 - alpha) tau H_f; no constant is left over.
Where pi(a) = 0 there is a choice of g, for f with a finite f'(0). The `Outside` of this module:

    "threshold"  g = q / tau, and tau b = q - v: minus the Fenchel-Young loss of the action a. It
                 goes on falling outside the support. The twin is lazy: dual averaging.
    "slope"      g = f'(pi), the same but for a floor: tau b >= tau (f'(0) + Omega(pi) - <pi, g>),
                 which is what practice calls clipping. The twin is Bregman's mirror descent.

Only the first averages errors, widens all gaps, and becomes advantage learning as tau vanishes;
agents/munchausen.py takes it. Shape letters: S states, A actions, K iterations.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import convex, munchausen, precision, scheme
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme, State, Temperature

Outside = Literal["threshold", "slope"]


def munchausen_f_vi(
    alpha: types.Array | float,
    tau: Temperature,
    divergence: regularizers.Divergence | None = None,
    *,
    outside: Outside = "threshold",
) -> Scheme:
    """Returns M-VI(alpha, tau) of an f; `state.point.memory` is the bonus tau b_k, [S, A].

        pi_{k+1} = argmax_pi <pi, q_k> + tau H_f(pi),   v_k the value of that maximum
        q_{k+1}  = r + alpha tau b_{k+1} + gamma P v_k + eps_{k+1}

    With "threshold", tau b_{k+1} = q_k - v_k: the paper's one line, softmax_f for log-sum-exp. It
    starts from q_0 = alpha tau b_0, pi_0 uniform, and is then `mirror_f_vi` from 0, seen through
    `to_mirror`, at every iteration and with the same errors. Its averages are approximate value
    iteration with averaged errors,

        h_{k+1} = r + gamma P (max_pi <pi, h_k> + (1 - alpha) tau H_f(pi)) + E_{k+1} + O(alpha^k)
        h_k = (1 - alpha) sum_{j<=k} alpha^{k-j} q'_j,   E_k so of the eps_j

    which for alpha = 1 are plain means, see `average_gap_norm`. Without errors q_k - v_* tends to
    (q_* - v_*) / (1 - alpha), both with the entropy (1 - alpha) tau H_f: the gap of every action,
    in the support or not, is `munchausen.action_gap_ratio` times as wide. alpha = 0 is value
    iteration regularised by f, and tau -> 0 is advantage learning, whatever f.

    Args:
      alpha: scale of the bonus, in [0, 1].
      tau: temperature > 0, in units of reward.
      divergence: f with a finite f(0); None is KL, with which this is `munchausen.munchausen_vi`.
      outside: "slope" bounds the bonus outside the support: its gaps there widen by no more than
        that, and as tau vanishes it is plain value iteration, if f is sparse.

    Raises:
      ValueError: for another alpha, tau or outside, or an infinite f(0).
    """
    divergence = _checked(alpha, tau, divergence, outside)

    def init(mdp: MDP) -> State:
        log_policy = scheme.uniform(mdp)
        _, bonus, _ = _greedy(jnp.zeros_like(mdp.reward), tau, divergence, outside)
        return State(alpha * bonus, convex.Point(log_policy, jnp.zeros((), jnp.int32), bonus))

    def step(mdp: MDP, state: State, error: types.Array, seen: MDP) -> State:
        del mdp
        log_policy, bonus, v = _greedy(state.q, tau, divergence, outside)
        q = alpha * bonus + seen.backup(v) + error
        return State(q, convex.Point(log_policy, state.steps + 1, bonus))

    return scheme.make(init, step)


def to_mirror(state: State, alpha: types.Array | float) -> types.Array:
    """Returns the action values of `mirror_f_vi`, q'_k = q_k - alpha tau b_k, [S, A]."""
    return state.q - alpha * state.point.memory


def mirror_f_vi(
    alpha: float,
    tau: float,
    divergence: regularizers.Divergence | None = None,
    *,
    outside: Outside = "threshold",
) -> Scheme:
    """Returns the mirror-descent twin of `munchausen_f_vi`.

        pi_{k+1} = argmax_pi <pi, q'_k> - alpha tau D_Omega(pi, pi_k) + (1 - alpha) tau H_f(pi)
        q'_{k+1} = r + gamma P (the value of that maximum) + eps_{k+1}
        D_Omega(pi, pi_k) = Omega(pi) - Omega(pi_k) - <g_k, pi - pi_k>

    g_k is the subgradient of Omega at pi_k; `state.point.memory` is tau g_k, [S, A]. For KL this
    is MD-VI(alpha tau, (1 - alpha) tau), and DA-VI. For another f, D_Omega is not the D_f that
    `mirror.md_mpi` takes. With "threshold", g_k is what dual averaging remembers, for alpha = 1
    the sum of all past q'_j; with "slope" it is f'(pi_k), which depends on pi_k alone.

    Args:
      alpha, tau, divergence, outside: as for `munchausen_f_vi`; numbers.

    Raises:
      ValueError: as there.
    """
    divergence = _checked(alpha, tau, divergence, outside)
    averaging = convex.dual_averaging((1 - alpha) * tau, divergence)

    def init(mdp: MDP) -> State:
        log_policy = scheme.uniform(mdp)
        zeros = jnp.zeros_like(mdp.reward)  # f'(1 / A) but for a constant, which D_Omega ignores.
        return State(zeros, convex.Point(log_policy, jnp.zeros((), jnp.int32), zeros))

    def step(mdp: MDP, state: State, error: types.Array, seen: MDP) -> State:
        del mdp
        point = averaging.step(state.point, -state.q, alpha * tau)
        policy, prior = jnp.exp(point.log_x), jnp.exp(state.log_policy)
        pull = tau * (_omega(point.log_x, divergence) - _omega(state.log_policy, divergence))
        pull -= jnp.sum(state.point.memory * (policy - prior), -1)
        entropy = -tau * _omega(point.log_x, divergence)
        value = jnp.sum(policy * state.q, -1) - alpha * pull + (1 - alpha) * entropy
        if outside == "slope":
            point = point._replace(memory=tau * _slope(policy, divergence))
        return State(seen.backup(value) + error, point)

    return scheme.make(init, step)


def max_entropy(num_actions: int, divergence: regularizers.Divergence | None = None) -> float:
    """Returns the largest H_f, of the uniform policy: ln A (KL), (1 - 1 / A) / 2 (chi-squared)."""
    with jax.enable_x64(True):
        log_policy = jnp.full(num_actions, -jnp.log(jnp.asarray(num_actions, jnp.float64)))
        return -float(_omega(log_policy, divergence or regularizers.kl))


@precision.float64
def average_gap_norm(
    mean_error_norms: types.Array, q_max: float, discount: float, tau: float, entropy: float
) -> types.Array:
    """Bounds max |q_* - q_{pi_k}| for alpha = 1 and "threshold", [K].

        2 / (1 - gamma) (||(1/k) sum_{j<=k} eps_j|| + (max |q'_j| + gamma tau max H_f) / k)

    The counterpart of `bounds.kl_gap_norm` for any f. Values telescope, v_j = V(z_j) - V(z_{j-1})
    of z_j = q'_0 + ... + q'_j and V(z) = max_pi <pi, z> + tau H_f(pi), so that the mean m of the
    q'_j before pi_k obeys m = T_{pi_k} m + (1/k) sum eps_j + (gamma tau P (H_f(pi_k) - max H_f) -
    q'_k) / k, and the same with pi_* and >=.

    Args:
      mean_error_norms: max |(1/k) sum_{j<=k} eps_j|, [K].
      q_max: max |q'_j|, at most max |r| / (1 - gamma) without errors.
      discount, tau: gamma and the temperature.
      entropy: `max_entropy`.
    """
    norms = jnp.asarray(mean_error_norms)
    k = jnp.arange(1, norms.shape[0] + 1)
    return 2 * (norms + (q_max + discount * tau * entropy) / k) / (1 - discount)


def _greedy(
    q: types.Array, tau: Temperature, divergence: regularizers.Divergence, outside: Outside
) -> tuple[types.Array, types.Array, types.Array]:
    """Returns log-policy and bonus, [S, A], and the value of the maximum, [S]."""
    log_policy, v = regularizers.greedy(q, jnp.zeros_like(q), 0.0, tau, divergence)
    bonus = q - v[..., None]
    if outside == "slope" and divergence.is_sparse:
        policy = jnp.exp(log_policy)
        mean = jnp.sum(policy * _slope(policy, divergence), -1)
        floor = tau * (divergence.derivative_at_zero + _omega(log_policy, divergence) - mean)
        bonus = jnp.maximum(bonus, floor[..., None])
    return log_policy, bonus, v


def _omega(log_policy: types.Array, divergence: regularizers.Divergence) -> types.Array:
    """Returns Omega(pi) = -H_f(pi) <= 0, [...]."""
    return convex.penalty(log_policy, log_policy, 0.0, 1.0, divergence)


def _slope(policy: types.Array, divergence: regularizers.Divergence) -> types.Array:
    """Returns f'(pi), [..., A]; an infinite f'(0) becomes f' of the smallest normal number."""
    tiny = jnp.maximum(policy, jnp.finfo(policy.dtype).tiny)
    return jnp.maximum(divergence.derivative(tiny), divergence.derivative_at_zero)


def _checked(
    alpha: types.Array | float,
    tau: Temperature,
    divergence: regularizers.Divergence | None,
    outside: str,
) -> regularizers.Divergence:
    divergence = divergence or regularizers.kl
    munchausen.check(alpha, tau)
    if outside not in ("threshold", "slope"):
        raise ValueError(f"outside must be 'threshold' or 'slope', got {outside!r}")
    if divergence.at_zero == float("inf"):
        raise ValueError(
            f"{divergence.name} has no entropy (f(0) is infinite), so its bonus is infinite; "
            "choose an f with a finite f(0), such as alpha-1.5"
        )
    return divergence

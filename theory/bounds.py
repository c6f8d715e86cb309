"""Bounds that theorems give for a scheme's policies, as functions.

Only bounds with a derivation or a proof behind them are here. Unless a docstring says otherwise
they are for q_0 = 0 and pi_0 uniform, and row k - 1 of a result is about pi_k, k = 1, ..., K.
The bounds of entropy-regularised schemes are mirror.py's in (lambda, tau); Munchausen value
iteration has lambda = alpha tau and (1 - alpha) tau for tau, hence beta = alpha. Shape letters:
K iterations, S states, A actions.

A run has both arguments: `history.records.error[1:]` and `history.records.state.log_policy[1:]`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.theory import precision, solve
from kullback.theory.mdp import MDP

Scalar = types.Array | float  # Element by element, if they are arrays.


def v_max(r_max: Scalar, discount: Scalar, num_actions: int = 1, temperature: Scalar = 0.0) -> Any:
    """Returns (r_max + temperature ln A) / (1 - gamma): no (soft) value is larger."""
    return (r_max + temperature * math.log(num_actions)) / (1 - discount)


def entropy_bias(tau: float, num_actions: int, discount: float) -> float:
    """Returns a bound of max |q_* - q_pi| for the pi that is optimal with entropy tau."""
    return tau * math.log(num_actions) / (1 - discount)


def greedy_loss(value_error: float, discount: float) -> float:
    """Returns a bound of max (v_* - v_pi), pi greedy for q: 2 max |q - q_*| / (1 - gamma).

    Singh & Yee, "An upper bound on the loss from approximate optimal-value functions", 1994.
    """
    return 2 * value_error / (1 - discount)


@precision.float64
def mpi_gap(
    error_norms: types.Array, start_error: types.Array | float, discount: types.Array | float
) -> types.Array:
    """Bounds max (q_* - q_{pi_k}) for (regularised) modified policy iteration, any m, [K].

        2 / (1 - gamma) (sum_{i=1}^{k-1} gamma^i ||eps_{k-i}|| + gamma^k ||q_* - q_0||)

    Errors enter by a discounted sum of their norms: they never average out. Scherrer,
    Ghavamzadeh, Gabillon, Lesner & Geist, JMLR 2015, and Geist et al., ICML 2019. Their proof
    needs monotone contractions only, hence holds for action values; q_* and q_pi are those of the
    regularised process. Approximate value iteration is m = 1, and follows from `greedy_loss`.

    Args:
      error_norms: max |eps_k|, [K].
      start_error: max |q_* - q_0|, [].
      discount: gamma, [].
    """

    def step(carry: types.Array, norm: types.Array) -> tuple[types.Array, types.Array]:
        total = discount * carry  # The bracket for k, from that for k - 1.
        return total + norm, total

    norms = jnp.asarray(error_norms)
    _, totals = jax.lax.scan(step, jnp.asarray(start_error, norms.dtype), norms)
    return 2 * totals / (1 - discount)


@precision.float64
def kl_gap(
    mdp: MDP,
    optimal_log_policy: types.Array,
    log_policies: types.Array,
    errors: types.Array,
    lambda_: float,
) -> types.Array:
    """Bounds q_* - q_{pi_k} for MD-VI(lambda, 0) and DA-VI(lambda, 0), by component, [K, S, A].

        |A_k (1/k) sum_{j<=k} eps_j| + 4 v_max^lambda / ((1 - gamma) k)
        A_k = (I - gamma P_{pi_*})^-1 - (I - gamma P_{pi_k})^-1

    Theorem 1 of "Leverage the Average": errors enter by their average. It asks for max |q_k| <=
    v_max, which `run(..., clip=True)` sees to.

    Args:
      mdp: one process.
      optimal_log_policy: of some optimal policy, [S, A].
      log_policies: of pi_1, ..., pi_K, [K, S, A].
      errors: eps_1, ..., eps_K, [K, S, A].
      lambda_: temperature > 0.
    """
    return _kl_gap(mdp, optimal_log_policy, log_policies, errors, lambda_)


@precision.float64
def kl_gap_norm(
    mean_error_norms: types.Array, num_actions: int, r_max: float, discount: float, lambda_: float
) -> types.Array:
    """Bounds max |q_* - q_{pi_k}| by the corollary of `kl_gap`, [K].

        2 / (1 - gamma) ||(1/k) sum_{j<=k} eps_j|| + 4 v_max^lambda / ((1 - gamma) k)

    Args:
      mean_error_norms: max |(1/k) sum_{j<=k} eps_j|, [K].
      num_actions, r_max, discount, lambda_: A, max |r|, gamma and the temperature > 0.
    """
    norms = jnp.asarray(mean_error_norms)
    k = jnp.arange(1, norms.shape[0] + 1)
    start = 4 * v_max(r_max, discount, num_actions, lambda_) / k
    return (2 * norms + start) / (1 - discount)


@precision.float64
def entropy_gap(
    mdp: MDP,
    optimal_log_policy: types.Array,
    log_policies: types.Array,
    errors: types.Array,
    lambda_: types.Array | float,
    tau: types.Array | float,
) -> types.Array:
    """Bounds q^tau_* - q^tau_{pi_k} for MD-VI(lambda, tau), tau > 0, by component, [K, S, A].

        sum_{j=1}^{k} gamma^{k-j} |A_{k:j} E_j| + g(k) 1     for pi_{k+1}
        E_j = beta E_{j-1} + (1 - beta) eps_j,   beta = lambda / (lambda + tau)
        A_{k:j} = P_{pi_*}^{k-j}
                  - (I - gamma P_{pi_{k+1}})^-1 P_{pi_k} ... P_{pi_{j+1}} (I - gamma P_{pi_j})

    and g(k) is `entropy_start`. Theorem 2 of "Leverage the Average": errors enter by a moving
    average, which is smaller where they are independent. It takes K^2 products with the dynamics.

    The paper is remembered with a plus in A_{k:j}, and that is not a bound by component (a test
    has a run that breaks it). The minus follows from q_* - q_pi = (q_* - h_k) + (h_k - q_pi), as
    h_k is a value iterate with error E_k: the first part has -P_*^{k-j} E_j, the second is
    (I - gamma P_pi)^-1 (h_k - T_pi h_k) and has +E_j. The norms of both are bounded alike.

    Args:
      mdp: one process.
      optimal_log_policy: of the optimal policy with entropy tau, [S, A].
      log_policies, errors: as for `kl_gap`.
      lambda_, tau: temperatures, tau > 0.
    """
    return _entropy_gap(mdp, optimal_log_policy, log_policies, errors, lambda_, tau)


@precision.float64
def entropy_start(
    num_iterations: int,
    num_actions: int,
    r_max: types.Array | float,
    discount: types.Array | float,
    lambda_: types.Array | float,
    tau: types.Array | float,
) -> types.Array:
    """Returns the bound of `entropy_gap` without errors, g(0), ..., g(K - 1), [K].

    g(k) = (1 + (1 - beta) / (1 - gamma)) sum_{j=0}^{k} gamma^{k-j} beta^j v_max^tau
    """
    beta = lambda_ / (lambda_ + tau)
    top = (r_max + tau * math.log(num_actions)) / (1 - discount)

    def step(carry: tuple[types.Array, types.Array], _: None) -> tuple[Any, types.Array]:
        total, power = carry
        total = discount * total + power
        return (total, beta * power), total

    _, totals = jax.lax.scan(step, (jnp.zeros(()), jnp.ones(())), None, length=num_iterations)
    return (1 + (1 - beta) / (1 - discount)) * totals * top


@precision.float64
def entropy_gap_norm(
    average_norms: types.Array,
    num_actions: int,
    r_max: types.Array | float,
    discount: types.Array | float,
    lambda_: types.Array | float,
    tau: types.Array | float,
) -> types.Array:
    """Bounds max |q^tau_* - q^tau_{pi_k}| by the corollary of `entropy_gap`, [K].

        2 / (1 - gamma) sum_{j=1}^{k} gamma^{k-j} ||E_j|| + g(k)     for pi_{k+1}

    Args:
      average_norms: max |E_k|, [K], of `moving_average`.
      num_actions, r_max, discount, lambda_, tau: as for `entropy_start`.
    """
    norms = jnp.asarray(average_norms)

    def step(total: types.Array, norm: types.Array) -> tuple[types.Array, types.Array]:
        return discount * total + norm, total  # The sum for pi_1 is empty.

    _, totals = jax.lax.scan(step, jnp.zeros(()), norms)
    start = entropy_start(norms.shape[0], num_actions, r_max, discount, lambda_, tau)
    return 2 / (1 - discount) * totals + start


@precision.float64
def moving_average(errors: types.Array, beta: types.Array | float) -> types.Array:
    """Returns E_k = beta E_{k-1} + (1 - beta) eps_k with E_0 = 0, [K, ...] like the errors.

    For independent errors of variance s^2 its variance tends to (1 - beta) / (1 + beta) s^2.
    """

    def step(total: types.Array, error: types.Array) -> tuple[types.Array, types.Array]:
        total = beta * total + (1 - beta) * error
        return total, total

    errors = jnp.asarray(errors)
    return jax.lax.scan(step, jnp.zeros_like(errors[0]), errors)[1]


def cpi_gain(
    rate: Scalar, mean_advantage: Scalar, largest_advantage: Scalar, discount: Scalar
) -> Any:
    """Bounds <mu, v_{k+1} - v_k> from below, for mixture rate a. Kakade & Langford, 2002.

        a / (1 - gamma) (A - 2 a gamma e / (1 - gamma (1 - a)))

    Args:
      rate: a.
      mean_advantage: A, the mean of <pi' - pi, q_pi> under the occupancy measure of pi.
      largest_advantage: e = max_s |<pi' - pi, q_pi>(s)|.
      discount: gamma.
    """
    shift = 2 * rate * discount * largest_advantage / (1 - discount * (1 - rate))
    return rate / (1 - discount) * (mean_advantage - shift)


def cpi_optimal_gain(mean_advantage: Scalar, r_max: Scalar, discount: Scalar) -> Any:
    """Bounds the gain from below for the rate `conservative.optimal`: A^2 / (8 v_max).

    Rewards are in [0, r_max].
    """
    return mean_advantage**2 / (8 * v_max(r_max, discount))


def safe_gain(
    rate: Scalar, mean_advantage: Scalar, distance: Scalar, span: Scalar, discount: Scalar
) -> Any:
    """Bounds <mu, v_{k+1} - v_k> from below, for mixture rate a. Pirotta et al., ICML 2013.

        a A / (1 - gamma) - a^2 gamma T D / (2 (1 - gamma)^2)

    Args:
      rate, mean_advantage, discount: as for `cpi_gain`.
      distance: T = max_s sum_a |pi' - pi|.
      span: D, the span over states of <pi' - pi, q_pi>.
    """
    horizon = 1 / (1 - discount)
    return horizon * rate * mean_advantage - (rate * horizon) ** 2 * discount * distance * span / 2


def cpi_contraction(gap: Scalar, rate: Scalar, discount: Scalar, greedy_error: Scalar = 0.0) -> Any:
    """Bounds max (v_* - v_{k+1}) given max (v_* - v_k), with exact evaluation.

        (1 - a (1 - gamma)) gap + a e / (1 - gamma)

    e >= 0 is how far the mixed-in policy is from greedy, T_{pi'} v_k >= T v_k - e.
    """
    return (1 - rate * (1 - discount)) * gap + rate * greedy_error / (1 - discount)


def md_pi_gap(
    num_iterations: int, num_actions: int, r_max: float, discount: float, lambda_: float
) -> float:
    """Bounds max (v_* - v_{pi_K}) for MD-PI(lambda, 0) with exact, unregularised evaluation.

        lambda ln A / ((1 - gamma) K) + r_max / ((1 - gamma)^2 K),   rewards in [0, r_max]

    Agarwal, Kakade, Lee & Mahajan, JMLR 2021 (natural policy gradient), state by state.
    """
    horizon = 1 / (1 - discount)
    return horizon * (lambda_ * math.log(num_actions) + horizon * r_max) / num_iterations


def politex_regret(
    num_iterations: int,
    num_actions: int,
    r_max: float,
    discount: float,
    eta: float,
    error_sum: Scalar = 0.0,
) -> Any:
    """Bounds max_s sum_{k<K} (v_* - v_{pi_k})(s) for Politex, m = inf.

        1 / (1 - gamma) (ln A / eta + eta K v_max^2 / 8 + 2 sum_{k<K} ||q_k - q_{pi_k}||)

    That of exponential weights in every state, with estimates in [0, v_max], which rewards in
    [0, r_max] give, or estimates that are clipped; an interval of that length anywhere does as
    well. With `politex.step_size` and exact evaluation it is v_max sqrt(K ln A / 2) / (1 - gamma).
    The sum over k stands inside the maximum: the regret is of one state at a time.

    Args:
      num_iterations, num_actions, r_max, discount, eta: K, A, the largest reward, gamma and the
        step size.
      error_sum: sum_{k<K} ||q_k - q_{pi_k}||: by the performance difference an estimate enters
        by <pi_* - pi_k, q_{pi_k} - q_k>, and policies are at most 2 apart.
    """
    top = v_max(r_max, discount)
    regret = math.log(num_actions) / eta + eta * num_iterations * top**2 / 8 + 2 * error_sum
    return regret / (1 - discount)


def _apply(mdp: MDP, log_policy: types.Array, x: types.Array) -> types.Array:
    """Returns P_pi x = P <pi, x>, [S, A], of x [S, A]."""
    return mdp.expect(jnp.sum(jnp.exp(log_policy) * x, -1))


def _resolve(mdp: MDP, log_policy: types.Array, x: types.Array) -> types.Array:
    """Returns (I - gamma P_pi)^-1 x, [S, A]: the action values of pi if x is the reward."""
    paid = mdp._replace(reward=x)
    return paid.backup(solve.linear_values(paid, log_policy, jnp.zeros(mdp.num_states)))


@jax.jit
def _kl_gap(
    mdp: MDP,
    optimal_log_policy: types.Array,
    log_policies: types.Array,
    errors: types.Array,
    lambda_: types.Array,
) -> types.Array:
    k = jnp.arange(1, errors.shape[0] + 1, dtype=errors.dtype)[:, None, None]
    means = jnp.cumsum(errors, 0) / k
    of_optimal = jax.vmap(functools.partial(_resolve, mdp, optimal_log_policy))(means)
    of_iterates = jax.vmap(functools.partial(_resolve, mdp))(log_policies, means)
    r_max = jnp.max(jnp.abs(mdp.reward))
    top = (r_max + lambda_ * math.log(mdp.num_actions)) / (1 - mdp.discount)
    return jnp.abs(of_optimal - of_iterates) + 4 * top / ((1 - mdp.discount) * k)


@jax.jit
def _entropy_gap(
    mdp: MDP,
    optimal_log_policy: types.Array,
    log_policies: types.Array,
    errors: types.Array,
    lambda_: types.Array,
    tau: types.Array,
) -> types.Array:
    num_iterations = errors.shape[0]
    averages = moving_average(errors, lambda_ / (lambda_ + tau))
    index = jnp.arange(num_iterations)

    def step(carry: tuple[types.Array, types.Array], k: types.Array) -> tuple[Any, types.Array]:
        # Entry j of `optimal` is P_*^{k-j} E_j, of `products` the rest without the inverse; both
        # [K, S, A], zeros until j = k. Iterates are counted from 1, so k = 0 adds nothing.
        optimal, products = carry
        policy = log_policies[k]  # pi_{k+1}.
        resolved = jax.vmap(functools.partial(_resolve, mdp, policy))(products)
        weights = jnp.where(index < k, mdp.discount ** (k - 1.0 - index), 0)
        bound = jnp.sum(weights[:, None, None] * jnp.abs(optimal - resolved), 0)
        # On to k + 1: one more factor each, and the new entry.
        optimal = jax.vmap(functools.partial(_apply, mdp, optimal_log_policy))(optimal)
        products = jax.vmap(functools.partial(_apply, mdp, policy))(products)
        new = averages[k]
        optimal = jnp.asarray(optimal).at[k].set(new)
        products = jnp.asarray(products).at[k].set(new - mdp.discount * _apply(mdp, policy, new))
        return (optimal, products), bound

    zeros = jnp.zeros_like(errors)
    _, bounds = jax.lax.scan(step, (zeros, zeros), index)
    r_max = jnp.max(jnp.abs(mdp.reward))
    start = entropy_start(num_iterations, mdp.num_actions, r_max, mdp.discount, lambda_, tau)
    return bounds + start[:, None, None]

"""First-order optimisation over a product of simplices: the twins of regularised schemes.

Vieillard, Pietquin & Geist, "On Connections between Constrained Optimization and Reinforcement
Learning", 2019, https://arxiv.org/abs/1910.08476. A policy is a point of the product of S
simplices, and q_k is minus a gradient. Then the policy step of

    conservative policy iteration  is  Frank-Wolfe        with a mixture rate,
    MD-MPI                         is  mirror descent     with step size 1 / lambda,
    Politex and DA-MPI             is  dual averaging     with step size 1 / lambda,

and it is these functions that the schemes of conservative.py, mirror.py and politex.py call; their
oracle is policy evaluation. `minimize` calls them with the gradient of any function instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.theory import precision


class Point(NamedTuple):
    """A point of the product of simplices and what its method remembers."""

    log_x: types.Array  # [..., A], -inf on faces.
    steps: types.Array  # int32, []: k.
    memory: Any = None  # [..., A]: for dual averaging the (decayed) sum of minus gradients.


class Method(NamedTuple):
    """A first-order method as two pure functions.

    `size` is the method's own: the rate in [0, 1] of Frank-Wolfe, the temperature (one over the
    step size) of the others.
    """

    init: Callable[[types.Array], Point]  # log_x_0 [..., A] -> Point.
    step: Callable[[Point, types.Array, Any], Point]  # (point, gradient [..., A], size).


def frank_wolfe() -> Method:
    """Moves towards the vertex that a linear oracle chooses.

    s_k = argmin_s <s, g_k>,   x_{k+1} = (1 - a_k) x_k + a_k s_k
    """

    def init(log_x: types.Array) -> Point:
        return Point(log_x, jnp.zeros((), jnp.int32))

    def step(point: Point, gradient: types.Array, size: types.Array | float) -> Point:
        log_vertex, _ = regularizers.greedy(-gradient, point.log_x, 0.0, 0.0)
        rate = jnp.asarray(size, point.log_x.dtype)
        log_x = jnp.logaddexp(jnp.log1p(-rate) + point.log_x, jnp.log(rate) + log_vertex)
        return Point(log_x, point.steps + 1)

    return Method(init, step)


def mirror_descent(
    tau: types.Array | float = 0.0, divergence: regularizers.Divergence | None = None
) -> Method:
    """Trades the gradient against the distance from where it stands.

        x_{k+1} = argmin_x <x, g_k> + lambda D(x, x_k) - tau H(x)

    D is the Kullback-Leibler divergence, the Bregman divergence of negative entropy; another f
    puts D_f in its place, which is no Bregman divergence. tau > 0 is composite mirror descent.
    The temperature `size` is lambda = 1 / eta; 0 forgets x_k.

    Args:
      tau: temperature >= 0 of the entropy.
      divergence: f; one that is not KL takes one temperature, the other being the number 0.
    """

    def init(log_x: types.Array) -> Point:
        return Point(log_x, jnp.zeros((), jnp.int32))

    def step(point: Point, gradient: types.Array, size: types.Array | float) -> Point:
        log_x, _ = regularizers.greedy(-gradient, point.log_x, size, tau, divergence)
        return Point(log_x, point.steps + 1)

    return Method(init, step)


def dual_averaging(
    tau: types.Array | float = 0.0, divergence: regularizers.Divergence | None = None
) -> Method:
    """Answers all gradients so far at once.

        z_{k+1} = beta z_k - g_k,   x_{k+1} = argmax_x <x, z_{k+1}> + (lambda + tau) H(x)

    With tau = 0 old gradients keep their weight, beta = 1: Nesterov's method, where `size` is
    lambda = 1 / eta. With tau > 0 they fade, beta = lambda / (lambda + tau), as composite mirror
    descent forgets them. For KL, a constant lambda and a uniform start the iterates are those of
    `mirror_descent`; the start does not matter here, only the sum does.

    Args:
      tau, divergence: as for `mirror_descent`; H is H_f.

    Raises:
      ValueError: for an f with an infinite f(0), which has no H_f.
    """
    if divergence is not None and divergence.at_zero == float("inf"):
        raise ValueError(
            f"{divergence.name} has no entropy (f(0) is infinite), and dual averaging maximises "
            "one; choose an f with a finite f(0), such as alpha-1.5, or mirror descent (`md_mpi`)"
        )

    def init(log_x: types.Array) -> Point:
        return Point(log_x, jnp.zeros((), jnp.int32), jnp.zeros_like(log_x))

    def step(point: Point, gradient: types.Array, size: types.Array | float) -> Point:
        if is_zero(tau):
            beta = 1.0
        else:  # An array may hold a 0 / 0, which is where nothing fades either.
            total = jnp.asarray(size + tau)
            beta = jnp.where(total > 0, size / jnp.where(total > 0, total, 1), 1.0)
        memory = beta * point.memory - gradient
        log_x, _ = regularizers.greedy(memory, jnp.zeros_like(memory), 0.0, size + tau, divergence)
        return Point(log_x, point.steps + 1, memory)

    return Method(init, step)


METHODS: dict[str, Callable[..., Method]] = {
    "frank-wolfe": frank_wolfe,
    "mirror-descent": mirror_descent,
    "dual-averaging": dual_averaging,
}


@precision.float64
def minimize(
    method: Method,
    gradient: Callable[[jax.Array], Any],
    log_x: types.Array,
    size: types.Array | float | Callable[[types.Array], types.Array | float],
    num_iterations: int,
) -> Point:
    """Returns the points x_0, ..., x_K of a method, [K + 1, ...] each.

    Args:
      method: one of this module.
      gradient: oracle, log_x [..., A] -> gradient with respect to x, [..., A]. (A function of x
        itself has `lambda log_x: jax.grad(f)(jnp.exp(log_x))`.)
      log_x: where to begin, [..., A].
      size: see `Method`; a number, an array that broadcasts against [..., A], or a function of
        k (float64, []), such as `lambda k: 2 / (k + 2)` for Frank-Wolfe.
      num_iterations: K.
    """

    def body(point: Point, _: None) -> tuple[Point, Point]:
        # As a float: a quotient of int32 would be float32.
        k = jnp.asarray(point.steps, point.log_x.dtype)
        chosen = size(k) if callable(size) else size
        point = method.step(point, gradient(jnp.asarray(point.log_x)), chosen)
        return point, point

    start = method.init(jnp.asarray(log_x))
    _, points = jax.lax.scan(body, start, None, length=num_iterations)
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), start, points)


def penalty(
    log_policy: types.Array,
    log_prior: types.Array,
    lambda_: types.Array | float,
    tau: types.Array | float,
    divergence: regularizers.Divergence | None = None,
) -> types.Array:
    """Returns the regulariser lambda D_f(pi, prior) - tau H_f(pi), [...].

    H_f(pi) = D_f(e, 1) - D_f(pi, 1), e a deterministic policy, as in `regularizers.greedy`. A
    temperature of 0 takes its term away, infinite or not.
    """
    divergence = divergence or regularizers.kl
    total = jnp.zeros(log_policy.shape[:-1], log_policy.dtype)
    if not is_zero(lambda_):
        pull = divergence(log_policy, log_prior)
        total += jnp.where(lambda_ > 0, lambda_ * pull, 0)
    if not is_zero(tau):
        most = (log_policy.shape[-1] - 1) * divergence.at_zero
        total -= tau * (most - divergence(log_policy, jnp.zeros_like(log_policy)))
    return total


def is_zero(temperature: types.Array | float) -> bool:
    """Returns whether a temperature is the number 0, which removes its term; an array never is."""
    return isinstance(temperature, float | int) and temperature == 0

"""Spectral normalisation: weights over their largest singular value, by the power iteration.

Miyato et al., "Spectral normalization for generative adversarial networks", ICLR 2018,
https://arxiv.org/abs/1802.05957. The matrix of a convolution is [O, k k C].

The iteration's vector u is a leaf of the parameters, beside the weights "w" that it belongs to. So
a network stays a pure function of its parameters, and whatever is done to these is done to the
vectors: checkpoints hold them, a target network has copies, seeds side by side have their own. The
loss has no gradient with respect to them; `iterate` moves them, once after each learner step.
"""

from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from kullback.core import types

VECTOR = "spectral_vector"  # Name of the leaf u, [O].
WEIGHTS = "w"  # Name of the leaf beside it, [..., O].
FIRST_ITERATIONS = 15  # Of u when it is drawn, as in PyTorch; with none sigma is far too small.
_SMALLEST = 1e-12  # Norm by which a vector is divided at least.


def normalised(w: jax.Array, u: jax.Array) -> jax.Array:
    """Returns weights over the estimate of their largest singular value, which u is for.

        w / sigma,    sigma = u^T W v,    v = W^T u / |W^T u|

    No gradient passes through u and v, so that of sigma with respect to W is u v^T. Weights are
    divided where sigma < 1, too.

    Args:
      w: weights, [..., O]; W is [O, ...].
      u: a unit vector, [O].
    """
    matrix = w.reshape(-1, w.shape[-1])  # W^T.
    u = jax.lax.stop_gradient(u)
    v = jax.lax.stop_gradient(_unit(matrix @ u))
    return w / (v @ (matrix @ u))


def vector(w: jax.Array) -> jax.Array:
    """Returns the parameter u of the current Haiku module, for its weights w [..., O]; [O].

    It is drawn at random and iterated, so that sigma is near from the start.
    """

    def init(shape: Any, dtype: Any) -> jax.Array:
        u = _unit(jax.random.normal(hk.next_rng_key(), shape, dtype))
        return jax.lax.fori_loop(0, FIRST_ITERATIONS, lambda _, u: _next(w, u), u)

    return hk.get_parameter(VECTOR, w.shape[-1:], w.dtype, init=init)


def iterate(params: types.Params) -> types.Params:
    """Returns parameters whose vectors u are one iteration on: W v over its norm.

    Parameters without such vectors are returned as they are.
    """
    if not isinstance(params, Mapping):
        return params
    moved = {name: iterate(below) for name, below in params.items()}
    if VECTOR in params:
        moved[VECTOR] = _next(params[WEIGHTS], params[VECTOR])
    return moved


def _next(w: jax.Array, u: jax.Array) -> jax.Array:
    matrix = w.reshape(-1, w.shape[-1])
    return _unit(_unit(matrix @ u) @ matrix)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), _SMALLEST)

"""A value network beside a policy: a decoder of its own, and a head of one number a token."""

import jax
import jax.numpy as jnp
import optax

from kullback.core import types
from kullback.lm import batches, gemma

__all__ = ["KEY", "beside", "frozen", "predict", "with_value", "without"]

KEY = "value"  # Of its parameters, beside the policy's.


def with_value(params: types.Params, width: int | None = None) -> types.Params:
    """Adds the parameters of a value network to those of a policy.

    The network is a copy of the decoder with a head of zeros, [D], so that it predicts 0 at first.

    Args:
      params: of the policy, or its adapters.
      width: D, which adapters do not tell; None is the policy's.
    """
    shape = params["final_norm"].shape if width is None else (width,)
    head = jnp.zeros(shape, jnp.float32)
    return {**params, KEY: {"decoder": jax.tree.map(jnp.copy, params), "head": head}}


def frozen(base: types.Params) -> types.Params:
    """Returns the frozen part of `with_value`'s parameters: one base for policy and value."""
    return {**base, KEY: {"decoder": base}}


def without(params: types.Params) -> types.Params:
    """Returns the parameters of the policy alone, which may have no value network."""
    return {name: x for name, x in params.items() if name != KEY}


def predict(model: gemma.Model, params: types.Params, sequences: batches.Sequences) -> jax.Array:
    """Returns the value of each prefix but the whole text, float32, [B, T - 1].

    Args:
      model: the policy's, whose shape the network has.
      params: as of `with_value`.
      sequences: [B, T].
    """
    inputs = sequences.tokens, sequences.positions, sequences.segments
    hidden = model.features(params[KEY]["decoder"], *inputs, **sequences.senses)[:, :-1]
    return jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), params[KEY]["head"])


def beside(
    policy: optax.GradientTransformation, value: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns the optimiser of both: `value` is of the value network, `policy` of all else."""
    return optax.multi_transform(
        {"policy": policy, KEY: value},
        lambda params: {name: KEY if name == KEY else "policy" for name in params},
    )

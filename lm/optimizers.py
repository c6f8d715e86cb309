"""Optimisers of language models: optax's updates by name, what decays, and learning rates by step.

All names share one meaning of their settings: gradients are clipped by their global norm, and what
an optimiser makes of them is added to decay and multiplied by the learning rate,

    u_n = optimiser(clip(g_n)),  theta_{n+1} = theta_n - rate(n) (u_n + weight_decay theta_n)

so that decay is decoupled from the gradients' moments: Loshchilov & Hutter, "Decoupled Weight Decay
Regularization", ICLR 2019, https://arxiv.org/abs/1711.05101.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kullback.core import types
from kullback.lm import layers

__all__ = ["Dtype", "Name", "Rate", "Schedule", "check", "decays", "make", "schedule"]

# Optimisers by name, each optax's of that name.
Name = Literal["adam", "adamw", "adafactor", "lion", "sgd"]
# Courses of a learning rate after its warm-up.
Schedule = Literal["constant", "linear", "cosine"]
# Types in which an optimiser keeps its moments.
Dtype = Literal["float32", "bfloat16"]

WITH_MOMENTUM = ("adam", "adamw", "lion")  # Optimisers that keep a first moment of the gradients.
# Last parts of the paths of parameters that do not decay: they shift or scale features.
SPARED = ("b", "bias", "offset", "scale")


class Rate(NamedTuple):
    """A learning rate by the number of learner steps before, as settings say it."""

    peak: float  # > 0.
    warmup_steps: int  # Steps in which it rises from 0, linearly.
    schedule: Schedule = "constant"  # Its course after that.
    decay_steps: int = 0  # Steps, with the warm-up, until it is lowest; it stays there.
    final_fraction: float = 0.0  # The lowest, as a share of the peak.

    def check(self) -> None:
        """Raises ValueError for settings without a meaning; 0 `decay_steps` are to be planned."""
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction must lie in [0, 1], got {self.final_fraction}")
        if self.decay_steps < 0:
            raise ValueError(f"decay_steps must be >= 0, got {self.decay_steps}")
        if self.schedule == "constant" and (self.decay_steps or self.final_fraction):
            raise ValueError(
                f"decay_steps={self.decay_steps} and final_fraction={self.final_fraction} are of a "
                "learning rate that falls: schedule=linear or schedule=cosine"
            )
        if 0 < self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps={self.decay_steps} must be more than warmup_steps="
                f"{self.warmup_steps}: the learning rate falls between the two; lower warmup_steps"
            )


def schedule(rate: Rate) -> optax.Schedule:
    """Returns the function from the number of learner steps before to the learning rate.

    Raises:
      ValueError: for a rate that falls over nobody knows how many steps.
    """
    rate.check()
    rises = optax.linear_schedule(0.0, rate.peak, max(rate.warmup_steps, 1))
    if rate.schedule == "constant":
        return rises if rate.warmup_steps else optax.constant_schedule(rate.peak)
    if not rate.decay_steps:
        raise ValueError(
            f"schedule={rate.schedule} needs decay_steps, the learner steps until the learning "
            "rate is lowest; a run of `kullback train` takes its own"
        )
    length = rate.decay_steps - rate.warmup_steps
    if rate.schedule == "cosine":
        falls = optax.cosine_decay_schedule(rate.peak, length, alpha=rate.final_fraction)
    else:
        falls = optax.linear_schedule(rate.peak, rate.peak * rate.final_fraction, length)
    return optax.join_schedules([rises, falls], [rate.warmup_steps]) if rate.warmup_steps else falls


def make(
    name: Name,
    rate: optax.Schedule,
    *,
    max_grad_norm: float,
    weight_decay: float = 0.0,
    first_moment_dtype: Dtype = "float32",
) -> optax.GradientTransformation:
    """Returns the optax transformation of gradients to updates.

    Args:
      name: "adam" and "adamw" are one but for decay, which only the second takes; "adafactor"
        factors the second moments of matrices of 128 or more rows and columns, and neither keeps a
        first moment nor scales updates by the parameters, so that it has Adam's learning rates, as
        in transformers; "lion" takes a third to a tenth of them; "sgd" has no memory.
      rate: learning rate by step.
      max_grad_norm: largest global norm of a gradient; larger ones are scaled to it.
      weight_decay: of the parameters that `decays` names, per step and unit of learning rate.
      first_moment_dtype: of the moments that WITH_MOMENTUM keep.

    Raises:
      ValueError: for decay or a type of moments that the optimiser has not.
    """
    check(name, weight_decay, first_moment_dtype)
    dtype = jnp.dtype(first_moment_dtype)
    scales: dict[Name, list[optax.GradientTransformation]] = {
        "adam": [optax.scale_by_adam(mu_dtype=dtype)],
        "adamw": [optax.scale_by_adam(mu_dtype=dtype)],
        "adafactor": [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)],
        "lion": [optax.scale_by_lion(mu_dtype=dtype)],
        "sgd": [],
    }
    decay = [optax.add_decayed_weights(weight_decay, mask=decays)] if weight_decay else []
    # Checkpoints name leaves by their place in these chains: those of adam are as they always were.
    updates = optax.chain(*scales[name], *decay, optax.scale_by_learning_rate(rate))
    return optax.chain(clip_by_global_norm(max_grad_norm), updates)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns the transformation that scales gradients to a global norm of `max_norm` at most.

    Small models are left to optax. Of large ones, it has XLA store the quotient by the norm beside
    the gradients, on CPUs; a product is computed where it is used, and may differ by a rounding.
    """
    of_small = optax.clip_by_global_norm(max_norm)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if sum(x.nbytes for x in jax.tree.leaves(updates)) < layers.LARGE:
            return of_small.update(updates, state, params)
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

    return optax.GradientTransformation(of_small.init, update)


def check(name: Name, weight_decay: float, first_moment_dtype: Dtype) -> None:
    """Raises ValueError for decay or a type of moments that the optimiser has not."""
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
    if weight_decay and name == "adam":
        raise ValueError(
            f"weight_decay={weight_decay} is decoupled from the gradients: optimizer=adamw"
        )
    if first_moment_dtype != "float32" and name not in WITH_MOMENTUM:
        raise ValueError(
            f"first_moment_dtype={first_moment_dtype} is of {', '.join(WITH_MOMENTUM)}; "
            f"{name} keeps no first moment"
        )


def decays(params: types.Params) -> Any:
    """Returns a tree of bools: True for matrices, False for scales of norms and for biases.

    Layers are stacked, so that ranks say nothing: names of parameters do.
    """

    def decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        if leaf.ndim > 2:  # A stack of matrices, such as the "b" of adapters.
            return True
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name not in SPARED and not name.endswith("norm")

    return jax.tree_util.tree_map_with_path(decayed, params)

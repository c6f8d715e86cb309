"""Settings and metrics of agents that learn the distribution of the return.

Bellemare, Dabney & Munos, "A distributional perspective on reinforcement learning", ICML 2017,
https://arxiv.org/abs/1707.06887. The distribution is masses on fixed atoms in categorical.py, and
quantiles in quantile.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kullback.agents import q_learning
from kullback.core import types

__all__ = ["Config", "metrics", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(q_learning.Learning):
    """Settings of agents whose loss is the distribution's own."""


def presets(family: q_learning.Family) -> Config:
    """Returns settings for a family of environments; the sources are in q_learning.py.

    Raises:
      ValueError: for a family that has none.
    """
    shared = q_learning.presets(family)
    names = [field.name for field in dataclasses.fields(Config)]
    return Config(**{name: getattr(shared, name) for name in names})


def metrics(q: jax.Array, action: types.Array, entropy: jax.Array) -> dict[str, jax.Array]:
    """Returns the metrics of a batch by name, [] each.

    Args:
      q: means of the learnt distributions, [B, A].
      action: actions taken, int, [B].
      entropy: of the policy that the target evaluates, in nats, [B] or [].
    """
    q_a = jnp.take_along_axis(q, action[:, None], axis=1)
    return q_learning.metrics(q, q_a, entropy)

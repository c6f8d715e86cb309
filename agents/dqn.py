"""Deep Q-network (DQN), trained with Adam.

Mnih et al., Nature 2015, https://doi.org/10.1038/nature14236; with Adam as in Vieillard, Pietquin
& Geist, NeurIPS 2020, https://arxiv.org/abs/2007.14430, where it is the baseline of M-DQN.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kullback.agents import q_learning
from kullback.core import networks, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of DQN: those of the family."""

    learning: q_learning.Config = q_learning.Config()


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources."""
    return Config(learning=q_learning.presets(family))


def dqn_target(
    q_tm1: jax.Array, a_tm1: jax.Array, r_t: jax.Array, discount_t: jax.Array, q_t: jax.Array
) -> jax.Array:
    """Returns the regression target of DQN for one transition; vmap it over a batch.

        r_t + discount_t max_a q_t(a)

    Args: q_tm1, q_t: target-network values, [A]; a_tm1: int, []; r_t, discount_t: [].
    Returns: the target, [], in units of reward. The caller stops its gradient.
    """
    q_learning.assert_transition(q_tm1, a_tm1, r_t, discount_t, q_t)
    return r_t + discount_t * jnp.max(q_t)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a DQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()
    return q_learning.make(
        dqn_target,
        torso,
        spec,
        config.learning,
        algorithm=config,
    )

"""Advantage learning (AL-DQN): DQN whose reward is lowered by the gap to the best action.

Bellemare et al., "Increasing the action gap", AAAI 2016, https://arxiv.org/abs/1512.04860, as
Vieillard, Pietquin & Geist, NeurIPS 2020, https://arxiv.org/abs/2007.14430, compare it: the limit
of M-DQN as the temperature vanishes, without the floor.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from kullback.agents import q_learning
from kullback.core import networks, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of AL-DQN; the defaults are the Munchausen paper's for Atari."""

    gap_scale: float = 0.9  # alpha in [0, 1); 0 gives DQN.
    learning: q_learning.Config = q_learning.Config()

    def __post_init__(self) -> None:
        # At 1 the values of all but the best action have no limit; the paper's theory stops there.
        if not 0 <= self.gap_scale < 1:
            raise ValueError(f"gap_scale must lie in [0, 1), got {self.gap_scale}; the paper: 0.9")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources.

    alpha is the Munchausen authors' everywhere (Bellemare et al.: 0.9 too).
    """
    return Config(learning=q_learning.presets(family))


def advantage_learning_target(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    *,
    alpha: float,
) -> jax.Array:
    """Returns the regression target of AL-DQN for one transition; vmap it over a batch.

        r_t - alpha (max_a q_tm1(a) - q_tm1(a_tm1)) + discount_t max_a q_t(a)

    Args:
      q_tm1, q_t: target-network values, [A].
      a_tm1: int, [].
      r_t, discount_t: [].
      alpha: scale in [0, 1) of the gap.

    Returns:
      The target, [], in units of reward. The caller stops its gradient.
    """
    q_learning.assert_transition(q_tm1, a_tm1, r_t, discount_t, q_t)
    gap_tm1 = jnp.max(q_tm1) - q_tm1[a_tm1]
    return r_t - alpha * gap_tm1 + discount_t * jnp.max(q_t)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns an AL-DQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()
    return q_learning.make(
        functools.partial(advantage_learning_target, alpha=config.gap_scale),
        torso,
        spec,
        config.learning,
        algorithm=config,
    )

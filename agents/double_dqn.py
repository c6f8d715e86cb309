"""Double DQN: the online network selects the action that the target network evaluates.

van Hasselt, Guez & Silver, AAAI 2016, https://arxiv.org/abs/1509.06461; with Adam, as dqn.py.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from kullback.agents import q_learning
from kullback.core import networks, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of double DQN: those of the family."""

    learning: q_learning.Config = q_learning.Config()


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources.

    They are DQN's, so that the two differ in the target alone, as in the paper. The paper's tuned
    variant copies the target a third as often, explores at 0.01 and evaluates at 0.001.
    """
    return Config(learning=q_learning.presets(family))


def double_dqn_target(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    online_q_t: jax.Array,
) -> jax.Array:
    """Returns the regression target of double DQN for one transition; vmap it over a batch.

        r_t + discount_t q_t(argmax_a online_q_t(a))

    Args: q_tm1, q_t: target-network values, [A]; a_tm1: int, []; r_t, discount_t: [];
      online_q_t: values of the online network, [A].
    Returns: the target, [], in units of reward. The caller stops its gradient.
    """
    q_learning.assert_transition(q_tm1, a_tm1, r_t, discount_t, q_t)
    chex.assert_equal_shape([q_t, online_q_t])
    return r_t + discount_t * q_t[jnp.argmax(online_q_t)]


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a double DQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()
    return q_learning.make(
        double_dqn_target,
        torso,
        spec,
        config.learning,
        algorithm=config,
        selects_online=True,
    )

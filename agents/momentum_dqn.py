"""Momentum DQN (MoDQN): greedy for an average of past action values, which a second network keeps.

Vieillard, Scherrer, Pietquin & Geist, "Momentum in Reinforcement Learning", AISTATS 2020,
https://arxiv.org/abs/1910.09322. theory/momentum.py is the exact scheme, MoVI.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.agents import actor_critic, q_learning
from kullback.core import networks, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of MoDQN.

    The authors let 1 - b decay so as to mimic the mean of MoVI, b_k = k / (k + 1); the form of
    that decay, and both numbers, are ours.
    """

    momentum_max: float = 0.99  # b_max in [0, 1), which b_n reaches; 0 is DQN.
    # N_0 >= 0, in target copies: 1 gives the mean of all copies until b_max, 0 is a fixed b.
    momentum_copies: float = 1.0
    # At which actions of a state h is fitted: "all", as MoVI averages, or the one "taken" alone.
    averaged_actions: Literal["all", "taken"] = "all"
    learning: q_learning.Config = q_learning.Config()

    def __post_init__(self) -> None:
        if not 0 <= self.momentum_max < 1:
            raise ValueError(f"momentum_max must lie in [0, 1), got {self.momentum_max}")
        if not self.momentum_copies >= 0:
            raise ValueError(f"momentum_copies must be >= 0, got {self.momentum_copies}")
        if self.averaged_actions not in ("all", "taken"):
            raise ValueError(f"averaged_actions must be all or taken, got {self.averaged_actions}")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources.

    The paper keeps those of Dopamine's DQN, with RMSProp at 2.5e-4 for both networks.
    """
    return Config(learning=q_learning.presets(family))


def momentum_weight(copies: types.Array | float, b_max: float, n_0: float) -> jax.Array:
    """Returns the momentum b_n, [], after n target copies.

        1 - b_n = max(1 / (1 + n / N_0), 1 - b_max)

    Args: copies: n, []; b_max: in [0, 1); n_0: N_0 >= 0.
    """
    if n_0 == 0:
        return jnp.asarray(b_max, jnp.float32)
    return jnp.minimum(copies / (n_0 + copies), b_max)


def momentum_target(
    r_t: jax.Array, discount_t: jax.Array, q_t: jax.Array, h_t: jax.Array
) -> jax.Array:
    """Returns the regression target of MoDQN for one transition; vmap it over a batch.

        r_t + discount_t q_t(argmax_a h_t(a))

    It is double DQN's, with the action selected by the average h and evaluated by q.

    Args: r_t, discount_t: []; q_t, h_t: values of the target networks, [A].
    Returns: the target, [], in units of reward. The caller stops its gradient.
    """
    chex.assert_rank([r_t, discount_t, q_t, h_t], [0, 0, 1, 1])
    chex.assert_type([r_t, discount_t], float)
    chex.assert_equal_shape([q_t, h_t])
    return r_t + discount_t * q_t[jnp.argmax(h_t)]


def averaging_loss(
    h_tm1: jax.Array,
    target_h_tm1: jax.Array,
    q_tm1: jax.Array,
    b: types.Array | float,
) -> jax.Array:
    """Returns the Huber loss of h at each action, towards the running average, [A].

        h_{k+1}(a) = b h_k(a) + (1 - b) q_{k+1}(a)

    Args: h_tm1, target_h_tm1, q_tm1: [A]; b: momentum, [].
    """
    chex.assert_rank([h_tm1, target_h_tm1, q_tm1, b], [1, 1, 1, 0])
    chex.assert_equal_shape([h_tm1, target_h_tm1, q_tm1])
    average = b * target_h_tm1 + (1 - b) * q_tm1
    return jnp.asarray(rlax.huber_loss(average - h_tm1))


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a MoDQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.

    It acts epsilon-greedily on h, which starts as a copy of q: else the first targets were noise.
    """
    config = config or Config()

    def target(step: actor_critic.Step) -> jax.Array:
        return momentum_target(step.r_t, step.discount_t, step.q_t, step.target_actor_t)

    def greedy_loss(step: actor_critic.Step) -> jax.Array:
        momentum = step.scalars["momentum"]
        losses = averaging_loss(step.actor_tm1, step.target_actor_tm1, step.q_tm1, momentum)
        return losses[step.a_tm1] if config.averaged_actions == "taken" else jnp.mean(losses)

    def scalars(copies: jax.Array) -> dict[str, jax.Array]:
        return {"momentum": momentum_weight(copies, config.momentum_max, config.momentum_copies)}

    algorithm = actor_critic.Algorithm(
        target,
        greedy_loss,
        log_policies=None,
        schedule=actor_critic.by_copies(config.learning.target_period, scalars),
        starts_equal=True,
    )
    return actor_critic.make(algorithm, torso, spec, config)

"""What agents that learn distributions of returns share: settings, and where they come from.

Bellemare, Dabney & Munos, "A distributional perspective on reinforcement learning", ICML 2017,
https://arxiv.org/abs/1707.06887. In categorical.py they are masses on fixed atoms, in quantile.py
quantiles.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kullback.agents import q_learning
from kullback.core import networks, types
from kullback.core import replay as replays

__all__ = ["Config", "metrics", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings as `q_learning.Config` has them, without its choice of loss; see there."""

    torso: networks.TorsoName = "auto"  # "auto" picks by the shape of the observation.
    learning_rate: float = 5e-5  # Of Adam.
    adam_epsilon: float = 0.01 / 32  # > 0, added to the root of the second moment.
    target_period: int = 2_000  # Learner steps between two target copies.
    epsilon: float = 0.01  # Of exploration, once annealed.
    epsilon_decay_env_steps: int = 250_000  # From 1, linearly, after min_replay_size.
    epsilon_evaluate: float = 0.001  # Of exploration in evaluation.
    replay: replays.Config = replays.Config()

    def __post_init__(self) -> None:
        q_learning.check(self)


def presets(family: q_learning.Family) -> Config:
    """The settings of the family of DQN for a family of environments; q_learning.py has sources.

    Raises:
      ValueError: for a family that has none.
    """
    shared = q_learning.presets(family)
    names = [field.name for field in dataclasses.fields(Config)]
    return Config(**{name: getattr(shared, name) for name in names})


def metrics(q: jax.Array, action: types.Array, entropy: jax.Array) -> dict[str, jax.Array]:
    """What is logged of q [B, A], the mean of the learnt distributions, and taken actions [B].

    `entropy` is that of the policy that the target evaluates, in nats, [B] or [].
    """
    q_a = jnp.take_along_axis(q, action[:, None], axis=1)
    return {
        "mean_q": jnp.mean(q_a),
        "action_gap": jnp.mean(jax.vmap(q_learning.action_gap)(q)),
        "policy_entropy": jnp.mean(entropy),
    }

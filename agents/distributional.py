"""Settings and metrics of agents that learn the distribution of the return.

Bellemare, Dabney & Munos, "A distributional perspective on reinforcement learning", ICML 2017,
https://arxiv.org/abs/1707.06887. The distribution is masses on fixed atoms in categorical.py, and
quantiles in quantile.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kullback.agents import q_learning
from kullback.core import networks, types
from kullback.core.replay import Config as ReplayConfig

__all__ = ["Config", "metrics", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of `q_learning.Config`, without its choice of loss; see there."""

    torso: networks.TorsoName = "auto"  # "auto" picks by the shape of the observation.
    learning_rate: float = 5e-5  # Step size of Adam.
    adam_epsilon: float = 0.01 / 32  # > 0, added to the root of the second moment.
    target_period: int = 2_000  # Learner steps between two target copies.
    epsilon: float = 0.01  # Probability of a random action, once annealed.
    epsilon_decay_env_steps: int = 250_000  # Agent steps from epsilon 1, linearly.
    epsilon_evaluate: float = 0.001  # Probability of a random action in evaluation.
    replay: ReplayConfig = ReplayConfig()

    def __post_init__(self) -> None:
        q_learning.check(self)


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
    return {
        "mean_q": jnp.mean(q_a),
        "action_gap": jnp.mean(jax.vmap(q_learning.action_gap)(q)),
        "policy_entropy": jnp.mean(entropy),
    }

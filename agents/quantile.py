"""The distribution of the return as quantiles, and their loss, for QR-DQN, IQN, M-IQN and BTR.

Dabney et al., "Distributional reinforcement learning with quantile regression", AAAI 2018,
https://arxiv.org/abs/1710.10044. An algorithm brings one function, the target of one transition;
see iqn.py and munchausen_iqn.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.agents import distributional, q_learning
from kullback.core import heads, policies, ranges, types

__all__ = ["Implicit", "Samples", "Target", "absolute_error", "make", "quantile_loss"]

# (z_t [N', A], q_tm1 [A], a_tm1, r_t, discount_t, q_t [A]) -> the N' values that z_tm1(a_tm1)
# regresses to. Values are the target network's unless `make` is told otherwise, and q is the mean
# of K quantiles.
Target = Callable[..., jax.Array]

NOISE = 0x4015E  # Folded into a pass's key for its noise: its fractions are drawn from the key.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Numbers of quantiles that are drawn; the defaults are those of IQN on Atari."""

    online: int = 64  # N, of the online network.
    target: int = 64  # N', of the distribution that it regresses to.
    policy: int = 32  # K, whose mean is the action value of policies, in acting and in targets.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, *(field.name for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit:
    """The network of IQN; the defaults are those for Atari."""

    hidden: int = 512  # Units of a layer after the product with the embedding; 0 is none.
    num_cosines: int = 64  # Size of the embedding of a fraction.
    first_cosine: int = 1  # Lowest frequency: released code counts from 1, the paper from 0.

    def __post_init__(self) -> None:
        if self.hidden < 0 or self.num_cosines < 1 or self.first_cosine < 0:
            raise ValueError(
                f"hidden and first_cosine must be >= 0 and num_cosines >= 1, got {self}"
            )


def quantile_loss(
    z_a_tm1: jax.Array, fractions: jax.Array, target_tm1: jax.Array, kappa: float
) -> jax.Array:
    """Returns the quantile Huber loss of one item, [].

        sum_i mean_j |u_i - 1{delta_ij < 0}| Huber_kappa(delta_ij) / kappa,  delta_ij = y_j - z_i

    Args: z_a_tm1, fractions: quantiles z_i and their u_i, [N]; target_tm1: y_j, [N'], whose
      gradient the caller stops; kappa: > 0.
    """
    chex.assert_rank([z_a_tm1, fractions, target_tm1], 1)
    chex.assert_equal_shape([z_a_tm1, fractions])
    loss = rlax.quantile_regression_loss(z_a_tm1, fractions, target_tm1, kappa)
    return jnp.asarray(loss) / kappa


def absolute_error(z_a_tm1: jax.Array, target_tm1: jax.Array) -> jax.Array:
    """Returns sum_i mean_j |y_j - z_i| of one item, [], for z [N] and y [N']."""
    chex.assert_rank([z_a_tm1, target_tm1], 1)
    return jnp.sum(jnp.mean(jnp.abs(target_tm1[None] - z_a_tm1[:, None]), axis=1))


def make(
    target: Target,
    network: heads.QuantileNetwork,
    spec: types.Spec,
    config: distributional.Config,
    *,
    samples: Samples,
    kappa: float,
    entropy: Callable[[jax.Array], jax.Array] = q_learning.greedy_entropy,
    bonus_of: Literal["target", "online"] = "target",
    shares_samples: bool = False,
    priority: Literal["loss", "error"] = "loss",
    algorithm: Any = None,
) -> types.Agent:
    """Returns the agent that regresses quantiles of (s_tm1, a_tm1) towards `target`.

        L = mean_B w sum_i mean_j rho_{u_i}(y_j - z(s_tm1, a_tm1; u_i))

    Args:
      target: of one transition; see `Target`. Its gradient is stopped here.
      network: of quantiles, with the rule by which fractions are drawn. Its noise, if any, is drawn
        once for the online network's passes of a learner step, and once for the target network's.
      spec: of the environment.
      config: settings of the family.
      samples: N, N' and K.
      kappa: threshold of Huber's loss, > 0.
      entropy: q [A] -> entropy in nats, [], of the policy that the target evaluates.
      bonus_of: the network whose q_tm1 the target is given.
      shares_samples: whether q_t is the mean of z_t itself, not of K other quantiles.
      priority: the measure by which a prioritised replay ranks items: the loss, or
        `absolute_error`.
      algorithm: the algorithm's own configuration, saved beside the results.
    """
    if not kappa > 0:
        raise ValueError(f"the threshold of Huber's loss must be > 0, got {kappa}; the paper: 1")

    def quantiles(params: types.Params, noise: types.Key) -> Any:
        """Returns (observation, key, count) -> z [B, count, A] and u [B, count]."""

        def draw(observation: Any, key: types.Key, count: int) -> tuple[jax.Array, jax.Array]:
            fractions = network.fractions(key, len(observation), count)
            return network.apply(params, noise, observation, fractions), fractions

        return draw

    def values(draw: Any, observation: Any, key: types.Key) -> jax.Array:
        return jnp.mean(draw(observation, key, samples.policy)[0], axis=1)  # [B, A]

    def acting_values(params: types.Params, observation: Any, key: types.Key) -> jax.Array:
        return values(quantiles(params, jax.random.fold_in(key, NOISE)), observation, key)

    def loss(
        params: types.Params,
        targets: dict[str, types.Params],
        aux: None,
        batch: types.Batch,
        key: types.Key,
        constants: types.Constants,
    ) -> tuple[jax.Array, tuple[None, types.Feedback]]:
        del constants
        t: types.Transition = batch.data
        online_key, target_key, policy_tm1_key, policy_t_key = jax.random.split(key, 4)
        noise, old_noise = jax.random.split(jax.random.fold_in(key, NOISE))
        online, old = quantiles(params, noise), quantiles(targets["periodic"], old_noise)
        of_bonus = old
        if bonus_of == "online":
            of_bonus = quantiles(jax.lax.stop_gradient(params), noise)
        # XLA merges the torso's passes over one observation, and drops those that are not used.
        z_tm1, fractions = online(t.observation, online_key, samples.online)
        z_t, _ = old(t.next_observation, target_key, samples.target)
        q_tm1 = values(of_bonus, t.observation, policy_tm1_key)
        if shares_samples:
            q_t = jnp.mean(z_t, axis=1)
        else:
            q_t = values(old, t.next_observation, policy_t_key)
        target_tm1 = jax.vmap(target)(z_t, q_tm1, t.action, t.reward, t.discount, q_t)  # [B, N']
        target_tm1 = jax.lax.stop_gradient(target_tm1)
        z_a_tm1 = jax.vmap(lambda z, a: z[:, a])(z_tm1, t.action)  # [B, N]
        losses = jax.vmap(quantile_loss, in_axes=(0, 0, 0, None))(
            z_a_tm1, fractions, target_tm1, kappa
        )
        priorities = losses
        if priority == "error":
            priorities = jax.vmap(absolute_error)(z_a_tm1, target_tm1)
        online_q_tm1 = jnp.mean(z_tm1, axis=1)
        metrics = distributional.metrics(online_q_tm1, t.action, jax.vmap(entropy)(online_q_tm1))
        return jnp.mean(batch.weights * losses), (aux, types.Feedback(metrics, priorities))

    return q_learning.assemble(
        lambda key: network.init(key, spec.zeros()),
        loss,
        policies.epsilon_greedy_of_random(acting_values),
        config,
        algorithm,
        evaluated=network.without_noise,
    )

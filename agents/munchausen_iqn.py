"""Munchausen IQN (M-IQN): IQN whose reward is augmented with its own log-policy.

Vieillard, Pietquin & Geist, NeurIPS 2020, https://arxiv.org/abs/2007.14430; with another f than
KL's as in munchausen.py.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from kullback.agents import distributional, iqn, munchausen, q_learning, quantile
from kullback.core import networks, regularizers, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of M-IQN; the defaults are the paper's for Atari."""

    temperature: float = 0.03  # tau > 0, in units of (clipped) reward.
    log_policy_scale: float = 0.9  # alpha in [0, 1]; 0 gives soft IQN.
    log_policy_min: float = -1.0  # l_0 < 0, floor of tau ln(pi), or of q - v, in the same units.
    regularizer: str = "kl"  # f, as in munchausen.py.
    huber_threshold: float = 1.0  # kappa.
    samples: quantile.Samples = quantile.Samples()
    network: quantile.Implicit = quantile.Implicit()
    learning: distributional.Config = distributional.Config()

    def __post_init__(self) -> None:
        munchausen.check(self)
        if not self.huber_threshold > 0:
            raise ValueError(f"huber_threshold must be > 0, got {self.huber_threshold}")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy": those of iqn.py and the bonus."""
    samples, implicit, learning = iqn.shared_presets(family)
    return Config(samples=samples, network=implicit, learning=learning)


def munchausen_iqn_target(
    z_t: jax.Array,
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    *,
    tau: float,
    alpha: float,
    l_0: float,
    divergence: regularizers.Divergence = regularizers.kl,
) -> jax.Array:
    """Returns the quantiles that z(s_tm1, a_tm1) regresses to, for one transition; vmap it.

        y_j = r_t + alpha [tau ln pi(a_tm1|s_tm1)]_{l_0}^{0}
            + discount_t sum_a pi(a|s_t) (z_t(a; u'_j) - tau ln pi(a|s_t)),  pi = softmax(q / tau)

    For another f, q - v takes the place of tau ln pi in the bonus, v = munchausen.soft_value, and
    tau H_f(pi) = v(q_t) - <pi, q_t> that of its mean in the bootstrap.

    Args:
      z_t: target-network quantiles, [N', A].
      q_tm1, q_t: means of K other quantiles of the target network, [A].
      a_tm1: int, [].
      r_t, discount_t: []. For n steps the bonus is paid once, for a_tm1.
      tau, alpha, l_0: temperature > 0, scale in [0, 1] and floor < 0 of the bonus.
      divergence: f.

    Returns:
      y, [N'], in units of reward. The caller stops its gradient.
    """
    q_learning.assert_transition(q_tm1, a_tm1, r_t, discount_t, q_t)
    chex.assert_shape(z_t, (None, len(q_t)))
    bonus_tm1 = jnp.clip(munchausen.scaled_log_policy(q_tm1, tau, divergence)[a_tm1], l_0, 0.0)
    if divergence is regularizers.kl:
        log_policy_t = munchausen.scaled_log_policy(q_t, tau)  # tau ln pi(.|s_t), [A]
        policy_t = jnp.exp(log_policy_t / tau)
        v_t = jnp.sum(policy_t[None] * (z_t - log_policy_t[None]), axis=1)  # [N']
    else:
        gap_t = q_t - jnp.max(q_t)
        log_policy_t, value_t = regularizers.greedy(
            gap_t, jnp.zeros_like(q_t), 0.0, tau, divergence
        )
        policy_t = jnp.exp(log_policy_t)
        entropy_t = value_t - jnp.sum(policy_t * gap_t)  # tau H_f(pi).
        v_t = jnp.sum(policy_t[None] * z_t, axis=1) + entropy_t  # [N']
    return r_t + alpha * bonus_tm1 + discount_t * v_t


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns an M-IQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.

    It acts epsilon-greedily on the mean of K quantiles, as the paper's runs do.
    """
    config = config or Config()
    divergence = regularizers.named(config.regularizer)
    target = functools.partial(
        munchausen_iqn_target,
        tau=config.temperature,
        alpha=config.log_policy_scale,
        l_0=config.log_policy_min,
        divergence=divergence,
    )
    return quantile.make(
        target,
        iqn.implicit_network(torso, spec, config.network, config.learning),
        spec,
        config.learning,
        samples=config.samples,
        kappa=config.huber_threshold,
        entropy=functools.partial(
            munchausen.policy_entropy, tau=config.temperature, divergence=divergence
        ),
        algorithm=config,
    )

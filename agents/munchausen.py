"""Munchausen DQN (M-DQN): DQN whose reward is augmented with its own log-policy.

Vieillard, Pietquin & Geist, NeurIPS 2020, https://arxiv.org/abs/2007.14430. With another f than
KL's, our extension, the log-policy becomes q - v, where v = max_pi <pi, q> + tau H_f(pi) is the
regularised value; theory/munchausen_f.py derives it. For any f it lies at most tau max H_f below
q - max q, which is the bonus of advantage learning.
"""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from kullback.agents import q_learning
from kullback.core import networks, regularizers, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of M-DQN; the defaults are the paper's for Atari."""

    temperature: float = 0.03  # tau > 0, in units of (clipped) reward.
    log_policy_scale: float = 0.9  # alpha in [0, 1]; 0 gives soft DQN.
    log_policy_min: float = -1.0  # l_0 < 0, floor of tau ln(pi), or of q - v, in the same units.
    regularizer: str = "kl"  # f, by a name of core.regularizers.named; it needs a finite f(0).
    learning: q_learning.Config = q_learning.Config()

    def __post_init__(self) -> None:
        check(self)


def check(config: Any) -> None:
    """Raises ValueError for an invalid temperature, scale, floor or f of the bonus."""
    check_bonus(config)
    if not math.isfinite(regularizers.named(config.regularizer).at_zero):
        raise ValueError(
            f"regularizer must have a finite f(0), got {config.regularizer}, whose policies have "
            "an infinite entropy; choose kl, alpha-1.5, chi_squared, hellinger, gan, ..."
        )


def check_bonus(config: Any) -> None:
    """Raises ValueError for an invalid temperature, scale or floor of the bonus."""
    if not config.temperature > 0:
        raise ValueError(f"temperature must be > 0, got {config.temperature}; the paper: 0.03")
    if not 0 <= config.log_policy_scale <= 1:
        raise ValueError(
            f"log_policy_scale must lie in [0, 1], got {config.log_policy_scale}; the paper: 0.9"
        )
    if not config.log_policy_min < 0:
        raise ValueError(f"log_policy_min must be < 0, got {config.log_policy_min}; the paper: -1")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources.

    tau, alpha and l_0 are the paper's everywhere; Ceron & Castro ("Revisiting Rainbow") keep
    them on MinAtar and on classic control.
    """
    return Config(learning=q_learning.presets(family))


def soft_presets(family: q_learning.Family) -> Config:
    """Returns settings of soft DQN, the paper's ablation without the bonus: alpha = 0.

    tau is the paper's first choice, that of M-DQN. The paper also ran (1 - alpha) tau, the
    temperature of M-DQN's entropy once its bonus is read as a KL penalty. The toy takes that: its
    reward is so rare that at 0.03 the entropy of wandering for ever is worth more.
    """
    temperature = 0.003 if family == "toy" else 0.03
    return Config(
        temperature=temperature, log_policy_scale=0.0, learning=q_learning.presets(family)
    )


def soft_value(
    q: jax.Array, tau: float, divergence: regularizers.Divergence = regularizers.kl
) -> jax.Array:
    """Returns the regularised value max_pi <pi, q> + tau H_f(pi), [], of q [A].

    For KL it is tau ln sum_a exp(q(a) / tau), which is sum_a pi(a) (q(a) - tau ln pi(a)) for
    pi = softmax(q / tau).
    """
    chex.assert_rank(q, 1)
    best = jnp.max(q)  # Subtracted before dividing by tau: q / tau loses digits.
    if divergence is regularizers.kl:
        return best + tau * jax.nn.logsumexp((q - best) / tau)
    return best + regularizers.greedy(q - best, jnp.zeros_like(q), 0.0, tau, divergence)[1]


def scaled_log_policy(
    q: jax.Array, tau: float, divergence: regularizers.Divergence = regularizers.kl
) -> jax.Array:
    """Returns tau ln pi(.), [A], for pi = softmax(q / tau) and q [A]; finite where pi underflows.

    For another f it is q - `soft_value` <= 0, minus tau times Bregman's divergence of -H_f from
    each action to the policy.
    """
    chex.assert_rank(q, 1)
    z = q - jnp.max(q)
    if divergence is regularizers.kl:
        return z - tau * jax.nn.logsumexp(z / tau)
    return z - soft_value(z, tau, divergence)


def munchausen_target(
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
    """Returns the regression target of M-DQN for one transition; vmap it over a batch.

        r_t + alpha [tau ln pi(a_tm1|s_tm1)]_{l_0}^{0}
            + discount_t sum_a pi(a|s_t) (q_t(a) - tau ln pi(a|s_t)),  pi = softmax(q / tau)

    For another f:  r_t + alpha [q_tm1(a_tm1) - v(q_tm1)]_{l_0}^{0} + discount_t v(q_t),
    v = `soft_value`. That it is the same line for KL is equation 5 of the paper.

    Args:
      q_tm1, q_t: target-network values, [A].
      a_tm1: int, [].
      r_t, discount_t: []. For n steps the bonus is paid once, for a_tm1, as the authors' code does.
      tau, alpha, l_0: temperature > 0, scale in [0, 1] and floor < 0 of the bonus.
      divergence: f.

    Returns:
      The target, [], in units of reward. The caller stops its gradient.
    """
    q_learning.assert_transition(q_tm1, a_tm1, r_t, discount_t, q_t)
    bonus_tm1 = jnp.clip(scaled_log_policy(q_tm1, tau, divergence)[a_tm1], l_0, 0.0)
    return r_t + alpha * bonus_tm1 + discount_t * soft_value(q_t, tau, divergence)


def policy_entropy(
    q: jax.Array, tau: float, divergence: regularizers.Divergence = regularizers.kl
) -> jax.Array:
    """Returns the Shannon entropy, nats, [], of softmax(q / tau), or of softargmax_f, for q [A]."""
    chex.assert_rank(q, 1)
    z = (q - jnp.max(q)) / tau
    if divergence is not regularizers.kl:
        return regularizers.entropy(z, divergence)
    log_policy = z - jax.nn.logsumexp(z)
    return -jnp.sum(jnp.exp(log_policy) * log_policy)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns an M-DQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.

    It acts epsilon-greedily, as in the paper: softmax(q / 0.03) is nearly uniform at first, and in
    games with sparse rewards would never see one.
    """
    config = config or Config()
    divergence = regularizers.named(config.regularizer)
    target = functools.partial(
        munchausen_target,
        tau=config.temperature,
        alpha=config.log_policy_scale,
        l_0=config.log_policy_min,
        divergence=divergence,
    )
    return q_learning.make(
        target,
        torso,
        spec,
        config.learning,
        entropy=functools.partial(policy_entropy, tau=config.temperature, divergence=divergence),
        algorithm=config,
    )

"""Deep conservative policy iteration (DCPI): each step mixes a little of the greedy policy in.

Vieillard, Pietquin & Geist, AAAI 2020, https://arxiv.org/abs/1906.09784; after Kakade & Langford,
ICML 2002, and Pirotta, Restelli, Pecorino & Calandriello, "Safe policy iteration", ICML 2013.
theory/conservative.py is the exact scheme, here with one backup an iteration.
"""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from kullback.agents import actor_critic, q_learning
from kullback.core import networks, regularizers, types

_FLOOR = 1e-8  # Added to probabilities of the mixture where their logarithm is taken.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of DCPI."""

    # Rule for the mixture rate a; "constant" is `mixture_rate`, the others adapt it to each batch.
    rate: Literal["constant", "cpi", "spi", "normalised"] = "constant"
    # Mixture rate a in (0, 1] per target copy; for rate "normalised" its bound a_0. 1 is DQN with a
    # distilled policy. The paper sweeps it on CartPole from 1 to less than 0.01; which one it chose
    # we could not check.
    mixture_rate: float = 0.1
    reward_max: float = 1.0  # Largest |reward| after clipping, for rate "cpi".
    rate_decay: float = 0.99  # Decay of the running means per learner step, for rate "normalised".
    # Direction of the KL: "forward" is KL(mixture || actor), "reverse" KL(actor || mixture).
    direction: Literal["forward", "reverse"] = "forward"
    learning: q_learning.Config = q_learning.Config()

    def __post_init__(self) -> None:
        if self.rate not in ("constant", "cpi", "spi", "normalised"):
            raise ValueError(f"rate must be constant, cpi, spi or normalised, got {self.rate}")
        if not 0 < self.mixture_rate <= 1:
            raise ValueError(f"mixture_rate must lie in (0, 1], got {self.mixture_rate}")
        if not self.reward_max > 0:
            raise ValueError(f"reward_max must be > 0, got {self.reward_max}")
        if not 0 <= self.rate_decay < 1:
            raise ValueError(f"rate_decay must lie in [0, 1), got {self.rate_decay}")
        if self.direction not in ("forward", "reverse"):
            raise ValueError(f"direction must be forward or reverse, got {self.direction}")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources.

    The paper keeps those of Dopamine's DQN. The toy mixes faster, as it copies its targets only
    some thirty times in all.
    """
    mixture_rate = 0.5 if family == "toy" else 0.1
    return Config(mixture_rate=mixture_rate, learning=q_learning.presets(family))


def conservative_target(
    r_t: jax.Array, discount_t: jax.Array, q_t: jax.Array, log_policy_t: jax.Array
) -> jax.Array:
    """Returns the regression target of DCPI for one transition; vmap it over a batch.

        r_t + discount_t sum_a pi(a|s_t) q_t(a)

    Args: r_t, discount_t: []; q_t: target-network values, [A]; log_policy_t: the target actor's
      log-policy, [A].
    Returns: the target, [], in units of reward. The caller stops its gradient.
    """
    chex.assert_rank([r_t, discount_t, q_t, log_policy_t], [0, 0, 1, 1])
    chex.assert_type([r_t, discount_t], float)
    chex.assert_equal_shape([q_t, log_policy_t])
    return r_t + discount_t * jnp.sum(jnp.exp(log_policy_t) * q_t)


def mixture(q: jax.Array, log_policy: jax.Array, rate: types.Array | float) -> jax.Array:
    """Returns (1 - a) pi + a greedy(q), probabilities [A], from q and ln pi [A].

    The greedy action is the first of equal ones. This is a Frank-Wolfe step, as in
    theory/conservative.py.
    """
    chex.assert_rank([q, log_policy, rate], [1, 1, 0])
    chex.assert_equal_shape([q, log_policy])
    best = jax.nn.one_hot(jnp.argmax(q), len(q), dtype=q.dtype)
    return jnp.exp(log_policy) * (1 - rate) + best * rate


def conservative_loss(
    actor: jax.Array, mixed: jax.Array, direction: Literal["forward", "reverse"]
) -> jax.Array:
    """Returns the KL between the policy softmax(actor) and the mixture, in nats, [].

    Both directions are minimal at the mixture. "forward", KL(mixture || actor), is the default: its
    gradient with respect to the logits is actor - mixture, which does not vanish for an action that
    the actor has all but given up. That of "reverse", KL(actor || mixture), does; the paper's words
    for its loss, an expected KL between the actor and the mixture, fit this one.

    Args:
      actor: logits, [A].
      mixed: probabilities of the mixture, [A].
      direction: see above.
    """
    chex.assert_rank([actor, mixed], 1)
    chex.assert_equal_shape([actor, mixed])
    log_policy = jax.nn.log_softmax(actor)
    if direction == "forward":
        return regularizers.kl(jnp.log(mixed), log_policy)
    # Probabilities may underflow to 0, and all but one are 0 where a = 1.
    return jnp.sum(jnp.exp(log_policy) * (log_policy - jnp.log(mixed + _FLOOR)))


def greedy_gain(q: jax.Array, log_policy: jax.Array) -> jax.Array:
    """Returns the gain of the greedy policy over pi, <greedy(q) - pi, q> >= 0, [].

    Args: q: action values, [A]; log_policy: ln pi, [A].
    """
    chex.assert_rank([q, log_policy], 1)
    chex.assert_equal_shape([q, log_policy])
    return jnp.max(q) - jnp.sum(jnp.exp(log_policy) * q)


def cpi_rate(gain: jax.Array, discount: float, reward_max: float) -> jax.Array:
    """Returns Kakade & Langford's mixture rate, which maximises their bound; in [0, 1], [].

        a = (1 - gamma) A / (4 v_max),   v_max = r_max / (1 - gamma)

    Args: gain: A, the mean of `greedy_gain` over a batch, []; discount: gamma; reward_max: r_max.
    """
    chex.assert_rank(gain, 0)
    return jnp.minimum((1 - discount) ** 2 * gain / (4 * reward_max), 1)


def spi_rate(gains: jax.Array, distances: jax.Array, discount: float) -> jax.Array:
    """Returns the mixture rate of safe policy iteration (Pirotta et al. 2013); in [0, 1], [].

        a = min(1, (1 - gamma) A / (gamma T D))

    A is the mean of the gains, D their span, T the largest distance. Where T D = 0 it is 1 if
    there is anything to gain.

    Args: gains: `greedy_gain` of each state, [B]; distances: sum_a |greedy - pi|, [B]; discount:
      gamma.
    """
    chex.assert_rank([gains, distances], 1)
    chex.assert_equal_shape([gains, distances])
    gain = (1 - discount) * jnp.mean(gains)
    bound = discount * jnp.max(distances) * (jnp.max(gains) - jnp.min(gains))
    ratio = jnp.where(bound > 0, gain / jnp.where(bound > 0, bound, 1), jnp.sign(gain))
    return jnp.minimum(ratio, 1)


def _schedule(config: Config) -> actor_critic.Schedule:
    """Returns the schedule of the mixture rate, which may adapt to each batch."""
    discount = config.learning.replay.discount

    def init() -> Any:
        if config.rate != "normalised":
            return None
        return {"gain": jnp.zeros(()), "span": jnp.zeros(())}

    def step(aux: Any, q_tm1: jax.Array, target_actor_tm1: jax.Array) -> Any:
        log_policy = jax.nn.log_softmax(target_actor_tm1)
        gains = jax.vmap(greedy_gain)(q_tm1, log_policy)  # [B]
        if config.rate == "constant":
            rate = jnp.asarray(config.mixture_rate, q_tm1.dtype)
        elif config.rate == "cpi":
            rate = cpi_rate(jnp.mean(gains), discount, config.reward_max)
        elif config.rate == "spi":
            chosen = jnp.take_along_axis(log_policy, jnp.argmax(q_tm1, -1)[:, None], -1)[:, 0]
            distances = 2 * (1 - jnp.exp(chosen))  # What pi lacks at one action it has elsewhere.
            rate = spi_rate(gains, distances, discount)
        else:
            # The theory's rates hardly move a policy. The paper divides the gain by a running
            # normaliser; ours is the span of q, which the gain never exceeds: a is in [0, a_0].
            # Both means start at 0 and decay alike, so that their ratio needs no correction.
            span = jnp.mean(jnp.max(q_tm1, -1) - jnp.min(q_tm1, -1))
            new = {"gain": jnp.mean(gains), "span": span}
            kept = config.rate_decay
            aux = jax.tree.map(lambda old, x: kept * old + (1 - kept) * x, aux, new)
            ratio = aux["gain"] / jnp.maximum(aux["span"], jnp.finfo(q_tm1.dtype).tiny)
            rate = config.mixture_rate * jnp.minimum(ratio, 1)
        return aux, {"mixture_rate": rate}

    return actor_critic.Schedule(init, step)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a DCPI agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.

    It samples actions from its actor, or at random with probability epsilon. Past policies are not
    stored: the mixture is with the actor's target network, so a is the rate per target copy.
    """
    config = config or Config()

    def target(step: actor_critic.Step) -> jax.Array:
        log_policy_t = jax.nn.log_softmax(step.target_actor_t)
        return conservative_target(step.r_t, step.discount_t, step.q_t, log_policy_t)

    def greedy_loss(step: actor_critic.Step) -> jax.Array:
        log_policy_tm1 = jax.nn.log_softmax(step.target_actor_tm1)
        mixed = mixture(step.q_tm1, log_policy_tm1, step.scalars["mixture_rate"])
        return conservative_loss(step.actor_tm1, mixed, config.direction)

    algorithm = actor_critic.Algorithm(target, greedy_loss, schedule=_schedule(config))
    return actor_critic.make(algorithm, torso, spec, config)

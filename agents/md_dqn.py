"""Mirror-descent DQN (MD-DQN): a policy network that stays near its last copy and keeps entropy.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average: an analysis of KL
regularization in RL", NeurIPS 2020, https://arxiv.org/abs/2003.14089: MD-dir and MD-ind, each with
("w/") and without ("w/o") a regularised evaluation. theory/mirror.py is the exact scheme, MD-VI.
"""

import dataclasses
import functools
from typing import Literal

import chex
import jax

from kullback.agents import actor_critic, q_learning
from kullback.core import networks, ranges, regularizers, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of MD-DQN.

    The paper reports grids of beta = lambda / (lambda + tau) and tau, and no single choice. The
    defaults are those of M-DQN in its terms (Vieillard et al. 2020, theorem 1): alpha = beta = 0.9
    and lambda + tau = 0.03.
    """

    kl_temperature: float = 0.027  # lambda >= 0, in units of (clipped) reward.
    entropy_temperature: float = 0.003  # tau >= 0; the paper's grid: 0.001 to 0.1, and 0.
    greedy: Literal["direct", "indirect"] = "direct"  # MD-dir, MD-ind.
    regularized: bool = True  # Evaluate w/ both terms; False is w/o.
    greedy_values: actor_critic.GreedyValues = "online"  # Whose q the greedy step reads.
    learning: q_learning.Config = q_learning.Config()

    def __post_init__(self) -> None:
        ranges.inside("[0, inf]", self, "kl_temperature", "entropy_temperature")
        if self.greedy not in ("direct", "indirect"):
            raise ValueError(f"greedy must be direct or indirect, got {self.greedy}")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources.

    The paper's tables 3 and 4 are Dopamine's DQN, as those are, but for RMSProp at 2.5e-4 on Atari.
    """
    return Config(learning=q_learning.presets(family))


def direct_loss(
    actor: jax.Array, log_prior: jax.Array, q: jax.Array, *, lambda_: float, tau: float
) -> jax.Array:
    """Returns the loss of MD-dir for one state: minus the greedy step's objective, [].

        -(<pi, q> - lambda KL(pi || prior) + tau H(pi)),   pi = softmax(actor)

    It equals (lambda + tau) KL(pi || pi*) up to a constant, where pi* is the maximiser; it is in
    units of reward.

    Args:
      actor: logits, [A].
      log_prior: the target network's log-policy, [A].
      q: action values, [A].
      lambda_, tau: temperatures >= 0.
    """
    log_policy = jax.nn.log_softmax(actor)
    return -actor_critic.regularized_value(q, log_policy, log_prior, lambda_, tau)


def indirect_loss(
    actor: jax.Array, log_prior: jax.Array, q: jax.Array, *, lambda_: float, tau: float
) -> jax.Array:
    """Returns the loss of MD-ind for one state: KL(pi* || pi), nats, [].

        pi* = softmax((q + lambda ln prior) / (lambda + tau)),   pi = softmax(actor)

    pi* maximises the greedy step's objective.

    Args: as for `direct_loss`; with both temperatures 0, pi* is the greedy policy.
    """
    chex.assert_rank([actor, log_prior, q], 1)
    chex.assert_equal_shape([actor, log_prior, q])
    log_best, _ = regularizers.greedy(q, log_prior, lambda_, tau)
    return regularizers.kl(log_best, jax.nn.log_softmax(actor))


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns an MD-DQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.

    It samples actions from its actor, or at random with probability epsilon. The target evaluates
    the actor, pi_{k+1}; the prior pi_k is the actor's target network.
    """
    config = config or Config()
    lambda_, tau = config.kl_temperature, config.entropy_temperature
    loss = direct_loss if config.greedy == "direct" else indirect_loss
    evaluate = functools.partial(
        actor_critic.expected_value_target,
        lambda_=lambda_ if config.regularized else 0.0,
        tau=tau if config.regularized else 0.0,
    )

    def target(step: actor_critic.Step) -> jax.Array:
        log_policies = actor_critic.softmax_policies(step.actor_t, step.target_actor_t)
        return evaluate(step.r_t, step.discount_t, step.q_t, *log_policies)

    def greedy_loss(step: actor_critic.Step) -> jax.Array:
        log_prior = jax.nn.log_softmax(step.target_actor_tm1)
        return loss(step.actor_tm1, log_prior, step.q_tm1, lambda_=lambda_, tau=tau)

    algorithm = actor_critic.Algorithm(target, greedy_loss, greedy_values=config.greedy_values)
    return actor_critic.make(algorithm, torso, spec, config)

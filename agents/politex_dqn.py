"""Dual-averaging DQN: its policy is the softmax of an average of past action values.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average", NeurIPS 2020,
https://arxiv.org/abs/2003.14089: DA, with ("w/") and without ("w/o") a regularised evaluation. With
tau = 0 and w/o it is Politex, Abbasi-Yadkori et al., ICML 2019, with one backup an iteration;
theory/politex.py and `da_mpi` in theory/mirror.py are the exact schemes.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.agents import actor_critic, q_learning
from kullback.core import networks, ranges, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of dual-averaging DQN; the defaults are those of md_dqn.py; see there."""

    kl_temperature: float = 0.027  # lambda >= 0, in units of (clipped) reward.
    # tau >= 0. With 0 (Politex) all copies weigh the same in a sum that grows without bound. The
    # paper calls that impractical in deep learning, as target copies are too fast to be iterations.
    entropy_temperature: float = 0.003
    regularized: bool = True  # Evaluate w/ both terms; False is w/o.
    greedy_values: actor_critic.GreedyValues = "online"  # Whose q the greedy step reads.
    learning: q_learning.Config = q_learning.Config()

    def __post_init__(self) -> None:
        ranges.inside("[0, inf]", self, "kl_temperature", "entropy_temperature")
        if self.kl_temperature + self.entropy_temperature == 0:
            raise ValueError(
                "kl_temperature and entropy_temperature are both 0; the greedy limit is mo-dqn"
            )


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; q_learning.py has the sources.

    The paper's tables 3 and 4 are Dopamine's DQN, as those are, but for RMSProp at 2.5e-4 on Atari.
    """
    return Config(learning=q_learning.presets(family))


def weight_of_past(
    copies: types.Array | float, *, lambda_: float, tau: float
) -> types.Array | float:
    """Returns the weight of h_{k-1} in h_k, [], after k target copies.

        beta = lambda / (lambda + tau), or k / (k + 1) if tau = 0

    In the second case h_k is the mean of q_0 .. q_k.
    """
    return lambda_ / (lambda_ + tau) if tau > 0 else copies / (copies + 1)


def log_policy(
    h: jax.Array, copies: types.Array | float, *, lambda_: float, tau: float
) -> jax.Array:
    """Returns ln pi_{k+1}, [A], from h_k [A]; k = -1 gives pi_0, the uniform policy.

        pi_{k+1} = softmax(h_k / tau), or softmax((k + 1) h_k / lambda) if tau = 0

    The sum of Politex, (k + 1) h, is never formed: in float32 it would lose digits.
    """
    chex.assert_rank([h, copies], [1, 0])
    scale = 1 / tau if tau > 0 else (copies + 1) / lambda_
    z = h - jnp.max(h)  # Before scaling: that loses digits.
    return jax.nn.log_softmax(jnp.where(copies >= 0, scale * z, 0))


def averaging_loss(
    h: jax.Array,
    target_h: jax.Array,
    q: jax.Array,
    copies: types.Array | float,
    *,
    lambda_: float,
    tau: float,
) -> jax.Array:
    """Returns half the squared error of h to the running average, averaged over actions, [].

        h_k = beta h_{k-1} + (1 - beta) q_k,   h_{-1} = 0

    Args: h, target_h, q: h_k as learnt, h_{k-1} and q_k, [A]; copies: k, [].
    """
    chex.assert_rank([h, target_h, q, copies], [1, 1, 1, 0])
    chex.assert_equal_shape([h, target_h, q])
    beta = weight_of_past(copies, lambda_=lambda_, tau=tau)
    # Before the first copy the target network holds random values, not h_{-1} = 0.
    past = jnp.where(copies > 0, target_h, 0)
    return jnp.mean(rlax.l2_loss(h, beta * past + (1 - beta) * q))


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a dual-averaging DQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.

    It samples actions from its policy, or at random with probability epsilon.
    """
    config = config or Config()
    temperatures = {"lambda_": config.kl_temperature, "tau": config.entropy_temperature}
    log_policy_k = functools.partial(log_policy, **temperatures)
    evaluate = functools.partial(
        actor_critic.expected_value_target,
        lambda_=config.kl_temperature if config.regularized else 0.0,
        tau=config.entropy_temperature if config.regularized else 0.0,
    )

    def log_policies(
        h: jax.Array, target_h: jax.Array, scalars: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        copies = scalars["copies"]
        return log_policy_k(h, copies), log_policy_k(target_h, copies - 1)

    def target(step: actor_critic.Step) -> jax.Array:
        both = log_policies(step.actor_t, step.target_actor_t, step.scalars)
        return evaluate(step.r_t, step.discount_t, step.q_t, *both)

    def greedy_loss(step: actor_critic.Step) -> jax.Array:
        h_tm1, target_h_tm1, copies = step.actor_tm1, step.target_actor_tm1, step.scalars["copies"]
        return averaging_loss(h_tm1, target_h_tm1, step.q_tm1, copies, **temperatures)

    def temperature(copies: jax.Array) -> types.Array | float:
        tau = config.entropy_temperature
        return tau if tau > 0 else config.kl_temperature / (copies + 1)

    algorithm = actor_critic.Algorithm(
        target,
        greedy_loss,
        log_policies,
        temperature,
        schedule=actor_critic.by_copies(
            config.learning.target_period, lambda copies: {"copies": copies}
        ),
        greedy_values=config.greedy_values,
    )
    return actor_critic.make(algorithm, torso, spec, config)

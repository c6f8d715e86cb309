"""M-PQN, ours: PQN whose reward is augmented with its own log-policy.

Munchausen value iteration (Vieillard, Pietquin & Geist 2020, https://arxiv.org/abs/2007.14430)
regresses q_{k+1} to r + alpha tau ln pi_k(a|s) + gamma v_k(s'), with pi_k = softmax(q_k / tau) and
v_k = tau ln sum_a exp(q_k(a) / tau). An iteration of PQN is one such step: the parameters that act
stay q_k while labels are made, and are regressed from for all epochs.

A trace replaces v_k(s') in part by what was seen. As q_k(s, a) - tau ln pi_k(a|s) = v_k(s) for
every action, the return G of s', less its log-policy, stands for v_k(s') + (G - q_k(s', a')):

    m_t = r_t + alpha [tau ln pi_k(a_t|s_t)]_{l_0}^0
    G_t = m_t + gamma d_t {v_k(s_{t+1}) + c_{t+1} (G_{t+1} - q_k(s_{t+1}, a_{t+1}))}

with c = lambda min(1, pi_k(a) / mu(a)), Retrace (Munos et al. 2016,
https://arxiv.org/abs/1606.02647), or c = lambda (Harutyunyan et al. 2016,
https://arxiv.org/abs/1602.04951): at the scheme's fixed point neither is biased, whatever policy mu
acts. PQN's own form, v_k + lambda (G - v_k), is: an action that explored pulls it down by its gap,
which Munchausen's bonus widens.

Shape letters: T ticks, B rows, A actions.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.agents import munchausen, pqn, q_learning
from kullback.core import networks, online, types

# Weights of a trace, by name; see the module.
Trace = Literal["retrace", "lambda", "peng"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of M-PQN; those of the bonus are the Munchausen paper's."""

    temperature: float = 0.03  # tau > 0, in units of (clipped) reward.
    log_policy_scale: float = 0.9  # alpha in [0, 1].
    log_policy_min: float = -1.0  # l_0 < 0, floor of tau ln(pi), in the same units.
    trace: Trace = "retrace"  # "peng" is PQN's own, which is biased here.
    learning: pqn.Config = pqn.Config()

    def __post_init__(self) -> None:
        munchausen.check_bonus(self)
        if self.trace not in ("retrace", "lambda", "peng"):
            raise ValueError(f"trace must be retrace, lambda or peng, got {self.trace!r}")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; pqn.py has the sources."""
    return Config(learning=pqn.presets(family))


def munchausen_returns(
    seen: pqn.Seen,
    a_tm1: jax.Array,
    log_mu_tm1: jax.Array,
    *,
    tau: float,
    alpha: float,
    l_0: float,
    trace_decay: float,
    trace: Trace = "retrace",
) -> pqn.Labels:
    """Returns the labels of one row's T ticks; vmap it over rows. The equation is the module's.

    Args:
      seen: of one row, [T, ...].
      a_tm1: int, [T].
      log_mu_tm1: log-probabilities with which the actions were drawn, [T].
      tau, alpha, l_0: temperature > 0, scale in [0, 1] and floor < 0 of the bonus.
      trace_decay: lambda in [0, 1].
      trace: form of the weights c.

    Returns:
      Targets, and as metrics the weights of traces and whether the floor cut the bonus.
    """
    chex.assert_rank([*seen, a_tm1, log_mu_tm1], [1, 1, 1, 2, 2, 1, 1])
    chex.assert_type([*seen, a_tm1, log_mu_tm1], [float, float, bool, float, float, int, float])
    chex.assert_equal_shape_prefix([*seen, a_tm1, log_mu_tm1], 1)
    q_a_tm1 = jnp.asarray(rlax.batched_index(seen.q_tm1, a_tm1))
    log_policy = jax.vmap(lambda q: munchausen.scaled_log_policy(q, tau))(seen.q_tm1)
    log_pi_a = jnp.asarray(rlax.batched_index(log_policy, a_tm1))  # tau ln pi(a_tm1).
    bonus = jnp.clip(log_pi_a, l_0, 0.0)
    v_t = jax.vmap(lambda q: munchausen.soft_value(q, tau))(seen.q_t)
    ratio = jnp.exp(jnp.minimum(log_pi_a / tau - log_mu_tm1, 0.0))
    weight = trace_decay * (ratio if trace == "retrace" else jnp.ones_like(ratio))
    r_t = seen.reward + alpha * bonus
    alive = 1.0 - seen.last
    if trace == "peng":
        target = rlax.lambda_returns(r_t, seen.discount, v_t, trace_decay * alive)
    else:
        target = rlax.general_off_policy_returns_from_q_and_v(
            q_a_tm1[1:], v_t, r_t, seen.discount, alive[:-1] * weight[1:]
        )
    metrics = {"trace_weight": weight, "bonus_clipped": (log_pi_a < l_0).astype(jnp.float32)}
    return pqn.Labels(jnp.asarray(target), metrics)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent[online.Experience]:
    """Returns an M-PQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()
    tau = config.temperature

    def label(seen: pqn.Seen, actions: jax.Array, log_probabilities: jax.Array) -> pqn.Labels:
        return munchausen_returns(
            seen,
            actions,
            log_probabilities,
            tau=tau,
            alpha=config.log_policy_scale,
            l_0=config.log_policy_min,
            trace_decay=config.learning.trace_decay,
            trace=config.trace,
        )

    return pqn.assemble(
        torso,
        spec,
        label,
        config.learning,
        entropy=lambda q: munchausen.policy_entropy(q, tau),
        algorithm=config,
    )

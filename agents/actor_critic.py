"""Two networks of one architecture, action values and an actor: what agents that have both share.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average", NeurIPS 2020,
appendix E, https://arxiv.org/abs/2003.14089: DQN with an evaluation step, which regresses q, and a
greedy step, which fits the actor. An algorithm brings both as functions of one transition; see
dcpi.py, md_dqn.py, politex_dqn.py and momentum_dqn.py.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import rlax

from kullback.agents import q_learning
from kullback.core import networks, policies, regularizers, types

__all__ = [
    "GreedyLoss",
    "GreedyValues",
    "LogPolicies",
    "Schedule",
    "Target",
    "by_copies",
    "constant",
    "expected_value_target",
    "make",
    "regularized_value",
    "softmax_policies",
]

# The paper says the online network in its main text and the target network in its appendix. For
# an actor that the target evaluates online, "target" is the exact scheme and "online" one ahead;
# where it evaluates the actor's target network (dcpi.py, momentum_dqn.py), "online" is exact.
GreedyValues = Literal["online", "target"]

# (r_t, discount_t, target_q_t [A], actor_t [A], target_actor_t [A], **scalars) -> what q_tm1[a_tm1]
# regresses to, []. Its gradient is stopped.
Target = Callable[..., jax.Array]
# (q_tm1 [A], actor_tm1 [A], target_actor_tm1 [A], a_tm1, **scalars) -> loss of the actor, [].
GreedyLoss = Callable[..., jax.Array]
# (actor [A], target_actor [A], **scalars) -> the log-policies that they stand for, [A] each.
LogPolicies = Callable[..., tuple[jax.Array, jax.Array]]


class Schedule(NamedTuple):
    """Scalars that change while one learns; what they need is kept in `LearnerState.aux`."""

    init: Callable[[], Any]  # -> aux.
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, dict[str, jax.Array]]]
    # (aux, q_tm1 [B, A], target_actor_tm1 [B, A]) -> (aux, scalars by name).


def constant() -> Schedule:
    """No scalars."""
    return Schedule(lambda: None, lambda aux, q_tm1, target_actor_tm1: (aux, {}))


def by_copies(period: int, scalars: Callable[[jax.Array], dict[str, jax.Array]]) -> Schedule:
    """Scalars of k, how often targets were copied so far; float32, []."""

    def step(aux: jax.Array, q_tm1: jax.Array, target_actor_tm1: jax.Array) -> Any:
        del q_tm1, target_actor_tm1
        return aux + 1, scalars(jnp.asarray(aux // period, jnp.float32))

    return Schedule(lambda: jnp.zeros((), jnp.int32), step)


def softmax_policies(actor: jax.Array, target_actor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-policies of actors that are logits."""
    return jax.nn.log_softmax(actor), jax.nn.log_softmax(target_actor)


def expected_value_target(
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    log_policy_t: jax.Array,
    log_prior_t: jax.Array,
    *,
    lambda_: float,
    tau: float,
) -> jax.Array:
    """Regression target of an evaluation step for one transition; vmap it over a batch.

        r_t + discount_t (<pi, q_t> - lambda KL(pi || prior) + tau H(pi)),  at s_t

    Args:
      r_t, discount_t: [].
      q_t: target-network values, [A].
      log_policy_t, log_prior_t: log-policies, [A], finite unless lambda = 0.
      lambda_, tau: temperatures >= 0 in units of reward; both 0 evaluate without regularisation.

    Returns:
      The target, [], in units of reward. The caller stops its gradient.
    """
    return r_t + discount_t * regularized_value(q_t, log_policy_t, log_prior_t, lambda_, tau)


def regularized_value(
    q: jax.Array, log_policy: jax.Array, log_prior: jax.Array, lambda_: float, tau: float
) -> jax.Array:
    """<pi, q> - lambda KL(pi || prior) + tau H(pi), [], of q and log-policies [A]."""
    policy = jnp.exp(log_policy)
    value = jnp.sum(policy * q)
    if lambda_ > 0:
        value -= lambda_ * regularizers.kl(log_policy, log_prior)
    if tau > 0:  # Not `regularizers.entropy`: this one has a gradient at log-policies as they are.
        value -= tau * jnp.sum(policy * log_policy)
    return value


def make(
    target: Target,
    greedy_loss: GreedyLoss,
    torso: networks.Torso | None,
    spec: types.Spec,
    config: q_learning.Config,
    *,
    algorithm: Any,
    log_policies: LogPolicies | None,
    temperature: Callable[[jax.Array], Any] = lambda copies: 1.0,
    schedule: Schedule | None = None,
    greedy_values: GreedyValues = "online",
    starts_equal: bool = False,
) -> types.Agent:
    """Returns the agent with parameters {"q", "actor"}, which learns both from one batch.

        L = mean_B l(target(.., q_bar(s_t), actor(s_t), actor_bar(s_t)) - q(s_tm1, a_tm1))
            + greedy_loss(q(s_tm1), actor(s_tm1), actor_bar(s_tm1), a_tm1)

    No gradient leaves the actor's loss for q, nor the target for the actor, so that one Adam is
    one for each; the papers have RMSProp at 2.5e-4 on Atari, and Adam on CartPole.

    Args:
      target, greedy_loss: of one transition; see `Target` and `GreedyLoss`.
      torso: observations [B, ...] -> features [B, D]; None takes the one that `config` names.
      spec: of the environment.
      config: settings of the family, of both networks.
      algorithm: the algorithm's own configuration, saved beside the results.
      log_policies: what the actors stand for; None are values whose greedy policy is meant.
      temperature: how often targets were copied -> the temperature at which the actor's softmax
        acts; not used where `log_policies` is None.
      schedule: of scalars that both functions and `log_policies` take by name; they are logged.
      greedy_values: whether the greedy step reads the online or the target network's q(s_tm1).
      starts_equal: whether the actor starts as a copy of q.
    """
    if greedy_values not in ("online", "target"):
        raise ValueError(f"greedy_values must be online or target, got {greedy_values}")
    schedule = schedule or constant()
    network = networks.action_values(torso or networks.torso(config.torso, spec), spec.num_actions)
    regression_loss = rlax.huber_loss if config.loss == "huber" else rlax.l2_loss

    def init_params(key: types.Key) -> types.Params:
        q_key, actor_key = jax.random.split(key)
        key = q_key if starts_equal else actor_key
        return {name: network.init(k, spec.zeros()) for name, k in (("q", q_key), ("actor", key))}

    def loss(
        params: types.Params,
        targets: dict[str, types.Params],
        aux: Any,
        batch: types.Batch,
        key: types.Key,
        constants: types.Constants,
    ) -> tuple[jax.Array, tuple[Any, types.Feedback]]:
        del key, constants  # Nothing is random in this loss.
        t: types.Transition = batch.data
        q_bar, actor_bar = (
            functools.partial(network.apply, targets["periodic"][name]) for name in ("q", "actor")
        )
        q_tm1 = network.apply(params["q"], t.observation)  # [B, A]
        actor_tm1 = network.apply(params["actor"], t.observation)
        target_actor_tm1 = actor_bar(t.observation)
        greedy_q_tm1 = q_tm1 if greedy_values == "online" else q_bar(t.observation)
        greedy_q_tm1 = jax.lax.stop_gradient(greedy_q_tm1)
        aux, scalars = schedule.step(aux, greedy_q_tm1, target_actor_tm1)

        # Evaluation. Where a target ignores one of these, XLA drops its pass.
        actor_t = network.apply(params["actor"], t.next_observation)
        target_actor_t = actor_bar(t.next_observation)
        inputs = (t.reward, t.discount, q_bar(t.next_observation), actor_t, target_actor_t)
        target_tm1 = jax.vmap(functools.partial(target, **scalars))(*inputs)
        q_a_tm1 = rlax.batched_index(q_tm1, t.action)
        td_error = jax.lax.stop_gradient(target_tm1) - q_a_tm1

        # Greedy step. The papers draw another batch for it; here it is that of the evaluation.
        inputs = (greedy_q_tm1, actor_tm1, target_actor_tm1, t.action)
        actor_losses = jax.vmap(functools.partial(greedy_loss, **scalars))(*inputs)

        losses = batch.weights * (regression_loss(td_error) + actor_losses)  # [B]
        metrics = {
            "mean_q": jnp.mean(q_a_tm1),
            "action_gap": jnp.mean(jax.vmap(q_learning.action_gap)(q_tm1)),
            "actor_loss": jnp.mean(batch.weights * actor_losses),
            "policy_entropy": jnp.zeros(()),
            **scalars,
        }
        if log_policies:
            both = jax.vmap(functools.partial(log_policies, **scalars))(actor_tm1, target_actor_tm1)
            metrics["policy_entropy"] = jnp.mean(regularizers.entropy(both[0]))
            metrics["kl"] = jnp.mean(regularizers.kl(*both))  # To the policy of the last copy.
        return jnp.mean(losses), (aux, types.Feedback(metrics, jnp.abs(td_error)))

    def actor(params: types.Params, observation: types.Array) -> jax.Array:
        return network.apply(params["actor"], observation)

    acts = policies.epsilon_softmax if log_policies else policies.epsilon_greedy
    agent = q_learning.assemble(
        init_params, loss, acts(actor), config, algorithm, lambda params: schedule.init()
    )
    online = agent.actor_params

    def actor_params(state: types.LearnerState, env_steps: types.Array, evaluate: bool) -> Any:
        acting = online(state, env_steps, evaluate)
        if log_policies is None:
            return acting
        copies = jnp.asarray(state.steps // config.target_period, jnp.float32)
        return {**acting, "temperature": jnp.asarray(temperature(copies), jnp.float32)}

    return agent._replace(actor_params=actor_params)

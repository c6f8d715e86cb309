"""Agents with two networks of one architecture: action values and an actor.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average", NeurIPS 2020,
appendix E, https://arxiv.org/abs/2003.14089: DQN with an evaluation step, which regresses q, and a
greedy step, which fits the actor. An algorithm brings both as functions of one transition; see
dcpi.py, md_dqn.py, politex_dqn.py and momentum_dqn.py.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.agents import q_learning
from kullback.core import networks, policies, regularizers, types

__all__ = [
    "Algorithm",
    "GreedyValues",
    "Schedule",
    "Step",
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


class Step(NamedTuple):
    """One transition, as an evaluation and a greedy step read it; values and actors are [A]."""

    q_tm1: jax.Array  # Values of the network that `greedy_values` names; their gradient is stopped.
    actor_tm1: jax.Array
    target_actor_tm1: jax.Array
    a_tm1: jax.Array  # int, [].
    r_t: jax.Array  # [].
    discount_t: jax.Array  # [].
    q_t: jax.Array  # Values of the target network.
    actor_t: jax.Array
    target_actor_t: jax.Array
    scalars: dict[str, jax.Array]  # The schedule's scalars by name; [] each.


class Schedule(NamedTuple):
    """Scalars that change during learning; `LearnerState.aux` keeps their state."""

    init: Callable[[], Any]  # -> aux.
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, dict[str, jax.Array]]]
    # (aux, q_tm1 [B, A], target_actor_tm1 [B, A]) -> (aux, scalars by name).


def constant() -> Schedule:
    """Returns a schedule without scalars."""
    return Schedule(lambda: None, lambda aux, q_tm1, target_actor_tm1: (aux, {}))


def by_copies(period: int, scalars: Callable[[jax.Array], dict[str, jax.Array]]) -> Schedule:
    """Returns a schedule whose scalars are a function of k, the number of target copies so far.

    Args:
      period: learner steps between two copies.
      scalars: k, float32 [] -> scalars by name, [] each.
    """

    def step(aux: jax.Array, q_tm1: jax.Array, target_actor_tm1: jax.Array) -> Any:
        del q_tm1, target_actor_tm1
        return aux + 1, scalars(jnp.asarray(aux // period, jnp.float32))

    return Schedule(lambda: jnp.zeros((), jnp.int32), step)


def softmax_policies(
    actor: jax.Array, target_actor: jax.Array, scalars: object = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-policies, [A] each, of actors that are logits, [A]."""
    del scalars
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
    """Returns the regression target of an evaluation step for one transition; vmap it over a batch.

        r_t + discount_t (<pi, q_t> - lambda KL(pi || prior) + tau H(pi)),  at s_t

    Args:
      r_t, discount_t: [].
      q_t: target-network values, [A].
      log_policy_t, log_prior_t: log-policies, [A], finite unless lambda = 0.
      lambda_, tau: temperatures >= 0 in units of reward; both 0 evaluate without regularisation.

    Returns:
      The target, [], in units of reward. The caller stops its gradient.
    """
    chex.assert_rank([r_t, discount_t], 0)
    chex.assert_type([r_t, discount_t], float)
    return r_t + discount_t * regularized_value(q_t, log_policy_t, log_prior_t, lambda_, tau)


def regularized_value(
    q: jax.Array, log_policy: jax.Array, log_prior: jax.Array, lambda_: float, tau: float
) -> jax.Array:
    """Returns <pi, q> - lambda KL(pi || prior) + tau H(pi), [], from q and log-policies [A]."""
    chex.assert_rank([q, log_policy, log_prior], 1)
    chex.assert_equal_shape([q, log_policy, log_prior])
    policy = jnp.exp(log_policy)
    value = jnp.sum(policy * q)
    if lambda_ > 0:
        value -= lambda_ * regularizers.kl(log_policy, log_prior)
    if tau > 0:  # Not `regularizers.entropy`: this one has a gradient at log-policies as they are.
        value -= tau * jnp.sum(policy * log_policy)
    return value


class Algorithm(NamedTuple):
    """The losses of the two networks, as functions of one transition or state."""

    # -> the value that q_tm1[a_tm1] regresses to, []; its gradient is stopped.
    target: Callable[[Step], jax.Array]
    greedy_loss: Callable[[Step], jax.Array]  # -> loss of the actor, [].
    # (actor [A], target_actor [A], scalars) -> the log-policies that they stand for, [A] each; None
    # where actors are values whose greedy policy is meant.
    log_policies: Callable[..., tuple[jax.Array, jax.Array]] | None = softmax_policies
    # Number of target copies -> the temperature at which the actor's softmax acts; not used where
    # `log_policies` is None.
    temperature: Callable[[jax.Array], types.Array | float] = lambda copies: 1.0
    schedule: Schedule = constant()
    greedy_values: GreedyValues = "online"  # Whose q(s_tm1) the greedy step reads.
    starts_equal: bool = False  # Whether the actor starts as a copy of q.


class HasLearning(Protocol):
    """An algorithm's configuration, with the settings of the family."""

    @property
    def learning(self) -> q_learning.Config:
        """Settings of both networks."""
        ...


def make(
    algorithm: Algorithm,
    torso: networks.Torso | None,
    spec: types.Spec,
    config: HasLearning,
) -> types.Agent:
    """Returns the agent with parameters {"q", "actor"}, which learns both from one batch.

        L = mean_B l(target(.., q_bar(s_t), actor(s_t), actor_bar(s_t)) - q(s_tm1, a_tm1))
            + greedy_loss(q(s_tm1), actor(s_tm1), actor_bar(s_tm1), a_tm1)

    The actor's loss has no gradient with respect to q, nor has the target with respect to the
    actor, so one Adam over both equals one for each. The papers use RMSProp at 2.5e-4 on Atari,
    and Adam on CartPole.

    Args:
      algorithm: the losses of both networks.
      torso: observations [B, ...] -> features [B, D]; None takes the one that `config` names.
      spec: of the environment.
      config: of the algorithm, saved beside the results.

    Raises:
      ValueError: if `greedy_values` is neither online nor target.
    """
    learning = config.learning
    if algorithm.greedy_values not in ("online", "target"):
        raise ValueError(f"greedy_values must be online or target, got {algorithm.greedy_values}")
    network = networks.action_values(
        torso or networks.torso(learning.torso, spec), spec.num_actions
    )

    def init_params(key: types.Key) -> types.Params:
        q_key, actor_key = jax.random.split(key)
        key = q_key if algorithm.starts_equal else actor_key
        return {name: network.init(k, spec.zeros()) for name, k in (("q", q_key), ("actor", key))}

    def actor(params: types.Params, observation: types.Array) -> jax.Array:
        return network.apply(params["actor"], observation)

    make_policy = policies.epsilon_softmax if algorithm.log_policies else policies.epsilon_greedy
    agent = q_learning.assemble(
        init_params,
        functools.partial(_loss, algorithm, network, learning),
        make_policy(actor),
        learning,
        config,
        lambda params: algorithm.schedule.init(),
    )
    if algorithm.log_policies is None:
        return agent
    online_params = agent.actor_params

    def actor_params(
        state: types.LearnerState,
        env_steps: types.Array,
        evaluate: bool,
        constants: types.Constants,
    ) -> Any:
        copies = jnp.asarray(state.steps // learning.target_period, jnp.float32)
        temperature = jnp.asarray(algorithm.temperature(copies), jnp.float32)
        return {**online_params(state, env_steps, evaluate, constants), "temperature": temperature}

    return agent._replace(actor_params=actor_params)


def _loss(
    algorithm: Algorithm,
    network: networks.Network,
    config: q_learning.Config,
    params: types.Params,
    targets: dict[str, types.Params],
    aux: Any,
    batch: types.Batch,
    key: types.Key,
    constants: types.Constants,
) -> tuple[jax.Array, tuple[Any, types.Feedback]]:
    """Returns the mean loss of both networks; a `learners.Loss`."""
    del key, constants  # Nothing is random in this loss.
    t: types.Transition = batch.data
    q_bar, actor_bar = (
        functools.partial(network.apply, targets["periodic"][name]) for name in ("q", "actor")
    )
    q_tm1 = network.apply(params["q"], t.observation)  # [B, A]
    actor_tm1 = network.apply(params["actor"], t.observation)
    target_actor_tm1 = actor_bar(t.observation)
    greedy_q_tm1 = q_tm1 if algorithm.greedy_values == "online" else q_bar(t.observation)
    greedy_q_tm1 = jax.lax.stop_gradient(greedy_q_tm1)
    aux, scalars = algorithm.schedule.step(aux, greedy_q_tm1, target_actor_tm1)
    # XLA drops the forward passes that an algorithm ignores. The papers draw another batch for the
    # greedy step; here both steps share one.
    step = Step(
        q_tm1=greedy_q_tm1,
        actor_tm1=actor_tm1,
        target_actor_tm1=target_actor_tm1,
        a_tm1=jnp.asarray(t.action),
        r_t=jnp.asarray(t.reward),
        discount_t=jnp.asarray(t.discount),
        actor_t=network.apply(params["actor"], t.next_observation),
        target_actor_t=actor_bar(t.next_observation),
        q_t=q_bar(t.next_observation),
        scalars=scalars,
    )
    axes = (Step(0, 0, 0, 0, 0, 0, 0, 0, 0, None),)  # pyright: ignore[reportArgumentType]
    target_tm1 = jax.vmap(algorithm.target, axes)(step)
    q_a_tm1 = rlax.batched_index(q_tm1, t.action)
    td_error = jax.lax.stop_gradient(target_tm1) - q_a_tm1
    actor_losses = jax.vmap(algorithm.greedy_loss, axes)(step)
    regression_loss = rlax.huber_loss if config.loss == "huber" else rlax.l2_loss
    losses = batch.weights * (regression_loss(td_error) + actor_losses)  # [B]
    metrics = {
        "mean_q": jnp.mean(q_a_tm1),
        "action_gap": jnp.mean(jax.vmap(q_learning.action_gap)(q_tm1)),
        "actor_loss": jnp.mean(batch.weights * actor_losses),
        "policy_entropy": jnp.zeros(()),
        **scalars,
    }
    if algorithm.log_policies:
        log_policies = jax.vmap(algorithm.log_policies, in_axes=(0, 0, None))
        log_policy, log_prior = log_policies(actor_tm1, target_actor_tm1, scalars)
        metrics["policy_entropy"] = jnp.mean(regularizers.entropy(log_policy))
        metrics["kl"] = jnp.mean(regularizers.kl(log_policy, log_prior))
    return jnp.mean(losses), (aux, types.Feedback(metrics, jnp.abs(td_error)))

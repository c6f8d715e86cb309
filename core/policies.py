"""Policies over action values or logits: epsilon-greedy and softmax, from distrax.

A policy's params are a dict of the network's `params` and its exploration, so that schedules are
arrays and one compiled program serves training and evaluation.
"""

from collections.abc import Callable
from typing import Any

import distrax
import jax
import jax.numpy as jnp

from kullback.core import types

__all__ = [
    "ActionValues",
    "RandomValues",
    "epsilon_greedy",
    "epsilon_greedy_of_random",
    "epsilon_softmax",
    "softmax",
    "with_values",
]

ActionValues = Callable[[types.Params, types.Array], jax.Array]  # (params, [B, ...]) -> [B, A].
RandomValues = Callable[[types.Params, types.Array, types.Key], jax.Array]  # (.., key) -> [B, A].


def epsilon_greedy(action_values: ActionValues) -> types.Policy:
    """Returns the policy that is uniform with probability epsilon, else greedy (random among ties).

    Its params are {"params": the network's, "epsilon": float32, []}; extras hold
    `log_probability` of the action, [B].
    """
    return _memoryless(
        lambda acting, observation: distrax.EpsilonGreedy(
            action_values(acting["params"], observation), acting["epsilon"]
        )
    )


def with_values(
    policy: Callable[[ActionValues], types.Policy], values: ActionValues
) -> types.Policy:
    """Returns a policy over action values whose extras hold these as `action_values`, [B, A]."""

    def step(
        params: types.Params, observation: types.Array, state: None, key: types.Key
    ) -> tuple[jax.Array, None, dict[str, jax.Array]]:
        q = values(params["params"], observation)
        action, state, extras = policy(lambda p, o: q).step(params, observation, state, key)
        return action, state, {**extras, "action_values": q}

    return types.Policy(lambda params, context, max_length: None, step)


def epsilon_greedy_of_random(action_values: RandomValues) -> types.Policy:
    """Returns the epsilon-greedy policy of random values: sampled quantiles, or a noisy network's.

    Its params are those of `epsilon_greedy`.
    """

    def step(
        params: types.Params, observation: types.Array, state: None, key: types.Key
    ) -> tuple[jax.Array, None, dict[str, jax.Array]]:
        key, values_key = jax.random.split(key)
        policy = epsilon_greedy(lambda p, o: action_values(p, o, values_key))
        return policy.step(params, observation, state, key)

    return types.Policy(lambda params, context, max_length: None, step)


def softmax(action_values: ActionValues) -> types.Policy:
    """Returns the policy softmax(q / temperature): greedy with an entropy bonus.

    Its params are {"params": the network's, "temperature": float32, []}.
    """
    return _memoryless(
        lambda acting, observation: distrax.Softmax(
            action_values(acting["params"], observation), acting["temperature"]
        )
    )


def epsilon_softmax(action_values: ActionValues) -> types.Policy:
    """Returns the policy softmax(values / temperature), uniform with probability epsilon.

    It explores around a policy that is random itself: an actor's logits (temperature 1). Its
    params are {"params": the network's, "epsilon", "temperature": float32, []}.
    """

    def mixture(acting: Any, observation: types.Array) -> distrax.Distribution:
        values = action_values(acting["params"], observation)  # [B, A]
        best = jnp.max(values, -1, keepdims=True)  # First: values / temperature loses digits.
        drawn = jax.nn.softmax((values - best) / acting["temperature"])
        epsilon = acting["epsilon"]
        return distrax.Categorical(probs=(1 - epsilon) * drawn + epsilon / values.shape[-1])

    return _memoryless(mixture)


def _memoryless(
    distribution: Callable[[Any, types.Array], distrax.Distribution],
) -> types.Policy:
    def initial_state(params: types.Params, context: Any, max_length: int) -> None:
        del params, context, max_length

    def step(
        params: types.Params, observation: types.Array, state: None, key: types.Key
    ) -> tuple[jax.Array, None, dict[str, jax.Array]]:
        over_actions = distribution(params, observation)
        action = over_actions.sample(seed=key)
        extras = {"log_probability": jnp.asarray(over_actions.log_prob(action))}
        return jnp.asarray(action, jnp.int32), state, extras

    return types.Policy(initial_state, step)

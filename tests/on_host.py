"""An environment on the host for tests, and how workers in other processes make it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import acting, learners, replay, types

SPEC = types.Spec(shape=(2, 3), dtype=np.uint8, num_actions=3, frame_stack=2)


class Walk:
    """Rows of stacked frames that depend on all that was done, with ends and cuts."""

    def __init__(self, num_envs: int):
        self.spec, self.num_envs = SPEC, num_envs
        self.breaks_at = -1  # Number of the tick that raises.

    def reset(self, seed: int) -> types.TimeStep:
        self._draws = [np.random.default_rng([seed, row]) for row in range(self.num_envs)]
        self._stack = np.zeros((self.num_envs, *SPEC.shape), np.uint8)
        self._stack[:, -1] = [draw.integers(0, 255, 3) for draw in self._draws]
        self._ticks = 0
        ones = np.ones(self.num_envs, np.float32)
        first = np.full(self.num_envs, types.FIRST, np.int8)
        return types.TimeStep(first, 0 * ones, ones, self._stack, self._stack)

    def send(self, action: np.ndarray) -> None:
        self._action = action

    def recv(self) -> types.TimeStep:
        self._ticks += 1
        if self._ticks == self.breaks_at:
            raise ValueError(f"the environment broke at tick {self._ticks}")
        drawn = np.array([draw.integers(0, 80, 4) for draw in self._draws], np.uint8)
        frame = drawn[:, :3] + 80 * self._action[:, None].astype(np.uint8)
        following = np.stack([self._stack[:, -1], frame], 1)
        last = drawn[:, 3] < 8
        discount = np.where(drawn[:, 3] < 5, 0, 1).astype(np.float32)
        stack = following.copy()
        stack[last] = 0
        for row in np.flatnonzero(last):
            stack[row, -1] = self._draws[row].integers(0, 255, 3)
        self._stack = stack
        step_type = np.where(last, types.LAST, types.MID).astype(np.int8)
        reward = frame[:, 0].astype(np.float32) / 255
        return types.TimeStep(step_type, reward, discount, stack, following)

    def render(self) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        pass


def features(observation: types.Array) -> jax.Array:
    """Returns the pixels, in [0, 1]."""
    return jnp.asarray(observation, jnp.float32).reshape(len(observation), -1) / 255


@functools.cache
def agent(**changes: Any) -> types.Agent[replay.Config]:
    """Returns linear Q-learning, which begins after 24 agent steps, and explores less and less."""

    def loss(params: Any, targets: Any, aux: Any, batch: types.Batch, key: Any, constants: Any):
        t: types.Transition = batch.data
        q_tm1, q_t = (features(x) @ params for x in (t.observation, t.next_observation))
        target = jax.lax.stop_gradient(t.reward + t.discount * jnp.max(q_t, -1))
        td_error = target - jnp.take_along_axis(q_tm1, t.action[:, None], -1)[:, 0]
        feedback = types.Feedback({"mean_q": jnp.mean(q_tm1)}, jnp.abs(td_error))
        return jnp.mean(batch.weights * td_error**2), (aux, feedback)

    def act(acting: Any, observation: Any, memory: None, key: Any):
        best = jnp.argmax(features(observation) @ acting["params"], -1).astype(jnp.int32)
        explore_key, key = jax.random.split(key)
        explores = jax.random.uniform(explore_key, best.shape) < acting["epsilon"]
        drawn = jax.random.randint(key, best.shape, 0, SPEC.num_actions)
        return jnp.where(explores, drawn, best), memory, {}

    config = replay.Config(
        **{"capacity": 120, "min_replay_size": 24, "batch_size": 8, **changes},
    )
    return types.Agent(
        policy=types.Policy(lambda params, context, max_length: None, act),
        learner=learners.sgd(
            init_params=lambda key: jax.random.normal(key, (6, SPEC.num_actions)),
            loss=loss,
            optimizer=optax.adam(1.0),  # So that each step changes what is best.
        ),
        actor_params=lambda state, steps, evaluate, constants: {
            "params": state.params,
            "epsilon": 1 / (1 + jnp.asarray(steps) / 20),
        },
        experience=config,
    )


def recipe(rows: int, breaks_at: int = -1) -> acting.Local:
    """Makes the acting of a worker."""

    def make() -> Walk:
        environment = Walk(rows)
        environment.breaks_at = breaks_at
        return environment

    return acting.Local(program=acting.program(agent()), spec=SPEC, make=make)

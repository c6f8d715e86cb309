"""An environment of your own, compiled with the agent into one program.

Catch: a ball falls down a board of 6 x 5 places, and a paddle below moves left, stays or moves
right. The episode ends at the bottom: 1 if the ball is caught, else -1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kullback import experiments
from kullback.core import types

ROWS, COLUMNS = 6, 5

# State of B games: row and column of the ball, column of the paddle, int32 [B, 3], and a key.
State = tuple[jax.Array, types.Key]


def catch(num_envs: int) -> types.Environment:
    """Makes `num_envs` games, which begin again by themselves; a place is observed as a one-hot."""
    spec = types.Spec(shape=(3 * ROWS,), dtype=np.float32, num_actions=3)

    def observe(places: jax.Array) -> jax.Array:
        return jax.nn.one_hot(places, ROWS).reshape(num_envs, 3 * ROWS)

    def start(key: types.Key) -> jax.Array:
        column = jax.random.randint(key, (num_envs,), 0, COLUMNS)
        return jnp.stack([0 * column, column, jnp.full_like(column, COLUMNS // 2)], axis=-1)

    def reset(key: types.Key) -> tuple[State, types.TimeStep]:
        key, start_key = jax.random.split(key)
        places, zeros = start(start_key), jnp.zeros(num_envs)
        step_type, seen = jnp.full(num_envs, types.FIRST, jnp.int8), observe(places)
        return (places, key), types.TimeStep(step_type, zeros, 1 + zeros, seen, seen)

    def step(state: State, action: jax.Array) -> tuple[State, types.TimeStep]:
        key, start_key = jax.random.split(state[1])
        row, column, paddle = state[0].T
        paddle = jnp.clip(paddle + action - 1, 0, COLUMNS - 1)
        last = row + 1 == ROWS - 1
        reward = jnp.where(last, jnp.where(paddle == column, 1.0, -1.0), 0.0)
        end = jnp.stack([row + 1, column, paddle], axis=-1)
        places = jnp.where(last[:, None], start(start_key), end)
        step_type = jnp.where(last, types.LAST, types.MID).astype(jnp.int8)
        timestep = types.TimeStep(step_type, reward, 1.0 - last, observe(places), observe(end))
        return (places, key), timestep

    return types.Environment(spec, num_envs, reset, step)


def main(steps: int = 8_000, out: str | None = None) -> experiments.Run:
    """Trains M-DQN with the presets of the toys and returns the run."""
    path = experiments.train("m-dqn", catch, family="toy", steps=steps, out=out)
    return experiments.load(path, environment=catch)


if __name__ == "__main__":
    run = main()
    print(f"mean return {run.evaluate(100).mean()}; by chance {run.evaluate_random(100).mean()}")

"""Playing episodes in environments on the host, without learning."""

from collections.abc import Generator

import jax
import numpy as np

from kullback.core import loops, types

__all__ = ["play", "ticks"]


def play(
    agent: types.Agent,
    environment: types.HostEnvironment,
    learner: types.LearnerState,
    env_steps: int,
    seed: int,
    limit: int = loops.EVALUATION_LIMIT,
    constants: types.Constants = types.NO_CONSTANTS,
) -> loops.Episodes:
    """Plays one episode in each of B rows, with the acting parameters of evaluation.

    Episodes that still run after `limit` ticks are cut; results are [B].
    """
    running = ticks(agent, environment, learner, env_steps, seed, limit, constants)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def ticks(
    agent: types.Agent,
    environment: types.HostEnvironment,
    learner: types.LearnerState,
    env_steps: int,
    seed: int,
    limit: int,
    constants: types.Constants = types.NO_CONSTANTS,
) -> Generator[None, None, loops.Episodes]:
    """Plays as `play` does, and yields before each tick, when the environment may be drawn."""
    params = agent.actor_params(learner, loops.count(env_steps), True, constants)
    key = loops.evaluation_key(jax.random.key(seed), env_steps)
    step = jax.jit(agent.policy.step)
    memory = agent.policy.initial_state(params, None, 0)
    timestep = environment.reset(int(jax.random.randint(key, (), 0, 2**30)))
    total = np.zeros(environment.num_envs)
    done = np.zeros(environment.num_envs, bool)
    for tick in range(limit):
        yield
        action, memory, _ = step(
            params, timestep.observation, memory, jax.random.fold_in(key, tick)
        )
        environment.send(np.asarray(action))
        timestep = environment.recv()
        total += np.where(done, 0.0, timestep.reward)
        done |= timestep.last()
        if done.all():
            break
    return loops.Episodes(total, ~done)

"""Environments of both kinds, compiled and on the host, with their loops and their playing."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import compiled, experience, host, loops, playing, rollout, types
from kullback.environments.checked import AnyEnvironment


class Simulator(NamedTuple):
    """An environment, the loop that trains in it, and how a trained agent acts in it."""

    environment: AnyEnvironment
    name: str  # The kind's name in config.json.
    seeds_together: bool  # Whether one program runs all seeds; also, whether it sees its own ticks.
    steps_dtype: Any  # The type of agent steps in a checkpoint.
    # (agent, seeds, make_eval_environment, limit of steps of an evaluation's episode) -> the loop;
    # on the host also who acts, see `staffing.crew`.
    loop: Callable[..., loops.Loop]
    # (agent, learner's state, agent steps, seed, limit) -> an episode per row, cut after `limit`.
    play: Callable[[types.Agent, types.LearnerState, int, int, int], loops.Episodes]
    # The same -> pictures of one episode, RGB uint8 [H, W, 3], at most `limit`.
    frames: Callable[[types.Agent, types.LearnerState, int, int, int], Iterator[np.ndarray]]
    close: Callable[[], None]  # Frees threads and emulators.

    def learning_begins(self, kind: experience.Kind) -> int:
        """Returns the agent steps before the first learner step.

        Raises:
          ValueError: if a batch can never be drawn, or the environment is not of this kind.
        """
        # Seeds run together where the environment is compiled.
        num_envs = self.environment.num_envs
        return experience.learning_begins(kind, num_envs, is_compiled=self.seeds_together)


@contextlib.contextmanager
def closing(environment: AnyEnvironment) -> Iterator[Simulator]:
    """Makes the simulator of an environment, which is closed when the block ends."""
    simulator = _of(environment)
    try:
        yield simulator
    finally:
        simulator.close()


def _of(environment: AnyEnvironment) -> Simulator:
    """Returns the simulator of an environment; only this function tells the kinds apart."""
    if isinstance(environment, types.Environment):
        return Simulator(
            environment,
            name="compiled",
            seeds_together=True,
            steps_dtype=np.int32,
            loop=lambda agent, *rest: compiled.make(agent, environment, *rest),
            play=functools.partial(_play_compiled, environment),
            frames=functools.partial(_compiled_frames, environment),
            close=lambda: None,
        )
    return Simulator(
        environment,
        name="host",
        seeds_together=False,
        steps_dtype=np.int64,
        loop=lambda agent, seeds, *rest, **crew: host.make(
            agent, environment, seeds[0], *rest, **crew
        ),
        play=lambda agent, *rest: playing.play(agent, environment, *rest),
        frames=functools.partial(_host_frames, environment),
        close=environment.close,
    )


def _play_compiled(
    environment: types.Environment,
    agent: types.Agent,
    learner: types.LearnerState,
    steps: int,
    seed: int,
    limit: int,
) -> loops.Episodes:
    evaluate = compiled.evaluator(agent, environment, limit=limit)
    return evaluate(learner, steps, jax.random.key(seed), environment.num_envs)


def _host_frames(
    environment: types.HostEnvironment, agent: types.Agent, *rest: Any
) -> Iterator[np.ndarray]:
    for _ in playing.ticks(agent, environment, *rest):
        yield environment.render()


def _compiled_frames(
    environment: types.Environment,
    agent: types.Agent,
    learner: types.LearnerState,
    steps: int,
    seed: int,
    limit: int,
) -> Iterator[np.ndarray]:
    policy = agent.policy
    params = agent.actor_params(learner, jnp.asarray(steps), True, types.NO_CONSTANTS)
    key = jax.random.fold_in(jax.random.key(seed), 0xF17)

    @jax.jit
    def proceed(state: rollout.ActorState, key: types.Key) -> Any:
        trajectory, state = rollout.rollout(policy, environment, params, state, key, 100)
        return trajectory.observation, trajectory.timestep.last(), state

    state = jax.jit(lambda key: rollout.start(policy, environment, params, key))(key)
    count = 0
    while count < limit:
        observations, last, state = proceed(state, jax.random.fold_in(key, count))
        for observation, end in zip(np.asarray(observations), np.asarray(last), strict=True):
            yield environment.render(observation[0])  # pyright: ignore[reportOptionalCall]  # Checked by the caller.
            count += 1
            if end[0] or count >= limit:
                return

"""Acting in environments on the host: what a shard, some rows of a run, does in a few ticks.

What is acted is a function of the chunk that is asked for and of the parameters, never of who acts
it: this thread, another, another process, another machine.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import loops, rollout, types


class Ask(NamedTuple):
    """A chunk that is asked for: ticks of one shard by one version of the parameters."""

    shard: int
    ticks: int
    env_steps: int  # Agent steps over all shards before it.
    stride: int  # Agent steps of a tick over all shards, B.
    key: np.ndarray  # Key data of the shard's acting; each tick folds env_steps in.
    seed: int | None = None  # Of emulators that begin anew before it; None: they go on.


class Tick(NamedTuple):
    """A tick of b rows; of a stack of frames the newest may stand alone."""

    observation: np.ndarray  # [b, ...], that was acted on.
    action: np.ndarray  # int32, [b].
    timestep: types.TimeStep  # The environment's answer.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The acting of an agent, compiled once for all shards of one size."""

    agent: types.Agent
    constants: types.Constants
    structure: Any  # Of the learner's state, as a tree.
    is_read: tuple[bool, ...]  # Of its leaves: whether acting reads it.
    act: Callable[..., tuple[jax.Array, Any]]  # `_act`, compiled.


def program(agent: types.Agent, constants: types.Constants = types.NO_CONSTANTS) -> Program:
    """Returns the acting of an agent."""
    learner = jax.eval_shape(agent.learner.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(learner)

    def acting(learner: types.LearnerState, constants: types.Constants) -> Any:
        return agent.actor_params(learner, loops.count(0), False, constants)

    jaxpr = jax.make_jaxpr(acting)(learner, constants).jaxpr
    read = {id(x) for equation in jaxpr.eqns for x in equation.invars}
    read |= {id(x) for x in jaxpr.outvars}
    is_read = tuple(id(x) in read for x in jaxpr.invars[: len(leaves)])

    def act(
        leaves: Sequence[Any],
        env_steps: jax.Array,
        constants: types.Constants,
        observation: jax.Array,
        memory: Any,
        key_data: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Returns the actions of a tick, [b], and the policy's memory after them."""
        learner = _learner(structure, is_read, leaves)
        params = agent.actor_params(learner, env_steps, False, constants)
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), env_steps)
        action, memory, _ = agent.policy.step(params, observation, memory, key)
        return action, memory

    return Program(
        agent=agent,
        constants=constants,
        structure=structure,
        is_read=is_read,
        act=jax.jit(act),
    )


def read(acting: Program, learner: types.LearnerState) -> list[Any]:
    """Returns the leaves of a learner's state that acting reads; no optimiser's moments."""
    leaves = jax.tree.leaves(learner)
    return [leaf for leaf, is_read in zip(leaves, acting.is_read, strict=True) if is_read]


def _learner(structure: Any, is_read: Sequence[bool], leaves: Sequence[Any]) -> types.LearnerState:
    """Returns a learner's state of the leaves that acting reads, without the others."""
    given = iter(leaves)
    return structure.unflatten([next(given) if is_read_leaf else None for is_read_leaf in is_read])


def nothing() -> None:
    """Does nothing."""


@dataclasses.dataclass(kw_only=True)
class _Shard:
    """The environment of a shard, and what its rows act on next."""

    environment: types.HostEnvironment
    observation: np.ndarray | None = None  # [b, ...].
    memory: Any = None  # The policy's; None for a policy without memory.


@dataclasses.dataclass(kw_only=True)
class Local:
    """Shards whose environments are in this process; one thread acts in all of them."""

    program: Program
    spec: types.Spec
    make: Callable[[], types.HostEnvironment]  # Makes the environment of a shard, of b rows.
    name: str = "this thread"  # For messages.
    shards: dict[int, _Shard] = dataclasses.field(default_factory=dict)

    def act(
        self,
        ask: Ask,
        version: Sequence[Any],
        prepare: Callable[[], None] = nothing,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[Tick]:
        """Acts a chunk.

        Args:
          ask: the chunk.
          version: leaves of the learner's state, as `read` returns them.
          prepare: is called while the first actions are computed.
          meanwhile: is called while the environment makes its first tick.
        """
        if ask.shard not in self.shards:
            self.shards[ask.shard] = _Shard(environment=self.make())
        shard, acting, done = self.shards[ask.shard], self.program, []
        environment = shard.environment
        if ask.seed is not None:
            shard.observation = np.asarray(environment.reset(ask.seed).observation)
            shard.memory = self._fresh(version, ask.env_steps)
        assert shard.observation is not None, "the first chunk of a shard has a seed"
        for tick in range(ask.ticks):
            env_steps, observation = ask.env_steps + tick * ask.stride, shard.observation
            action, shard.memory = acting.act(
                version, np.int32(env_steps), acting.constants, observation, shard.memory, ask.key
            )
            if tick == 0:
                prepare()
            action = np.asarray(action)
            environment.send(action)
            if tick == 0:
                meanwhile()
            timestep = environment.recv()
            if shard.memory is not None and np.any(timestep.last()):
                fresh = self._fresh(version, env_steps)
                shard.memory = rollout.reset_memory(fresh, shard.memory, timestep.last())
            shard.observation = np.asarray(timestep.observation)
            done.append(Tick(observation, action, timestep))
        return done

    def answer(self, ask: Ask, version: Sequence[Any]) -> "Packed":
        """Acts a chunk, see `act`, and returns it as arrays."""
        return packed(self.spec, self.act(ask, version))

    def _fresh(self, leaves: Sequence[Any], env_steps: int) -> Any:
        """Returns the policy's memory at the start of an episode."""
        agent, acting = self.program.agent, self.program
        learner = _learner(acting.structure, acting.is_read, leaves)
        params = agent.actor_params(learner, loops.count(env_steps), False, acting.constants)
        return agent.policy.initial_state(params, None, 0)

    def close(self) -> None:
        """Closes the environments that it made."""
        while self.shards:
            self.shards.popitem()[1].environment.close()


class Packed(NamedTuple):
    """A chunk of T ticks as arrays, each frame once: what passes between processes."""

    first: np.ndarray  # [b, ...]: the newest frame that was acted on first.
    frames: np.ndarray  # [T, b, ...]: the newest after each tick, before any reset.
    starts: np.ndarray  # [n, ...]: the newest after each reset, in order of (tick, row).
    action: np.ndarray  # int32, [T, b].
    step_type: np.ndarray  # int8, [T, b].
    reward: np.ndarray  # float32, [T, b].
    discount: np.ndarray  # float32, [T, b].


def newest(spec: types.Spec, observation: types.Array) -> np.ndarray:
    """Returns the newest frame of each stack as a stack of one, [b, 1, ...]; no stack as it is."""
    frames = np.asarray(observation)
    return frames[:, -1:] if spec.frame_stack > 1 else frames


def packed(spec: types.Spec, ticks: Sequence[Tick]) -> Packed:
    """Returns a chunk as arrays."""
    steps = [tick.timestep for tick in ticks]
    starts = [newest(spec, step.observation)[np.asarray(step.last())] for step in steps]
    return Packed(
        first=np.ascontiguousarray(newest(spec, ticks[0].observation)),
        frames=np.stack([newest(spec, step.next_observation) for step in steps]),
        starts=np.concatenate(starts),
        action=np.stack([tick.action for tick in ticks]),
        step_type=np.stack([step.step_type for step in steps]),
        reward=np.stack([step.reward for step in steps]),
        discount=np.stack([step.discount for step in steps]),
    )


def unpacked(arrays: Packed) -> list[Tick]:
    """Returns the ticks of a chunk, with frames where stacks stood."""
    ticks, observation, used = [], arrays.first, 0
    for n, frame in enumerate(arrays.frames):
        step_type, following = arrays.step_type[n], frame
        last = step_type == types.LAST
        if count := int(last.sum()):
            following = frame.copy()
            following[last] = arrays.starts[used : used + count]
            used += count
        timestep = types.TimeStep(
            step_type=step_type,
            reward=arrays.reward[n],
            discount=arrays.discount[n],
            observation=following,
            next_observation=frame,
        )
        ticks.append(Tick(observation, arrays.action[n], timestep))
        observation = following
    return ticks


def opened(answer: list[Tick] | Packed) -> list[Tick]:
    """Returns the ticks of a chunk, whichever way they came."""
    return unpacked(answer) if isinstance(answer, Packed) else answer

"""The host loop: environments step in their own threads while the learner runs.

One iteration is a fixed number of ticks and of learner steps. The updates run during the first
tick, so the parameters that act always lag by that tick: the seed alone decides a run.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import (
    experience,
    frames,
    loops,
    metrics,
    platform,
    playing,
    prioritized,
    replay,
    rollout,
    spans,
    types,
)


class Pending(NamedTuple):
    """The priorities of the last U updates, before the replay has received them."""

    indices: Any  # int32, [U, B].
    priorities: Any  # float32, [U, B]; the learner may still be computing them.


class RunState(NamedTuple):
    """The state of a run, but for the environment itself; B environments."""

    env_steps: int  # Agent steps over all environments.
    learner: types.LearnerState
    replay: replay.State  # NumPy; changed in place.
    observation: np.ndarray  # [B, ...], to act on.
    memory: Any  # The policy's state; None for a policy without memory.
    key: types.Key  # Key of acting; each tick folds env_steps in.
    metrics: metrics.Metrics
    pending: Pending | None = None  # None where draws are uniform.
    frames: jax.Array | None = None  # Copy of the replay's on the device; see frames.py.


class Saved(NamedTuple):
    """A checkpoint's contents, beside the segments of the replay."""

    env_steps: np.ndarray  # int64, [].
    learner: types.LearnerState
    replay: replay.Cursors
    key: types.Key
    metrics: metrics.Metrics
    priorities: prioritized.State | None  # All priorities of the replay: each update changes some.
    pending: Pending | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The constants of a loop, which its functions share."""

    agent: types.Agent[replay.Config]
    environment: types.HostEnvironment
    seed: int
    constants: types.Constants
    pace: loops.Pace
    begins: int  # Transitions in the replay after which iterations learn.
    store: replay.Replay
    names: dict[str, Any]  # Names of the learner's metrics, as keys.
    init_learner: Callable[[types.Key], tuple[types.LearnerState, types.Key]]  # Compiled.
    act: Callable[..., tuple[jax.Array, Any]]  # `_act`, compiled.
    learn: Callable[..., Any]  # `_learn`, compiled; the learner's state is donated.
    evaluation: Callable[[int], types.HostEnvironment] | None
    evaluation_limit: int
    # Environments that `evaluation` made, by number of rows; closed with the loop.
    opened: dict[int, types.HostEnvironment] = dataclasses.field(default_factory=dict)

    @property
    def ring_length(self) -> int:
        """Slots of each ring of the replay, L."""
        environment = self.environment
        return replay.ring_length(environment.spec, self.agent.experience, environment.num_envs)

    @property
    def num_slots(self) -> int:
        """Slots of all rings together."""
        return self.environment.num_envs * self.ring_length


_observe = jax.jit(metrics.observe)


def make(
    agent: types.Agent[replay.Config],
    environment: types.HostEnvironment,
    seed: int,
    evaluation: Callable[[int], types.HostEnvironment] | None = None,
    evaluation_limit: int = 0,
    constants: types.Constants = types.NO_CONSTANTS,
) -> loops.Loop:
    """Returns the loop of `agent` in `environment`.

    Args:
      agent: as its algorithm's `make` returns it.
      environment: B rows; the loop steps it, the caller closes it.
      seed: decides the run, with the environment's own determinism.
      evaluation: B -> the environment to evaluate in, of B rows, which the loop closes; None
        refuses evaluation.
      evaluation_limit: as for `loops.evaluation_limit`.
      constants: frozen parameters that the learner and the policy read.

    Raises:
      ValueError: if the number of environments fits neither `samples_per_update` nor the capacity,
        or the replay does not fit into memory.
    """
    platform.keep_freed_memory()
    config, num_envs, spec = agent.experience, environment.num_envs, environment.spec
    context = _Context(
        agent=agent,
        environment=environment,
        seed=seed,
        constants=constants,
        pace=loops.pace(config, num_envs),
        begins=experience.learning_begins(config, num_envs, is_compiled=False),
        store=replay.host(spec, config, num_envs),
        names=loops.feedback_names(agent, spec, constants),
        init_learner=jax.jit(functools.partial(_init_learner, agent.learner)),
        act=jax.jit(functools.partial(_act, agent)),
        learn=jax.jit(functools.partial(_learn, agent), donate_argnums=0),
        evaluation=evaluation,
        evaluation_limit=evaluation_limit,
    )
    return loops.Loop(
        seeds=(seed,),
        init=functools.partial(_init, context),
        advance=functools.partial(_advance, context),
        steps=lambda state: state.env_steps,
        rows=functools.partial(_metrics_rows, context),
        evaluate=functools.partial(_evaluate, context),
        snapshot=_snapshot,
        template=functools.partial(_template, context),
        restore=functools.partial(_restore, context),
        host_replay=loops.HostReplay(
            num_bytes=replay.memory_needed(spec, config, num_envs),
            num_envs=num_envs,
            span=lambda state, since: spans.span(state.replay, since),
            live_after=lambda state: state.replay.cursor - context.ring_length,
            cursors=lambda saved: saved.replay,
        ),
        close=functools.partial(_close, context),
    )


def _init_learner(learner: types.Learner, key: types.Key) -> tuple[types.LearnerState, types.Key]:
    learner_key, key = jax.random.split(key)
    return learner.init(learner_key), key


def _act(
    agent: types.Agent,
    learner: types.LearnerState,
    env_steps: jax.Array,
    constants: types.Constants,
    observation: jax.Array,
    memory: Any,
    key: types.Key,
) -> tuple[jax.Array, Any]:
    """Returns the actions of a tick, [B], and the policy's memory after them."""
    params = agent.actor_params(learner, env_steps, False, constants)
    key = jax.random.fold_in(key, env_steps)
    action, memory, _ = agent.policy.step(params, observation, memory, key)
    return action, memory


def _learn(
    agent: types.Agent,
    learner: types.LearnerState,
    sums: metrics.Metrics,
    batches: types.Batch,
    constants: types.Constants,
    copied: jax.Array | None,
) -> tuple[types.LearnerState, metrics.Metrics, jax.Array | None]:
    """Takes a learner step for each of U batches, [U, ...]; returns the new priorities too, [U, B].

    It is one program, as on a GPU starting an update takes longer than the update itself. Where
    there is a copy of the frames, the batches have rows of it.
    """

    def update(carry: Any, batch: types.Batch) -> tuple[Any, jax.Array | None]:
        learner, sums = carry
        batch = frames.gathered(copied, batch)
        learner, feedback = agent.learner.step(learner, batch, constants)
        priorities = feedback.priorities if agent.experience.priority_exponent else None
        return (learner, metrics.learn(sums, feedback)), priorities

    (learner, sums), priorities = jax.lax.scan(update, (learner, sums), batches)
    return learner, sums, priorities


def _nothing_pending(context: _Context) -> Pending | None:
    """Returns priorities of no existing slot, in the shape of others; None for uniform draws."""
    config = context.agent.experience
    if not config.priority_exponent:
        return None
    shape = (context.pace.updates, config.batch_size)
    return Pending(np.full(shape, context.num_slots, np.int32), np.zeros(shape, np.float32))


def _update_priorities(
    store: replay.Replay, contents: replay.State, pending: Pending
) -> replay.State:
    """Hands the replay its new priorities."""
    for indices, new in zip(*map(np.asarray, pending), strict=True):
        contents = store.update(contents, indices, new)
    return contents


def _fresh_memory(context: _Context, learner: types.LearnerState, env_steps: int) -> Any:
    agent, steps = context.agent, loops.count(env_steps)
    params = agent.actor_params(learner, steps, False, context.constants)
    return agent.policy.initial_state(params, None, 0)


def _init(context: _Context) -> RunState:
    """Returns the state before step 0; the environment is reset."""
    learner, key = context.init_learner(jax.random.key(context.seed))
    contents = context.store.init()
    return RunState(
        env_steps=0,
        learner=learner,
        replay=contents,
        observation=np.asarray(context.environment.reset(context.seed).observation),
        memory=_fresh_memory(context, learner, 0),
        key=key,
        metrics=metrics.init(context.environment.num_envs, context.names),
        pending=_nothing_pending(context),
        frames=_copied(context, contents),
    )


def _copied(context: _Context, contents: replay.State) -> jax.Array | None:
    """Returns the copy of the replay's frames on the device, if the configuration asks for it."""
    on_device = context.agent.experience.frames_on == "device"
    return frames.copy(np.asarray(contents.frames)) if on_device else None


def _iteration(context: _Context, state: RunState) -> RunState:
    """Returns the state after an iteration; the replay's arrays change in place."""
    environment, store = context.environment, context.store
    learner, sums, contents = state.learner, state.metrics, state.replay
    observation, memory, env_steps = state.observation, state.memory, state.env_steps
    pending, copied = state.pending, state.frames
    for tick in range(context.pace.ticks):
        action, memory = context.act(
            learner, np.int32(env_steps), context.constants, observation, memory, state.key
        )
        drawn = batches = None
        # Transitions added to the replay: env_steps, unless a replay was lost and begun anew.
        gathered = int(np.sum(contents.newest, dtype=np.int64))
        if tick == 0 and gathered >= context.begins:
            # Drawn and copied while the updates of the last iteration, whose parameters act, may
            # still run. A generator is made for each draw, so that checkpoints need not hold any.
            generator = np.random.default_rng([context.seed, env_steps, 0])
            updates = context.pace.updates
            drawn = store.sample(contents, generator, updates, with_frames=copied is None)
            batches = jax.device_put(drawn)
        action = np.asarray(action)
        environment.send(action)
        priorities = None
        if batches is not None:  # The call returns before the device is done.
            given = batches, context.constants, copied
            learner, sums, priorities = context.learn(learner, sums, *given)
        if pending is not None:
            # These priorities are computed for sure, as the parameters of the same updates have
            # acted. They are stored while environments and learner work, always one tick late.
            contents = _update_priorities(store, contents, pending)
            pending = _nothing_pending(context)
            if drawn is not None:
                pending = Pending(drawn.indices, priorities)
        timestep = environment.recv()
        rows = None if copied is None else store.next_rows(contents)
        contents = store.add(contents, observation, action, timestep)
        if copied is not None:
            copied = frames.write(copied, rows, contents.frames[rows])
        sums = _observe(sums, timestep._replace(observation=None, next_observation=None))
        if memory is not None and np.any(timestep.last()):
            fresh = _fresh_memory(context, learner, env_steps)
            memory = rollout.reset_memory(fresh, memory, timestep.last())
        observation = np.asarray(timestep.observation)
        env_steps += environment.num_envs
    return RunState(
        env_steps, learner, contents, observation, memory, state.key, sums, pending, copied
    )


def _advance(context: _Context, state: RunState, until: int) -> RunState:
    start = time.perf_counter()
    while state.env_steps < until and time.perf_counter() - start < loops.CHUNK_SECONDS:
        state = _iteration(context, state)
    return state


def _metrics_rows(context: _Context, state: RunState) -> tuple[RunState, list[dict[str, float]]]:
    steps = loops.count(state.env_steps)
    row = loops.row(context.agent, state.learner, steps, context.constants, state.metrics)
    return state._replace(metrics=metrics.next_interval(state.metrics)), [row]


def _evaluate(context: _Context, state: RunState, episodes: int) -> loops.Episodes:
    if context.evaluation is None:
        raise ValueError("no environment to evaluate in; hand over a function of the rows")
    if episodes not in context.opened:
        context.opened[episodes] = context.evaluation(episodes)
    environment = context.opened[episodes]
    limit = loops.evaluation_limit(environment.spec, context.evaluation_limit)
    acting = context.agent, environment, state.learner, state.env_steps, context.seed
    episode_batch = playing.play(*acting, limit=limit, constants=context.constants)
    return loops.Episodes(episode_batch.returns[None], episode_batch.cut[None])


def _close(context: _Context) -> None:
    while context.opened:
        context.opened.popitem()[1].close()


def _snapshot(state: RunState) -> Saved:
    return Saved(
        np.asarray(state.env_steps, np.int64),
        state.learner,
        replay.cursors(state.replay),
        state.key,
        state.metrics,
        jax.tree.map(np.array, state.replay.priorities),  # Copies: they change in place.
        jax.tree.map(np.asarray, state.pending),
    )


def _template(context: _Context) -> Saved:
    learner, key = jax.eval_shape(context.init_learner, jax.random.key(context.seed))
    num_envs, exponent = context.environment.num_envs, context.agent.experience.priority_exponent
    counts = jax.ShapeDtypeStruct((num_envs,), np.int32)
    return Saved(
        env_steps=jax.ShapeDtypeStruct((), np.int64),  # pyright: ignore[reportArgumentType]
        learner=learner,
        replay=replay.Cursors(counts, counts, counts, counts),  # pyright: ignore[reportArgumentType]
        key=key,
        metrics=jax.eval_shape(lambda: metrics.init(num_envs, context.names)),
        priorities=(prioritized.make(np, context.num_slots, exponent).init() if exponent else None),
        pending=_nothing_pending(context),
    )


def _restore(
    context: _Context, saved: Saved, added: Iterable[dict[str, np.ndarray]] | None = ()
) -> RunState:
    """Returns the state of a snapshot, with the episodes that ran in the environment cut.

    Args:
      context: of the loop.
      saved: a snapshot.
      added: the spans of the replay, in order; None where it is lost, so that it is filled anew
        before iterations learn.
    """
    contents, pending = context.store.init(), saved.pending
    if added is None:
        pending = _nothing_pending(context)
    else:
        for arrays in added:
            spans.load_span(contents, arrays)
        contents = replay.with_cursors(contents, saved.replay)
        contents = contents._replace(priorities=jax.tree.map(np.array, saved.priorities))
    env_steps = int(saved.env_steps)
    learner = jax.tree.map(jnp.asarray, saved.learner)
    running_return = jnp.zeros(context.environment.num_envs, jnp.float32)
    sums = saved.metrics._replace(running_return=running_return)
    timestep = context.environment.reset(context.seed + env_steps)
    return RunState(
        env_steps=env_steps,
        learner=learner,
        replay=context.store.cut(contents),
        observation=np.asarray(timestep.observation),
        memory=_fresh_memory(context, learner, env_steps),
        key=saved.key,
        metrics=jax.tree.map(jnp.asarray, sums),
        pending=pending,
        frames=_copied(context, contents),
    )

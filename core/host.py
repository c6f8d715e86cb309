"""The host loop: environments step in their own threads while the learner runs.

One iteration is a fixed number of ticks and of learner steps. The updates run during the first
chunk of ticks, so the parameters that act always lag by those: the seed alone decides a run.

A run is acted by a crew (crews.py): by the thread that learns, or shard by shard by workers.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import (
    acting,
    crews,
    frames,
    loops,
    metrics,
    platform,
    playing,
    posts,
    prioritized,
    replay,
    replayed,
    spans,
    types,
)


class RunState(NamedTuple):
    """The state of a run, but for environments and what acts in them; B environments."""

    env_steps: int  # Agent steps over all environments.
    learner: types.LearnerState
    replay: replay.State  # NumPy; changed in place.
    key: types.Key  # Key of acting; each tick folds env_steps in.
    metrics: metrics.Metrics
    pending: replayed.Pending | None = None  # None where draws are uniform.
    frames: jax.Array | None = None  # Copy of the replay's on the device; see frames.py.


class Saved(NamedTuple):
    """A checkpoint's contents, beside the segments of the replay."""

    env_steps: np.ndarray  # int64, [].
    learner: types.LearnerState
    replay: replay.Cursors
    key: types.Key
    metrics: metrics.Metrics
    priorities: prioritized.State | None  # All priorities of the replay: each update changes some.
    pending: replayed.Pending | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The constants of a loop, which its functions share."""

    agent: types.Agent[replay.Config]
    spec: types.Spec
    num_envs: int  # B.
    seed: int
    constants: types.Constants
    learning: replayed.Learning
    crew: crews.Crew
    on_begin: Callable[[int], None]
    init_learner: Callable[[types.Key], tuple[types.LearnerState, types.Key]]  # Compiled.
    evaluation: Callable[[int], types.HostEnvironment] | None
    evaluation_limit: int
    # Environments that `evaluation` made, by number of rows; closed with the loop.
    opened: dict[int, types.HostEnvironment] = dataclasses.field(default_factory=dict)

    @property
    def ring_length(self) -> int:
        """Slots of each ring of the replay, L."""
        return replay.ring_length(self.spec, self.agent.experience, self.num_envs)


def make(
    agent: types.Agent[replay.Config],
    environment: types.HostEnvironment,
    seed: int,
    evaluation: Callable[[int], types.HostEnvironment] | None = None,
    evaluation_limit: int = 0,
    constants: types.Constants = types.NO_CONSTANTS,
    workers: Callable[[acting.Program], posts.Workers] | None = None,
    on_begin: Callable[[int], None] = lambda env_steps: None,
    on_restart: Callable[[crews.Restart], None] = lambda restart: None,
    on_late: Callable[[str], None] = lambda who: None,
) -> loops.Loop:
    """Returns the loop of `agent` in `environment`.

    Args:
      agent: as its algorithm's `make` returns it.
      environment: B rows; the loop steps it, the caller closes it. Where workers act, only its spec
        and its number of rows are read.
      seed: decides the run, with the environment's own determinism.
      evaluation: B -> the environment to evaluate in, of B rows, which the loop closes; None
        refuses evaluation.
      evaluation_limit: as for `loops.evaluation_limit`.
      constants: frozen parameters that the learner and the policy read.
      workers: the acting of the agent -> who acts its shards; None is this thread, for one shard
        without a lag.
      on_begin: is told of the agent steps after which all emulators begin anew.
      on_restart: is told of a shard whose emulators begin anew, as their worker was lost.
      on_late: is told who lets the learner wait for long, see `posts.LATE_SECONDS`.

    Raises:
      ValueError: if the number of environments fits neither `samples_per_update` nor the capacity
        nor the shards, or the replay does not fit into memory.
    """
    platform.keep_freed_memory()
    config, num_envs, spec = agent.experience, environment.num_envs, environment.spec
    learning = replayed.learning(agent, spec, num_envs, seed, constants)
    plan, acts = learning.plan, acting.program(agent, constants)
    if workers is None:
        crew: crews.Crew = crews.alone(plan, acts, environment, seed)
    else:
        crew = crews.many(plan, acts, workers(acts), spec, num_envs, seed, on_restart, on_late)
    context = _Context(
        agent=agent,
        spec=spec,
        num_envs=num_envs,
        seed=seed,
        constants=constants,
        learning=learning,
        crew=crew,
        on_begin=on_begin,
        init_learner=jax.jit(functools.partial(_init_learner, agent.learner)),
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


def _init(context: _Context) -> RunState:
    """Returns the state before step 0; environments begin with the first chunk."""
    learner, key = context.init_learner(jax.random.key(context.seed))
    contents = context.learning.store.init()
    _begin(context, 0, learner, key)
    return RunState(
        env_steps=0,
        learner=learner,
        replay=contents,
        key=key,
        metrics=metrics.init(context.num_envs, context.learning.names),
        pending=context.learning.nothing_pending(),
        frames=_copied(context, contents),
    )


def _begin(context: _Context, env_steps: int, learner: types.LearnerState, key: types.Key) -> None:
    """Begins all emulators anew, acted by the parameters of now."""
    context.on_begin(env_steps)
    context.crew.begin(env_steps, key)
    context.crew.publish(learner)


def _copied(context: _Context, contents: replay.State) -> jax.Array | None:
    """Returns the copy of the replay's frames on the device, if the configuration asks for it."""
    on_device = context.agent.experience.frames_on == "device"
    return frames.copy(np.asarray(contents.frames)) if on_device else None


def _iteration(context: _Context, state: RunState) -> RunState:
    """Returns the state after an iteration; the replay's arrays change in place."""
    now = replayed.Iteration(
        learning=context.learning,
        env_steps=state.env_steps,
        learner=state.learner,
        sums=state.metrics,
        contents=state.replay,
        pending=state.pending,
        copied=state.frames,
    )
    seconds = 0.0
    for part in range(len(context.learning.plan.parts)):
        # The learner steps of an iteration run during its first chunk.
        during = (now.draw, now.learn) if part == 0 else (acting.nothing, acting.nothing)
        chunk = context.crew.take(*during)
        seconds += chunk.seconds
        if chunk.cut is not None:
            now.cut(chunk.cut)
        for n, tick in enumerate(chunk.ticks):
            if part or n:
                now.tell()
            now.add(tick)
        if part == 0:
            context.crew.publish(now.learner)
    now.note_waiting(seconds)
    return RunState(
        env_steps=now.env_steps,
        learner=now.learner,
        replay=now.contents,
        key=state.key,
        metrics=now.sums,
        pending=now.pending,
        frames=now.copied,
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
    player = context.agent, environment, state.learner, state.env_steps, context.seed
    episode_batch = playing.play(*player, limit=limit, constants=context.constants)
    return loops.Episodes(episode_batch.returns[None], episode_batch.cut[None])


def _close(context: _Context) -> None:
    context.crew.close()
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
    num_envs, num_slots = context.num_envs, context.learning.num_slots
    exponent = context.agent.experience.priority_exponent
    counts = jax.ShapeDtypeStruct((num_envs,), np.int32)
    return Saved(
        env_steps=jax.ShapeDtypeStruct((), np.int64),  # pyright: ignore[reportArgumentType]
        learner=learner,
        replay=replay.Cursors(counts, counts, counts, counts),  # pyright: ignore[reportArgumentType]
        key=key,
        metrics=jax.eval_shape(lambda: metrics.init(num_envs, context.learning.names)),
        priorities=(prioritized.make(np, num_slots, exponent).init() if exponent else None),
        pending=context.learning.nothing_pending(),
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
    contents, pending = context.learning.store.init(), saved.pending
    if added is None:
        pending = context.learning.nothing_pending()
    else:
        for arrays in added:
            spans.load_span(contents, arrays)
        contents = replay.with_cursors(contents, saved.replay)
        contents = contents._replace(priorities=jax.tree.map(np.array, saved.priorities))
    env_steps = int(saved.env_steps)
    learner = jax.tree.map(jnp.asarray, saved.learner)
    running_return = jnp.zeros(context.num_envs, jnp.float32)
    sums = saved.metrics._replace(running_return=running_return)
    _begin(context, env_steps, learner, saved.key)
    return RunState(
        env_steps=env_steps,
        learner=learner,
        replay=context.learning.store.cut(contents),
        key=saved.key,
        metrics=jax.tree.map(jnp.asarray, sums),
        pending=pending,
        frames=_copied(context, contents),
    )

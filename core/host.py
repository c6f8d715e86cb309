"""The host loop: environments step in their own threads while the learner runs.

One iteration is a fixed number of ticks and of learner steps. The updates run while the first
tick does, so acting lags learning by that tick, always: one seed decides a run.
"""

import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import loops, metrics, platform, prioritized, replay, spans, types


class Pending(NamedTuple):
    """Priorities of the last U updates, which the replay has not been told yet."""

    indices: Any  # int32, [U, B].
    priorities: Any  # float32, [U, B]; the learner may still be at it.


class RunState(NamedTuple):
    """Everything that a run changes, but for the environment itself. B rows."""

    env_steps: int  # Agent steps over all rows.
    learner: types.LearnerState
    replay: replay.State  # NumPy; changed in place.
    observation: np.ndarray  # [B, ...], to act on.
    memory: Any  # Of the policy, or None.
    key: types.Key  # Of acting; each tick folds env_steps in.
    metrics: metrics.Metrics
    pending: Pending | None = None  # None where draws are uniform.


class Saved(NamedTuple):
    """What a checkpoint holds beside the segments of the replay."""

    env_steps: np.ndarray  # int64, [].
    learner: types.LearnerState
    replay: replay.Cursors
    key: types.Key
    metrics: metrics.Metrics
    priorities: prioritized.State | None  # Of the replay, whole: each update changes some.
    pending: Pending | None


def make(
    agent: types.Agent[replay.Config],
    environment: types.HostEnvironment,
    seed: int,
    evaluation: Callable[[int], types.HostEnvironment] | None = None,
    evaluation_limit: int = 0,
) -> loops.Loop:
    """Returns the loop of `agent` in `environment`.

    Args:
      agent: as its algorithm's `make` returns it.
      environment: B rows; the loop steps it, the caller closes it.
      seed: decides the run, with the environment's own determinism.
      evaluation: number of rows -> the environment to evaluate in, which the loop closes; None
        refuses evaluation.
      evaluation_limit: as for `loops.evaluation_limit`.

    Raises:
      ValueError: if the number of environments does not fit `samples_per_update`, or the replay
        does not fit into memory.
    """
    platform.keep_freed_memory()
    config, num_envs, spec = agent.experience, environment.num_envs, environment.spec
    pace = loops.pace(config, num_envs)
    begins = loops.learning_begins(config, num_envs, sees_own_ticks=False)
    store = replay.host(spec, config, num_envs)
    num_slots = num_envs * replay.ring_length(spec, config, num_envs)
    names = loops.feedback_names(agent, spec)

    @jax.jit
    def init_learner(key: types.Key) -> tuple[types.LearnerState, types.Key]:
        learner_key, key = jax.random.split(key)
        return agent.learner.init(learner_key), key

    def choose(
        learner: types.LearnerState,
        env_steps: jax.Array,
        observation: jax.Array,
        memory: Any,
        key: types.Key,
        evaluate: bool,
    ) -> tuple[jax.Array, Any]:
        params = agent.actor_params(learner, env_steps, evaluate)
        key = jax.random.fold_in(key, env_steps)
        action, memory, _ = agent.policy.step(params, observation, memory, key)
        return action, memory

    act = jax.jit(choose, static_argnames="evaluate")
    observe = jax.jit(metrics.observe)

    def update(
        carry: tuple[types.LearnerState, metrics.Metrics], batch: types.Batch
    ) -> tuple[tuple[types.LearnerState, metrics.Metrics], jax.Array | None]:
        learner, sums = carry
        learner, feedback = agent.learner.step(learner, batch, types.NO_CONSTANTS)
        wanted = feedback.priorities if config.priority_exponent else None
        return (learner, metrics.learn(sums, feedback)), wanted

    def learn_body(
        learner: types.LearnerState, sums: metrics.Metrics, batches: types.Batch
    ) -> tuple[types.LearnerState, metrics.Metrics, jax.Array | None]:
        # One program: on a GPU to start an update takes longer than the update itself.
        (learner, sums), priorities = jax.lax.scan(update, (learner, sums), batches)
        return learner, sums, priorities

    learn = jax.jit(learn_body, donate_argnums=0)

    def nothing_pending() -> Pending | None:
        if not config.priority_exponent:
            return None
        shape = (pace.updates, config.batch_size)  # Of slots that there are not.
        return Pending(np.full(shape, num_slots, np.int32), np.zeros(shape, np.float32))

    def tell(contents: replay.State, pending: Pending) -> replay.State:
        for indices, new in zip(*map(np.asarray, pending), strict=True):
            contents = store.update(contents, indices, new)
        return contents

    def fresh_memory(learner: types.LearnerState, env_steps: int) -> Any:
        return agent.policy.initial_state(
            agent.actor_params(learner, _count(env_steps), False), None, 0
        )

    def init() -> RunState:
        learner, key = init_learner(jax.random.key(seed))
        return RunState(
            env_steps=0,
            learner=learner,
            replay=store.init(),
            observation=np.asarray(environment.reset(seed).observation),
            memory=fresh_memory(learner, 0),
            key=key,
            metrics=metrics.init(num_envs, names),
            pending=nothing_pending(),
        )

    def iteration(state: RunState) -> RunState:
        learner, sums, contents = state.learner, state.metrics, state.replay
        observation, memory, env_steps = state.observation, state.memory, state.env_steps
        pending = state.pending
        for tick in range(pace.ticks):
            action, memory = act(
                learner, np.int32(env_steps), observation, memory, state.key, evaluate=False
            )
            drawn = batches = None
            # Transitions that the replay was given: env_steps, unless one was lost and begun anew.
            gathered = int(np.sum(contents.newest, dtype=np.int64))
            if tick == 0 and gathered >= begins:
                # Drawn and copied while the updates of the tick before, whose parameters act, still
                # run. A stream of its own each time: nothing to save, nothing to lose.
                stream = np.random.default_rng([seed, env_steps, 0])
                drawn = store.sample(contents, stream, pace.updates)
                batches = jax.device_put(drawn)
            action = np.asarray(action)
            environment.send(action)
            found = None
            if batches is not None:
                learner, sums, found = learn(learner, sums, batches)  # Returns before it is done.
            if pending is not None:
                # Of the tick before: there for sure, as its parameters have acted, and told while
                # environments and learner work. So priorities lag one tick, always.
                contents = tell(contents, pending)
                pending = nothing_pending()
                if drawn is not None:
                    pending = Pending(drawn.indices, found)
            timestep = environment.recv()
            contents = store.add(contents, observation, action, timestep)
            sums = observe(sums, timestep._replace(observation=None, next_observation=None))
            if memory is not None and np.any(timestep.last()):
                memory = _reset_memory(fresh_memory(learner, env_steps), memory, timestep.last())
            observation = np.asarray(timestep.observation)
            env_steps += num_envs
        return RunState(env_steps, learner, contents, observation, memory, state.key, sums, pending)

    def advance(state: RunState, until: int) -> RunState:
        start = time.perf_counter()
        while state.env_steps < until and time.perf_counter() - start < loops.CHUNK_SECONDS:
            state = iteration(state)
        return state

    def rows(state: RunState) -> tuple[RunState, list[dict[str, float]]]:
        acting = agent.actor_params(state.learner, _count(state.env_steps), False)
        row = loops.row(state.metrics, acting)
        return state._replace(metrics=metrics.next_interval(state.metrics)), [row]

    arenas: dict[int, types.HostEnvironment] = {}

    def evaluate(state: RunState, episodes: int) -> loops.Episodes:
        if evaluation is None:
            raise ValueError("no environment to evaluate in; hand over a function of the rows")
        if episodes not in arenas:
            arenas[episodes] = evaluation(episodes)
        limit = loops.evaluation_limit(arenas[episodes].spec, evaluation_limit)
        found = play(agent, arenas[episodes], state.learner, state.env_steps, seed, limit=limit)
        return loops.Episodes(found.returns[None], found.cut[None])

    def close() -> None:
        while arenas:
            arenas.popitem()[1].close()

    def snapshot(state: RunState) -> Saved:
        return Saved(
            np.asarray(state.env_steps, np.int64),
            state.learner,
            replay.cursors(state.replay),
            state.key,
            state.metrics,
            jax.tree.map(np.array, state.replay.priorities),  # Copies: they change in place.
            jax.tree.map(np.asarray, state.pending),
        )

    def template() -> Saved:
        learner, key = jax.eval_shape(init_learner, jax.random.key(seed))
        counts = jax.ShapeDtypeStruct((num_envs,), np.int32)
        return Saved(
            env_steps=jax.ShapeDtypeStruct((), np.int64),  # pyright: ignore[reportArgumentType]
            learner=learner,
            replay=replay.Cursors(counts, counts, counts, counts),  # pyright: ignore[reportArgumentType]
            key=key,
            metrics=jax.eval_shape(lambda: metrics.init(num_envs, names)),
            priorities=_priorities(config, num_slots),
            pending=nothing_pending(),
        )

    def restore(saved: Saved, added: Iterable[dict[str, np.ndarray]] | None = ()) -> RunState:
        contents, pending = store.init(), saved.pending
        if added is None:  # The replay is lost: it is filled anew before it is learnt from.
            pending = nothing_pending()
        else:
            for arrays in added:
                spans.load_span(contents, arrays)
            contents = replay.with_cursors(contents, saved.replay)
            contents = contents._replace(priorities=jax.tree.map(np.array, saved.priorities))
        env_steps = int(saved.env_steps)
        learner = jax.tree.map(jnp.asarray, saved.learner)
        # The emulators start anew: what ran in them ends here, as a cut.
        sums = saved.metrics._replace(running_return=jnp.zeros(num_envs, jnp.float32))
        return RunState(
            env_steps=env_steps,
            learner=learner,
            replay=store.cut(contents),
            observation=np.asarray(environment.reset(seed + env_steps).observation),
            memory=fresh_memory(learner, env_steps),
            key=saved.key,
            metrics=jax.tree.map(jnp.asarray, sums),
            pending=pending,
        )

    return loops.Loop(
        seeds=(seed,),
        init=init,
        advance=advance,
        steps=lambda state: state.env_steps,
        rows=rows,
        evaluate=evaluate,
        snapshot=snapshot,
        template=template,
        restore=restore,
        host_replay_bytes=replay.memory_needed(spec, config, num_envs),
        close=close,
    )


def play(
    agent: types.Agent,
    environment: types.HostEnvironment,
    learner: types.LearnerState,
    env_steps: int,
    seed: int,
    limit: int = loops.EVALUATION_LIMIT,
) -> loops.Episodes:
    """Plays one episode a row, B of them, as `actor_params` says for evaluation.

    After `limit` ticks what still runs is cut.
    """
    ticks = playing(agent, environment, learner, env_steps, seed, limit)
    while True:
        try:
            next(ticks)
        except StopIteration as end:
            return end.value


def playing(
    agent: types.Agent,
    environment: types.HostEnvironment,
    learner: types.LearnerState,
    env_steps: int,
    seed: int,
    limit: int,
) -> Generator[None, None, loops.Episodes]:
    """Plays as `play` does, and stops before each tick: the environment may be drawn then."""
    params = agent.actor_params(learner, _count(env_steps), True)
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


def _priorities(config: replay.Config, num_slots: int) -> prioritized.State | None:
    """Those of an empty replay."""
    exponent = config.priority_exponent
    return prioritized.make(np, num_slots, exponent).init() if exponent else None


def _count(env_steps: int) -> np.ndarray:
    return np.asarray(env_steps, np.int32)


def _reset_memory(fresh: Any, memory: Any, last: np.ndarray) -> Any:
    """The policy's memory, fresh in the rows whose episode ended."""

    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(last.reshape(last.shape + (1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(select, fresh, memory)

"""The compiled loop: act, step, keep and learn in one XLA program, for K seeds at once."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import experience, loops, metrics, platform, replay, rollout, types

EVALUATION_TICKS = 250  # Ticks of evaluation that share a key.


class RunState(NamedTuple):
    """The state of a run; K > 1 seeds have a leading axis K on all leaves but counters."""

    env_steps: jax.Array  # int32, []: agent steps over all environments.
    learner: types.LearnerState
    replay: replay.State | None  # None where an agent learns from its present policy alone.
    actor: rollout.ActorState
    key: types.Key  # Key of acting and sampling; each iteration folds env_steps in.
    metrics: metrics.Metrics


# Counters are the same for all seeds: a batched predicate would turn every branch into a select.
_SEED_AXES = RunState(
    env_steps=None,  # pyright: ignore[reportArgumentType]  # Axes, in the shape of a state.
    learner=types.LearnerState(0, 0, 0, None, 0, 0),  # pyright: ignore[reportArgumentType]
    replay=0,  # pyright: ignore[reportArgumentType]
    actor=0,  # pyright: ignore[reportArgumentType]
    key=0,  # pyright: ignore[reportArgumentType]
    metrics=0,  # pyright: ignore[reportArgumentType]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The constants of a loop, which its functions share."""

    agent: types.Agent[experience.Kind]
    environment: types.Environment
    num_seeds: int
    constants: types.Constants
    source: experience.Source


def make(
    agent: types.Agent[experience.Kind],
    environment: types.Environment,
    seeds: Sequence[int],
    evaluation: Callable[[int], types.Environment] | None = None,
    evaluation_limit: int = 0,
    constants: types.Constants = types.NO_CONSTANTS,
) -> loops.Loop:
    """Returns the loop of `agent` in `environment`.

    Args:
      agent: as its algorithm's `make` returns it.
      environment: B rows, compiled.
      seeds: K of them; they share one program (`jax.vmap`).
      evaluation: B -> the environment to evaluate in, of B rows; None is `environment` itself.
      evaluation_limit: as for `loops.evaluation_limit`.
      constants: frozen parameters that the learner and the policy read; all seeds share them.

    Raises:
      ValueError: if the number of environments fits neither `samples_per_update` nor the capacity.
    """
    platform.keep_freed_memory()
    context = _Context(
        agent=agent,
        environment=environment,
        num_seeds=len(seeds),
        constants=constants,
        source=experience.source(agent, environment, constants),
    )
    over_seeds = functools.partial(_over_seeds, len(seeds))
    keys = _stack([jax.random.key(seed) for seed in seeds], len(seeds))
    begin = functools.partial(_init_seed, context)
    init = jax.jit(over_seeds(begin, (None, 0), _SEED_AXES))
    next_interval = jax.jit(over_seeds(metrics.next_interval, 0, 0))
    warm_up, train = _program(context, False), _program(context, True)

    @functools.cache
    def make_evaluator(episodes: int) -> Callable[..., loops.Episodes]:
        eval_environment = environment if evaluation is None else evaluation(episodes)
        limit = loops.evaluation_limit(eval_environment.spec, evaluation_limit)
        return evaluator(agent, eval_environment, len(seeds), limit=limit, constants=constants)

    def evaluate(state: RunState, episodes: int) -> loops.Episodes:
        results = make_evaluator(episodes)(state.learner, state.env_steps, keys, episodes)
        return loops.Episodes(*(x.reshape(len(seeds), episodes) for x in results))

    return loops.Loop(
        seeds=tuple(seeds),
        init=lambda: init(constants, keys),
        advance=functools.partial(
            _advance, context, warm_up, train, loops.ChunkSize(max(1, 32 // context.source.ticks))
        ),
        steps=lambda state: int(state.env_steps),
        rows=functools.partial(_metrics_rows, context, next_interval),
        evaluate=evaluate,
        snapshot=lambda state: state,
        template=lambda: jax.eval_shape(init, constants, keys),
        restore=lambda saved, spans=(): jax.tree.map(jnp.asarray, saved),
    )


def _over_seeds(
    num_seeds: int, function: Callable[..., Any], in_axes: Any, out_axes: Any
) -> Callable[..., Any]:
    return jax.vmap(function, in_axes, out_axes) if num_seeds > 1 else function


def _init_seed(context: _Context, constants: types.Constants, key: types.Key) -> RunState:
    """Returns the state of one seed before step 0."""
    agent = context.agent
    learner_key, environment_key, key = jax.random.split(key, 3)
    learner = agent.learner.init(learner_key)
    env_steps = jnp.zeros((), jnp.int32)
    params = agent.actor_params(learner, env_steps, False, constants)
    return RunState(
        env_steps=env_steps,
        learner=learner,
        replay=context.source.init(),
        actor=rollout.start(agent.policy, context.environment, params, environment_key),
        key=key,
        metrics=metrics.init(context.environment.num_envs, context.source.names),
    )


def _iteration(
    context: _Context, learns: bool, constants: types.Constants, state: RunState
) -> RunState:
    """Returns the state of one seed after an iteration."""
    agent, environment, source = context.agent, context.environment, context.source
    key = jax.random.fold_in(state.key, state.env_steps)
    act_key, sample_key = jax.random.split(key)
    params = agent.actor_params(state.learner, state.env_steps, False, constants)
    trajectory, actor = rollout.rollout(
        agent.policy, environment, params, state.actor, act_key, source.ticks
    )
    kept, learner, sums = (source.learn if learns else source.keep)(
        state.replay, state.learner, state.metrics, params, trajectory, sample_key, constants
    )
    env_steps = state.env_steps + source.ticks * environment.num_envs
    return RunState(env_steps, learner, kept, actor, state.key, sums)


def _program(context: _Context, learns: bool) -> Callable[[RunState, jax.Array], RunState]:
    """Returns the compiled (state, count) -> state after `count` iterations; state is donated."""
    step = functools.partial(_iteration, context, learns)
    step = _over_seeds(context.num_seeds, step, (None, _SEED_AXES), _SEED_AXES)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: RunState, count: jax.Array, constants: types.Constants) -> RunState:
        return jax.lax.fori_loop(0, count, lambda i, s: step(constants, s), state)

    return lambda state, count: run(state, count, context.constants)


def _advance(
    context: _Context,
    warm_up: Callable[[RunState, jax.Array], RunState],
    train: Callable[[RunState, jax.Array], RunState],
    chunk: loops.ChunkSize,
    state: RunState,
    until: int,
) -> RunState:
    env_steps = int(state.env_steps)
    warming = env_steps < context.source.begins
    if warming:
        until = min(until, context.source.begins)
    per_iteration = context.source.ticks * context.environment.num_envs
    count = min(loops.iterations(env_steps, until, per_iteration), chunk.size)
    with chunk.timed(count):
        state = (warm_up if warming else train)(state, jnp.asarray(count, jnp.int32))
        jax.block_until_ready(state.env_steps)
    return state


def _metrics_rows(
    context: _Context, next_interval: Callable[[metrics.Metrics], metrics.Metrics], state: RunState
) -> tuple[RunState, list[dict[str, float]]]:
    env_steps = jnp.asarray(int(state.env_steps))
    rows = []
    for k in range(context.num_seeds):
        learner = seed_of(state.learner, k=k, num_seeds=context.num_seeds)
        sums = seed_of(state.metrics, k=k, num_seeds=context.num_seeds)
        rows.append(loops.row(context.agent, learner, env_steps, context.constants, sums))
    return state._replace(metrics=next_interval(state.metrics)), rows


def _stack(keys: list[Any], num_seeds: int) -> Any:
    return jnp.stack(keys) if num_seeds > 1 else keys[0]


def learner_shapes(agent: types.Agent, num_seeds: int) -> types.LearnerState:
    """Returns shapes and dtypes of a state's learner, by which a checkpoint of it is read.

    Args:
      agent: of the run.
      num_seeds: K.
    """
    init = agent.learner.init
    if num_seeds > 1:
        init = jax.vmap(init, 0, _SEED_AXES.learner)
    keys = _stack([jax.random.key(seed) for seed in range(num_seeds)], num_seeds)
    return jax.eval_shape(init, keys)


def seed_of(tree: Any, k: int, num_seeds: int) -> Any:
    """Returns seed k of a tree that has a leading axis K if K > 1; a learner's `steps` has none."""
    if num_seeds == 1:
        return tree
    if isinstance(tree, types.LearnerState):
        return jax.tree.map(lambda x: x[k], tree._replace(steps=None))._replace(steps=tree.steps)
    return jax.tree.map(lambda x: x[k], tree)


class _Playing(NamedTuple):
    """The state of an evaluation's B rows; K > 1 seeds have a leading axis K."""

    actor: rollout.ActorState
    total: jax.Array  # float32, [B]: the return of the row's first episode, so far.
    done: jax.Array  # bool, [B]: whether that episode has ended.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Evaluator:
    """The compiled functions of an evaluation, over seeds, and its constants."""

    num_envs: int  # B.
    limit: int  # Ticks of a round at most.
    constants: types.Constants
    begin: Callable[..., _Playing]  # (learner, env_steps, constants, key).
    # (rows, learner, env_steps, constants, key, start, count); donates rows.
    proceed: Callable[..., _Playing]
    fold: Callable[[Any, int], Any]  # (keys, number) -> keys.
    keys: Callable[[Any, Any], Any]  # (keys, env_steps) -> keys of an evaluation.
    chunk: loops.ChunkSize  # Ticks of the next call.


def evaluator(
    agent: types.Agent,
    environment: types.Environment,
    num_seeds: int = 1,
    *,
    limit: int = loops.EVALUATION_LIMIT,
    constants: types.Constants = types.NO_CONSTANTS,
) -> Callable[..., loops.Episodes]:
    """Returns (learner, env_steps, key, episodes) -> `Episodes`, [episodes] or [K, episodes].

    In each round every row plays one episode; those that still run after `limit` ticks are cut. A
    call of the program takes about half a second at most, so that signals are handled in between.
    """
    axes, over_seeds = _SEED_AXES.learner, functools.partial(_over_seeds, num_seeds)
    begin = functools.partial(_begin, agent, environment)
    proceed = functools.partial(_proceed, agent, environment)
    return functools.partial(
        _evaluate,
        _Evaluator(
            num_envs=environment.num_envs,
            limit=limit,
            constants=constants,
            begin=jax.jit(over_seeds(begin, (axes, None, None, 0), 0)),
            proceed=jax.jit(
                over_seeds(proceed, (0, axes, None, None, 0, None, None), 0), donate_argnums=0
            ),
            fold=jax.jit(over_seeds(jax.random.fold_in, (0, None), 0)),
            keys=jax.jit(over_seeds(loops.evaluation_key, (0, None), 0)),
            chunk=loops.ChunkSize(8),
        ),
    )


def _begin(
    agent: types.Agent,
    environment: types.Environment,
    learner: types.LearnerState,
    env_steps: jax.Array,
    constants: types.Constants,
    key: types.Key,
) -> _Playing:
    params = agent.actor_params(learner, env_steps, True, constants)
    actor = rollout.start(agent.policy, environment, params, key)
    num_envs = environment.num_envs
    return _Playing(actor, jnp.zeros(num_envs), jnp.zeros(num_envs, bool))


def _proceed(
    agent: types.Agent,
    environment: types.Environment,
    rows: _Playing,
    learner: types.LearnerState,
    env_steps: jax.Array,
    constants: types.Constants,
    key: types.Key,
    start: jax.Array,
    count: jax.Array,
) -> _Playing:
    """Returns the rows after `count` ticks; `start` is the number of the first within its key."""
    params = agent.actor_params(learner, env_steps, True, constants)

    def tick(t: jax.Array, rows: _Playing) -> _Playing:
        trajectory, actor = rollout.rollout(
            agent.policy, environment, params, rows.actor, key, 1, start_tick=t
        )
        timestep = jax.tree.map(lambda x: x[0], trajectory.timestep)
        total = rows.total + jnp.where(rows.done, 0.0, timestep.reward)
        return _Playing(actor, total, rows.done | timestep.last())

    return jax.lax.fori_loop(start, start + count, tick, rows)


def _evaluate(
    evaluator: _Evaluator, learner: Any, env_steps: Any, key: Any, episodes: int
) -> loops.Episodes:
    """Plays `episodes` episodes in rounds of B."""
    key, limit = evaluator.keys(key, env_steps), evaluator.limit
    rounds, draws = [], 0
    for _ in range(-(-episodes // evaluator.num_envs)):
        folded = evaluator.fold(key, draws)
        rows, ticks = evaluator.begin(learner, env_steps, evaluator.constants, folded), 0
        while ticks < limit and not np.all(rows.done):
            start = ticks % EVALUATION_TICKS
            if start == 0:
                draws += 1
                folded = evaluator.fold(key, draws)
            count = min(evaluator.chunk.size, EVALUATION_TICKS - start, limit - ticks)
            with evaluator.chunk.timed(count):
                span = np.asarray(start, np.int32), np.asarray(count, np.int32)
                rows = evaluator.proceed(
                    rows, learner, env_steps, evaluator.constants, folded, *span
                )
                jax.block_until_ready(rows.done)
            ticks += count
        draws += 1
        rounds.append((np.asarray(rows.total), ~np.asarray(rows.done)))
    returns, cut = (np.concatenate(x, axis=-1)[..., :episodes] for x in zip(*rounds, strict=True))
    return loops.Episodes(returns, cut)

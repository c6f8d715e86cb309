"""The compiled loop: act, step, add, sample and learn in one XLA program, for K seeds at once."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import loops, metrics, platform, replay, rollout, types

EVALUATION_TICKS = 250  # That share a key; a call of the evaluation program takes some of them.


class RunState(NamedTuple):
    """Everything that a run changes; of K > 1 seeds, with a leading axis K but for counters."""

    env_steps: jax.Array  # int32, []: agent steps over all rows.
    learner: types.LearnerState
    replay: replay.State
    actor: rollout.ActorState
    key: types.Key  # Of acting and sampling; each iteration folds env_steps in.
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


def make(
    agent: types.Agent[replay.Config],
    environment: types.Environment,
    seeds: Sequence[int],
    evaluation: Callable[[int], types.Environment] | None = None,
    evaluation_limit: int = 0,
) -> loops.Loop:
    """Returns the loop of `agent` in `environment`.

    Args:
      agent: as its algorithm's `make` returns it.
      environment: B rows, compiled.
      seeds: K of them; they share one program (`jax.vmap`).
      evaluation: number of rows -> the environment to evaluate in; None is `environment` itself.
      evaluation_limit: as for `loops.evaluation_limit`.

    Raises:
      ValueError: if the number of environments does not fit `samples_per_update`.
    """
    platform.keep_freed_memory()
    seeds = tuple(seeds)
    config, num_envs = agent.experience, environment.num_envs
    pace = loops.pace(config, num_envs)
    per_iteration = pace.env_steps(num_envs)
    begins = loops.learning_begins(config, num_envs, sees_own_ticks=True)
    store = replay.device(environment.spec, config, num_envs)
    names = loops.feedback_names(agent, environment.spec)

    def init_seed(key: types.Key) -> RunState:
        learner_key, environment_key, key = jax.random.split(key, 3)
        learner = agent.learner.init(learner_key)
        env_steps = jnp.zeros((), jnp.int32)
        params = agent.actor_params(learner, env_steps, False)
        return RunState(
            env_steps=env_steps,
            learner=learner,
            replay=store.init(),
            actor=rollout.start(agent.policy, environment, params, environment_key),
            key=key,
            metrics=metrics.init(num_envs, names),
        )

    def iteration(state: RunState, updates: int) -> RunState:
        key = jax.random.fold_in(state.key, state.env_steps)
        act_key, sample_key = jax.random.split(key)
        params = agent.actor_params(state.learner, state.env_steps, False)
        trajectory, actor = rollout.rollout(
            agent.policy, environment, params, state.actor, act_key, pace.ticks
        )

        def remember(carry: Any, item: rollout.Trajectory) -> tuple[Any, None]:
            contents, sums = carry
            contents = store.add(contents, item.observation, item.action, item.timestep)
            return (contents, metrics.observe(sums, item.timestep)), None

        def learn(carry: Any, key: types.Key) -> tuple[Any, None]:
            learner, sums, priorities = carry
            here = contents._replace(priorities=priorities)
            batch = store.sample(here, key)
            learner, feedback = agent.learner.step(learner, batch, types.NO_CONSTANTS)
            priorities = store.update(here, batch.indices, feedback.priorities).priorities
            return (learner, metrics.learn(sums, feedback), priorities), None

        (contents, sums), _ = jax.lax.scan(remember, (state.replay, state.metrics), trajectory)
        learner = state.learner
        if updates:
            keys = jax.random.split(sample_key, updates)
            carry = (learner, sums, contents.priorities)  # What of the replay updates change.
            (learner, sums, priorities), _ = jax.lax.scan(learn, carry, keys)
            contents = contents._replace(priorities=priorities)
        return RunState(state.env_steps + per_iteration, learner, contents, actor, state.key, sums)

    def over_seeds(f: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
        return jax.vmap(f, in_axes, out_axes) if len(seeds) > 1 else f

    def program(updates: int) -> Callable[[RunState, jax.Array], RunState]:
        step = over_seeds(lambda s: iteration(s, updates), (_SEED_AXES,), _SEED_AXES)

        def run(state: RunState, count: jax.Array) -> RunState:
            return jax.lax.fori_loop(0, count, lambda i, s: step(s), state)

        return jax.jit(run, donate_argnums=0)

    warm_up, train = program(0), program(pace.updates)
    init = jax.jit(over_seeds(init_seed, 0, _SEED_AXES))
    keys = _stack([jax.random.key(seed) for seed in seeds], len(seeds))
    next_interval = jax.jit(over_seeds(metrics.next_interval, 0, 0))
    rate = {"iterations": 32}  # Of the next call; how a run is cut into calls changes no number.

    def advance(state: RunState, until: int) -> RunState:
        env_steps = int(state.env_steps)
        warming = env_steps < begins
        if warming:
            until = min(until, begins)
        count = min(loops.iterations(env_steps, until, per_iteration), rate["iterations"])
        start = time.perf_counter()
        state = (warm_up if warming else train)(state, jnp.asarray(count, jnp.int32))
        jax.block_until_ready(state.env_steps)
        pace_seen = count / max(time.perf_counter() - start, 1e-3)
        # Grow slowly: the first call of a program pays for its compilation.
        rate["iterations"] = max(
            1, min(2 * rate["iterations"], int(pace_seen * loops.CHUNK_SECONDS))
        )
        return state

    def rows(state: RunState) -> tuple[RunState, list[dict[str, float]]]:
        env_steps = int(state.env_steps)
        found = []
        for k in range(len(seeds)):
            learner = seed_of(state.learner, k=k, num_seeds=len(seeds))
            sums = seed_of(state.metrics, k=k, num_seeds=len(seeds))
            acting = agent.actor_params(learner, jnp.asarray(env_steps), False)
            found.append(loops.row(sums, acting))
        return state._replace(metrics=next_interval(state.metrics)), found

    evaluators: dict[int, Callable[..., loops.Episodes]] = {}

    def evaluate(state: RunState, episodes: int) -> loops.Episodes:
        if episodes not in evaluators:
            arena = environment if evaluation is None else evaluation(episodes)
            limit = loops.evaluation_limit(arena.spec, evaluation_limit)
            evaluators[episodes] = evaluator(agent, arena, over_seeds, limit=limit)
        found = evaluators[episodes](state.learner, state.env_steps, keys, episodes)
        return loops.Episodes(*(x.reshape(len(seeds), episodes) for x in found))

    return loops.Loop(
        seeds=seeds,
        init=lambda: init(keys),
        advance=advance,
        steps=lambda state: int(state.env_steps),
        rows=rows,
        evaluate=evaluate,
        snapshot=lambda state: state,
        template=lambda: jax.eval_shape(init, keys),
        restore=lambda saved, spans=(): jax.tree.map(jnp.asarray, saved),
    )


def _stack(keys: list[Any], num_seeds: int) -> Any:
    return jnp.stack(keys) if num_seeds > 1 else keys[0]


def learner_shapes(agent: types.Agent, num_seeds: int) -> types.LearnerState:
    """Shapes of the learner in a state of so many seeds: what a reader of checkpoints needs."""
    init = agent.learner.init
    if num_seeds > 1:
        init = jax.vmap(init, 0, _SEED_AXES.learner)
    keys = _stack([jax.random.key(seed) for seed in range(num_seeds)], num_seeds)
    return jax.eval_shape(init, keys)


def seed_of(tree: Any, k: int, num_seeds: int) -> Any:
    """Seed k of a tree with a leading axis K where there are several; counters have none."""
    if num_seeds == 1:
        return tree
    if isinstance(tree, types.LearnerState):
        return jax.tree.map(lambda x: x[k], tree._replace(steps=None))._replace(steps=tree.steps)
    return jax.tree.map(lambda x: x[k], tree)


def evaluator(
    agent: types.Agent,
    environment: types.Environment,
    over_seeds: Callable[..., Callable[..., Any]] = lambda f, in_axes, out_axes: f,
    *,
    limit: int = loops.EVALUATION_LIMIT,
) -> Callable[..., loops.Episodes]:
    """Returns (learner, env_steps, key, episodes) -> `Episodes`, [episodes].

    Rows play one episode each, in rounds; after `limit` ticks of a round what still runs is cut. A
    call of its program takes at most about half a second, so that signals are heard between two.
    """
    learner_axes = _SEED_AXES.learner

    def begin(learner: types.LearnerState, env_steps: jax.Array, key: types.Key) -> Any:
        params = agent.actor_params(learner, env_steps, True)
        actor = rollout.start(agent.policy, environment, params, key)
        zeros = jnp.zeros(environment.num_envs)
        return actor, zeros, jnp.zeros(environment.num_envs, bool)

    def proceed(
        carry: Any,
        learner: types.LearnerState,
        env_steps: jax.Array,
        key: types.Key,
        start: jax.Array,
        count: jax.Array,
    ) -> Any:
        params = agent.actor_params(learner, env_steps, True)

        def tick(t: jax.Array, carry: Any) -> Any:
            actor, total, done = carry
            trajectory, actor = rollout.rollout(
                agent.policy, environment, params, actor, key, 1, start_tick=t
            )
            timestep = jax.tree.map(lambda x: x[0], trajectory.timestep)
            total = total + jnp.where(done, 0.0, timestep.reward)
            return actor, total, done | timestep.last()

        return jax.lax.fori_loop(start, start + count, tick, carry)

    begin = jax.jit(over_seeds(begin, (learner_axes, None, 0), 0))
    proceed = jax.jit(
        over_seeds(proceed, (0, learner_axes, None, 0, None, None), 0), donate_argnums=0
    )
    fold = jax.jit(over_seeds(jax.random.fold_in, (0, None), 0))
    evaluation_key = jax.jit(over_seeds(loops.evaluation_key, (0, None), 0))
    rate = {"ticks": 8}  # Of the next call; how a round is cut into calls changes no number.

    def take(carry: Any, arguments: Any, start: int, most: int) -> tuple[Any, int]:
        """Some ticks of those that share a key; returns how many."""
        count = min(rate["ticks"], most)
        begun = time.perf_counter()
        carry = proceed(carry, *arguments, *(np.asarray(n, np.int32) for n in (start, count)))
        jax.block_until_ready(carry[2])
        speed = count / max(time.perf_counter() - begun, 1e-3)
        # Grow slowly: the first call pays for its compilation.
        rate["ticks"] = max(1, min(2 * rate["ticks"], int(speed * loops.CHUNK_SECONDS)))
        return carry, count

    def evaluate(learner: Any, env_steps: Any, key: Any, episodes: int) -> loops.Episodes:
        key = evaluation_key(key, env_steps)
        found, draws = [], 0
        for _ in range(-(-episodes // environment.num_envs)):
            drawn = fold(key, draws)
            carry, ticks = begin(learner, env_steps, drawn), 0
            while ticks < limit and not np.all(carry[2]):
                start = ticks % EVALUATION_TICKS
                if start == 0:
                    draws += 1
                    drawn = fold(key, draws)
                most = min(EVALUATION_TICKS - start, limit - ticks)
                carry, count = take(carry, (learner, env_steps, drawn), start, most)
                ticks += count
            draws += 1
            found.append(loops.Episodes(np.asarray(carry[1]), ~np.asarray(carry[2])))
        joined = (
            np.concatenate(parts, axis=-1)[..., :episodes] for parts in zip(*found, strict=True)
        )
        return loops.Episodes(*joined)

    return evaluate

"""The loop over whole sequences: take or sample a batch, learn from it; for language models.

Where a game's transitions pass through a replay, sequences come from a data set, from the policy
itself, or from both (a `Source`). An iteration is one learner step. What it draws is a function of
the seed and of the number of the step alone, so that a run goes on bit by bit, in mid-epoch too.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, loops, metrics, platform, sharding, types


class Source(NamedTuple):
    """Where batches of B sequences come from; `step` is the number of learner steps before."""

    num_rows: int  # B.
    example: Any  # Shapes and dtypes of B rows: what the learner reads as `Batch.data`.
    num_sampled: Callable[[int], int]  # step -> how many of the rows the policy makes, 0 to B.
    stored: Callable[[int, int], Any]  # (step, rows) -> rows of the data set, NumPy.
    prompts: Callable[[int, int], Any]  # (step, rows) -> prompts for the policy, NumPy.
    # (acting params, prompts, key) -> rows that the policy made; a compiled program.
    sample: Callable[[Any, Any, types.Key], Any]
    score: Callable[[Any, Any], Any]  # (rows, prompts) -> return of each, float32, [rows].


class RunState(NamedTuple):
    """Everything that a run changes."""

    steps: int  # Learner steps.
    learner: types.LearnerState
    key: types.Key  # Of sampling; each step folds its number in.
    metrics: metrics.Metrics  # An episode is a sequence that the policy made.


def make(
    agent: types.Agent,
    source: Source,
    seed: int,
    params: Callable[[], types.Params] | None = None,
    constants: Any = None,
    evaluate: Callable[[Any, int, types.Key], np.ndarray] | None = None,
    placement: sharding.Placement | None = None,
) -> loops.Loop:
    """Returns the loop of `agent`, whose learner reads the batches of `source`.

    Args:
      agent: as its algorithm's `make` returns it; its parameters are asked for at each step, so
        that what is sampled is never older than the last update.
      source: of batches.
      seed: decides the run.
      params: () -> where learning starts, of a model that was trained before; asked for when a run
        begins, not when it goes on. None is the learner's draw.
      constants: frozen parameters that the learner takes (a teacher); never part of a checkpoint.
      evaluate: (acting params, number of sequences, key) -> their scores, [number]; None refuses.
      placement: over a mesh of devices; None is one device.

    Raises:
      ValueError: if the mesh does not divide the rows, or no rule is for a parameter or constant.
    """
    platform.keep_freed_memory()
    learner_init, learn_step = agent.learner.init, jax.jit(agent.learner.step, donate_argnums=0)
    if placement is not None:
        sharding.check_batch(placement.mesh, source.num_rows)
        learner_init, learn_step = sharding.over_mesh(agent.learner, placement)
        constants = jax.device_put(
            constants, sharding.of_params(placement.constant_rules, constants, placement.mesh)
        )
    observe, add_feedback = jax.jit(metrics.observe), jax.jit(metrics.learn)

    @jax.jit
    def init_learner(key: types.Key) -> tuple[types.LearnerState, types.Key]:
        learner_key, key = jax.random.split(key)
        return learner_init(learner_key), key

    def names() -> dict[str, Any]:
        learner, _ = jax.eval_shape(init_learner, jax.random.key(seed))
        batch = jax.eval_shape(lambda data: _batch(data, source.num_rows), source.example)
        _, feedback = jax.eval_shape(agent.learner.step, learner, batch, constants)
        return dict.fromkeys(feedback.metrics)

    empty = jax.eval_shape(lambda: metrics.init(source.num_rows, names()))

    def shapes() -> RunState:
        learner, key = jax.eval_shape(init_learner, jax.random.key(seed))
        steps = jax.ShapeDtypeStruct((), np.int64)
        return RunState(steps, learner, key, empty)  # pyright: ignore[reportArgumentType]

    homes = None if placement is None else _homes(placement, shapes())

    def settled(state: RunState) -> RunState:
        if homes is None:
            return state
        return RunState(state.steps, *jax.device_put(state[1:], homes[1:]))

    def init() -> RunState:
        learner, key = init_learner(jax.random.key(seed))
        if params is not None:
            learner = learners.with_params(learner, params())
        return settled(RunState(0, learner, key, metrics.init(source.num_rows, empty.learner)))

    def iteration(state: RunState) -> RunState:
        count, sums, parts = source.num_sampled(state.steps), state.metrics, []
        if count:
            acting = agent.actor_params(state.learner, _count(state.steps), False)
            prompts = source.prompts(state.steps, count)
            made = source.sample(acting, prompts, jax.random.fold_in(state.key, state.steps))
            parts.append(made)
            sums = observe(sums, _ended(source.score(made, prompts), source.num_rows))
        if count < source.num_rows:
            parts.append(source.stored(state.steps, source.num_rows - count))
        data = parts[0] if len(parts) == 1 else jax.tree.map(_join, *parts)
        batch = _batch(data, source.num_rows)
        if placement is not None:
            batch = jax.device_put(batch, sharding.of_rows(placement.mesh, source.num_rows))
        learner, feedback = learn_step(state.learner, batch, constants)
        sums = add_feedback(sums, feedback)
        return RunState(state.steps + 1, learner, state.key, sums)

    def advance(state: RunState, until: int) -> RunState:
        start = time.perf_counter()
        while state.steps < until and time.perf_counter() - start < loops.CHUNK_SECONDS:
            state = iteration(state)
            jax.block_until_ready(state.metrics.updates)
        return state

    def rows(state: RunState) -> tuple[RunState, list[dict[str, float]]]:
        row = metrics.row(state.metrics)
        return settled(state._replace(metrics=metrics.next_interval(state.metrics))), [row]

    def evaluate_now(state: RunState, episodes: int) -> np.ndarray:
        if evaluate is None:
            raise ValueError("nothing to evaluate by; hand over a function that scores sequences")
        acting = agent.actor_params(state.learner, _count(state.steps), True)
        # Keys of their own: those of sampling fold the number of the step alone.
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0xE7A1), state.steps)
        return np.asarray(evaluate(acting, episodes, key))[None]

    def template() -> RunState:
        return shapes() if homes is None else sharding.annotated(shapes(), homes)

    def restore(saved: RunState, spans: Any = ()) -> RunState:
        del spans  # There is no host replay.
        learner, key, sums = jax.tree.map(jnp.asarray, saved[1:])
        return settled(RunState(int(saved.steps), learner, key, sums))

    return loops.Loop(
        seeds=(seed,),
        init=init,
        advance=advance,
        env_steps=lambda state: state.steps,
        rows=rows,
        evaluate=evaluate_now,
        snapshot=lambda state: state._replace(steps=np.asarray(state.steps, np.int64)),
        template=template,
        restore=restore,
    )


def _homes(placement: sharding.Placement, shapes: RunState) -> RunState:
    """The sharding of each leaf of a run's state."""
    homes = jax.tree.map(lambda leaf: sharding.replicated(placement.mesh), shapes)
    learner = sharding.of_state(placement.rules, shapes.learner, placement.mesh)
    return homes._replace(learner=learner)


def _count(steps: int) -> np.ndarray:
    return np.asarray(steps, np.int32)


def _batch(data: Any, num_rows: int) -> types.Batch:
    ones = jnp.ones(num_rows, jnp.float32)
    return types.Batch(data, jnp.arange(num_rows, dtype=jnp.int32), ones / num_rows, ones)


def _join(made: Any, stored: Any) -> jax.Array:
    return jnp.concatenate([jnp.asarray(made), jnp.asarray(stored)])


def _ended(score: Any, num_rows: int) -> types.TimeStep:
    """Sequences as B rows of which the first have just ended, with their scores as rewards."""
    score = jnp.asarray(score, jnp.float32)
    is_last = jnp.arange(num_rows) < len(score)
    return types.TimeStep(
        step_type=jnp.where(is_last, types.LAST, types.MID).astype(jnp.int8),
        reward=jnp.zeros(num_rows, jnp.float32).at[: len(score)].set(score),
        discount=jnp.zeros(num_rows, jnp.float32),
        observation=None,  # pyright: ignore[reportArgumentType]  # Nobody looks.
        next_observation=None,  # pyright: ignore[reportArgumentType]
    )

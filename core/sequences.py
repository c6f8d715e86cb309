"""The loop over whole sequences: take or sample a batch, learn from it; for language models.

Where a game's transitions pass through a replay, sequences come from a data set, from the policy
itself, or from both (a `Source`). An iteration is one learner step. What it draws is a function of
the seed and of the number of the step alone, so that a run goes on bit by bit, in mid-epoch too.
"""

import contextlib
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
    max_age: int = 0  # Learner steps for which what the policy made is learnt from again.


class Kept(NamedTuple):
    """Rows that the policy made, to be learnt from again."""

    rows: Any  # [B, ...], as the learner reads them; the first ones count.
    made_at: Any  # int64, []: the step at which.


class _Drawn(NamedTuple):
    """What a learner step reads, and what drawing it adds to the state."""

    data: Any  # [B, ...].
    metrics: metrics.Metrics
    kept: Kept | None
    num_sampled: int


class RunState(NamedTuple):
    """Everything that a run changes."""

    steps: int  # Learner steps.
    learner: types.LearnerState
    key: types.Key  # Of sampling; each step folds its number in.
    metrics: metrics.Metrics  # An episode is a sequence that the policy made.
    kept: Kept | None = None  # None where nothing is learnt from again.


def make(
    agent: types.Agent,
    source: Source,
    seed: int,
    params: Callable[[], types.Params] | None = None,
    constants: Any = None,
    evaluate: Callable[[Any, int, types.Key], np.ndarray] | None = None,
    placement: sharding.Placement | None = None,
    abandons: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> loops.Loop:
    """Returns the loop of `agent`, whose learner reads the batches of `source`.

    Args:
      agent: as its algorithm's `make` returns it; its parameters are asked for at each step, so
        that what is sampled is never older than the last update, but for `source.max_age`.
      source: of batches.
      seed: decides the run.
      params: () -> where learning starts, of a model that was trained before; asked for when a run
        begins, not when it goes on. None is the learner's draw.
      constants: frozen parameters that the learner takes (a teacher); never part of a checkpoint.
      evaluate: (acting params, number of sequences, key) -> their scores, [number]; None refuses.
      placement: over a mesh of devices; None is one device.
      abandons: () -> a context in which data are drawn and the policy samples; what it raises ends
        `advance` by `loops.Abandoned`, before the step has changed anything.

    Raises:
      ValueError: if the mesh does not divide the rows, or no rule is for a parameter or constant.
    """
    platform.run_large_programs()
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
        return dict.fromkeys([*feedback.metrics, *(["sample_age"] if source.max_age else [])])

    empty = jax.eval_shape(lambda: metrics.init(source.num_rows, names()))

    def shapes() -> RunState:
        learner, key = jax.eval_shape(init_learner, jax.random.key(seed))
        steps = jax.ShapeDtypeStruct((), np.int64)
        kept = Kept(source.example, steps) if source.max_age else None
        return RunState(steps, learner, key, empty, kept)  # pyright: ignore[reportArgumentType]

    homes = None if placement is None else _homes(placement, shapes())

    def settled(state: RunState) -> RunState:
        if homes is None:
            return state
        return RunState(state.steps, *jax.device_put(state[1:], homes[1:]))

    def init() -> RunState:
        learner, key = init_learner(jax.random.key(seed))
        if params is not None:
            learner = learners.with_params(learner, params())
        sums = metrics.init(source.num_rows, empty.learner)
        nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes().kept)
        return settled(RunState(0, learner, key, sums, nothing))

    def draw(state: RunState) -> _Drawn:
        """Data of a learner step; changes nothing."""
        count, sums, parts = source.num_sampled(state.steps), state.metrics, []
        kept, is_fresh = state.kept, samples_at(source.num_sampled, source.max_age, state.steps)
        if count and not is_fresh and kept is not None:
            parts.append(jax.tree.map(lambda x: x[:count], kept.rows))
        elif count:
            acting = agent.actor_params(state.learner, _count(state.steps), False)
            prompts = source.prompts(state.steps, count)
            made = source.sample(acting, prompts, jax.random.fold_in(state.key, state.steps))
            parts.append(made)
            sums = observe(sums, _ended(source.score(made, prompts), source.num_rows))
            if kept is not None:
                whole = jax.tree.map(lambda x: _filled(x, source.num_rows), made)
                kept = Kept(whole, np.asarray(state.steps, np.int64))
        if count < source.num_rows:
            parts.append(source.stored(state.steps, source.num_rows - count))
        data = parts[0] if len(parts) == 1 else jax.tree.map(_join, *parts)
        return _Drawn(data, sums, kept, count)

    def learn(state: RunState, drawn: _Drawn) -> RunState:
        """The learner step; the state before it is gone, as the learner's is donated."""
        sums, kept = drawn.metrics, drawn.kept
        batch = _batch(drawn.data, source.num_rows)
        if placement is not None:
            batch = jax.device_put(batch, sharding.of_rows(placement.mesh, source.num_rows))
        learner, feedback = learn_step(state.learner, batch, constants)
        if kept is not None:
            age = state.steps - int(kept.made_at) if drawn.num_sampled else 0
            ages = {"sample_age": jnp.asarray(age, jnp.float32)}
            feedback = feedback._replace(metrics=feedback.metrics | ages)
        sums = add_feedback(sums, feedback)
        return RunState(state.steps + 1, learner, state.key, sums, kept)

    def advance(state: RunState, until: int) -> RunState:
        start = time.perf_counter()
        while state.steps < until and time.perf_counter() - start < loops.CHUNK_SECONDS:
            try:
                with abandons():
                    drawn = draw(state)
            except (Exception, KeyboardInterrupt) as error:
                raise loops.Abandoned(state) from error
            state = learn(state, drawn)
            jax.block_until_ready(state.metrics.updates)
        return state

    def rows(state: RunState) -> tuple[RunState, list[dict[str, float]]]:
        row = metrics.row(state.metrics)
        return settled(state._replace(metrics=metrics.next_interval(state.metrics))), [row]

    def evaluate_now(state: RunState, episodes: int) -> loops.Episodes:
        if evaluate is None:
            raise ValueError("nothing to evaluate by; hand over a function that scores sequences")
        acting = agent.actor_params(state.learner, _count(state.steps), True)
        key = loops.evaluation_key(state.key, state.steps)
        scores = np.asarray(evaluate(acting, episodes, key))[None]
        return loops.Episodes(scores, np.zeros(scores.shape, bool))  # A text is always whole.

    def template() -> RunState:
        return shapes() if homes is None else sharding.annotated(shapes(), homes)

    def restore(saved: RunState, spans: Any = ()) -> RunState:
        del spans  # There is no host replay.
        learner, key, sums = jax.tree.map(jnp.asarray, saved[1:4])
        return settled(RunState(int(saved.steps), learner, key, sums, saved.kept))

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


def samples_at(num_sampled: Callable[[int], int], max_age: int, step: int) -> bool:
    """Whether the policy makes rows at a step; a function of its arguments alone.

    Steps are taken by max_age + 1; within one such window what it made first is learnt from again.
    """
    begin = step - step % (max_age + 1)
    return num_sampled(step) > 0 and not any(num_sampled(s) for s in range(begin, step))


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


def _filled(made: Any, num_rows: int) -> np.ndarray:
    """The rows, and zeros after them, [num_rows, ...]."""
    made = np.asarray(made)
    return np.concatenate([made, np.zeros((num_rows - len(made), *made.shape[1:]), made.dtype)])


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

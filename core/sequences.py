"""The loop of language models: take or sample a batch of sequences, and learn from it.

Sequences come from a data set, from the policy itself, or from both (a `Source`). An iteration is
one learner step. Its batch depends on the seed and the number of the step alone, so that a run that
is resumed continues bit for bit, also in the middle of an epoch.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import (
    learners,
    loops,
    metrics,
    platform,
    posts,
    processes,
    sampling_ahead,
    sequence_rows,
    sharding,
    types,
)

DROPPED = "dropped"  # Metric: the share of rows whose weight is 0, where rows have weights.
WAITED = "wait_seconds"  # Metric: how long a step waited for rows that are sampled ahead.


class Sampling(NamedTuple):
    """The sampling of rows by the policy; `step` is the number of learner steps before."""

    num_rows: Callable[[int], int]  # step -> number of sampled rows, 0 to B.
    prompts: Callable[[int, int], Any]  # (step, number of rows) -> prompts for the policy.
    # (acting params, prompts, key) -> rows that the policy samples; a compiled program.
    sample: Callable[[Any, Any, types.Key], Any]
    score: Callable[[Any, Any], Any]  # (rows, prompts) -> return of each row, float32, [n].
    max_age: int = 0  # Further learner steps that reuse a step's samples.
    # (rows, prompts) -> rows with all that is not made by a compiled program, such as a reward.
    complete: Callable[[Any, Any], Any] = lambda rows, prompts: rows
    ahead: sampling_ahead.Ahead = sampling_ahead.NONE  # How far ahead of learning.
    parts: sampling_ahead.Parts | None = None  # In place of `sample`, of rows sampled ahead.

    def samples_at(self, step: int) -> bool:
        """Returns whether the policy samples rows at a step, which the step alone decides.

        Steps fall into windows of max_age + 1; the rows that are sampled first in a window are
        reused in the rest of it.
        """
        begin = step - step % (self.max_age + 1)
        return self.num_rows(step) > 0 and not any(self.num_rows(s) for s in range(begin, step))


class Source(NamedTuple):
    """The source of batches of B sequences: a data set, the policy, or both."""

    num_rows: int  # B.
    example: Any  # Shapes and dtypes of B rows, the learner's `Batch.data`.
    # (learner steps before, number of rows) -> rows of the data set, NumPy; None: all are sampled.
    stored: Callable[[int, int], Any] | None = None
    sampling: Sampling | None = None  # None: all rows are stored.
    # rows [B, ...] -> their weights, float32 [B], 0 for rows that are dropped; None: all are ones.
    weights: Callable[[Any], Any] | None = None

    @property
    def keeps(self) -> bool:
        """Whether samples of the policy are stored, to be learnt from again."""
        return self.sampling is not None and self.sampling.max_age > 0


# A callback (learner steps before, rows that the policy sampled, their prompts, their scores).
OnSampled = Callable[[int, Any, Any, Any], None]


def ignore(step: int, rows: Any, prompts: Any, scores: Any) -> None:
    """Does nothing; the default `OnSampled`."""


class Kept(NamedTuple):
    """Rows that the policy sampled, stored to be learnt from again."""

    rows: Any  # [B, ...], as the learner reads them; zeros fill up those that were not sampled.
    made_at: Any  # int64, []: the step at which they were sampled.


class _Drawn(NamedTuple):
    """The data of a learner step, and the parts of the state that drawing it changes."""

    data: Any  # [B, ...].
    metrics: metrics.Metrics
    kept: Kept | None
    num_sampled: int
    acted: tuple[types.Params, ...] | None = None
    seconds: float = 0.0  # How long learning waited for rows that are sampled ahead.


class RunState(NamedTuple):
    """The state of a run."""

    steps: int  # Learner steps.
    learner: types.LearnerState
    key: types.Key  # Key of sampling; each step folds its number in.
    metrics: metrics.Metrics  # Sums, in which an episode is a sequence that the policy sampled.
    kept: Kept | None = None  # None where no samples are learnt from again.
    # Parameters before each of the last D steps, oldest first; None where rows are not sampled
    # ahead.
    acted: tuple[types.Params, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The constants of a loop, which its functions share."""

    agent: types.Agent
    source: Source
    constants: types.Constants
    placement: sharding.Placement | None
    # Compiled `Learner.step`; the learner's state is donated.
    learn_step: Callable[
        [types.LearnerState, types.Batch, Any], tuple[types.LearnerState, types.Feedback]
    ]
    abandons: Callable[[], contextlib.AbstractContextManager[Any]]
    on_sampled: OnSampled
    ahead: sampling_ahead.Sampler | None  # None where rows are not sampled ahead.
    shapes: RunState  # Shapes and dtypes of the state.
    shardings: RunState | None  # Sharding of each leaf; None on one device.


_observe, _add_feedback = jax.jit(metrics.observe), jax.jit(metrics.learn)
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def make(
    agent: types.Agent,
    source: Source,
    seed: int,
    params: Callable[[], types.Params] | None = None,
    constants: types.Constants = types.NO_CONSTANTS,
    evaluate: Callable[[Any, int, types.Key], np.ndarray] | None = None,
    placement: sharding.Placement | None = None,
    abandons: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    on_sampled: OnSampled = ignore,
    workers: posts.Workers | int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> loops.Loop:
    """Returns the loop of `agent`, whose learner reads the batches of `source`.

    Args:
      agent: as its algorithm's `make` returns it; its acting parameters are read anew at each
        step, so that samples are on-policy but for `Sampling.max_age`.
      source: of batches.
      seed: decides the run.
      params: () -> initial parameters, of a model that was trained before; called when a run
        begins, not when it is resumed. None initialises the learner at random.
      constants: frozen parameters that the learner reads; over a mesh they are sharded.
      evaluate: (acting params, number of sequences, key) -> their scores, [number]; None refuses.
      placement: over a mesh of devices; None is one device.
      abandons: () -> a context in which data are drawn and the policy samples; what it raises ends
        `advance` by `loops.Abandoned`, before the step has changed anything.
      on_sampled: is called within `abandons` with the policy's samples, once they are scored.
      workers: who samples ahead, which changes no number of the run: so many threads, one a shard
        if None, or others; the loop closes them.
      tell: is told which of them was lost, or lets the learner wait for long.

    Raises:
      ValueError: if rows are sampled ahead over a mesh, or are learnt from again, too; if the mesh
        does not divide the rows, or a parameter has no sharding rule.
    """
    platform.run_large_programs()
    learner_init, learn_step = agent.learner.init, jax.jit(agent.learner.step, donate_argnums=0)
    if placement is not None:
        sharding.check_batch(placement.mesh, source.num_rows)
        learner_init, learn_step = sharding.over_mesh(agent.learner, placement)
        rules = types.Constants(placement.rules, placement.teacher_rules, placement.rules)
        constants = types.Constants(
            *(
                processes.put(frozen, sharding.of_params(table, frozen, placement.mesh))
                for table, frozen in zip(rules, constants, strict=True)
            )
        )

    @jax.jit
    def init_learner(key: types.Key) -> tuple[types.LearnerState, types.Key]:
        learner_key, key = jax.random.split(key)
        return learner_init(learner_key), key

    def begin() -> tuple[types.LearnerState, types.Key]:
        """Returns the learner and the key before step 0."""
        if params is None:
            return init_learner(jax.random.key(seed))

        # One program, in which nothing is drawn that `params` replace.
        @jax.jit
        def init_from(key: types.Key, given: types.Params) -> tuple[types.LearnerState, types.Key]:
            learner, key = init_learner(key)
            return learners.with_params(learner, given), key

        return init_from(jax.random.key(seed), params())

    ahead = _ahead(source, placement, workers, tell)
    # A compiled function is traced once for its shapes and its calls.
    step = agent.learner.step if placement is not None else learn_step
    shapes = _shapes(step, source, constants, init_learner)
    context = _Context(
        agent=agent,
        source=source,
        constants=constants,
        placement=placement,
        learn_step=learn_step,
        abandons=abandons,
        on_sampled=on_sampled,
        ahead=ahead,
        shapes=shapes,
        shardings=None if placement is None else _shardings(placement, shapes),
    )
    return loops.Loop(
        seeds=(seed,),
        init=lambda: _init(context, *begin()),
        advance=functools.partial(_advance, context),
        steps=lambda state: state.steps,
        rows=functools.partial(_metrics_rows, context),
        evaluate=functools.partial(_evaluate, context, evaluate),
        snapshot=lambda state: state._replace(steps=np.asarray(state.steps, np.int64)),
        template=lambda: _template(context),
        restore=lambda saved, spans=(): _restore(context, saved),
        close=lambda: None if ahead is None else ahead.close(),
    )


def _ahead(
    source: Source,
    placement: sharding.Placement | None,
    workers: posts.Workers | int | None,
    tell: Callable[[str], None],
) -> sampling_ahead.Sampler | None:
    """Returns what samples rows ahead of learning; None without a lag."""
    sampling = source.sampling
    if sampling is None or not sampling.ahead.lag:
        return None
    if placement is not None:
        sampling.ahead.check_mesh("a mesh")
    if source.keeps:
        raise ValueError(
            f"lag={sampling.ahead.lag} and max_age={sampling.max_age} both learn from older rows, "
            "in two ways: leave one out"
        )

    def prompts(step: int) -> Sequence[Any]:
        count = sampling.num_rows(step)
        return sampling.prompts(step, count) if count else ()

    parts = sampling.parts
    if parts is None:
        parts = sampling_ahead.Parts(lambda given: given, sampling.sample, lambda given, rows: rows)
    return sampling_ahead.sampler(sampling.ahead, prompts, parts, workers, tell)


def _shapes(
    learn_step: Callable[..., tuple[types.LearnerState, types.Feedback]],
    source: Source,
    constants: types.Constants,
    init_learner: Callable[[types.Key], tuple[types.LearnerState, types.Key]],
) -> RunState:
    """Returns shapes and dtypes of a run's state, without computing anything."""
    state, key = jax.eval_shape(init_learner, jax.random.key(0))
    batch = jax.eval_shape(types.Batch.of, source.example)
    _, feedback = jax.eval_shape(learn_step, state, batch, constants)
    names = feedback.metrics | ({"sample_age": None} if source.keeps else {})
    names |= {DROPPED: None} if source.weights is not None else {}
    lag = 0 if source.sampling is None else source.sampling.ahead.lag
    names |= {"sample_age": None, WAITED: None} if lag else {}
    steps = jax.ShapeDtypeStruct((), np.int64)
    return RunState(
        steps=steps,  # pyright: ignore[reportArgumentType]
        learner=state,
        key=key,
        metrics=jax.eval_shape(lambda: metrics.init(source.num_rows, names)),
        kept=Kept(source.example, steps) if source.keeps else None,
        acted=(state.params,) * lag or None,
    )


def _shardings(placement: sharding.Placement, shapes: RunState) -> RunState:
    """Returns the sharding of each leaf of a run's state."""
    replicated = jax.tree.map(lambda leaf: sharding.replicated(placement.mesh), shapes)
    learner = sharding.of_state(placement.rules, shapes.learner, placement.mesh)
    return replicated._replace(learner=learner)


def _placed(context: _Context, state: RunState) -> RunState:
    """Shards the state over the mesh, if there is one."""
    if context.shardings is None:
        return state
    return RunState(state.steps, *processes.put(state[1:], context.shardings[1:]))


def _init(context: _Context, learner: types.LearnerState, key: types.Key) -> RunState:
    """Returns the state before step 0."""
    sums = metrics.init(context.source.num_rows, context.shapes.metrics.learner)
    kept = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), context.shapes.kept)
    acted = None
    if context.ahead is not None:
        context.ahead.forget()
        acted = (_copy(learner.params),) * context.ahead.ahead.lag
    return _placed(context, RunState(0, learner, key, sums, kept, acted))


def _template(context: _Context) -> RunState:
    if context.shardings is None:
        return context.shapes
    return sharding.annotated(context.shapes, context.shardings)


def _restore(context: _Context, saved: RunState) -> RunState:
    learner, key, sums = jax.tree.map(jnp.asarray, saved[1:4])
    acted = jax.tree.map(jnp.asarray, saved.acted)
    if context.ahead is not None:
        context.ahead.forget()
    return _placed(context, RunState(int(saved.steps), learner, key, sums, saved.kept, acted))


def _draw(context: _Context, state: RunState) -> _Drawn:
    """Draws the data of a learner step; the state stays as it is."""
    source, sampling, ahead = context.source, context.source.sampling, context.ahead
    sums, kept, acted, seconds, count, parts = state.metrics, state.kept, state.acted, 0.0, 0, []
    if ahead is not None:
        acted = _begin_ahead(context, ahead, state)
    if sampling is not None and (count := sampling.num_rows(state.steps)):
        if ahead is not None:
            taken = ahead.take(state.steps)
            rows, sums = _scored(context, sampling, state, taken.rows, taken.prompts)
            seconds = taken.seconds
            parts.append(rows)
        elif kept is None or sampling.samples_at(state.steps):
            rows, sums = _sample(context, sampling, state, count)
            parts.append(rows)
            if kept is not None:
                padded = jax.tree.map(lambda x: sequence_rows.padded(x, source.num_rows), rows)
                kept = Kept(padded, np.asarray(state.steps, np.int64))
        else:
            parts.append(jax.tree.map(lambda x: x[:count], processes.fetch(kept.rows)))
    if source.stored is not None and count < source.num_rows:
        parts.append(source.stored(state.steps, source.num_rows - count))
    data = parts[0] if len(parts) == 1 else jax.tree.map(sequence_rows.join, *parts)
    return _Drawn(data, sums, kept, count, acted, seconds)


def _begin_ahead(
    context: _Context, ahead: sampling_ahead.Sampler, state: RunState
) -> tuple[types.Params, ...]:
    """Lets rows of this and the next steps be sampled; returns the parameters to be kept."""
    lag = ahead.ahead.lag
    # Of the last D steps and this one, at which the learner gives its parameters away.
    versions = (*(state.acted or ()), _copy(state.learner.params))
    for step in range(state.steps, state.steps + lag + 1):
        version = ahead.ahead.version(step)
        if version > state.steps:  # Not yet learnt: parameters begin anew before this step.
            break
        params = versions[version - (state.steps - lag)]
        before = state._replace(steps=version, learner=state.learner._replace(params=params))
        ahead.begin(step, functools.partial(_acting, context, before, evaluate=False), state.key)
    return versions[1:]


def _acting(context: _Context, state: RunState, *, evaluate: bool) -> Any:
    steps = loops.count(state.steps)
    return context.agent.actor_params(state.learner, steps, evaluate, context.constants)


def _sample(
    context: _Context, sampling: Sampling, state: RunState, count: int
) -> tuple[Any, metrics.Metrics]:
    """Returns rows that the policy samples, and the metrics with their scores."""
    acting = _acting(context, state, evaluate=False)
    prompts = sampling.prompts(state.steps, count)
    rows = sampling.sample(acting, prompts, jax.random.fold_in(state.key, state.steps))
    return _scored(context, sampling, state, rows, prompts)


def _scored(
    context: _Context, sampling: Sampling, state: RunState, rows: Any, prompts: Any
) -> tuple[Any, metrics.Metrics]:
    """Returns sampled rows with all that they lack, and the metrics with their scores."""
    rows = sampling.complete(rows, prompts)
    scores = sampling.score(rows, prompts)
    context.on_sampled(state.steps, rows, prompts, scores)
    return rows, _observe(state.metrics, sequence_rows.ended(scores, context.source.num_rows))


def _learn(context: _Context, state: RunState, drawn: _Drawn) -> RunState:
    """Takes a learner step; the state before it cannot be used again, as it is donated."""
    num_rows, kept = context.source.num_rows, drawn.kept
    batch, dropped = types.Batch.of(drawn.data), {}
    if context.source.weights is not None:
        weights = np.asarray(context.source.weights(drawn.data), np.float32)
        batch, dropped = batch._replace(weights=weights), {DROPPED: jnp.mean(weights == 0)}
    if context.placement is not None:
        processes.check_equal(drawn.data, f"the batch of step {state.steps:,}")
        batch = processes.put(batch, sharding.of_rows(context.placement.mesh, num_rows))
    learner, feedback = context.learn_step(state.learner, batch, context.constants)
    feedback = feedback._replace(metrics=feedback.metrics | dropped)
    if context.ahead is not None:
        age = state.steps - context.ahead.ahead.version(state.steps) if drawn.num_sampled else 0
        ages = {"sample_age": age, WAITED: drawn.seconds}
        ages = {name: jnp.asarray(x, jnp.float32) for name, x in ages.items()}
        feedback = feedback._replace(metrics=feedback.metrics | ages)
    if kept is not None:
        age = state.steps - int(kept.made_at) if drawn.num_sampled else 0
        ages = {"sample_age": jnp.asarray(age, jnp.float32)}
        feedback = feedback._replace(metrics=feedback.metrics | ages)
    sums = _add_feedback(drawn.metrics, feedback)
    return RunState(state.steps + 1, learner, state.key, sums, kept, drawn.acted)


def _advance(context: _Context, state: RunState, until: int) -> RunState:
    # Clocks differ between processes, which must return at the same step.
    seconds = loops.CHUNK_SECONDS if processes.count() == 1 else 0
    start = time.perf_counter()
    while state.steps < until:
        try:
            with context.abandons():
                drawn = _draw(context, state)
        except (Exception, KeyboardInterrupt) as error:
            raise loops.Abandoned(state) from processes.shared(error)
        state = _learn(context, state, drawn)
        jax.block_until_ready(state.metrics.updates)
        if time.perf_counter() - start >= seconds:
            break
    return state


def _metrics_rows(context: _Context, state: RunState) -> tuple[RunState, list[dict[str, float]]]:
    emptied = state._replace(metrics=metrics.next_interval(state.metrics))
    return _placed(context, emptied), [metrics.row(state.metrics)]


def _evaluate(
    context: _Context,
    score: Callable[[Any, int, types.Key], np.ndarray] | None,
    state: RunState,
    episodes: int,
) -> loops.Episodes:
    if score is None:
        raise ValueError("nothing to evaluate by; hand over a function that scores sequences")
    acting = _acting(context, state, evaluate=True)
    key = loops.evaluation_key(state.key, state.steps)
    scores = np.asarray(score(acting, episodes, key))[None]
    return loops.Episodes(scores, np.zeros(scores.shape, bool))  # A text is always whole.

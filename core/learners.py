"""Learners: stochastic gradient descent on a loss, with target trees that follow the parameters.

One constructor serves nearly every algorithm, which brings its loss and its optimiser.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kullback.core import averaging, trees, types

__all__ = [
    "Loss",
    "Passes",
    "Prepare",
    "TargetRule",
    "every",
    "fixed",
    "moving_average",
    "periodic",
    "plain",
    "scan",
    "sgd",
    "stored",
    "with_params",
]

# loss(params, targets, aux, batch, key, constants) -> (mean loss [], (aux, Feedback)).
Loss = Callable[..., tuple[jax.Array, tuple[Any, types.Feedback]]]
# prepare(params, targets, batch, constants) -> (batch as the loss reads it, metrics of it).
Prepare = Callable[..., tuple[types.Batch, dict[str, jax.Array]]]


class Passes(NamedTuple):
    """The optimiser steps of one learner step: passes over its batch, each in parts."""

    epochs: int  # Passes, >= 1.
    minibatches: int  # Parts of a pass, which divide the rows and are drawn anew for each.
    # Metrics of U = epochs minibatches optimiser steps, [U, ...] each -> metrics of the step.
    report: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = lambda metrics: metrics


class TargetRule(NamedTuple):
    """How a target tree follows the parameters after each learner step."""

    update: Callable[[types.Params, types.Params, jax.Array], types.Params]  # (new, old, steps).


def fixed() -> TargetRule:
    """Returns the rule by which a target stays the parameters before learning."""
    return TargetRule(lambda params, target, steps: target)


def periodic(period: int) -> TargetRule:
    """Returns the rule that copies the parameters every `period` learner steps (Mnih et al. 2015).

    Raises:
      ValueError: unless period >= 1.
    """
    return every(period, TargetRule(lambda params, target, steps: params))


def moving_average(rate: float) -> TargetRule:
    """Returns the rule of Polyak averaging: (1 - mu) target + mu params at each learner step.

    Raises:
      ValueError: unless 0 < rate <= 1, where `rate` is mu.
    """
    averaging.check_rate(rate)

    def update(params: types.Params, target: types.Params, steps: jax.Array) -> types.Params:
        del steps
        return averaging.ema(target, params, rate)

    return TargetRule(update)


def every(period: int, rule: TargetRule) -> TargetRule:
    """Returns the rule that is followed every `period` learner steps; between, nothing moves.

    Raises:
      ValueError: unless period >= 1.
    """
    if period < 1:
        raise ValueError(f"target period must be >= 1 learner step, got {period}")

    def update(params: types.Params, target: types.Params, steps: jax.Array) -> types.Params:
        # `steps` is the same for all seeds, so this stays a branch when seeds are vmapped.
        return jax.lax.cond(
            steps % period == 0, lambda: rule.update(params, target, steps), lambda: target
        )

    return TargetRule(update)


def plain(
    loss: Callable[[types.Params, Any], tuple[jax.Array, dict[str, jax.Array]]],
) -> Loss:
    """Returns the loss of `sgd` that a loss of parameters and data alone is.

    Nothing is random in it, and it knows no targets, constants or weights of rows.

    Args:
      loss: (params, data of a batch) -> (mean loss [], metrics).
    """

    def of_batch(
        params: types.Params, targets: Any, aux: Any, batch: types.Batch, key: Any, constants: Any
    ) -> tuple[jax.Array, tuple[Any, types.Feedback]]:
        del targets, key, constants
        value, metrics = loss(params, batch.data)
        return value, (aux, types.Feedback(metrics))

    return of_batch


def sgd(
    init_params: Callable[[types.Key], types.Params],
    loss: Loss,
    optimizer: optax.GradientTransformation,
    targets: Mapping[str, TargetRule] | None = None,
    init_aux: Callable[[types.Params], Any] = lambda params: None,
    advance: Callable[[types.Params], types.Params] = lambda params: params,
    prepare: Prepare | None = None,
    passes: Passes | None = None,
) -> types.Learner:
    """Returns a learner that descends the gradient of `loss`.

    A learner step may take several optimiser steps, `passes`; `steps` counts learner steps, and
    targets follow once, at their end. A loss then has no priorities.

    Args:
      init_params: key -> parameters.
      loss: (params, targets, aux, batch, key, constants) -> (loss [], (aux, Feedback)); targets
        is a dict of trees by name, and constants is handed through from `step`.
      optimizer: optax transformation; two networks are one tree under `optax.multi_transform`.
      targets: rule by name; each tree starts as a copy of the parameters.
      init_aux: params -> the state that the loss carries from step to step.
      advance: params -> params, after the optimiser's update and before targets follow; it moves
        leaves that have no gradient, such as those of spectral.py.
      prepare: makes what the loss reads of a batch, once a learner step, by the parameters before
        it; None leaves the batch as it is.
      passes: over a batch; None is one optimiser step with all of it.
    """
    rules = dict(targets or {})

    def init(key: types.Key) -> types.LearnerState:
        key, params_key = jax.random.split(key)
        params = init_params(params_key)
        return types.LearnerState(
            params=params,
            opt_state=optimizer.init(params),
            # Copies: the program that updates the parameters may reuse their buffers.
            targets={name: jax.tree.map(jnp.copy, params) for name in rules},
            steps=jnp.zeros((), jnp.int32),
            key=key,
            aux=init_aux(params),
        )

    def step(
        state: types.LearnerState,
        batch: types.Batch,
        constants: types.Constants = types.NO_CONSTANTS,
    ) -> tuple[types.LearnerState, types.Feedback]:
        key = jax.random.fold_in(state.key, state.steps)
        metrics: dict[str, jax.Array] = {}
        if prepare is not None:
            batch, metrics = prepare(state.params, state.targets, batch, constants)

        def update(learnt: _Learnt, batch: types.Batch, key: types.Key) -> Any:
            """Takes an optimiser step; returns what is learnt, and feedback."""
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, (aux, feedback)), grads = gradient(
                learnt.params, state.targets, learnt.aux, batch, key, constants
            )
            updates, opt_state = optimizer.update(grads, learnt.opt_state, learnt.params)
            params = advance(optax.apply_updates(learnt.params, updates))
            feedback = feedback._replace(metrics={"loss": value, **feedback.metrics})
            return _Learnt(params, opt_state, aux), feedback

        learnt = _Learnt(state.params, state.opt_state, state.aux)
        if passes is None:
            learnt, feedback = update(learnt, batch, key)
        else:
            learnt, feedback = _over(passes, update, learnt, batch, key)
        steps = state.steps + 1
        state = state._replace(
            **learnt._asdict(),
            targets={
                n: rules[n].update(learnt.params, old, steps) for n, old in state.targets.items()
            },
            steps=steps,
        )
        return state, feedback._replace(metrics=feedback.metrics | metrics)

    return types.Learner(init, step)


class _Learnt(NamedTuple):
    """The parts of the state that an optimiser step changes."""

    params: types.Params
    opt_state: Any
    aux: Any


def _over(
    passes: Passes,
    update: Callable[[_Learnt, types.Batch, types.Key], tuple[_Learnt, types.Feedback]],
    learnt: _Learnt,
    batch: types.Batch,
    key: types.Key,
) -> tuple[_Learnt, types.Feedback]:
    """Takes the optimiser steps of some passes over a batch of B rows, one after another.

    Raises:
      ValueError: for parts that do not divide B, or a loss with priorities.
    """
    num_rows, count = len(batch.weights), passes.epochs * passes.minibatches
    if num_rows % passes.minibatches:
        raise ValueError(f"minibatches={passes.minibatches} must divide {num_rows} rows")
    order_key, key = jax.random.split(key)
    rows = jnp.broadcast_to(jnp.arange(num_rows), (passes.epochs, num_rows))
    if passes.minibatches > 1:
        keys = jax.random.split(order_key, passes.epochs)
        rows = jax.vmap(jax.random.permutation)(keys, rows)

    def body(learnt: _Learnt, item: tuple[jax.Array, jax.Array]) -> tuple[_Learnt, Any]:
        number, places = item
        part = jax.tree.map(lambda x: jnp.asarray(x)[places], batch)
        learnt, feedback = update(learnt, part, jax.random.fold_in(key, number))
        if feedback.priorities is not None:
            raise ValueError("a batch that is learnt from in passes has no priorities")
        return learnt, feedback.metrics

    items = jnp.arange(count), rows.reshape(count, -1)
    learnt, metrics = jax.lax.scan(body, learnt, items)
    return learnt, types.Feedback(passes.report(metrics))


def scan(
    learner: types.Learner,
    rows: Callable[[types.LearnerState, types.Constants, Any, types.Key], Any],
    report: Callable[[types.Feedback, Any], Any] = lambda feedback, data: feedback.metrics["loss"],
) -> Callable[
    [types.LearnerState, types.Constants, Any, types.Key], tuple[types.LearnerState, Any]
]:
    """Returns the pure (state, constants, items [n, ...], key) -> (state, reports [n, ...]).

    Each of n learner steps learns from rows that are made from one item. The number of the step is
    folded into the key, so that cutting a run into several scans changes nothing.

    Args:
      learner: takes the steps.
      rows: (state, constants, item, key) -> the rows [B, ...] to learn from: stored ones, or
        samples of the policy with the state's parameters.
      report: (feedback of a step, its rows) -> the step's report; by default the loss.
    """

    def step(
        constants: types.Constants, key: types.Key, state: types.LearnerState, item: Any
    ) -> tuple[types.LearnerState, Any]:
        data = rows(state, constants, item, jax.random.fold_in(key, state.steps))
        state, feedback = learner.step(state, types.Batch.of(data), constants)
        return state, report(feedback, data)

    def run(
        state: types.LearnerState, constants: types.Constants, items: Any, key: types.Key
    ) -> tuple[types.LearnerState, Any]:
        return jax.lax.scan(functools.partial(step, constants, key), state, items)

    return run


def stored(state: types.LearnerState, constants: types.Constants, item: Any, key: types.Key) -> Any:
    """Returns the item itself: the `rows` of `scan` for items that are batches of a data set."""
    del state, constants, key
    return item


def with_params(state: types.LearnerState, params: types.Params) -> types.LearnerState:
    """Replaces the parameters and target parameters of a freshly initialised state by copies.

    Raises:
      ValueError: if they differ from those drawn in structure, shape or dtype.
    """
    trees.check_alike("the parameters given", _described(params), trees.named_leaves(state.params))
    # Copies: the program that updates the parameters may reuse their buffers.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    return state._replace(params=copy(params), targets={n: copy(params) for n in state.targets})


def _described(tree: Any) -> dict[str, trees.Leaf]:
    return {name: trees.describe(name, leaf) for name, leaf in trees.named_leaves(tree).items()}

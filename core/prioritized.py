"""Prioritised draws: a tree of sums over the slots of a replay, and the weights that undo the bias.

    P(i) = p_i^omega / sum_k p_k^omega,     w_i = (min_j P(j) / P(i))^beta

Schaul et al., "Prioritized experience replay", ICLR 2016, https://arxiv.org/abs/1511.05952: the
proportional variant, with one draw from each of B equal parts of the sum. A new item has the
largest priority ever given (1 at first), so that it is drawn soon.

The tree is wide: a node has 64 children, so that a million slots are four levels, and a batch
descends all at once, without a loop over items, in NumPy and in JAX. A sum is computed from its
terms whenever one changes, so that no error accumulates.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types

CHILDREN = 64  # Of a node.
SMALLEST = 1e-10  # Added to a priority, so that an item of none is still drawn at times.


class State(NamedTuple):
    """Masses p^omega of N slots, 0 where there is nothing to draw, and their sums."""

    levels: tuple[types.Array, ...]  # float32: the masses, their sums, .. to one node: [64].
    largest: types.Array  # float32, []: mass of an item that was not learnt from yet.


class Scheme(NamedTuple):
    """Priorities of N slots as functions. The host's change the arrays of their argument."""

    init: Callable[[], State]
    insert: Callable[[Any, Any, Any], State]  # (state, slots, is_new): new items, or none.
    update: Callable[[Any, Any, Any], State]  # (state, slots [B], priorities [B]).
    # (state, uniform [U, B]) -> slots, P; [U B]: U batches, each over the whole sum.
    draw: Callable[[Any, Any], tuple[Any, Any]]


def memory_needed(size: int) -> int:
    """Returns the bytes of the tree over `size` slots."""
    return 4 * sum(_widths(size))


def make(xp: Any, size: int, exponent: float) -> Scheme:
    """Makes the priorities of `size` slots.

    `insert` gives slots the largest mass where `is_new`, and none elsewhere; number `size` is no
    slot, and ignored. `update` ignores slots without mass, which were overwritten since they were
    drawn. If a slot comes twice in a batch, the larger priority holds, on every device.

    Args:
      xp: `numpy` or `jax.numpy`.
      size: N.
      exponent: omega > 0.
    """
    widths = _widths(size)

    def init() -> State:
        levels = tuple(xp.zeros(width, np.float32) for width in widths)
        return State(levels, xp.ones((), np.float32))

    def assign(state: State, slots: Any, masses: Any) -> State:
        levels = [_put_largest(state.levels[0], slots, masses)]
        for above in state.levels[1:]:
            slots = slots // CHILDREN
            parts = levels[-1].reshape(-1, CHILDREN)[slots]
            levels.append(_put(above, slots, parts.sum(-1)))
        return state._replace(levels=tuple(levels))

    def insert(state: State, slots: Any, is_new: Any) -> State:
        return assign(state, slots, xp.where(is_new, state.largest, np.float32(0)))

    def update(state: State, slots: Any, priorities: Any) -> State:
        masses = (priorities + np.float32(SMALLEST)) ** np.float32(exponent)
        known = state.levels[0][slots] > 0
        state = assign(state, xp.where(known, slots, size), xp.where(known, masses, np.float32(0)))
        return state._replace(largest=xp.maximum(state.largest, masses.max()))

    def draw(state: State, uniform: Any) -> tuple[Any, Any]:
        total = state.levels[-1].sum()
        count = uniform.shape[-1]
        # What is left of the sum before the item, at first that before the whole batch's part.
        left = (np.arange(count, dtype=np.float32)[None] + uniform) * (total / count)
        left = left.ravel()
        node = xp.zeros(len(left), np.int32)
        for level in reversed(state.levels):
            masses = level.reshape(-1, CHILDREN)[node]  # [B, 64]
            sums = masses.cumsum(-1)
            child = _first_above(xp, sums, masses, left)
            at = child[:, None]
            before = xp.take_along_axis(sums, at, -1) - xp.take_along_axis(masses, at, -1)
            left, node = left - before[:, 0], node * CHILDREN + child
        node = node.astype(np.int32)
        return node, state.levels[0][node] / total

    return Scheme(init, insert, update, draw)


def importance_weights(probabilities: types.Array, exponent: types.Array | float) -> jax.Array:
    """Returns the weights (min_j P(j) / P(i))^beta <= 1 of probabilities [B]; ones if they agree.

    Schaul et al. divide by the largest weight, for stability; the number of items cancels.
    """
    return (jnp.min(probabilities) / probabilities) ** exponent


def weighted(learner: types.Learner, exponent: Callable[[jax.Array], Any]) -> types.Learner:
    """Wraps a learner with importance weights; `exponent` is beta, of the learner steps done."""

    def step(
        state: types.LearnerState,
        batch: types.Batch,
        constants: types.Constants = types.NO_CONSTANTS,
    ) -> tuple[types.LearnerState, types.Feedback]:
        weights = importance_weights(batch.probabilities, exponent(state.steps))
        return learner.step(state, batch._replace(weights=batch.weights * weights), constants)

    return types.Learner(learner.init, step)


def _widths(size: int) -> list[int]:
    """Returns the entries of each level, in whole nodes; one slot above `size` stays empty."""
    widths = [math.ceil((size + 1) / CHILDREN) * CHILDREN]
    while widths[-1] > CHILDREN:
        widths.append(math.ceil(widths[-1] / CHILDREN / CHILDREN) * CHILDREN)
    return widths


def _first_above(xp: Any, sums: Any, masses: Any, left: Any) -> Any:
    """Finds the first child with mass whose sum is above `left`, [B]; else the last with mass."""
    above = sums > left[:, None]
    if xp is np and above[:, -1].all():
        return above.argmax(-1)  # NumPy adds one after another: where a sum rises is a mass.
    inside = above & (masses > 0)
    # Rounding may put `left` beyond the last sum.
    final = CHILDREN - 1 - (masses > 0)[:, ::-1].argmax(-1)
    return xp.where(inside.any(-1), inside.argmax(-1), final)


def _put(array: Any, index: Any, value: Any) -> Any:
    if isinstance(array, np.ndarray):
        array[index] = value
        return array
    return array.at[index].set(value)  # Where an index stands twice, so does its value.


def _put_largest(array: Any, index: Any, value: Any) -> Any:
    """Sets `array[index] = value`, of several values for one index the largest."""
    if isinstance(array, np.ndarray):
        array[index] = 0
        np.maximum.at(array, index, value)
        return array
    return array.at[index].set(0).at[index].max(value)

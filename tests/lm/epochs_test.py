"""Tests of lm/epochs.py."""

import collections

import hypothesis
import numpy as np
from hypothesis import strategies as st

from kullback.lm import epochs


@hypothesis.settings(deadline=None)
@hypothesis.given(num_items=st.integers(1, 30), size=st.integers(1, 9), seed=st.integers(0, 2**40))
def test_every_item_comes_once_an_epoch(num_items: int, size: int, seed: int):
    def draw(step: int) -> np.ndarray:
        return epochs.indices(step, num_items=num_items, batch_size=size, seed=seed)

    steps = -(-3 * num_items // size)
    stream = np.concatenate([draw(step) for step in range(steps)])
    for epoch in range(3):
        part = stream[epoch * num_items : (epoch + 1) * num_items]
        np.testing.assert_array_equal(np.sort(part), np.arange(num_items))
    epochs.permutation.cache_clear()  # As in a run that was killed and goes on.
    for step in reversed(range(steps)):
        np.testing.assert_array_equal(draw(step), stream[step * size : (step + 1) * size])


def test_order_is_that_of_every_numpy():
    # Recorded once: a run that goes on under another NumPy must draw what it would have drawn.
    np.testing.assert_array_equal(epochs.permutation(8, 3, 1), [7, 3, 5, 6, 4, 0, 2, 1])
    assert not np.array_equal(epochs.permutation(64, 3, 1), epochs.permutation(64, 3, 2))
    assert not np.array_equal(epochs.permutation(64, 3, 1), epochs.permutation(64, 4, 1))


def test_permutations_are_uniform():
    # Each of 6 orders of three items, 6000 times in all; chi-square with 5 degrees of freedom.
    orders = collections.Counter(tuple(epochs.permutation(3, 7, n)) for n in range(6_000))
    statistic = sum((count - 1_000) ** 2 / 1_000 for count in orders.values())
    assert len(orders) == 6 and statistic < 20.5  # Exceeded with probability 0.001.


def test_sorting_by_length_pads_less_and_loses_nothing():
    lengths = np.random.default_rng(0).integers(1, 200, 64)

    def draw(step: int, batches_per_sort: int) -> np.ndarray:
        return epochs.indices(
            step,
            num_items=64,
            batch_size=4,
            seed=5,
            lengths=lengths,
            batches_per_sort=batches_per_sort,
        )

    padding = {}
    for n in (1, 8):
        epoch = np.stack([draw(step, n) for step in range(16)])
        np.testing.assert_array_equal(np.sort(epoch, axis=None), np.arange(64))
        padding[n] = np.sum(lengths[epoch].max(1, keepdims=True) - lengths[epoch])
    assert padding[8] < 0.4 * padding[1]
    longest = [lengths[draw(step, 8)].max() for step in range(8)]
    assert longest != sorted(longest)  # Short ones do not always come first.
    # More batches than an epoch has are no more than it has.
    np.testing.assert_array_equal(draw(3, 16), draw(3, 1_000))

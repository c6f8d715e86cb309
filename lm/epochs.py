"""The order of examples, in epochs that follow each other.

The examples of a step's batch depend on (seed, step) alone, so that a run that is resumed in the
middle of an epoch continues exactly, and nothing but the step is saved. An epoch is a permutation
of the examples; epochs follow each other without a gap, so every batch is full, and may hold the
end of one epoch and the beginning of the next.

B rows of a batch, N examples.
"""

import functools

import numpy as np


def indices(
    step: int,
    *,
    num_items: int,
    batch_size: int,
    seed: int,
    lengths: np.ndarray | None = None,
    batches_per_sort: int = 1,
) -> np.ndarray:
    """Returns the items of batch `step`, int64, [B]: a pure function of its arguments.

    They are numbers B step to B (step + 1) of the epochs' concatenated permutations, so that each
    item comes once an epoch.

    Args:
      step: number of the batch, from 0.
      num_items: N.
      batch_size: B.
      seed: of the permutations.
      lengths: int, [N]; None does not sort.
      batches_per_sort: with `lengths`, the items of so many batches (at most an epoch's) are
        sorted by length and cut into these batches, which are then put in random order.

    Raises:
      ValueError: for a negative step.
    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    window = 1 if lengths is None else max(1, min(batches_per_sort, num_items // batch_size))
    if lengths is None or window == 1:
        return stream(step * batch_size, batch_size, num_items, seed)
    number, place = divmod(step, window)
    size = window * batch_size
    items = stream(number * size, size, num_items, seed)
    items = items[np.argsort(lengths[items], kind="stable")].reshape(window, batch_size)
    # 2^63 keeps these permutations apart from those of the epochs.
    return items[permutation(window, seed, 2**63 + number)[place]]


@functools.lru_cache(maxsize=16)  # Of each data set the epoch and the next; orders of batches.
def permutation(size: int, seed: int, number: int) -> np.ndarray:
    """Returns permutation `number` of `seed`, int64, [size].

    It sorts a bit generator's raw output, which NumPy promises never to change; the algorithms
    of `Generator` may.
    """
    bits = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(size)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False
    return order


def stream(begin: int, size: int, num_items: int, seed: int, *, first: int = 0) -> np.ndarray:
    """Returns items `begin` to `begin + size` of the epochs' concatenated permutations, int64.

    Args:
      begin: items drawn before, >= 0.
      size: number of items >= 1.
      num_items: N.
      seed: of the permutations.
      first: number of the first epoch's permutation, which keeps data sets of a seed apart.
    """
    slices = []
    while size:
        epoch, offset = divmod(begin, num_items)
        items = permutation(num_items, seed, first + epoch)[offset : offset + size]
        slices.append(items)
        begin, size = begin + len(items), size - len(items)
    return np.concatenate(slices)

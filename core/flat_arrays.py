"""Sums and dot products of large flat NumPy arrays, such as whole models, a block at a time.

Each block stays in the cache while all arrays are gone through. Numbers that are not finite stay so
without a warning, as in JAX.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK = 1 << 16  # Numbers of a NumPy array that are computed at a time, so that they stay cached.
# Length of a dot product. OpenBLAS gives one of more than 10,000 numbers to its own threads, which
# wait for each other if the caller has threads too: 317 s instead of 12 on busy cores.
ROW = 1 << 13


def gram(models: Sequence[np.ndarray], base: np.ndarray | None = None) -> np.ndarray:
    """Returns <theta_m - theta_0, theta_n - theta_0> of flat NumPy arrays, in float64: [M, M].

    Numbers that are not finite give NaN without a warning, as in JAX.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return _gram(models, base)


def _gram(models: Sequence[np.ndarray], base: np.ndarray | None) -> np.ndarray:
    (size,) = models[0].shape
    products = np.zeros((len(models), len(models)))
    width = -(-min(BLOCK, size) // ROW) * ROW
    tasks = np.zeros((len(models), width // ROW, ROW))
    gap = np.empty(width, _wide(models[0].dtype))
    for start in range(0, size, BLOCK):
        block, count = slice(start, start + BLOCK), min(BLOCK, size - start)
        for row, model in zip(tasks.reshape(len(models), -1), models, strict=True):
            if base is None:
                row[:count] = model[block]
            else:  # Models and base are near each other: the difference is exact, or nearly so.
                row[:count] = np.subtract(
                    model[block], base[block], out=gap[:count], dtype=gap.dtype
                )
            row[count:] = 0
        for m, rows in enumerate(tasks):
            for n in range(m + 1):
                products[m, n] += np.vecdot(rows, tasks[n]).sum()
    return np.tril(products) + np.tril(products, -1).T


def combine(parts: Sequence[np.ndarray], weights: np.ndarray, out: np.ndarray) -> None:
    """Writes sum_k w_k parts_k of flat NumPy arrays of one type to `out`; a weight of 0 is exact.

    Numbers that are not finite stay so without a warning, as in JAX.

    Args:
      parts: K arrays, [size] each.
      weights: float64, [K].
      out: [size], of their type.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        _combine(parts, weights, out)


def _combine(parts: Sequence[np.ndarray], weights: np.ndarray, out: np.ndarray) -> None:
    (size,) = out.shape
    wide = _wide(out.dtype)
    used = [(p, wide.type(w)) for p, w in zip(parts, weights, strict=True) if w != 0]
    total, term = np.zeros((2, min(BLOCK, size)), wide)
    for start in range(0, size, BLOCK):
        block = slice(start, start + BLOCK)
        sums, terms = (x[: min(BLOCK, size - start)] for x in (total, term))
        for k, (part, weight) in enumerate(used):
            np.multiply(part[block], weight, out=terms if k else sums, dtype=wide)
            if k:
                np.add(sums, terms, out=sums)
        out[block] = sums


def _wide(dtype: Any) -> np.dtype:
    """Returns the type to compute in: at least float32."""
    return np.promote_types(dtype, np.float32)

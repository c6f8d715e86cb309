"""Tests of core/flat_arrays.py; averaging_test.py holds what is made of it."""

import numpy as np
import pytest

from kullback.core import flat_arrays

SIZES = [1, 3, flat_arrays.ROW, flat_arrays.BLOCK - 1, 2 * flat_arrays.BLOCK + 5]


def test_dot_products_are_summed_in_float64():
    # In float32 a sum of squares of ones stops at 2^24.
    size = (1 << 24) + (1 << 16) + 3
    ones = np.ones(size, np.float32)
    np.testing.assert_array_equal(
        flat_arrays.gram([ones, -ones]), size * np.array([[1.0, -1.0], [-1.0, 1.0]])
    )


@pytest.mark.parametrize("size", SIZES)
def test_products_are_those_of_differences_from_the_base(size: int):
    random = np.random.default_rng(size)
    *models, base = random.normal(size=(4, size)).astype(np.float32)
    differences = np.subtract(models, base, dtype=np.float32).astype(np.float64)
    expected = differences @ differences.T
    np.testing.assert_allclose(flat_arrays.gram(models, base), expected, rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_combination_is_the_sum_over_blocks_and_a_weight_of_0_is_exact(size: int):
    random = np.random.default_rng(size)
    parts = random.normal(size=(3, size)).astype(np.float32)
    parts[1] = np.nan  # Its weight is 0.
    out = np.empty(size, np.float32)
    flat_arrays.combine(list(parts), np.array([0.25, 0.0, -2.0]), out)
    np.testing.assert_allclose(out, 0.25 * parts[0] - 2 * parts[2], rtol=1e-6)

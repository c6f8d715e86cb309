"""Tests of core/finite.py."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from kullback.core import finite


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_by_bits_as_by_numbers(dtype: type):
    limits = ml_dtypes.finfo(dtype)
    usual = np.array([0.0, -0.0, 1.5, limits.max, limits.min, limits.smallest_subnormal], dtype)
    assert finite.is_finite(usual) and finite.is_finite(usual.reshape(2, 3).T)
    for wrong in (np.nan, -np.nan, np.inf, -np.inf):
        for place in range(len(usual)):
            array = usual.copy()
            array[place] = wrong
            assert not finite.is_finite(array)


def test_the_parameter_is_named_with_its_place():
    w = np.zeros((2, 3), np.float32)
    params = {"a": {"b": jnp.ones(2), "steps": np.int32(3)}, "key": jax.random.key(0), "w": w}
    assert finite.find(params) is None
    finite.check(params, "run")
    w[1, 1:] = np.inf, np.nan
    assert finite.find(params) == "'w' is inf at [1, 1] and 1 more"
    with pytest.raises(ValueError, match=r"run: parameter 'w' is inf at \[1, 1\] and 1 more"):
        finite.check(params, "run")


def test_parameters_are_searched_only_where_there_is_nan():
    broken = {"scale": np.array(np.nan)}
    finite.require({"x": [0.0, -np.inf]}, broken, "logits")  # Of probability 0.
    with pytest.raises(ValueError, match="logits are not finite: parameter 'scale' is nan; take"):
        finite.require([1, np.array([np.nan])], broken, "logits")
    with pytest.raises(ValueError, match="although all parameters are: numbers overflow"):
        finite.require(np.nan, {"scale": np.ones(1)}, "logits")

"""Checks for parameters that are not finite, started where their results are not.

A search through all parameters of a large model takes as long as reading them, so results are
checked first, and parameters only if a result is not finite.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import trees, types


def find(params: types.Params) -> str | None:
    """Returns which parameter is not finite, and where; the first one, or None if all are."""
    for name, leaf in trees.named_leaves(params).items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not is_finite(np.asarray(leaf)):
            return describe(name, np.asarray(leaf))
    return None


def describe(name: str, array: np.ndarray) -> str:
    """Returns name, place and value of the first number of an array that is not finite."""
    at = np.unravel_index(np.argmax(~np.isfinite(array)), array.shape)
    count = np.count_nonzero(~np.isfinite(array))
    where = f" at {[int(i) for i in at]}" if array.ndim else ""
    more = f" and {count - 1} more" if count > 1 else ""
    return f"{name!r} is {float(array[at])}{where}{more}"


def require(values: Any, params: types.Params, what: str) -> None:
    """Checks results for NaN, and names the parameter that is to blame.

    Args:
      values: a tree of arrays. Only NaN is a fault, as a log-probability may be -inf.
      params: the parameters that computed them; searched only if there is a NaN.
      what: "log-probabilities of the model", for the message.

    Raises:
      ValueError: if a value is NaN.
    """
    if not any(np.isnan(np.asarray(x)).any() for x in jax.tree.leaves(values)):
        return
    path = find(params)
    if path is None:
        raise ValueError(
            f"{what} are not finite, although all parameters are: numbers overflow on the way; "
            "compute in float32"
        )
    raise ValueError(f"{what} are not finite: parameter {path}; take another checkpoint")


def check(params: types.Params, owner: Any) -> None:
    """Raises ValueError if a parameter of `owner`, a folder, is not finite."""
    if (path := find(params)) is not None:
        raise ValueError(f"{owner}: parameter {path}; take another checkpoint")


def is_finite(array: np.ndarray) -> bool:
    """Returns whether all of an array of NumPy's are finite, by their bits.

    ml_dtypes takes five times as long for bfloat16, and NumPy seven times for float16.
    """
    infinite = np.array(np.inf, array.dtype)
    bits = np.dtype(f"u{array.dtype.itemsize}")
    exponent = infinite.view(bits)
    return not bool(((array.view(bits) & exponent) == exponent).any())

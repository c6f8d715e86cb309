"""Double precision for one call, whatever the process' default is.

JAX computes in float32 unless a global flag says otherwise. Identities that hold to 1e-10 need
float64, and neural networks in the same process must not notice; so the public functions of
`theory` switch it on for their own duration, by a context of the calling thread.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def float64(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Returns a function that computes in float64 and returns NumPy arrays.

    Floating arrays go in as float64. Results are NumPy's because JAX would round a float64 of its
    own to float32 at the first operation outside. Under `jit` or `vmap` the arguments are traced,
    and so are the results: then the caller must have entered `jax.enable_x64(True)` itself.
    """

    @functools.wraps(function)
    def in_float64(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with jax.enable_x64(True):
            args, kwargs = jax.tree.map(_to_float64, (args, kwargs))
            return jax.tree.map(_to_host, function(*args, **kwargs))

    return in_float64


def _to_float64(x: Any) -> Any:
    is_array = isinstance(x, jax.Array | np.ndarray | np.floating)
    if is_array and jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.asarray(x, jnp.float64)
    return x


def _to_host(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, jax.Array) and not isinstance(x, Tracer) else x

"""Parameters and states of learners under test."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types


def fresh_params(init: Callable[[types.Key], types.Params], seed: int = 0) -> types.Params:
    """Returns parameters of a language model, of the sizes that `init` draws.

    NumPy draws them: to compile `init` takes as long as to compile what is tested.
    """
    random = np.random.default_rng(seed)

    def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name.endswith("norm"):
            return jnp.zeros(like.shape, like.dtype)
        inputs = like.shape[-1] if name == "embedding" else like.shape[-2]
        return jnp.asarray(random.normal(size=like.shape) / math.sqrt(inputs), like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0)))


def random_params(init: Callable[..., types.Params], *arguments: Any) -> types.Params:
    """Returns parameters of any network, of the sizes that `init` draws; NumPy draws biases too."""
    random = np.random.default_rng(0)

    def leaf(like: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = 1 / math.sqrt(math.prod(like.shape[:-1]))
        return (scale * random.normal(size=like.shape)).astype(like.dtype)

    return jax.tree.map(leaf, jax.eval_shape(init, *arguments))


def begun(learner: types.Learner, params: types.Params, seed: int = 0) -> types.LearnerState:
    """Returns the state before the first step from these parameters; draws no others."""

    @jax.jit
    def rest(key: types.Key) -> types.LearnerState:
        return learner.init(key)._replace(params=None)

    return rest(jax.random.key(seed))._replace(params=params)

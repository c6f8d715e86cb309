"""Rows of a batch of sequences: filled up, joined, and as the ends of episodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types


def padded(rows: Any, num_rows: int) -> np.ndarray:
    """Returns the rows, and zeros after them, [num_rows, ...]."""
    rows = np.asarray(rows)
    return np.concatenate([rows, np.zeros((num_rows - len(rows), *rows.shape[1:]), rows.dtype)])


def join(sampled: Any, stored: Any) -> jax.Array:
    """Returns sampled rows, and stored ones after them."""
    return jnp.concatenate([jnp.asarray(sampled), jnp.asarray(stored)])


def ended(score: Any, num_rows: int) -> types.TimeStep:
    """Returns a timestep of B rows, the first n of which end with `score`, [n], as reward."""
    score = jnp.asarray(score, jnp.float32)
    is_last = jnp.arange(num_rows) < len(score)
    return types.TimeStep(
        step_type=jnp.where(is_last, types.LAST, types.MID).astype(jnp.int8),
        reward=jnp.zeros(num_rows, jnp.float32).at[: len(score)].set(score),
        discount=jnp.zeros(num_rows, jnp.float32),
        observation=None,  # pyright: ignore[reportArgumentType]  # Nobody looks.
        next_observation=None,  # pyright: ignore[reportArgumentType]
    )

"""A copy of a host replay's frames in the accelerator's memory, where batches are gathered.

The host's replay draws as ever, so that batches are the same: it hands over the rows of a batch's
frames in place of the frames, and of each tick the frames that are new. Of Atari's batches of 256
items that moves a sixteenth of the bytes, and the host copies no frame for them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types


def copy(frames: np.ndarray) -> jax.Array:
    """Returns the copy of a replay's frames, [rows, ...].

    Raises:
      ValueError: if the device's memory has no room for it.
    """
    stats = jax.devices()[0].memory_stats() or {}  # A CPU has none.
    room = stats.get("bytes_limit", frames.nbytes) - stats.get("bytes_in_use", 0)
    if stats and frames.nbytes > room:
        raise ValueError(
            f"the replay's frames are {frames.nbytes / 1e9:.2f} GB and the device has room for "
            f"{room / 1e9:.2f} GB; set frames_on=host, or a smaller capacity"
        )
    return jnp.array(frames)  # Never a view, as `jnp.asarray` may be: the host's change in place.


@functools.partial(jax.jit, donate_argnums=0)
def write(frames: jax.Array, rows: types.Array, new: types.Array) -> jax.Array:
    """Returns the copy with new frames [n, ...] in rows [n]; the old one is gone."""
    return frames.at[rows].set(new)


def gathered(frames: jax.Array | None, batch: types.Batch) -> types.Batch:
    """Returns a batch with frames in place of their rows; as it is, if there is no copy."""
    if frames is None:
        return batch
    t: types.Transition = batch.data
    data = t._replace(
        observation=frames[t.observation], next_observation=frames[t.next_observation]
    )
    return batch._replace(data=data)

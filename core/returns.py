"""The return of the next n steps, over NumPy or JAX: here alone rewards are discounted."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from kullback.core import types

__all__ = ["n_step_return"]


def n_step_return(
    reward: types.Array,
    discount: types.Array,
    last: types.Array,
    gamma: float,
    clip: float | None,
) -> tuple[Any, Any, Any]:
    """Returns m-step return, discount and m; only here rewards are clipped and discounted.

        m          = min(n, steps to the end of the episode)
        reward_t   = sum_{i<m} gamma^i clip(r_i),    discount_t = gamma^m prod_{i<m} d_i

    Args:
      reward, discount: raw rewards and 0/1 discounts of n steps, float32, [B, n].
      last: bool, [B, n], where an episode ended; what follows it is ignored.
      gamma: discount per step.
      clip: bound of each reward's size, or None.

    Returns:
      reward_t and discount_t, [B], float32, and m, int32, [B]. A truncated episode keeps
      gamma^m; only a true end gives 0.
    """
    xp = np if isinstance(reward, np.ndarray) else jnp
    if reward.ndim != 2 or not reward.shape == discount.shape == last.shape:
        shapes = [list(x.shape) for x in (reward, discount, last)]  # No chex: a host draws often.
        raise AssertionError(f"reward, discount and last must be [B, n], got {shapes}")
    if clip is not None:
        reward = xp.minimum(xp.maximum(reward, -clip), clip)  # np.clip costs as much as ten ops.
    total, factor = reward[:, 0], np.float32(gamma) * discount[:, 0]
    length, alive = xp.ones(len(reward), np.int32), True
    for i in range(1, reward.shape[1]):
        alive = alive & ~last[:, i - 1]
        total = total + xp.where(alive, factor * reward[:, i], 0)
        factor = xp.where(alive, np.float32(gamma) * factor * discount[:, i], factor)
        length = length + alive
    return total, factor, length

"""Attention of a full pass: the kernel that it goes through, chosen in one place.

On NVIDIA's GPUs cuDNN's kernel, by `jax.nn.dot_product_attention`, keeps no scores in memory and
leaves out what a window hides. It takes half precision alone, and heads that its registers hold.
Everywhere else, and for the ring of a cache, attention is `layers.attend`.

Shape letters: B rows, T tokens, N query heads, K key-value heads, H width of a head, W window.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from kullback.lm import layers

Kernel = Literal["cudnn", "xla"]  # Implementations of `jax.nn.dot_product_attention`.


class Device(NamedTuple):
    """The facts of a device that a kernel asks for."""

    is_cuda: bool
    capability: float  # NVIDIA's compute capability: 8.0 of Ampere, 9.0 of Hopper.


def device() -> Device:
    """Returns the facts of the default device."""
    first: Any = jax.local_devices()[0]
    is_cuda = jax.default_backend() == "gpu" and "cuda" in first.client.platform_version
    return Device(is_cuda, float(first.compute_capability) if is_cuda else 0.0)


def kernel(
    device: Device, dtype: Any, head_dim: int, length: int, *, is_packed: bool = False
) -> Kernel | None:
    """Returns the kernel of a full pass; None is `layers.attend`.

    Args:
      device: that computes.
      dtype: of queries, keys and values.
      head_dim: H.
      length: T.
      is_packed: whether rows have several texts; their mask is then a bias, of which the gradient
        takes even lengths alone.
    """
    widest = 256 if device.capability >= 9 else 128
    is_half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if not device.is_cuda or not is_half or head_dim > widest or head_dim % 8:
        return None
    # Over a mesh a single key-value head lies on all devices and queries do not: cuDNN wants both
    # cut alike.
    if not jax.sharding.get_abstract_mesh().empty or (is_packed and length % 2):
        return None
    return "cudnn"


def full(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array,
    window: int | None,
    is_packed: bool,
    looks_ahead: bool = False,
) -> tuple[jax.Array, None]:
    """Attends to the tokens of the same pass.

    Args:
      q: scaled queries, [B, T, N, H].
      k, v: [B, T, K, H].
      mask: bool, [B or 1, T, T]: what `window` says, and texts of a row apart.
      window: W of a layer that attends to the last W tokens; None is all before.
      is_packed: whether the mask says more than window and order.
      looks_ahead: whether it says what order would hide, as an image's tokens see later ones.

    Returns:
      [B, T, N * H], and None: nothing is stored.
    """
    is_biased = is_packed or looks_ahead
    chosen = kernel(device(), q.dtype, q.shape[-1], q.shape[1], is_packed=is_biased)
    if chosen is None:
        return layers.attend_all(q, k, v, mask)
    given = mask if is_biased else None
    return by_kernel(chosen, q, k, v, given, window, looks_ahead=looks_ahead), None


def by_kernel(
    chosen: Kernel,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    window: int | None,
    *,
    looks_ahead: bool = False,
) -> jax.Array:
    """Returns what `layers.attend_all` does, by a kernel of JAX; mask None is order and window."""
    length = q.shape[1]
    is_local = mask is None and window is not None and window < length
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=None if mask is None else mask[:, None],
        scale=1.0,
        is_causal=not looks_ahead,
        local_window_size=(window - 1, 0) if is_local and window is not None else None,
        implementation=chosen,
    )
    return out.reshape(*q.shape[:2], -1)

"""2-D convolution in the form that is fastest where it runs.

On a TPU that is XLA's own. XLA's is slow on CPUs, its weight gradient most, and on GPUs for small
batches, and where seeds that train in one program have different weights. There one matrix product
replaces it: each row of its left side is a patch of one image row, k columns wide, and its outputs
are what the patch adds to each of the k result rows that it takes part in. Compared with the usual
patches of k x k this copies a k-th as much and multiplies a little more. Strides are first folded
into channels (space to depth). Weights and results are those of XLA's form.

Stacks of frames come with channels first. Their bytes are moved as words of four: the bytes of a
patch are neighbours in a row of pixels, and one word is moved five times as fast.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Padding = Literal["VALID", "SAME"]


def conv2d(
    x: jax.Array,
    w: jax.Array,
    stride: int,
    padding: Padding = "VALID",
    *,
    channels_first: bool = False,
) -> jax.Array:
    """Convolves (correlates) images, [B, H', W', O], in the dtype of `w`.

    Args:
      x: images of any dtype, [B, H, W, C], or [B, C, H, W] if `channels_first`.
      w: weights, [k, k, C, O].
      stride: of both axes.
      padding: VALID, or SAME as TensorFlow pads: H' = ceil(H / stride), the odd zero at the end.
      channels_first: of `x` alone.
    """
    kernel = w.shape[0]
    if padding == "SAME":
        size = x.shape[2:] if channels_first else x.shape[1:3]
        pads = jax.lax.padtype_to_pads(size, (kernel, kernel), (stride, stride), "SAME")
        x = jnp.pad(x, ((0, 0), (0, 0), *pads) if channels_first else ((0, 0), *pads, (0, 0)))
    if prefers_product() and kernel % stride == 0:
        return _by_matmul(*_space_to_depth(x, w, stride, channels_first))
    order = ("NCHW" if channels_first else "NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x.astype(w.dtype), w, (stride, stride), "VALID", dimension_numbers=order
    )


def prefers_product() -> bool:
    """Returns whether this platform runs a matrix product faster."""
    return jax.default_backend() != "tpu"


def _space_to_depth(
    x: jax.Array, w: jax.Array, s: int, channels_first: bool
) -> tuple[jax.Array, jax.Array]:
    """Rewrites a convolution whose stride s divides the kernel as one of stride 1.

    Images become [B, h, w, s s C] (in some order of the last), weights [n s, n s, C, O]
    [n, n, s s C, O].
    """
    n = w.shape[0] // s
    w = w.reshape(n, s, n, s, w.shape[2], w.shape[3])
    if channels_first:
        batch, channels, height, width = x.shape
        h, v = height // s, width // s
        x = x[:, :, : h * s, : v * s].reshape(batch, channels, h, s, v, s)
        word = {2: jnp.uint16, 4: jnp.uint32}.get(s) if x.dtype == jnp.uint8 else None
        if word is None:
            x = x.transpose(0, 2, 4, 1, 3, 5)
        else:
            packed = jax.lax.bitcast_convert_type(x, word).transpose(0, 2, 4, 1, 3)
            x = jax.lax.bitcast_convert_type(packed, jnp.uint8)
        w = w.transpose(0, 2, 4, 1, 3, 5)
    else:
        batch, height, width, channels = x.shape
        h, v = height // s, width // s
        x = x[:, : h * s, : v * s]  # No patch reaches the rest.
        x = x.reshape(batch, h, s, v, s, channels).transpose(0, 1, 3, 2, 4, 5)
        w = w.transpose(0, 2, 1, 3, 4, 5)
    return x.reshape(batch, h, v, -1), w.reshape(n, n, s * s * channels, -1)


def _by_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves with stride 1: [B, H, W, C] by [n, n, C, O] is [B, H - n + 1, W - n + 1, O]."""
    batch, height, width, channels = x.shape
    n, filters = w.shape[0], w.shape[-1]
    h, v = height - n + 1, width - n + 1
    # Bytes are arranged before they become floats, which copies a quarter as much.
    patches = jnp.concatenate([x[:, :, j : j + v] for j in range(n)], axis=-1).astype(w.dtype)
    w = w.transpose(1, 2, 0, 3).reshape(n * channels, n * filters)
    y = _matmul(patches.reshape(batch * height * v, -1), w)
    parts = jnp.split(y.reshape(batch, height, v, n * filters), n, axis=-1)  # One a row of w.
    return sum((part[:, i : i + h] for i, part in enumerate(parts[1:], 1)), parts[0][:, :h])


@jax.custom_vjp
def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


def _matmul_backward(
    saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    # The short side first, then turned: for a tall `a` twice as fast as a.T @ dy, which XLA would
    # make of it but for the barrier.
    return dy @ b.T, jax.lax.optimization_barrier(dy.T @ a).T


_matmul.defvjp(lambda a, b: (a @ b, (a, b)), _matmul_backward)

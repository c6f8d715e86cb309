"""2-D convolution in the form that is fastest where it runs.

On accelerators that is XLA's own. On CPUs XLA's is slow, its weight gradient most, and one matrix
product takes its place: each row of the left side is one image row's patch, k columns wide, and
each of its outputs is what that patch adds to one of the k rows of results it takes part in.
Against the usual patches of k x k this copies a k-th as much and multiplies a little more.
Strides are folded into channels first (space to depth). Weights and numbers are the same.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Padding = Literal["VALID", "SAME"]


def conv2d(x: jax.Array, w: jax.Array, stride: int, padding: Padding = "VALID") -> jax.Array:
    """Convolution (correlation) of images, [B, H', W', O], of the dtype of `w`.

    Args:
      x: images, [B, H, W, C], of any dtype; bytes are moved as bytes.
      w: weights, [k, k, C, O].
      stride: of both axes.
      padding: VALID, or SAME as TensorFlow pads: H' = ceil(H / stride), the odd zero at the end.
    """
    kernel = w.shape[0]
    if padding == "SAME":
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (kernel, kernel), (stride, stride), "SAME")
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # The one place where the platform decides.
    if jax.default_backend() == "cpu" and kernel % stride == 0:
        return _by_matmul(*_space_to_depth(x, w, stride))
    return jax.lax.conv_general_dilated(
        x.astype(w.dtype), w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _space_to_depth(x: jax.Array, w: jax.Array, s: int) -> tuple[jax.Array, jax.Array]:
    """A convolution of stride 1 that equals one of stride s which divides the kernel.

    Images [B, h s, w s, C] become [B, h, w, s s C], weights [n s, n s, C, O] [n, n, s s C, O].
    """
    batch, height, width, channels = x.shape
    h, v, n = height // s, width // s, w.shape[0] // s
    x = x[:, : h * s, : v * s]  # No patch reaches the rest.
    x = x.reshape(batch, h, s, v, s, channels).transpose(0, 1, 3, 2, 4, 5)
    w = w.reshape(n, s, n, s, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return x.reshape(batch, h, v, -1), w.reshape(n, n, s * s * channels, -1)


def _by_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolution of stride 1: [B, H, W, C] by [n, n, C, O] is [B, H - n + 1, W - n + 1, O]."""
    batch, height, width, channels = x.shape
    n, filters = w.shape[0], w.shape[-1]
    h, v = height - n + 1, width - n + 1
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

"""2-D convolution in the form that is fastest where it runs.

Everywhere that is XLA's own, but for the weight gradient on CPUs. There XLA's takes twice the
time of a few tall matrix products over shifted images, with strides folded into channels first
(space to depth). The numbers and the weights are the same.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

Padding = Literal["VALID", "SAME"]


def conv2d(x: jax.Array, w: jax.Array, stride: int, padding: Padding = "VALID") -> jax.Array:
    """Convolution (correlation) of images, [B, H', W', O].

    Args:
      x: images, [B, H, W, C], of the dtype of `w`.
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
        return _on_cpu(x, w, stride)
    return _by_xla(x, w, stride)


def _by_xla(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _on_cpu(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    return _by_xla(x, w, stride)


def _forward(
    x: jax.Array, w: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _by_xla(x, w, stride), (x, w)


def _backward(
    stride: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    _, pull_back = jax.vjp(lambda x: _by_xla(x, w, stride), x)
    (dx,) = pull_back(dy)  # XLA drops it where nobody asks (observations).
    return dx, _weight_gradient(x, dy, stride, w.shape[0])


def _weight_gradient(x: jax.Array, dy: jax.Array, stride: int, kernel: int) -> jax.Array:
    """Gradient [k, k, C, O] for images [B, H, W, C] and cotangents [B, H', W', O]."""
    batch, height, width, filters = dy.shape
    channels, blocks = x.shape[-1], kernel // stride
    rows, columns = height + blocks - 1, width + blocks - 1
    x = x[:, : rows * stride, : columns * stride]  # No patch reaches the rest.
    x = x.reshape(batch, rows, stride, columns, stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
    # Without the barrier XLA does the transposition again for each shift.
    x = jax.lax.optimization_barrier(x)
    dy = dy.reshape(-1, filters).T  # [O, B H' W']
    parts = [
        # The short side first, then turned: twice as fast as x.T @ dy, which XLA would make of
        # it but for the barrier.
        jax.lax.optimization_barrier(
            dy @ x[:, i : i + height, j : j + width].reshape(batch * height * width, -1)
        ).T
        for i in range(blocks)
        for j in range(blocks)
    ]
    dw = jnp.stack(parts).reshape(blocks, blocks, stride, stride, channels, filters)
    return dw.transpose(0, 2, 1, 3, 4, 5).reshape(kernel, kernel, channels, filters)


_on_cpu.defvjp(_forward, _backward)

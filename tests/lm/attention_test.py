"""Tests of lm/attention.py; on a CPU JAX's own implementation stands for cuDNN's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import attention, gemma, layers

B, T, H = 2, 8, 8
HOPPER, AMPERE = attention.Device(True, 9.0), attention.Device(True, 8.0)
CPU = attention.Device(False, 0.0)
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2], [0] * T])


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "length", "is_packed", "expected"),
    [
        (HOPPER, "bfloat16", 256, 7, False, "cudnn"),
        (AMPERE, "bfloat16", 256, 7, False, None),  # Beyond its registers.
        (AMPERE, "float16", 128, 7, False, "cudnn"),
        (HOPPER, "float32", 256, 7, False, None),
        (HOPPER, "bfloat16", 12, 7, False, None),
        (HOPPER, "bfloat16", 256, 7, True, None),
        (HOPPER, "bfloat16", 256, 8, True, "cudnn"),
        (CPU, "bfloat16", 256, 8, False, None),
    ],
)
def test_the_kernel_follows_from_device_type_and_shape(
    device: attention.Device,
    dtype: str,
    head_dim: int,
    length: int,
    is_packed: bool,
    expected: str | None,
):
    got = attention.kernel(device, dtype, head_dim, length, is_packed=is_packed)
    assert got == expected


def test_a_mesh_has_our_own(monkeypatch: pytest.MonkeyPatch):
    mesh = jax.sharding.AbstractMesh((1, 1), ("data", "model"))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    assert attention.kernel(HOPPER, "bfloat16", 256, 8) is None


@functools.cache
def both(window: int | None, is_packed: bool, num_kv_heads: int):
    """Returns outputs and gradients of JAX's kernel, and of ours."""
    index = np.arange(T)
    mask = (index[None] <= index[:, None])[None]
    if window is not None:
        mask = mask & (index[None] > index[:, None] - window)[None]
    if is_packed:
        mask = mask & (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (4, num_kv_heads, num_kv_heads)
    arrays = [jax.random.normal(key, (B, T, n, H)) for key, n in zip(keys, heads, strict=False)]
    weights = jax.random.normal(keys[3], (B, T, 4 * H))

    def value(attend, *arrays):
        out = attend(*arrays)
        return jnp.sum(weights * out), out

    given = jnp.asarray(mask) if is_packed else None
    theirs = functools.partial(attention.by_kernel, "xla", mask=given, window=window)
    ours = lambda q, k, v: layers.attend_all(q, k, v, jnp.asarray(mask))[0]  # noqa: E731
    return [
        jax.jit(jax.grad(functools.partial(value, attend), (0, 1, 2), has_aux=True))(*arrays)
        for attend in (theirs, ours)
    ]


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize(
    ("window", "is_packed"),
    [
        (3, True),
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param(3, False, marks=pytest.mark.slow),
        pytest.param(T + 1, False, marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_are_ours(window: int | None, is_packed: bool, num_kv_heads: int):
    with jax.default_matmul_precision("highest"):
        got, expected = both(window, is_packed, num_kv_heads)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), got, expected)


@pytest.mark.slow
def test_a_model_may_go_through_it(monkeypatch: pytest.MonkeyPatch):
    """Features of whole rows and of packed ones, with local and global layers."""
    config = dataclasses.replace(gemma.PRESETS["tiny"], num_layers=3, pattern=2, window=3)
    params = jax.jit(gemma.make(config).init)(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(3, 100, (B, T))
    chosen: list[bool] = []

    def choose(*_: object, is_packed: bool) -> attention.Kernel:
        chosen.append(is_packed)
        return "xla"

    got = {}
    for name in ("ours", "xla"):
        if name == "xla":
            monkeypatch.setattr(attention, "kernel", choose)
        features = jax.jit(gemma.make(config).features)
        got[name] = features(params, tokens), features(params, tokens, None, SEGMENTS)
    assert chosen == [False] * 3 + [True] * 3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got["xla"], got["ours"])

"""Tests of lm/siglip.py."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import siglip

CONFIG = siglip.Config(
    image_size=12, patch_size=3, embed_dim=8, num_layers=2, num_heads=2, hidden_dim=12
)


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def params():
    """Returns random parameters, scales and offsets of norms and biases too."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(siglip.make(CONFIG).init, jax.random.key(0))
    return jax.tree.map(lambda x: (0.4 * random.normal(size=x.shape)).astype(np.float32), shapes)


def images(number: int = 2) -> np.ndarray:
    shape = number, CONFIG.image_size, CONFIG.image_size, siglip.CHANNELS
    return np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)


def oracle(image: np.ndarray) -> np.ndarray:
    """Computes features [P, E] of an image by the definition, one patch and one head at a time."""
    p, size = jax.tree.map(np.float64, params()), CONFIG.patch_size

    def norm(x, of):
        scale, offset = of["scale"], of["offset"]
        variance = np.var(x, -1, keepdims=True)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6) * scale + offset

    def linear(x, of):
        return x @ of["w"] + of["b"]

    x = []
    kernel = p["embedding"]["patch"]["w"].reshape(size, size, 3, -1)
    for row in range(CONFIG.side):
        for column in range(CONFIG.side):
            pixels = image[row * size : (row + 1) * size, column * size : (column + 1) * size]
            x.append(np.einsum("ijc,ijce->e", np.float64(pixels), kernel))
    x = np.stack(x) + p["embedding"]["patch"]["b"] + p["embedding"]["table"]["position"]
    for i in range(CONFIG.num_layers):
        of = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
        h = norm(x, of["attention/norm"])
        q, k, v = (linear(h, of[f"attention/{name}"]) for name in ("query", "key", "value"))
        width = CONFIG.embed_dim // CONFIG.num_heads
        out = []
        for n in range(CONFIG.num_heads):
            head = slice(n * width, (n + 1) * width)
            weights = np.exp(q[:, head] @ k[:, head].T / math.sqrt(width))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
        x = x + linear(np.concatenate(out, -1), of["attention/output"])
        z = linear(norm(x, of["feed_forward/norm"]), of["feed_forward/up"])
        gelu = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        x = x + linear(gelu, of["feed_forward/down"])
    return norm(x, p["final"]["norm"])


# All queries at once; blocks that divide the patches; and that leave a rest.
@pytest.mark.parametrize("block", [16, 4, 7])
def test_oracle(block: int):
    apply = jax.jit(siglip.make(dataclasses.replace(CONFIG, query_block=block)).apply)
    x = images()
    for got, image in zip(apply(params(), x), x, strict=True):
        np.testing.assert_allclose(got, oracle(image), atol=1e-5)


def test_rows_and_columns_are_not_exchanged():
    apply = jax.jit(siglip.make(CONFIG).apply)
    x = images(1)
    turned = apply(params(), x.swapaxes(1, 2))[0]
    expected = np.asarray(apply(params(), x)[0]).reshape(CONFIG.side, CONFIG.side, -1)
    assert np.abs(turned - expected.swapaxes(0, 1).reshape(turned.shape)).max() > 0.1


def test_scores_of_one_block_of_one_head_are_in_memory_at_a_time():
    """Of a layer at 896 pixels all would be 16 4096^2 4 bytes, 1.07 GB."""
    config = siglip.Config(num_layers=1)
    model = siglip.make(config)
    like = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 896, 896, 3), jnp.float32)
    text = jax.jit(model.apply).lower(like, image).as_text()
    assert "x1024x4096xf32" in text or "x1024x1x4096xf32" in text
    for whole in ("16x1024x4096", "16x1024x1x4096", "4096x4096", "4096x1x4096"):
        assert whole not in text


@pytest.mark.slow
def test_blocks_and_rematerialisation_change_no_gradient():
    x = images(1)

    def gradient(**changes):
        model = siglip.make(dataclasses.replace(CONFIG, num_layers=1, **changes))
        of_one = jax.tree.map(lambda leaf: leaf[:1], params()["layers"])
        p = {**params(), "layers": of_one}
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, x)))))(p)

    plain, again = gradient(), gradient(query_block=7, remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), plain, again)


def test_bfloat16_is_near():
    half = siglip.make(dataclasses.replace(CONFIG, dtype="bfloat16"))
    got = jax.jit(half.apply)(params(), images(1))
    assert got.dtype == jnp.bfloat16
    expected = oracle(images(1)[0])
    assert np.abs(got[0].astype(np.float32) - expected).mean() < 0.05 * np.abs(expected).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "embed_dim must be a multiple of num_heads, got 8 and 3"),
        ({"image_size": 13}, "image_size must be a multiple of patch_size, got 13 and 3"),
        ({"image_size": 10**6}, r"image_size must lie in \[1, 16384\]"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be > 0"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16'"),
        ({"query_block": 0}, "query_block must be >= 1 patch, got 0"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
    with pytest.raises(AssertionError):
        siglip.make(CONFIG).apply(params(), np.zeros((1, 3, 12, 12), np.float32))

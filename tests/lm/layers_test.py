"""Tests of lm/layers.py; lm/gemma.py's hold a whole model to its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import layers


@pytest.mark.parametrize("large", [0, 10**9], ids=["in place", "apart"])
def test_the_gradient_of_a_table_that_is_used_twice(large: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "LARGE", large)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    ids = jnp.asarray([[4, 0, 4], [1, 4, 0]])

    def loss(rows, table):
        return jnp.sum(jnp.sin(rows)) + jnp.sum(jnp.cos(table) ** 2)

    got = jax.jit(jax.grad(lambda table: loss(*layers.lookup(table, ids))))(table)
    expected = -2 * np.cos(table) * np.sin(table)
    for i in ids.reshape(-1):
        expected[i] += np.cos(table[i])
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_rms_norm_golden():
    # The mean square of (3, 4) is 12.5; the scales are 1 + 0 and 1 + 1.
    got = layers.rms_norm(jnp.asarray([[3.0, 4.0]]), jnp.asarray([0.0, 1.0]), 1e-6)
    np.testing.assert_allclose(got, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)


def test_rms_norm_multiplies_before_it_rounds():
    x = jnp.asarray([[1.0, 0.7, -0.3]], jnp.bfloat16)
    scale = jnp.asarray([0.013, 0.29, -0.37])
    got = layers.rms_norm(x, scale, 1e-6)
    y = np.float64(x) / np.sqrt(np.mean(np.float64(x) ** 2)) * (1 + np.float64(scale))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.asarray(y, jnp.float32).astype(jnp.bfloat16))


def test_rope_golden():
    # H = 4, theta = 100: frequencies 1 and 1/10. Position 3, factor 2: angles 1.5 and 0.15.
    rope = layers.rope_table(jnp.asarray([[3]]), 4, 100.0, 2.0)
    np.testing.assert_allclose(rope[0], np.cos([[[1.5, 0.15]]]), rtol=1e-6)
    # Pairs are (0, 2) and (1, 3); the first of each is (1, 0), turned it is (cos, sin).
    x = jnp.asarray([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    expected = 5 * np.array([np.cos(1.5), np.cos(0.15), np.sin(1.5), np.sin(0.15)])
    np.testing.assert_allclose(layers.rotate(x, rope, 5.0)[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("variant", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_attend_golden(variant):
    # Scores ln 3 and 0 are weights 3/4 and 1/4; the second head shares keys and scores 0 and 0.
    q = jnp.asarray([np.log(3), 0.0]).reshape(1, 1, 2, 1)
    k = jnp.asarray([1.0, 0.0, 9.0]).reshape(1, 1, 3, 1)
    v = jnp.asarray([4.0, 8.0, 1e30]).reshape(1, 1, 3, 1)
    mask = jnp.asarray([[[True, True, False]]])
    got = variant(layers.attend)(q, k, v, mask)
    np.testing.assert_allclose(got, [[[5.0, 6.0]]], rtol=1e-6)


# A mask of all queries, and one of each; blocks that divide the queries, and that leave a rest.
@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("most", [2, 4])
def test_blocks_of_each_head_are_the_whole(queries: int, most: int):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 6, 4, 3))  # Two queries a key-value head.
    k, v = (jax.random.normal(key, (2, 2, 5, 3)) for key in keys[1:3])
    mask = jax.random.bernoulli(keys[3], 0.7, (2, queries, 5))

    def value(attend, q, k, v):
        out = attend(q, k, v)
        return jnp.sum(out * jnp.arange(out.size).reshape(out.shape)), out

    ways = (
        lambda q, k, v: layers.attend(q, k, v, mask),
        lambda q, k, v: layers.attend_in_blocks(q, k, v, mask, most),
    )
    whole, blocks = (
        jax.value_and_grad(lambda *given, way=way: value(way, *given), (0, 1, 2), has_aux=True)(
            q, k, v
        )
        for way in ways
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), whole, blocks)


def test_a_query_that_sees_nothing_is_finite():
    ones = jnp.ones((1, 2, 1, 2))
    nothing = jnp.zeros((1, 2, 2), bool)
    attended = jax.jit(
        jax.value_and_grad(lambda q: jnp.sum(layers.attend_all(q, ones, ones, nothing)[0]))
    )
    for number in attended(ones):
        assert np.all(np.isfinite(number))

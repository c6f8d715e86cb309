"""Tests of lm/vision.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import blocks, gemma, siglip, vision

# Of the specification: parameters of a projector by the size of its decoder.
PROJECTORS = {"gemma3-4b": 2_950_272, "gemma3-12b": 4_424_832, "gemma3-27b": 6_194_304}
TOTALS = {
    "gemma3-4b": 4_300_079_472,
    "gemma3-12b": 12_187_325_040,
    "gemma3-27b": 27_432_406_640,
}
SMALL = vision.Config(
    encoder=siglip.Config(
        image_size=12, patch_size=2, embed_dim=8, num_layers=1, num_heads=2, hidden_dim=12
    ),
    num_soft=4,
)


def encoder():
    """Returns random parameters of the small encoder."""
    random = np.random.default_rng(0)
    like = jax.eval_shape(siglip.make(SMALL.encoder).init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.4 * random.normal(size=x.shape), x.dtype), like)


def count(shapes) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", list(PROJECTORS))
def test_the_parameters_are_those_of_the_published_models(name: str):
    config, decoder = vision.Config(), gemma.PRESETS[name]
    key = jax.random.key(0)
    encoding = count(jax.eval_shape(siglip.make(config.encoder).init, key))
    init = lambda key: vision.init_projector(key, config, decoder.embed_dim)  # noqa: E731
    projector = count(jax.eval_shape(init, key))
    assert (encoding, projector) == (416_866_032, PROJECTORS[name])
    assert vision.num_params(config, decoder.embed_dim) == (encoding, projector)
    assert gemma.num_params(decoder).total + encoding + projector == TOTALS[name]


def test_a_soft_token_is_the_mean_of_a_square_of_patches():
    features = np.random.default_rng(0).normal(size=(2, 36, 8)).astype(np.float32)
    got = vision.pool(features, 4).reshape(2, 2, 2, 8)
    for row in range(2):
        for column in range(2):
            patches = [
                features[:, 6 * i + j]
                for i in range(3 * row, 3 * row + 3)
                for j in range(3 * column, 3 * column + 3)
            ]
            np.testing.assert_allclose(got[:, row, column], np.mean(patches, 0), atol=1e-6)


def test_a_constant_image_has_one_vector_where_positions_are_zero():
    params, image = encoder(), jnp.full((1, 12, 12, 3), 0.3)
    pooled = jax.jit(functools.partial(vision.pooled, SMALL))
    assert np.ptp(pooled(params, image), axis=1).max() > 0.05
    params["embedding"]["table"]["position"] *= 0
    assert np.ptp(pooled(params, image), axis=1).max() < 1e-5


def test_the_projector_is_a_norm_and_a_matrix():
    random = np.random.default_rng(0)
    pooled = random.normal(size=(3, 4, 8)).astype(np.float32)
    params = {
        "norm": random.normal(size=8).astype(np.float32),
        "weight": random.normal(size=(8, 5)).astype(np.float32),
    }
    x = np.float64(pooled)
    normed = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + params["norm"])
    np.testing.assert_allclose(
        vision.project(SMALL, params, pooled), normed @ params["weight"], atol=1e-5
    )
    drawn = vision.init_projector(jax.random.key(0), vision.Config(), 64)
    soft = vision.project(
        vision.Config(), drawn, random.normal(size=(100, 1152)).astype(np.float32)
    )
    assert abs(np.mean(np.square(soft)) - 1) < 0.1  # As that of embedded text.


def test_the_encoder_gets_no_gradient_and_the_projector_does():
    projector = vision.init_projector(jax.random.key(1), SMALL, 5)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 12, 12, 3)).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        pooled = vision.pooled(SMALL, params["encoder"], image)
        return jnp.sum(jnp.square(vision.project(SMALL, params["projector"], pooled)))

    of = gradient({"encoder": encoder(), "projector": projector})
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of["encoder"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of["projector"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_soft": 5}, "num_soft must be the square of a divisor of the grid's side, 6, got 5"),
        ({"num_soft": 16}, "side, 6, got 16"),
        ({"num_soft": -4}, "got -4"),
        ({"ids": blocks.Delimiters(5, 6, 5)}, "must differ and be >= 0"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
    assert SMALL.unwritten_ids == (255_999, 262_144)

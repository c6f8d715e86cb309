"""Tests of lm/image_codes.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import learners, types
from kullback.lm import image_codes
from kullback.lm.image_codes import Codebook, Config

nearest = jax.jit(image_codes.nearest)
moved = jax.jit(image_codes.moved, static_argnames=("decay", "reseed_after"))


def book(vectors: np.ndarray, counts: list[float] | None = None) -> Codebook:
    given = np.ones(len(vectors)) if counts is None else np.asarray(counts)
    sums = vectors * given[:, None]
    arrays = (jnp.asarray(x, jnp.float32) for x in (vectors, given, sums))
    return Codebook(*arrays, unused=jnp.zeros(len(vectors), jnp.int32))


def test_the_nearest_code_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    z, vectors = rng.normal(size=(50, 3)), rng.normal(size=(9, 3))
    expected = [min(range(9), key=lambda j: float(((x - vectors[j]) ** 2).sum())) for x in z]
    np.testing.assert_array_equal(nearest(jnp.float32(z), jnp.float32(vectors)), expected)
    np.testing.assert_array_equal(nearest(jnp.float32(vectors), jnp.float32(vectors)), range(9))
    same = jnp.ones((3, 2))
    np.testing.assert_array_equal(nearest(same, same), [0, 0, 0])


def test_the_gradient_goes_straight_through():
    z, e, w = jnp.array([1.0, 2.0]), jnp.array([4.0, -1.0]), jnp.array([3.0, 5.0])

    def value(z, e):
        return jnp.sum(w * image_codes.straight_through(z, e))

    assert float(value(z, e)) == 7.0  # 3 * 4 - 5 * 1
    of_z, of_e = jax.grad(value, (0, 1))(z, e)
    np.testing.assert_array_equal(of_z, w)
    np.testing.assert_array_equal(of_e, 0)


def test_the_loss_by_hand():
    x, x_hat = jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1)) * 2
    z, e = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    # 4 + 0.5 * (1 + 0) / 2
    assert float(image_codes.image_loss(x, x_hat, z, e, beta=0.5)) == 4.25
    of_z, of_e = jax.grad(lambda z, e: image_codes.image_loss(x, x_hat, z, e, beta=0.5), (0, 1))(
        z, e
    )
    np.testing.assert_allclose(of_z, [[0.5, 0.0]])
    np.testing.assert_array_equal(of_e, 0)


def test_codes_move_as_the_definition_says():
    rng = np.random.default_rng(1)
    z, vectors = rng.normal(size=(20, 2)), rng.normal(size=(4, 2))
    codes, counts = rng.integers(0, 3, 20), [2.0, 1.0, 0.5, 3.0]
    got = moved(
        book(vectors, counts),
        jnp.float32(z),
        jnp.int32(codes),
        jax.random.key(0),
        decay=0.9,
        reseed_after=100,
    )
    for j in range(4):
        near = z[codes == j]
        n = 0.9 * counts[j] + 0.1 * len(near)
        m = 0.9 * counts[j] * vectors[j] + 0.1 * near.sum(0)
        np.testing.assert_allclose(got.counts[j], n, rtol=1e-6)
        np.testing.assert_allclose(got.vectors[j], m / n, rtol=1e-5)
    np.testing.assert_array_equal(got.unused, [0, 0, 0, 1])
    np.testing.assert_allclose(got.vectors[3], vectors[3], rtol=1e-6)  # Nothing was near.


def test_without_memory_codes_are_means_of_the_batch():
    z = jnp.array([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    before = book(np.array([[0.0, 0.0], [9.0, 9.0], [5.0, -5.0]]))
    codes = jnp.array([0, 0, 1])
    got = moved(before, z, codes, jax.random.key(0), decay=0.0, reseed_after=100)
    np.testing.assert_array_equal(got.vectors, [[2.0, 1.0], [9.0, 9.0], [5.0, -5.0]])


def test_unused_codes_begin_anew_at_vectors_of_the_batch():
    z = jnp.arange(8.0).reshape(4, 2)
    before = book(np.full((3, 2), 100.0))._replace(unused=jnp.array([5, 1, 0]))
    codes = jnp.array([2, 2, 2, 2])
    got = moved(before, z, codes, jax.random.key(3), decay=0.5, reseed_after=6)
    assert np.asarray(got.vectors[0]).tolist() in np.asarray(z).tolist()
    np.testing.assert_array_equal(got.vectors[1], [100.0, 100.0])
    np.testing.assert_array_equal(got.unused, [0, 2, 0])
    assert float(got.counts[0]) == 1.0
    np.testing.assert_array_equal(got.sums[0], got.vectors[0])


def test_perplexity_counts_the_codes_in_use():
    of = jax.jit(image_codes.perplexity, static_argnums=1)
    np.testing.assert_allclose(of(jnp.array([[0, 1], [2, 3]]), 9), 4.0, rtol=1e-6)
    np.testing.assert_allclose(of(jnp.array([5, 5]), 9), 1.0, rtol=1e-6)
    # p = 3/4, 1/4: exp(0.5623) = 1.7548.
    np.testing.assert_allclose(of(jnp.array([1, 1, 1, 0]), 2), 1.7548, rtol=1e-4)


@pytest.mark.slow
def test_a_few_images_are_learnt_and_drawn_again():
    config = Config(side=4, num_codes=16, code_dim=4, hidden=16, learning_rate=1e-2)
    coder = image_codes.make(config)
    rng = np.random.default_rng(0)
    tiles = rng.uniform(-1, 1, (4, 2, 2)).astype(np.float32)  # Images are made of four tiles.
    choice = rng.integers(0, 4, (32, 2, 2))
    images = tiles[choice].swapaxes(2, 3).reshape(32, 4, 4, 1)
    other = images.copy()
    other[:, :2, :2] = -images[:, :2, :2]
    learn = learners.scan(coder.learner, learners.stored, lambda feedback, data: feedback.metrics)

    @jax.jit  # One program.
    def run(key):
        state = coder.learner.init(key)
        items = jnp.broadcast_to(images, (200, *images.shape))
        state, metrics = learn(state, types.NO_CONSTANTS, items, key)
        codes, changed = (coder.encode(state.params, state.aux, x) for x in (images, other))
        return state, metrics, codes, changed, coder.decode(state.params, state.aux, codes)

    state, metrics, codes, changed, drawn = run(jax.random.key(0))
    assert metrics["error"][-1] < 0.01 < 0.1 < metrics["error"][0]
    assert 3.5 < metrics["perplexity"][-1] <= 16
    assert codes.shape == (32, 4) and codes.dtype == jnp.int32 and drawn.shape == images.shape
    assert float(jnp.mean((drawn - images) ** 2)) < 0.01
    # The first code is that of the patch at the top left, which alone is another.
    share = np.mean(np.asarray(changed != codes), 0)
    assert share[0] > 0.3 and share[0] > share[1:].max()
    with pytest.raises(AssertionError):
        coder.decode(state.params, state.aux, codes[:, :3])
    with pytest.raises(AssertionError):
        coder.encode(state.params, state.aux, images[:, :2])


def test_the_distance_of_normal_features_is_that_of_their_moments():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3))
    b = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)) + 1
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The product's square root has the eigenvalues of C_a C_b, as square roots.
    roots = np.sqrt(np.linalg.eigvals(of_a @ of_b).real).sum()
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = apart + np.trace(of_a) + np.trace(of_b) - 2 * roots
    np.testing.assert_allclose(image_codes.frechet_distance(a, b), expected, rtol=1e-8)
    assert image_codes.frechet_distance(a, a) < 1e-8
    np.testing.assert_allclose(image_codes.frechet_distance(a, a + 2), 12.0, rtol=1e-8)
    np.testing.assert_allclose(image_codes.frechet_distance(a[:, :1], a[:, :1] + 1), 1.0)
    with pytest.raises(ValueError, match="two rows or more, got 1 and 500"):
        image_codes.frechet_distance(a[:1], a)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_codes": 0}, "num_codes must be >= 1"),
        ({"patch": 3}, "patch=3 must divide side=8"),
        ({"commitment": -1.0}, "commitment must be >= 0"),
        ({"decay": 1.0}, "decay must lie in"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Config(**settings)  # pyright: ignore[reportArgumentType]

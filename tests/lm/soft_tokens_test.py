"""Tests of lm/soft_tokens.py, and of lm/gemma.py's passes over rows with images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import cached_attention, gemma, soft_tokens
from tests import small_models
from tests.states import fresh_params

# Local, global, local; the window is shorter than an image, and so is the table than its ids.
CONFIG = small_models.shape(32, num_layers=3, num_heads=4, num_kv_heads=2, hidden_dim=24, window=3)
MODEL = gemma.make(CONFIG)
features = jax.jit(MODEL.features)
BEGIN, END, SOFT, M = 29, 30, 99, 4
T = 17  # 2 tokens, an image, a token, an image, 2 tokens.
FIRST, SECOND = 3, 10  # Where the soft tokens of the images begin.


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def params():
    leaves, tree = jax.tree.flatten(fresh_params(MODEL.init))
    random = np.random.default_rng(1)
    leaves = [x + 0.2 * random.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, leaves)


def row() -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and groups [1, T] of a text with two images."""
    image = [BEGIN, *[SOFT] * M, END]
    tokens = np.array([[2, 5, *image, 7, *image, 9, 11]], np.int32)
    groups = np.full((1, T), soft_tokens.TEXT, np.int32)
    groups[:, FIRST : FIRST + M], groups[:, SECOND : SECOND + M] = 0, 1
    return tokens, groups


def vectors(number: int = 2 * M) -> np.ndarray:
    shape = 1, number, CONFIG.embed_dim
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def run(tokens, groups, soft) -> np.ndarray:
    return np.asarray(features(params(), tokens, soft=soft, groups=groups)[0])


def changed(before: np.ndarray, after: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.any(before != after, -1)).tolist())


@pytest.mark.parametrize("place", [0, M - 1])
def test_an_image_sees_itself_and_what_was_before(place: int):
    """By which outputs a change of one soft vector reaches, each of either image."""
    tokens, groups = row()
    plain = run(tokens, groups, vectors())
    for image, begin in enumerate((FIRST, SECOND)):
        other = vectors()
        other[0, image * M + place] += 1
        # All of its own image, and all tokens that follow: never another image before, or text.
        assert changed(plain, run(tokens, groups, other)) == set(range(begin, T))


def test_tokens_around_an_image_see_the_past_alone():
    tokens, groups = row()
    plain = run(tokens, groups, vectors())
    for at in (0, FIRST - 1, FIRST + M, SECOND - 2, T - 1):
        other = tokens.copy()
        other[0, at] = 3
        assert changed(plain, run(other, groups, vectors())) == set(range(at, T))


def test_a_window_ends_the_look_back_inside_an_image_and_not_the_look_ahead():
    """In a local layer alone: token q of an image sees k > q - W, of later ones all."""
    config = gemma.Config(**{**vars(CONFIG), "num_layers": 1})
    one_layer = gemma.make(config)
    p = {"embedding": params()["embedding"], "final_norm": params()["final_norm"]}
    of_one = jax.tree.map(lambda x: x[:1], params()["periods"]["layer_0"])
    p["remainder"] = {"layer_0": of_one}
    tokens, groups = row()
    apply = jax.jit(one_layer.features)
    plain, expected = np.asarray(apply(p, tokens, soft=vectors(), groups=groups)[0]), set()
    for place in range(M):
        other = vectors()
        other[0, place] += 1
        seen_by = changed(plain, np.asarray(apply(p, tokens, soft=other, groups=groups)[0]))
        k = FIRST + place
        expected = {
            q
            for q in range(T)
            if (k <= q or groups[0, q] == groups[0, k]) and k > q - CONFIG.window
        }
        assert seen_by == expected
    assert expected == {*range(FIRST, FIRST + M), FIRST + M, FIRST + M + 1}


def test_soft_vectors_stand_as_they_are_where_text_is_scaled():
    tokens, groups = row()
    zeros = run(tokens, groups, np.zeros_like(vectors()))
    p = {**params(), "embedding": np.array(params()["embedding"])}
    p["embedding"][0] = 5  # A row that soft ids may look up.
    again = features(p, tokens, soft=np.zeros_like(vectors()), groups=groups)[0]
    np.testing.assert_array_equal(zeros, again)
    # A vector that is the scaled row of a token is that token, but for who sees whom.
    text = np.where(tokens == SOFT, 8, tokens)
    soft = np.tile(params()["embedding"][8] * 4, (1, 2 * M, 1))  # sqrt(16).
    lonely = np.where(groups >= 0, np.cumsum(groups >= 0, 1), soft_tokens.TEXT)
    np.testing.assert_allclose(run(tokens, lonely, soft), features(params(), text)[0], atol=1e-5)


def test_rows_without_images_are_as_they_were():
    tokens = row()[0] % 32
    none = np.full((1, T), soft_tokens.TEXT, np.int32)
    np.testing.assert_allclose(
        run(tokens, none, vectors()), features(params(), tokens)[0], atol=1e-5
    )


def test_vectors_beyond_the_places_are_left_out_and_missing_ones_are_no_number():
    _, groups = row()
    x = np.zeros((1, T, CONFIG.embed_dim), np.float32)
    plain = soft_tokens.written(x, vectors(), groups)
    np.testing.assert_array_equal(plain[groups >= 0], vectors()[0])
    assert not np.any(plain[groups < 0])
    more = np.concatenate([vectors(), vectors()[:, :3]], 1)
    np.testing.assert_array_equal(plain, soft_tokens.written(x, more, groups))
    fewer = soft_tokens.written(x, vectors()[:, :M], groups)
    np.testing.assert_array_equal(np.isnan(fewer), (groups == 1)[..., None] & (x == 0))


def test_packed_texts_with_images_are_those_of_rows_of_their_own():
    tokens, groups = row()
    packed = np.concatenate([tokens, tokens[:, :8]], 1)
    of_second = np.where(groups[:, :8] >= 0, 2, soft_tokens.TEXT)
    both = np.concatenate([groups, of_second], 1)
    soft = np.concatenate([vectors(), vectors()[:, :M]], 1)
    positions = np.concatenate([np.arange(T), np.arange(8)])[None]
    segments = np.repeat([1, 2], [T, 8])[None]
    got = features(params(), packed, positions, segments, soft=soft, groups=both)[0]
    alone = run(tokens, groups, vectors())
    np.testing.assert_allclose(got[:T], alone, atol=2e-5)
    # The image of the first 8 tokens is whole, so that nothing of them sees what follows.
    np.testing.assert_allclose(got[T:], alone[:8], atol=2e-5)


@pytest.mark.parametrize(
    "queries", [3, pytest.param(cached_attention.QUERIES, marks=pytest.mark.slow)]
)
def test_decoding_in_chunks_that_hold_images_whole_is_the_full_pass(queries, monkeypatch):
    """With images at every offset, beside a row without, left-padded; the ring has wrapped."""
    monkeypatch.setattr(cached_attention, "QUERIES", queries)
    step, width = jax.jit(MODEL.decode), T + 3
    tokens, groups = row()
    expected = run(tokens, groups, vectors())
    for shift in range(4):
        # The first row is padded by `shift`, and other tokens follow; the second has text alone.
        both = np.full((2, width), 6, np.int32)
        of_both = np.full_like(both, soft_tokens.TEXT)
        both[0, shift : shift + T], of_both[0, shift : shift + T] = tokens, groups
        cache = MODEL.init_cache(2, width, np.array([width - shift, width]), width)
        # One token at a time; chunks of an image, its end, and two tokens more.
        begins = [FIRST + shift, SECOND + shift]
        ends = [*range(1, begins[0] + 1), begins[1], begins[1] + M + 3]
        ends += range(ends[-1] + 1, width + 1)
        got, at = [], 0
        for end in ends:
            images = {}
            if at in begins:
                first = M * begins.index(at)
                soft = np.repeat(vectors()[:, first : first + M], 2, 0)
                images = {"groups": of_both[:, at:end], "soft": soft}
            x, cache = step(params(), both[:, at:end], cache, **images)
            got.append(x)
            at = end
        got = np.concatenate(got, 1)
        np.testing.assert_allclose(got[0, shift : shift + T], expected, atol=2e-5)
        of_text = features(params(), both[1:])[0]
        np.testing.assert_allclose(got[1], of_text, atol=2e-5)


def test_gradients_reach_the_vectors_and_no_row_of_the_table_in_their_place():
    tokens, groups = row()

    @jax.jit
    @jax.grad
    def gradient(both):
        x = MODEL.features({**params(), "embedding": both[0]}, tokens, soft=both[1], groups=groups)
        return jnp.sum(jnp.sin(x))

    of_table, of_soft = gradient((params()["embedding"], vectors()))
    assert np.all(np.any(of_soft, -1))
    read = set(np.flatnonzero(np.any(of_table, -1)))
    assert read == set(tokens[tokens != SOFT])


def test_soft_vectors_and_groups_come_together():
    tokens, groups = row()
    for given in ({"groups": groups}, {"soft": vectors()}):
        with pytest.raises(ValueError, match="soft vectors and groups come together"):
            jax.eval_shape(lambda given: MODEL.features(params(), tokens, **given), given)
    narrow = vectors()[..., 1:]
    with pytest.raises(AssertionError):
        jax.eval_shape(lambda x: MODEL.features(params(), tokens, soft=x, groups=groups), narrow)

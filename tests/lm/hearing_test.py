"""Tests of lm/hearing.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import learners, types
from kullback.lm import audio, batches, blocks, gemma, hearing, interleaved
from tests import small_models
from tests.states import fresh_params

MARKERS = blocks.Markers(
    image=blocks.Delimiters(30, 31, 32), audio=blocks.Delimiters(33, 34, 35), around="none"
)
DECODER = gemma.make(small_models.shape(36))
CONFIG = hearing.Config(bins=6, most_tokens=4, embed_dim=8, num_heads=2, hidden_dim=12)
soft_vectors = jax.jit(hearing.soft_vectors, static_argnums=1)


@functools.cache
def params() -> types.Params:
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: hearing.init(key, CONFIG, 16), jax.random.key(0))
    return jax.tree.map(lambda x: (0.4 * random.normal(size=x.shape)).astype(np.float32), shapes)


def clip(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([frames, seed]).normal(size=(frames, 6)).astype(np.float32)


def padded(rows: list[list[np.ndarray]]) -> hearing.Clips:
    """Returns clips of rows as a batch has them, each as long as the longest, in whole tokens."""
    clips = [clip for row in rows for clip in row]
    media = [[interleaved.Medium(n, 0, 1) for n in range(len(row))] for row in rows]
    tokens = -(-max(map(len, clips)) // 16)
    bins = clips[0].shape[1]
    return batches.pad_features(media, lambda flat: hearing.stacked(clips, tokens, bins))


def oracle(features: np.ndarray) -> np.ndarray:
    """Computes the soft vectors of a clip by the definition in float64, [tokens, D]."""
    p = jax.tree.map(np.float64, params())
    of, num_tokens = p["encoder"], -(-len(features) // 16)
    x = np.zeros((16 * num_tokens, 6))
    x[: len(features)] = features

    def gelu(z):
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    def norm(x, of):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * of["scale"] + of["offset"]

    def grouped(x, of):  # Four as one.
        return x.reshape(len(x) // 4, -1) @ of["w"] + of["b"]

    x = grouped(gelu(grouped(x, of["frames"])), of["tokens"])
    x = x + of["table"]["position"][:num_tokens]
    for n in range(CONFIG.num_layers):
        layer = {
            k.removeprefix(f"layer_{n}/"): v for k, v in of.items() if k.startswith(f"layer_{n}/")
        }
        h = norm(x, layer["attention/norm"])
        q, k, v = (
            h @ layer[f"attention/{m}"]["w"] + layer[f"attention/{m}"]["b"]
            for m in ("query", "key", "value")
        )
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            w = np.exp(q[:, head] @ k[:, head].T / 2)
            heads.append(w / w.sum(-1, keepdims=True) @ v[:, head])
        out = layer["attention/output"]
        x = x + np.concatenate(heads, -1) @ out["w"] + out["b"]
        up, down = layer["feed_forward/up"], layer["feed_forward/down"]
        z = norm(x, layer["feed_forward/norm"]) @ up["w"] + up["b"]
        x = x + gelu(z) @ down["w"] + down["b"]
    x = norm(x, of["norm"])
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + p["norm"])
    return x @ p["weight"]


def test_vectors_are_those_of_the_definition_and_padding_is_not_heard():
    rows = [[clip(33), clip(5)], [clip(16)], [clip(64)]]
    clips = padded(rows)
    assert clips.features.shape == (3, 2, 64, 6)
    np.testing.assert_array_equal(clips.frames, [[33, 5], [16, 0], [64, 0]])
    with jax.default_matmul_precision("highest"):
        got = soft_vectors(params(), CONFIG, clips)
    assert got.shape == (3, 8, 16)
    for b, row in enumerate(rows):
        expected = np.concatenate([oracle(features) for features in row])
        np.testing.assert_allclose(got[b, : len(expected)], expected, atol=2e-5)
    with pytest.raises(ValueError, match="a multiple of 16 frames, at most 64, got 80"):
        hearing.soft_vectors(params(), CONFIG, padded([[clip(70)]]))
    with pytest.raises(ValueError, match=r"markers\.audio is None"):
        hearing.hearing(DECODER, CONFIG, blocks.Markers())


def test_a_row_hears_its_clips_where_they_stand():
    model = hearing.hearing(DECODER, CONFIG, MARKERS)
    given = {**fresh_params(DECODER.init, 7), hearing.HEARING: params()}
    assert jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0))) == jax.tree.map(
        jnp.shape, given
    )
    sounds = [clip(20), clip(10)]
    segments = [(2, 5), interleaved.Audio("a", 2), (6, 7), interleaved.Audio("b", 1), (8, 9)]
    row = interleaved.layout(segments, lambda text: [], MARKERS)
    apply = jax.jit(model.apply)

    def logits(sounds: list[np.ndarray]) -> np.ndarray:
        return np.asarray(apply(given, row.ids[None], sensed=padded([sounds])))[0]

    before = logits(sounds)
    first, second = np.flatnonzero(row.groups >= 0)[[0, 2]]
    after = logits([sounds[0], clip(10, seed=1)])
    np.testing.assert_array_equal(before[:second], after[:second])  # Nothing sees ahead.
    assert not np.allclose(before[second:], after[second:], atol=1e-3)
    swapped = logits([clip(20, seed=1), sounds[1]])
    np.testing.assert_array_equal(before[:first], swapped[:first])
    assert not np.allclose(before[first], swapped[first], atol=1e-3)


@pytest.mark.slow
def test_tones_are_told_apart():
    """Four tones in noise, at any phase; with shuffled clips the model guesses."""
    config = hearing.Config(bins=32, most_tokens=2, embed_dim=32, num_layers=1, hidden_dim=64)
    model = hearing.hearing(DECODER, config, MARKERS)
    settings, rng = audio.Config(bins=32), np.random.default_rng(0)

    def draw(count: int) -> tuple[hearing.Clips, np.ndarray]:
        tones, times = rng.integers(0, 4, count), np.arange(3000) / 16_000
        phases = rng.uniform(0, 2 * np.pi, count)[:, None]
        sound = np.sin(2 * np.pi * (300.0 * 2**tones)[:, None] * times + phases) * 0.3
        sound = (sound + rng.normal(size=sound.shape) * 0.1).astype(np.float32)
        features = [[audio.log_mel(one, settings)] for one in sound]
        return padded(features), tones

    row = interleaved.layout([(2,), interleaved.Audio("a", 1), (3,)], lambda text: [], MARKERS)

    def answers(params, clips):
        ids = jnp.broadcast_to(jnp.asarray(row.ids), (len(clips.frames), len(row.ids)))
        return model.apply(params, ids, sensed=clips)[:, -1]  # [B, V]

    def loss(params, data):
        clips, tones = data
        losses = optax.softmax_cross_entropy_with_integer_labels(answers(params, clips), tones)
        return jnp.mean(losses), {}

    learner = learners.sgd(model.init, learners.plain(loss), optax.adam(3e-3))
    state, step = learner.init(jax.random.key(0)), jax.jit(learner.step)
    for _ in range(80):
        state, _ = step(state, types.Batch.of(draw(32)))
    clips, tones = draw(200)
    said = np.asarray(jax.jit(answers)(state.params, clips)).argmax(-1)
    assert np.mean(said == tones) > 0.95
    assert np.mean(rng.permutation(said) == tones) < 0.5

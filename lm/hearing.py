"""Decoders that hear: an encoder of log-mel features, and the functions of `gemma.Model` with it.

Gemini 1.0 takes features of sound beside text (https://arxiv.org/abs/2312.11805); neither encoder
nor sizes are published. Ours has Gemma 3n's rate, a soft token for 16 frames, that is 160 ms:

    x    = W_2 gelu(W_1 features + b_1) + b_2 + positions     # 4 frames, then 4 of these, as one
    x    = layers of siglip.py, in which the tokens of a clip see each other
    soft = rms_norm(layer_norm(x)) W                          # [tokens, D]

The encoder learns with the decoder, from the beginning. Its parameters stand beside the decoder's.

Shape letters: B rows, T tokens, C clips of a row at most, A frames of a clip, a multiple of 16, M
mel bins, K = A / 16 soft tokens of a clip, E width of the encoder, D width of the decoder.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.lm import audio, blocks, gemma, layers, senses, siglip, sizes

HEARING = "hearing"  # Of a decoder's parameters.
_STRIDE = 4  # Frames, and then groups of frames, that become one; twice, as FRAMES_PER_TOKEN says.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the encoder; all are ours."""

    bins: int = 64  # M, see `audio.Config`.
    most_tokens: int = 188  # Soft tokens of a clip at most; those of 30 seconds.
    embed_dim: int = 64  # E.
    num_layers: int = 2
    num_heads: int = 4  # Divides E.
    hidden_dim: int = 256
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        sizes.check(self, "norm_epsilon")
        if min(self.bins, self.most_tokens) < 1:
            raise ValueError(
                f"bins and most_tokens must be >= 1, got {self.bins} and {self.most_tokens}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and "
                f"{self.num_heads}"
            )


def sized(embed_dim: int) -> Config:
    """Returns the sizes of an encoder for a decoder of the width D: half of it, but at least 64."""
    width = max(64, embed_dim // 8 * 4)
    return Config(embed_dim=width, hidden_dim=4 * width)


class Clips(NamedTuple):
    """Sounds of some rows, in the order of each row's blocks; or n of them, [n, ...]."""

    features: types.Array  # float, [B, C, A, M]: log-mel, with zeros after a clip's frames.
    frames: types.Array  # int32, [B, C]: frames of each clip; 0 where a row has fewer clips.


def stacked(clips: Sequence[np.ndarray], num_tokens: int, bins: int) -> Clips:
    """Returns n clips of one length, [n, A, M], with A = 16 `num_tokens`; n may be 0.

    Args:
      clips: float [frames, M] each, as `audio.log_mel` gives it.
      num_tokens: K, soft tokens of the longest clip, or more.
      bins: M.
    """
    features = np.zeros((len(clips), audio.FRAMES_PER_TOKEN * num_tokens, bins), np.float32)
    frames = np.array([len(clip) for clip in clips], np.int32)
    for n, clip in enumerate(clips):
        chex.assert_shape(clip, (None, bins))
        features[n, : len(clip)] = clip
    return Clips(features, frames)


def init(key: types.Key, config: Config, embed_dim: int) -> types.Params:
    """Draws the encoder, and a projector to the width D = `embed_dim`."""
    key, weight_key = jax.random.split(key)
    features = jnp.zeros((1, audio.FRAMES_PER_TOKEN, config.bins))
    encoder = _transformed(config).init(key, features, jnp.ones((1, 1, 1), bool))
    shape = config.embed_dim, embed_dim
    weight = jax.random.normal(weight_key, shape) / math.sqrt(config.embed_dim)
    return {"encoder": encoder, "norm": jnp.zeros(config.embed_dim), "weight": weight}


def soft_vectors(params: types.Params, config: Config, clips: Clips) -> jax.Array:
    """Returns a row's soft vectors in order, [B, C K, D], those of no frames last.

    Args:
      params: as `init` draws them.
      config: of the encoder.
      clips: of the rows.
    """
    features, frames = jnp.asarray(clips.features), jnp.asarray(clips.frames)
    chex.assert_shape(features, (None, None, None, config.bins))
    chex.assert_shape(frames, features.shape[:2])
    num_rows, num_clips, length, bins = features.shape
    each = audio.FRAMES_PER_TOKEN
    if length % each or length // each > config.most_tokens:
        raise ValueError(
            f"clips must have a multiple of {each} frames, at most {each * config.most_tokens}, "
            f"got {length}; stacked makes the first"
        )
    num_tokens = -(-frames // each)  # [B, C]
    is_there = jnp.arange(length // each)[None, None] < num_tokens[..., None]  # [B, C, K]
    seen = is_there.reshape(num_rows * num_clips, 1, -1)
    flat = features.reshape(num_rows * num_clips, length, bins)
    x = _transformed(config).apply(params["encoder"], flat, seen)
    x = layers.rms_norm(x, params["norm"], config.norm_epsilon)
    soft = (x @ params["weight"].astype(x.dtype)).reshape(num_rows, seen.shape[-1] * num_clips, -1)
    # Vectors that are there come first, in their order.
    order = jnp.argsort(~is_there.reshape(num_rows, -1), axis=1, stable=True)
    return jnp.take_along_axis(soft, order[..., None], 1)


def hearing(
    model: gemma.Model, config: Config, markers: blocks.Markers, *, draws: bool = True
) -> gemma.Model:
    """Returns the model of rows that may have clips of sound.

    Its functions take `sensed`, a `Clips`, by keyword; None is text alone, of which nothing
    changes. Where vectors go follows from the ids, as `blocks.groups` says. The parameters are the
    decoder's with `HEARING` beside them, and all of them learn; a policy of it samples nothing that
    begins a clip, or is part of one.

    Args:
      model: the decoder.
      config: of the encoder.
      markers: with the ids of audio.
      draws: whether `init` draws the encoder, too: not where that is frozen, as of adapters.

    Raises:
      ValueError: for markers without ids of audio.
    """
    if markers.audio is None:
        raise ValueError("a model that hears needs ids of audio: markers.audio is None")

    def given(params: types.Params, tokens: types.Array, clips: Clips) -> jax.Array:
        del tokens  # Clips say how many rows there are.
        soft = soft_vectors(params[HEARING], config, clips)
        return soft.astype(jnp.dtype(model.config.dtype))

    def init_both(key: types.Key) -> types.Params:
        if not draws:
            return model.init(key)
        key, hearing_key = jax.random.split(key)
        return {**model.init(key), HEARING: init(hearing_key, config, model.config.embed_dim)}

    return senses.sensing(model, given, markers)._replace(
        init=init_both,
        unwritten_ids=(markers.audio.begin, markers.audio.soft),
        lend_sense=functools.partial(hearing, config=config, markers=markers, draws=False),
    )


@functools.lru_cache(maxsize=8)
def _transformed(config: Config) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(functools.partial(_encode, config=config)))


def _encode(features: jax.Array, seen: jax.Array, *, config: Config) -> jax.Array:
    """Returns the encoder's output [N, K, E] for clips [N, A, M]; `seen` is bool [N or 1, 1, K]."""
    x = features
    for name in ("frames", "tokens"):  # A convolution whose stride is its kernel's size.
        number, length, width = x.shape
        x = x.reshape(number, length // _STRIDE, _STRIDE * width)
        x = siglip.linear(x, config.embed_dim, name)
        x = jax.nn.gelu(x, approximate=True) if name == "frames" else x
    shape = config.most_tokens, config.embed_dim
    with hk.name_scope("table"):
        init = hk.initializers.RandomNormal(1 / math.sqrt(config.embed_dim))
        positions = hk.get_parameter("position", shape, init=init)
    x = x + positions[None, : x.shape[1]]
    for n in range(config.num_layers):
        with hk.name_scope(f"layer_{n}"):
            x = siglip.encoder_layer(
                x,
                seen,
                num_heads=config.num_heads,
                hidden_dim=config.hidden_dim,
                norm_epsilon=config.norm_epsilon,
                query_block=config.most_tokens,
            )
    return layers.layer_norm(x, "norm", config.norm_epsilon)

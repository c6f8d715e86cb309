"""Small models that see: a frozen encoder, and a decoder whose projector learns with it.

Rows are those of runs with images (lm/interleaved.py), of one image each, before the text:

    <bos> begin soft ... soft end text

N pictures, B rows, S pixels of a side, M soft tokens of an image, E width of the encoder, P tokens
of a prompt.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, types
from kullback.environments import tokens
from kullback.experiments.reproductions import setups, small_models, small_senses
from kullback.lm import (
    batches,
    blocks,
    data,
    gemma,
    image_grammar,
    interleaved,
    pictures,
    sight,
    siglip,
    tokenizer,
    tuning,
    vision,
)

BATCH = 500  # Pictures that are encoded at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of an encoder and of a decoder that sees by it."""

    side: int  # Pixels of a picture's side, S, a multiple of `patch`.
    patch: int  # Pixels of a patch's side.
    num_soft: int  # M, the square of a divisor of the patches of a side.
    encoder_width: int = 48  # E, a multiple of 4.
    encoder_layers: int = 2
    width: int = 64  # Of the decoder, a multiple of 8.
    layers: int = 3

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "encoder_layers", "layers")
        ranges.multiples(4, self, "encoder_width")
        ranges.multiples(8, self, "width")
        self.vision(blocks.IMAGE)

    @property
    def encoder(self) -> siglip.Config:
        """The encoder's shape."""
        return siglip.Config(
            image_size=self.side,
            patch_size=self.patch,
            embed_dim=self.encoder_width,
            num_layers=self.encoder_layers,
            num_heads=4,
            hidden_dim=2 * self.encoder_width,
        )

    def vision(self, ids: blocks.Delimiters) -> vision.Config:
        """Returns the vision of a model in whose vocabulary images have these ids."""
        return vision.Config(encoder=self.encoder, num_soft=self.num_soft, ids=ids)


class Seer(NamedTuple):
    """A decoder that sees, with its tokenizer."""

    tokenizer: tokenizer.Tokenizer
    vision: vision.Config
    decoder: gemma.Model  # As of `sight.seeing`; its projector is drawn, and learns.
    markers: blocks.Markers
    writes: image_grammar.Ids | None = None  # Of images that it writes, if it does.

    def prompt(self, text: str) -> tuple[int, ...]:
        """Returns the ids of an image and a text behind it."""
        image = interleaved.Image("", tokens=self.vision.num_soft)
        segments = [(self.tokenizer.bos_id,), image, text]
        return tuple(interleaved.encode(segments, self.tokenizer.encode, self.markers).ids)

    def examples(self, texts: Iterable[tuple[str, str]]) -> list[data.Example]:
        """Returns questions about an image each, with their answers, as ids."""
        return small_senses.examples(self, self.prompt, texts)


def make(
    sizes: Sizes, texts: Iterable[str], length: int, codes: tuple[int, int] | None = None
) -> Seer:
    """Trains a tokenizer on texts, and returns a decoder that sees.

    Args:
      sizes: of encoder and decoder.
      texts: questions and answers.
      length: tokens of the longest row.
      codes: of images that it writes (lm/image_codes.py): how many there are, and those of an
        image. None: it writes text alone.
    """
    bpe = tokenizer.train_bpe(texts, 512, further_controls=blocks.IMAGE_TOKENS)
    markers = dataclasses.replace(blocks.markers_of(bpe), around="none")
    shape = small_models.decoder(bpe.vocab_size, sizes.width, sizes.layers, length)
    writes = image_grammar.ids_of(bpe.vocab_size, *codes) if codes else None
    if writes:
        shape = image_grammar.extended_config(shape, writes)
    sees_by = sizes.vision(blocks.image_ids(bpe))
    decoder = sight.seeing(gemma.make(small_models.speaking(shape, bpe)), sees_by)
    return Seer(bpe, sees_by, decoder, markers, writes)


def normalized(pixels: np.ndarray) -> np.ndarray:
    """Returns pictures as the encoder takes them, float32 [N, S, S, 3], of bytes."""
    return pictures.normalized(pixels, pictures.Config(side=pixels.shape[1]))


def encoded(config: vision.Config, encoder: types.Params, pixels: np.ndarray) -> np.ndarray:
    """Returns the features of pictures, float32 [N, 1, M, E], the image of each row.

    Args:
      config: of the vision.
      encoder: its parameters.
      pixels: uint8, [N, S, S, 3].
    """
    program = _program(config)
    parts: list[np.ndarray] = []
    for first in range(0, len(pixels), BATCH):
        part = pixels[first : first + BATCH]
        filled = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), 0)])
        features = np.asarray(program(encoder, normalized(filled)))
        parts.append(features[: len(part), None])
    return np.concatenate(parts)


@functools.cache
def _program(config: vision.Config):
    return jax.jit(functools.partial(vision.pooled, config))


def prompts(
    seer: Seer, examples: Sequence[data.Example], pooled: np.ndarray, length: int
) -> batches.Prompts:
    """Returns the prompts of examples with an image each, [B, length]."""
    ids = [example.prompt for example in examples]
    return batches.pad_prompts(ids, length, seer.tokenizer.pad_id)._replace(sensed=pooled)


def setup(
    seer: Seer, learning: tuning.Config, examples: Sequence[data.Example], pooled: np.ndarray
) -> setups.Setup:
    """Returns the set-up of what learns from examples with an image each, as long as `learning`'s.

    Their prompts alone are not read, and see nothing. A teacher is not part of it: one has the same
    ids and sees the same features.

    Args:
      seer: the decoder.
      learning: settings.
      examples: N of them.
      pooled: features of their images, [N, 1, M, E].
    """
    alone = prompts(seer, examples, pooled, learning.max_prompt_length)._replace(sensed=None)
    rows = small_senses.sequences(seer, examples, pooled, learning.width)
    return setups.alone(seer.decoder, learning, rows, alone)


class Prompted(NamedTuple):
    """Prompts and their answers, see `exact`."""

    prompts: batches.Prompts
    answers: types.Array


def prompted(
    seer: Seer, examples: Sequence[data.Example], pooled: np.ndarray, length: int, horizon: int
) -> Prompted:
    """Returns the prompts, [B, length], and the answers, [B, horizon], of examples."""
    answers = np.zeros((len(examples), horizon), np.int32)
    for row, example in zip(answers, examples, strict=True):
        row[: len(example.completion)] = example.completion
    return Prompted(prompts(seer, examples, pooled, length), answers)


def exact(
    answers: types.Array, completion: tokens.Completion, prompts: batches.Prompts
) -> jax.Array:
    """Returns 1 of completions that are the answer of their prompt, else 0, float32 [B G].

    Args:
      answers: ids of each prompt's, its end included and zeros behind it, int32 [B, T].
      completion: of each sample, [B G, T].
      prompts: of each sample.
    """
    del prompts
    group = len(completion.tokens) // len(answers)
    right = jnp.asarray(completion.tokens) == jnp.repeat(jnp.asarray(answers), group, 0)
    return jnp.all(right, 1).astype(jnp.float32)

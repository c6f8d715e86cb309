"""Rows of ids with images and audio in them: where these are, and which tokens see each other.

An image, a frame of a video or a clip of sound is a block: an id that begins it, soft tokens, an id
that ends it. Vectors that no table has stand in the places of the soft tokens, in their order. All
that a model must know of a row follows from its ids.

Shape letters: B rows, T tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from kullback.core import types
from kullback.lm.tokenizer import Tokenizer

IMAGE_TOKENS = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
AUDIO_TOKENS = ("<start_of_audio>", "<audio_soft_token>", "<end_of_audio>")
# Surroundings of an image: "\n\n", encoded with the text before and after it (transformers) or
# apart from it (DeepMind's JAX code); or nothing (llama.cpp).
Around = Literal["joined", "apart", "none"]


class Delimiters(NamedTuple):
    """Ids of one kind of block."""

    begin: int
    soft: int
    end: int


IMAGE = Delimiters(255_999, 262_144, 256_000)  # Of Gemma 3.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Markers:
    """How a model writes what is not text; the ids of images are Gemma 3's."""

    image: Delimiters | None = IMAGE  # None: the model takes no images.
    audio: Delimiters | None = None  # None: it takes no audio.
    around: Around = "joined"
    # Whether the soft tokens of a clip see each other, as those of an image do, or what came before
    # alone. Gemini 1.0's are not published.
    audio_looks_ahead: bool = False

    def __post_init__(self) -> None:
        ids = [i for one in self.kinds for i in one]
        if not ids:
            raise ValueError("markers need ids of images or of audio; of text alone there are none")
        if len(set(ids)) < len(ids) or min(ids) < 0:
            raise ValueError(
                f"ids of delimiters and soft tokens must differ and be >= 0, got {ids}"
            )
        if self.around not in ("joined", "apart", "none"):
            raise ValueError(f"around must be joined, apart or none, got {self.around!r}")

    @property
    def kinds(self) -> tuple[Delimiters, ...]:
        """The ids of images, then those of audio if there are any."""
        return tuple(kind for kind in (self.image, self.audio) if kind is not None)


class Block(NamedTuple):
    """The tokens of an image, a frame or a clip in a row: [begin, end), with both delimiters."""

    begin: int
    end: int
    delimiters: Delimiters


def markers_of(tokenizer: Tokenizer, around: Around = "joined") -> Markers:
    """Returns the ids of a vocabulary that has names of images, as Gemma's, of audio, or of both.

    Raises:
      ValueError: if it has neither.
    """
    image, audio = (_ids(tokenizer, names) for names in (IMAGE_TOKENS, AUDIO_TOKENS))
    if audio is None:
        image = image_ids(tokenizer)
    return Markers(image=image, audio=audio, around=around)


def image_ids(tokenizer: Tokenizer) -> Delimiters:
    """Returns the ids of images in a vocabulary.

    Raises:
      ValueError: if it has none.
    """
    fix = "hence no images; take the tokenizer of a multimodal model"
    return _required(tokenizer, IMAGE_TOKENS, fix)


def audio_ids(tokenizer: Tokenizer) -> Delimiters:
    """Returns the ids of clips of sound in a vocabulary.

    Raises:
      ValueError: if it has none.
    """
    fix = (
        "hence no audio; a preset that is trained with --audio gets one that has them, and so has "
        "a run of it"
    )
    return _required(tokenizer, AUDIO_TOKENS, fix)


def _required(tokenizer: Tokenizer, names: Sequence[str], fix: str) -> Delimiters:
    if (ids := _ids(tokenizer, names)) is None:
        missing = [name for name in names if name not in tokenizer.controls]
        raise ValueError(f"this vocabulary has no {' and no '.join(missing)}, {fix}")
    return ids


def _ids(tokenizer: Tokenizer, names: Sequence[str]) -> Delimiters | None:
    ids = [tokenizer.controls[name] for name in names if name in tokenizer.controls]
    return Delimiters(*ids) if len(ids) == len(names) else None


def find(ids: Sequence[int], markers: Markers) -> list[Block]:
    """Returns the blocks of a row, in order.

    Raises:
      ValueError: for soft tokens or an end outside a block, a block without soft tokens, or one
        that does not end, as where a row was cut.
    """
    array = np.asarray(ids, np.int64)
    spans: list[Block] = []
    inside = np.zeros(len(array), bool)
    for delimiters in markers.kinds:
        is_soft = array == delimiters.soft
        for begin in np.flatnonzero(array == delimiters.begin):
            others = np.flatnonzero(~is_soft[begin + 1 :])
            end = begin + 1 + others[0] if len(others) else len(array)
            if end == len(array) or array[end] != delimiters.end or end == begin + 1:
                raise ValueError(
                    f"token {begin} begins an image, a frame or a clip that is not whole: "
                    f"{end - begin - 1} soft tokens follow, then "
                    f"{'nothing' if end == len(array) else array[end]}, expected some and the end "
                    f"{delimiters.end}; cut rows between images"
                )
            spans.append(Block(int(begin), int(end) + 1, delimiters))
            inside[begin : end + 1] = True
    special = [i for delimiters in markers.kinds for i in delimiters]
    stray = np.flatnonzero(np.isin(array, special) & ~inside)
    if len(stray):
        raise ValueError(
            f"token {stray[0]}, {array[stray[0]]}, is part of an image, a frame or a clip, and "
            "stands outside of one; give images as segments, and cut rows between them"
        )
    return sorted(spans)


def groups(tokens: types.Array, markers: Markers, xp: Any = np) -> Any:
    """Returns which tokens see each other whatever their order, int32 [..., T].

    -1 is a token of text. The soft tokens of one image or frame have the same number, which counts
    them from 0 in the row; so do those of a clip that looks ahead, else each is a group of its own.

    Args:
      tokens: int, [..., T]; padding is text.
      markers: of the model.
      xp: `numpy` or `jax.numpy`.
    """
    kind = xp.zeros_like(tokens)
    for n, one in enumerate(markers.kinds, 1):
        kind = xp.where(tokens == one.soft, n, kind)
    before = xp.concatenate([xp.zeros_like(kind[..., :1]), kind[..., :-1]], -1)
    is_first = (kind > 0) & (kind != before)
    if markers.audio is not None and not markers.audio_looks_ahead:
        is_first = is_first | (tokens == markers.audio.soft)
    number = xp.cumsum(is_first.astype(xp.int32), -1) - 1
    return xp.where(kind > 0, number, -1).astype(xp.int32)


def check_prompt(ids: Sequence[int], markers: Markers) -> None:
    """Checks that a prompt can be answered: it is whole, and a token of text ends it.

    The last token of a prompt is shown to a policy as its first observation: it is never among
    those that fill the cache, into which soft vectors are written.

    Raises:
      ValueError: for a prompt that ends in a soft token, and as `find` does.
    """
    if len(ids) and ids[-1] in [delimiters.soft for delimiters in markers.kinds]:
        raise ValueError(
            "the prompt ends in a soft token; at least the image's end and a token of text follow"
        )
    find(ids, markers)

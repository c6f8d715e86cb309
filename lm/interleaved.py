r"""Text, images, videos and audio as one row of tokens: its ids, and which soft vectors go where.

An image is M soft tokens between two delimiters, as in Gemma 3 (Gemma Team, 2025,
https://arxiv.org/abs/2503.19786). Segments become ids as transformers makes them of a text:

    "\n\n" begin soft ... soft end "\n\n"

where the strings between ids are encoded whole, so that an image behind "user\n" follows "\n\n\n",
which may be one piece. A video is its frames, each behind its time, joined by spaces; an audio clip
is like an image, of other ids:

    "00:05 " begin soft ... soft end " 00:10 " begin soft ... soft end

Gemini 1.0 takes such input (Gemini Team, 2023, https://arxiv.org/abs/2312.11805); how it writes
videos and audio as tokens is not published, and this is ours.

Everything else about a row follows from its ids (lm/blocks.py). The soft vectors of a row come in
the order of its soft tokens. Shape letters: T tokens, M soft tokens of an image.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.lm import blocks

FRAMES = 16  # Of a video, as many as Gemini's evaluations take.
_WHOLE, _CROPS = "Here is the original image ", " and here are some crops to help you see better "


class Image(NamedTuple):
    """An image, followed by its crops if there are any, see `pictures.crop_boxes`."""

    source: Any  # Whatever tells the caller which image it is, such as its path.
    crops: int = 0
    tokens: int = 256  # M, soft tokens of the whole image, and of each crop.


class Video(NamedTuple):
    """Frames of a film."""

    sources: tuple[Any, ...]  # Of each frame, as of an image.
    times: tuple[float, ...]  # Seconds >= 0 of each frame since the beginning.
    tokens: int = 256  # Soft tokens of a frame.


class Audio(NamedTuple):
    """A clip of sound."""

    source: Any
    tokens: int  # See `audio.num_tokens`.


Shown = Image | Audio  # What a turn of the user's may have beside text.
# A text, ids that are no text (such as the delimiters of turns), or what is not text.
Segment = str | tuple[int, ...] | Image | Video | Audio


class Medium(NamedTuple):
    """The thing from which a block's soft vectors are computed."""

    source: Any
    view: int  # 0: the whole image, frame or clip; n >= 1: the image's n-th crop.
    tokens: int


class Row(NamedTuple):
    """Segments as tokens."""

    ids: list[int]
    media: list[Medium]  # In the order of the blocks in `ids`.


class Layout(NamedTuple):
    """A row as a model takes it; T tokens."""

    ids: np.ndarray  # int32, [T].
    positions: np.ndarray  # int32, [T]: 0, 1, ..., soft tokens included.
    groups: np.ndarray  # int32, [T], see `blocks.groups`.
    is_text: np.ndarray  # bool, [T]: tokens that may be learnt: neither soft nor delimiters.
    media: tuple[Medium, ...]


def files(media: Sequence[Medium]) -> list[str]:
    """Returns the sources of media as texts, each once: of images the paths of their files."""
    return [*dict.fromkeys(str(medium.source) for medium in media)]


def encode(
    segments: Sequence[Segment],
    encode_text: Callable[[str], list[int]],
    markers: blocks.Markers | None,
) -> Row:
    """Returns segments as ids, and what their blocks are computed from.

    Strings that no id separates are encoded as one.

    Args:
      segments: in order.
      encode_text: of a string, without special ids, as `Tokenizer.encode`.
      markers: of the model; None takes text and ids alone.

    Raises:
      ValueError: for a block without tokens, a video whose times are not as many as its frames or
        fall, audio where the model takes none, and ids of blocks among the ids of a segment.
    """
    special = {i for kind in (markers.kinds if markers else ()) for i in kind}
    ids: list[int] = []
    media: list[Medium] = []
    text = ""
    parts = segments if markers is None else _parts(segments, encode_text, markers)
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        ids += encode_text(text) if text else []
        text = ""
        if isinstance(part, _Soft):
            begin, soft, end = part.delimiters
            ids += [begin, *[soft] * part.medium.tokens, end]
            media.append(part.medium)
            continue
        if isinstance(part, Image | Video | Audio):
            raise ValueError(
                "this model takes text alone, and an image, a video or a clip was given"
            )
        if special & set(part):
            raise ValueError(
                f"a segment of ids has {min(special & set(part))}, which is part of an image or a "
                "clip; give those as segments"
            )
        ids += part
    return Row(ids + (encode_text(text) if text else []), media)


def layout(
    segments: Sequence[Segment], encode_text: Callable[[str], list[int]], markers: blocks.Markers
) -> Layout:
    """Returns segments as a model takes them; arguments and errors are those of `encode`."""
    row = encode(segments, encode_text, markers)
    return of_ids(row.ids, row.media, markers)


def of_ids(ids: Sequence[int], media: Sequence[Medium], markers: blocks.Markers) -> Layout:
    """Returns the layout of a row of ids.

    Raises:
      ValueError: as `blocks.find` does, and unless the row has as many blocks as media, of their
        sizes.
    """
    spans = blocks.find(ids, markers)
    sizes, expected = [b.end - b.begin - 2 for b in spans], [one.tokens for one in media]
    if len(sizes) != len(expected):
        raise ValueError(
            f"the tokens have {len(sizes)} images, frames and clips, and {len(expected)} were "
            "given; give one for each"
        )
    if sizes != expected:
        n = next(n for n, (a, b) in enumerate(zip(sizes, expected, strict=True)) if a != b)
        raise ValueError(
            f"image, frame or clip {n + 1} has {sizes[n]} soft tokens, and {expected[n]} vectors "
            "were announced; lay it out anew"
        )
    is_text = np.ones(len(ids), bool)
    for block in spans:
        is_text[block.begin : block.end] = False
    array = np.asarray(ids, np.int32)
    return Layout(
        ids=array,
        positions=np.arange(len(ids), dtype=np.int32),
        groups=blocks.groups(array, markers),
        is_text=is_text,
        media=tuple(media),
    )


def views(shown: Shown) -> list[Medium]:
    """Returns what the blocks of an image or a clip are made from: all of it, then its crops."""
    match shown:
        case Image():
            crops = shown.crops
        case Audio():
            crops = 0
    return [Medium(shown.source, n, shown.tokens) for n in range(1 + crops)]


def frame_indices(num_frames: int, count: int = FRAMES) -> list[int]:
    """Returns equally spaced frames of a video: the middles of `count` equal parts, rounded down.

    Args:
      num_frames: n >= 1, of the video; a frame comes several times if there are fewer than `count`.
      count: F >= 1; frame j of F is floor((j + 1/2) n / F).
    """
    if num_frames < 1 or count < 1:
        raise ValueError(
            f"expected at least one frame of at least one, got {count} of {num_frames}"
        )
    return [(2 * j + 1) * num_frames // (2 * count) for j in range(count)]


def clock(seconds: float) -> str:
    """Returns a time as minutes and whole seconds, "01:05"."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f"the time of a frame must be finite and >= 0 seconds, got {seconds}")
    return f"{int(seconds // 60):02}:{int(seconds % 60):02}"


class _Soft(NamedTuple):
    """A block to be written."""

    delimiters: blocks.Delimiters
    medium: Medium


def _parts(
    segments: Sequence[Segment], encode_text: Callable[[str], list[int]], markers: blocks.Markers
) -> Iterator[str | tuple[int, ...] | _Soft]:
    """Yields strings, ids, and blocks without what stands around them."""
    around: str | tuple[int, ...] = {
        "joined": "\n\n",
        "apart": tuple(encode_text("\n\n")) if markers.around == "apart" else (),
        "none": "",
    }[markers.around]
    for segment in segments:
        match segment:
            case Image():
                of_image = _image(markers)
                for n, view in enumerate(views(segment)):
                    if segment.crops:
                        yield (_WHOLE, _CROPS, " ")[min(n, 2)]
                    _check_tokens(segment.tokens)
                    yield from (around, _Soft(of_image, view), around)
            case Video(sources, times, tokens):
                _check_times(sources, times)
                _check_tokens(tokens)
                for n, (source, time) in enumerate(zip(sources, times, strict=True)):
                    yield f"{' ' if n else ''}{clock(time)} "
                    yield _Soft(_image(markers), Medium(source, 0, tokens))
            case Audio(source, tokens):
                if markers.audio is None:
                    raise ValueError("this model takes no audio: its markers have no ids of it")
                _check_tokens(tokens)
                yield from (around, _Soft(markers.audio, Medium(source, 0, tokens)), around)
            case _:
                yield segment


def _image(markers: blocks.Markers) -> blocks.Delimiters:
    """Returns the ids of images."""
    if markers.image is None:
        raise ValueError("this model takes no images: its markers have no ids of them")
    return markers.image


def _check_tokens(tokens: int) -> None:
    if tokens < 1:
        raise ValueError(f"an image, a frame or a clip must have >= 1 soft tokens, got {tokens}")


def _check_times(sources: Sequence[Any], times: Sequence[float]) -> None:
    if not sources or len(sources) != len(times):
        raise ValueError(f"a video of {len(sources)} frames has {len(times)} times, expected equal")
    if any(a > b for a, b in itertools.pairwise(times)):
        raise ValueError(f"the times of a video's frames must not fall, got {list(times)}")

"""Films as a few frames with their times, which a model reads as images behind "mm:ss".

An animated GIF or WebP, such as `kullback evaluate --video` writes, is read as a stranger's file.
Gemini 1.0 takes sixteen equally spaced frames (https://arxiv.org/abs/2312.11805); see
`interleaved.Video` for how they stand in a row.
"""

from typing import NamedTuple

import numpy as np

from kullback.core import files
from kullback.lm import interleaved, pictures

MOST_FRAMES = 10_000  # Of a file: more than five minutes at 30 a second.
MOST_PIXELS = 2_000_000_000  # Of all frames up to the last that is read, each of which is decoded.


class Film(NamedTuple):
    """Frames of a film."""

    frames: tuple[np.ndarray, ...]  # uint8, [H, W, 3] each.
    times: tuple[float, ...]  # Seconds from the beginning, each frame's first moment.


def read(path: files.Path, count: int = interleaved.FRAMES) -> Film:
    """Reads equally spaced frames of an animated image, see `interleaved.frame_indices`.

    A frame comes several times if there are fewer than `count`.

    Args:
      path: of the file.
      count: frames >= 1.

    Raises:
      ValueError: as `pictures.read` does, and for a film of too many frames or pixels.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1 frame, got {count}; Gemini's evaluations take 16")
    with pictures.opened(path) as image:
        num_frames, (width, height) = pictures.num_frames_of(image), image.size
        chosen = interleaved.frame_indices(num_frames, count)
        is_too_long = num_frames > MOST_FRAMES or width * height * (chosen[-1] + 1) > MOST_PIXELS
        frames: dict[int, np.ndarray] = {}
        starts, now = {}, 0.0
        for frame in range(0 if is_too_long else chosen[-1] + 1):
            image.seek(frame)
            starts[frame] = now / 1000
            now += max(0.0, float(image.info.get("duration", 0)))  # Milliseconds.
            if frame in chosen:
                frames[frame] = pictures.upright(image, frame)
    if is_too_long:
        raise ValueError(
            f"{path} has {num_frames} frames of {width} x {height}, more than we read "
            f"({MOST_FRAMES:,} frames, {MOST_PIXELS:,} pixels); make it shorter or smaller"
        )
    return Film(tuple(frames[n] for n in chosen), tuple(starts[n] for n in chosen))

"""Films of an episode: GIF by Pillow, MP4 by the ffmpeg that imageio-ffmpeg brings."""

import contextlib
import itertools
import pathlib
from collections.abc import Iterable

import imageio_ffmpeg
import numpy as np
from PIL import Image

from kullback.core import files

SUFFIXES = (".gif", ".mp4")


def check(path: pathlib.Path) -> None:
    """Raises ValueError for a file that is no film, or that is there already."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--video must end in .gif or .mp4, got {path}")
    if path.exists():
        raise ValueError(f"{path} exists; nothing is overwritten: choose another --video")


def write(frames: Iterable[np.ndarray], path: pathlib.Path, frames_per_second: int = 15) -> int:
    """Writes RGB frames, uint8 [H, W, 3], and returns how many; the file is whole or not there."""
    check(path)
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"no frames for {path}")
    pictures = itertools.chain([first], pictures)
    with files.atomic_path(path) as temporary:
        if path.suffix == ".gif":
            return _write_gif(pictures, temporary, frames_per_second)
        height, width = first.shape[:2]
        return _write_mp4(pictures, temporary, frames_per_second, (width, height))


def _write_gif(pictures: Iterable[np.ndarray], path: pathlib.Path, frames_per_second: int) -> int:
    images = [Image.fromarray(picture) for picture in pictures]
    palette = images[0].quantize(64)  # One for the whole film keeps its colours still.
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / frames_per_second),
        loop=0,
        optimize=True,
    )
    return len(images)


def _write_mp4(
    pictures: Iterable[np.ndarray],
    path: pathlib.Path,
    frames_per_second: int,
    size: tuple[int, int],
) -> int:
    count = 0
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=frames_per_second, macro_block_size=2)
    with contextlib.closing(writer):  # Ends ffmpeg, whatever happens.
        writer.send(None)
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
            count += 1
    return count

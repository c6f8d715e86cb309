"""Films of an episode: GIF by Pillow, MP4 by the ffmpeg that imageio-ffmpeg brings."""

import itertools
import os
import pathlib
from collections.abc import Iterable

import imageio_ffmpeg
import numpy as np
from PIL import Image

SUFFIXES = (".gif", ".mp4")


def check(path: pathlib.Path) -> None:
    """Raises ValueError for a file that is no film, or that is there already."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--video must end in .gif or .mp4, got {path}")
    if path.exists():
        raise ValueError(f"{path} exists; nothing is overwritten: choose another --video")


def write(frames: Iterable[np.ndarray], path: pathlib.Path, frames_per_second: int = 15) -> int:
    """Writes frames, RGB uint8 [H, W, 3] each, and returns how many; the file is whole or not there."""
    check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    pictures = iter(frames)
    first = next(pictures)
    pictures = itertools.chain([first], pictures)
    count = 0
    if path.suffix == ".gif":
        # One palette for the whole film keeps its colours still.
        images = [Image.fromarray(frame) for frame in pictures]
        palette = images[0].quantize(64)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        images[0].save(
            temporary,
            save_all=True,
            append_images=images[1:],
            duration=round(1000 / frames_per_second),
            loop=0,
            optimize=True,
        )
        count = len(images)
    else:
        height, width = first.shape[:2]
        writer = imageio_ffmpeg.write_frames(
            str(temporary), (width, height), fps=frames_per_second, macro_block_size=2
        )
        writer.send(None)
        for frame in pictures:
            writer.send(np.ascontiguousarray(frame))
            count += 1
        writer.close()
    os.replace(temporary, path)
    return count

"""Films of an episode: GIF by Pillow, MP4 by the ffmpeg that imageio-ffmpeg brings."""

import contextlib
import itertools
import pathlib
import subprocess
from collections.abc import Iterable

import imageio_ffmpeg
import numpy as np
from PIL import Image

from kullback.core import files

SUFFIXES = (".gif", ".mp4")


def check(path: pathlib.Path) -> None:
    """Raises ValueError for a file that is no film, is there already, or cannot be written."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--video must end in .gif or .mp4, got {path}")
    files.check_new_file(path, "--video")


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
        duration=10 * round(100 / frames_per_second),  # A GIF counts hundredths of a second.
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
    # Not through imageio_ffmpeg.write_frames, which forks: a fork beside JAX's threads may hang.
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*size)),
        *("-r", str(frames_per_second), "-i", "-"),
        # The codec takes even sizes only, and players this format only.
        *("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-vcodec", "libx264", "-pix_fmt", "yuv420p"),
        str(path),
    ]
    count = 0
    # A process group of its own: Ctrl-C is for us.
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, process_group=0) as ffmpeg:
        assert ffmpeg.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It says why.
            for picture in pictures:
                ffmpeg.stdin.write(picture.tobytes())
                count += 1
        _, complaint = ffmpeg.communicate()
    if ffmpeg.returncode:
        raise OSError(f"ffmpeg could not write {path}: {complaint.decode(errors='replace')}")
    return count

"""Films of an episode: GIF by Pillow, MP4 by the ffmpeg that imageio-ffmpeg brings."""

import contextlib
import itertools
import pathlib
import subprocess
import zlib
from collections.abc import Iterable, Iterator

import imageio_ffmpeg
import numpy as np
import scipy.spatial
from PIL import Image

from kullback.core import files

SUFFIXES = (".gif", ".mp4")
COLOURS = 256  # In a GIF.


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
    film = _Film(pictures)
    colours, counts = _counted(film)
    palette, nearest = _palette(_rgb(colours), counts)

    def images() -> Iterator[Image.Image]:
        for frame in film:  # One palette for the whole film keeps its colours still.
            image = Image.fromarray(nearest[np.searchsorted(colours, frame)])
            image.putpalette(palette.tobytes())
            yield image

    following = images()
    next(following).save(
        path,
        format="GIF",
        save_all=True,
        append_images=following,
        duration=10 * round(100 / frames_per_second),  # A GIF counts hundredths of a second.
        loop=0,
        optimize=False,  # Would give each frame a palette of its own.
    )
    return len(film)


class _Film:
    """Frames, uint32 [H, W], that are read twice; compressed, as a film may have thousands."""

    def __init__(self, pictures: Iterable[np.ndarray]):
        packed = map(_packed, pictures)
        self._frames = [(frame.shape, zlib.compress(frame.tobytes(), 1)) for frame in packed]

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        for shape, data in self._frames:
            yield np.frombuffer(zlib.decompress(data), np.uint32).reshape(shape)


def _palette(rgb: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns 256 colours for those of a film, and which of them stands for each.

    They are exact if the film has no more. Otherwise the most frequent colours are exact in half of
    the palette, and the other half covers all the rest, however few pixels have them, so that small
    or rare things keep their colour.

    Args:
      rgb: colours, uint8 [C, 3].
      counts: pixels that have them, [C].

    Returns:
      uint8 [256, 3], and the index of the nearest for each colour, uint8 [C].
    """
    if len(rgb) <= COLOURS:
        chosen = rgb
    else:
        order = np.argsort(-counts, kind="stable")
        exact, rest = rgb[order[: COLOURS // 2]], rgb[order[COLOURS // 2 :]]
        cover = Image.Quantize.MAXCOVERAGE
        cut = Image.fromarray(rest[None]).quantize(COLOURS // 2, cover).getpalette() or []
        chosen = np.concatenate([exact, np.array(cut, np.uint8).reshape(-1, 3)])[:COLOURS]
    _, nearest = scipy.spatial.KDTree(chosen.astype(np.float64)).query(rgb.astype(np.float64))
    padded = np.pad(chosen, ((0, COLOURS - len(chosen)), (0, 0)), mode="edge")
    return padded, np.asarray(nearest, np.uint8)


def _packed(picture: np.ndarray) -> np.ndarray:
    """Packs colours, uint8 [H, W, 3], into one number each, uint32 [H, W]."""
    red, green, blue = np.moveaxis(picture.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _rgb(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8)


def _counted(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the colours of all frames, rising, and how many pixels have each."""
    colours, counts = np.zeros(0, np.uint32), np.zeros(0, np.int64)
    for frame in frames:
        new, number = np.unique(frame, return_counts=True)
        both = np.union1d(colours, new)
        total = np.zeros(len(both), np.int64)
        total[np.searchsorted(both, colours)] += counts
        total[np.searchsorted(both, new)] += number
        colours, counts = both, total
    return colours, counts


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
    # In another process group, so that Ctrl-C reaches only us.
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

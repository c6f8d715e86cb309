"""Image files as arrays: read as a stranger's data, cut by pan and scan, resized and normalised.

As transformers prepares images for Gemma 3 (https://arxiv.org/abs/2503.19786), bit for bit:
`transformers.image_utils.load_image` reads the file, and Gemma3ImageProcessor, with Pillow, does
the rest. A side is stretched to the model's, whatever the aspect ratio; pan and scan adds crops of
a long image, so that they are stretched less.

All of this is done on the host, once an image. Shape letters: H height, W width, N the whole image
with its crops, S the side that the model takes; rows from top to bottom, channels R, G, B.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import chex
import numpy as np
from PIL import Image, ImageOps

from kullback.core import files, folders

MOST_BYTES = 1 << 28  # 256 MiB: five times an image of 50 megapixels in 8-bit colour, as a BMP.
MOST_PIXELS = 50_000_000  # Beyond the largest photograph; decoded it takes 150 MB.
# Formats of photographs and screenshots: the rest of Pillow's readers meets no stranger's file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of preprocessing; the defaults are those of Gemma 3's preprocessor_config.json."""

    side: int = 896  # Pixels >= 1 of the square that the model takes.
    rescale_factor: float = 1 / 255  # Multiplies bytes; finite, > 0.
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # Of R, G and B, subtracted after that.
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # Divides what is left; finite, > 0.
    pan_and_scan: bool = False  # Whether long images are given with crops.
    min_crop_side: int = 256  # Least pixels of a crop's shorter side, before it is resized.
    max_crops: int = 4  # Most crops >= 2 of an image.
    min_ratio: float = 1.2  # Least ratio >= 1 of the longer to the shorter side of a cut image.

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side must be >= 1 pixel, got {self.side}; Gemma 3's is 896")
        if not 0 < self.rescale_factor < math.inf:
            raise ValueError(f"rescale_factor must be finite and > 0, got {self.rescale_factor}")
        if len(self.mean) != 3 or not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be three finite numbers, got {self.mean}")
        if len(self.std) != 3 or not all(0 < x < math.inf for x in self.std):
            raise ValueError(f"std must be three finite numbers > 0, got {self.std}")
        if self.max_crops < 2:
            raise ValueError(f"max_crops must be >= 2, got {self.max_crops}")
        if self.min_crop_side < self.max_crops:  # The last crop could be empty.
            raise ValueError(
                f"min_crop_side must be >= max_crops={self.max_crops}, got {self.min_crop_side}"
            )
        if not 1 <= self.min_ratio < math.inf:
            raise ValueError(f"min_ratio must be finite and >= 1, got {self.min_ratio}")


class Picture(NamedTuple):
    """An image file's pixels."""

    pixels: np.ndarray  # uint8, [H, W, 3].
    note: str = ""  # One line about what was left out, or "".


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    right: int  # Exclusive, as is `bottom`.
    bottom: int


def read(path: files.Path) -> Picture:
    """Reads an image file, upright by its EXIF orientation, in RGB.

    Alpha is dropped, as transformers' loader of files does; its processor, given an open image
    with alpha, puts it on white. Of several frames the first is read.

    Raises:
      ValueError: naming the file, if it is missing, no regular file, of another format than
        `FORMATS`, damaged or truncated, or has more than `MOST_BYTES` or `MOST_PIXELS`.
    """
    with opened(path) as image:
        num_frames = num_frames_of(image)
        pixels = upright(image)
    note = f"{path} has {num_frames} frames; the first is read" if num_frames > 1 else ""
    return Picture(pixels, note)


@contextlib.contextmanager
def opened(path: files.Path) -> Iterator[Image.Image]:
    """Yields an image file, whose size is checked; what fails inside is told of the file.

    Raises:
      ValueError: as `read` does.
    """
    data = _bytes(pathlib.Path(path))
    with warnings.catch_warnings():
        # Pillow warns of sizes that are refused below, and of EXIF that it skips.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError(_too_large(path, "far")) from None
        except Exception as error:  # Pillow's readers raise many kinds for bytes of a stranger.
            raise ValueError(
                f"{path} is no image that we read; expected {', '.join(FORMATS)}: convert it"
            ) from error
        width, height = image.size
        if width * height > MOST_PIXELS:  # Before anything is decoded.
            raise ValueError(_too_large(path, f"{width} x {height},"))
        try:
            yield image
        except Exception as error:  # As above.
            raise ValueError(
                f"{path} cannot be decoded ({_one_line(error)}); it is damaged or cut short: "
                "fetch it again"
            ) from error


def num_frames_of(image: Image.Image) -> int:
    """Returns the number of an open image's frames."""
    return int(getattr(image, "n_frames", 1))  # Formats of one frame have no such attribute.


def upright(image: Image.Image, frame: int = 0) -> np.ndarray:
    """Returns a frame of an open image as `read` does, uint8 [H, W, 3]."""
    image.seek(frame)
    return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


def crop_boxes(width: int, height: int, config: Config) -> list[Box]:
    """Returns the crops of pan and scan, from left to right or from top to bottom; [] if none.

    They tile the image along its longer side, the last with what is left. With w the longer side,
    h the shorter one, m `min_crop_side`:

        n = clip(min(floor(w / h + 1/2), floor(w / m)), 2, max_crops)

    No image is cut whose w / h is below `min_ratio`, or whose crops would have a side below m.

    Args:
      width: of the image, in pixels >= 1.
      height: likewise.
      config: settings; `pan_and_scan` is not read.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image must have at least one pixel, got {width} x {height}")
    longer, shorter = max(width, height), min(width, height)
    if longer / shorter < config.min_ratio:
        return []
    count = min(math.floor(longer / shorter + 0.5), longer // config.min_crop_side)
    count = min(max(2, count), config.max_crops)
    length = -(-longer // count)
    if min(length, shorter) < config.min_crop_side:
        return []
    spans = [(begin, min(begin + length, longer)) for begin in range(0, longer, length)]
    if width >= height:
        return [Box(begin, 0, end, height) for begin, end in spans]
    return [Box(0, begin, width, end) for begin, end in spans]


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """Returns an image stretched to a square, uint8 [S, S, 3], by Pillow's bilinear filter.

    Where it shrinks, the filter's triangle is as wide as what becomes one pixel.

    Args:
      pixels: uint8, [H, W, 3].
      side: S >= 1, in pixels.
    """
    _check_pixels(pixels)
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def normalized(pixels: np.ndarray, config: Config) -> np.ndarray:
    """Returns (rescale_factor x - mean) / std of bytes x, float32 [..., 3], as transformers rounds.

    With the defaults it is x / 127.5 - 1 but for the last digit.

    Args:
      pixels: uint8, [..., 3].
      config: settings.
    """
    chex.assert_type(pixels, np.uint8)
    chex.assert_axis_dimension(pixels, -1, 3)
    levels = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean, std = (np.asarray(x, np.float32) for x in (config.mean, config.std))
    table = (levels[:, None] - mean) / std  # [256, 3]
    return table[pixels, np.arange(3)]


def views(pixels: np.ndarray, config: Config) -> np.ndarray:
    """Returns what the model sees of an image, uint8 [N, S, S, 3]: the whole of it, then its crops.

    `normalized` of them are the model's input. They are bytes so that they can be hashed and kept.

    Args:
      pixels: uint8, [H, W, 3].
      config: settings; without `pan_and_scan` there are no crops.
    """
    _check_pixels(pixels)
    height, width, _ = pixels.shape
    boxes = crop_boxes(width, height, config) if config.pan_and_scan else []
    # Cut before the filter runs, which must not look beyond a crop's edge.
    parts = [pixels, *(pixels[box.top : box.bottom, box.left : box.right] for box in boxes)]
    return np.stack([resized(part, config.side) for part in parts])


def _check_pixels(pixels: np.ndarray) -> None:
    chex.assert_type(pixels, np.uint8)
    chex.assert_shape(pixels, (None, None, 3))


def _bytes(path: pathlib.Path) -> bytes:
    """Returns the contents of a file that is not too large."""
    try:
        folders.check_regular(path)
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise ValueError(
                    f"{path} has {files.size(size)}, more than the {files.size(MOST_BYTES)} that "
                    "we read of an image; make it smaller"
                )
            return file.read(MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing; expected an image file") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _too_large(path: files.Path, size: str) -> str:
    return f"{path} has {size} more than the {MOST_PIXELS:,} pixels that we read; make it smaller"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__

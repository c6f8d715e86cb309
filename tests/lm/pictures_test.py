"""Tests of lm/pictures.py."""

import io
import itertools
import os
import pathlib
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest

from kullback.lm import pictures

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "pictures.npz"
with np.load(FIXTURE) as arrays:
    REFERENCE = dict(arrays)
NAMES = [name.removeprefix("file/") for name in REFERENCE if name.startswith("file/")]
CUT = pictures.Config(side=12, pan_and_scan=True, min_crop_side=8)
SIDES = st.integers(1, 5000)


def encoded(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG of any size without pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(b"")
    tail = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + tail


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_transformers(tmp_path: pathlib.Path, name: str):
    path = tmp_path / name
    path.write_bytes(REFERENCE[f"file/{name}"].tobytes())
    picture = pictures.read(path)
    assert picture.note == ""
    got = pictures.normalized(pictures.views(picture.pixels, CUT), CUT)
    np.testing.assert_array_equal(got.transpose(0, 3, 1, 2), REFERENCE[f"pixels/{name}"])


def test_levels_are_from_minus_one_to_one():
    grey = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    got = pictures.normalized(grey, pictures.Config())
    np.testing.assert_allclose(got[:, 0], np.arange(256) / 127.5 - 1, atol=2e-7)
    assert got[0, 0] == -1 and got[255, 2] == 1 and got.dtype == np.float32
    config = pictures.Config(mean=(0, 0.5, 1), std=(1, 2, 4), rescale_factor=1 / 51)
    np.testing.assert_allclose(pictures.normalized(grey[102], config), [2, 0.75, 0.25], rtol=1e-6)


def test_crops_are_those_of_transformers():
    config = pictures.Config()
    for width, height, count, *sizes in REFERENCE["boxes"].tolist():
        boxes = pictures.crop_boxes(width, height, config)
        got = [x for b in boxes for x in (b.right - b.left, b.bottom - b.top)]
        assert (len(boxes), got) == (count, sizes[: 2 * count]), (width, height)


@pytest.mark.parametrize(
    "size, crops",
    [
        ((1000, 1000), []),
        ((1190, 1000), []),
        ((600, 200), []),  # 200 < 256.
        ((1200, 1000), [(600, 1000)] * 2),
        ((4000, 500), [(1000, 500)] * 4),
        ((1001, 400), [(334, 400), (334, 400), (333, 400)]),
        ((300, 1300), [(300, 325)] * 4),
    ],
)
def test_crops_by_hand(size: tuple[int, int], crops: list[tuple[int, int]]):
    boxes = pictures.crop_boxes(*size, pictures.Config())
    assert [(b.right - b.left, b.bottom - b.top) for b in boxes] == crops


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(SIDES, SIDES, st.integers(2, 9), st.integers(9, 300), st.floats(1, 3))
def test_crops_tile_the_image(width: int, height: int, most: int, least: int, ratio: float):
    config = pictures.Config(max_crops=most, min_crop_side=least, min_ratio=ratio)
    boxes = pictures.crop_boxes(width, height, config)
    assert not boxes or 2 <= len(boxes) <= most
    areas = [(b.right - b.left) * (b.bottom - b.top) for b in boxes]
    assert not boxes or (sum(areas) == width * height and min(areas) > 0)
    for before, after in itertools.pairwise(boxes):
        assert (before.right, before.top) == (after.left, after.top) or (
            (before.left, before.bottom) == (after.left, after.top)
        )


def test_an_animation_gives_its_first_frame(tmp_path: pathlib.Path):
    red, blue = (PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    path = tmp_path / "film.gif"
    path.write_bytes(encoded(red, "GIF", save_all=True, append_images=[blue]))
    picture = pictures.read(path)
    assert picture.pixels[0, 0].tolist() == [255, 0, 0]
    assert picture.note == f"{path} has 2 frames; the first is read"


NOISE = PIL.Image.effect_noise((64, 64), 50).convert("RGB")
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE, "PNG")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"Dear Sir,\n", "is no image that we read; expected JPEG, PNG, WEBP, GIF, BMP"),
        (b"", "is no image that we read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image that we read"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded .*truncated"),
        (PNG[: len(PNG) // 2], "cannot be decoded .*truncated"),
        (png_header(10_000, 6_000), "has 10000 x 6000, more than the 50,000,000 pixels"),
        (png_header(60_000, 60_000), "has far more than the 50,000,000 pixels"),
        (png_header(100, 100), "cannot be decoded"),
    ],
    ids=["text", "empty", "eps", "half-jpeg", "half-png", "60-megapixels", "bomb", "no-pixels"],
)
def test_hostile_files_are_refused_in_one_line(tmp_path: pathlib.Path, data: bytes, message: str):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        pictures.read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ValueError, match=r"none\.png is missing"):
        pictures.read(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is no regular file"):
        pictures.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="is no regular file"):
        pictures.read(tmp_path / "pipe.png")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    monkeypatch.setattr(pictures, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="more than the 100 bytes that we read"):
        pictures.read(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"side": 0}, "side must be >= 1"),
        ({"rescale_factor": 0.0}, "rescale_factor must be"),
        ({"mean": (0.5, 0.5)}, "mean must be three"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be three"),
        ({"max_crops": 1}, "max_crops must be >= 2"),
        ({"min_crop_side": 3}, "min_crop_side must be >= max_crops=4"),
        ({"min_ratio": 0.5}, "min_ratio must be"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        pictures.Config(**settings)  # pyright: ignore[reportArgumentType]


def test_other_arrays_are_refused():
    for array in (np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(AssertionError):
            pictures.views(array, pictures.Config())


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.sampled_from(NAMES), st.data())
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
):
    whole = bytearray(REFERENCE[f"file/{name}"].tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(whole)
    try:
        assert pictures.read(path).pixels.shape[2] == 3
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)

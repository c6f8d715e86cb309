"""Tests of experiments/video.py: films that other programs read, whole or not there."""

import pathlib
import subprocess
from collections.abc import Iterator

import imageio_ffmpeg
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest

from kullback.experiments import video

HEIGHT, WIDTH = 48, 64


def frames(count: int) -> Iterator[np.ndarray]:
    """Returns frames of a white square that moves right by four pixels a frame."""
    for i in range(count):
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        frame[16:32, 4 * i : 4 * i + 16] = 255
        yield frame


def check_films(read: list[np.ndarray], tolerance: int) -> None:
    assert len(read) == 6
    for got, expected in zip(read, frames(6), strict=True):
        assert got.shape == (HEIGHT, WIDTH, 3)
        assert np.mean(np.abs(got.astype(int) - expected)) < tolerance


def test_gif(tmp_path: pathlib.Path):
    path = tmp_path / "new" / "film.gif"
    assert video.write(frames(6), path) == 6
    with PIL.Image.open(path) as film:
        read = []
        for i in range(6):
            film.seek(i)
            read.append(np.asarray(film.convert("RGB")))
        with pytest.raises(EOFError):
            film.seek(6)
        assert film.info["duration"] == 70  # 1/15 s, in hundredths.
    check_films(read, 1)


def film(path: pathlib.Path, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Reads the frames of a GIF as another program would."""
    video.write(iter(pictures), path)
    read = []
    with PIL.Image.open(path) as opened:
        for image in PIL.ImageSequence.Iterator(opened):
            read.append(np.asarray(image.convert("RGB")))
    return read


def test_a_gif_keeps_256_colours_exactly_whichever_frame_has_them(tmp_path: pathlib.Path):
    rng = np.random.default_rng(0)
    colours = rng.integers(1, 256, (255, 3), np.uint8)
    pictures = [np.zeros((20, 30, 3), np.uint8)]  # Black, as a screen is before a game begins.
    pictures += [colours[rng.integers(0, 255, (20, 30))] for _ in range(4)]
    read = film(tmp_path / "film.gif", pictures)
    for got, expected in zip(read, pictures, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_of_more_colours_what_is_frequent_is_exact_and_what_is_small_is_near(
    tmp_path: pathlib.Path,
):
    rng = np.random.default_rng(1)
    black = np.zeros((40, 40, 3), np.uint8)
    picture = black.copy()
    picture[:20] = rng.integers(0, 100, (20, 40, 3), np.uint8)  # 800 dark colours.
    picture[39, 39] = 250, 20, 20  # One pixel of an enemy.
    first, second = film(tmp_path / "film.gif", [black, picture])
    np.testing.assert_array_equal(first, black)
    np.testing.assert_array_equal(second[20:39], 0)
    assert np.max(np.abs(second[39, 39].astype(int) - picture[39, 39])) < 32
    assert np.mean(np.abs(second[:20].astype(int) - picture[:20])) < 16


def test_mp4(tmp_path: pathlib.Path):
    path = tmp_path / "film.mp4"
    assert video.write(frames(6), path, frames_per_second=10) == 6
    read = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        check=True,
    )
    assert b"10 fps" in read.stderr
    check_films(list(np.frombuffer(read.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)), 10)
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("name", ["film.avi", "film", "film.gif.txt"])
def test_other_suffixes_are_refused_before_a_frame_is_made(name: str, tmp_path: pathlib.Path):
    frames_taken = []
    with pytest.raises(ValueError, match=r"must end in \.gif or \.mp4"):
        video.write((frames_taken.append(1) or frame for frame in frames(2)), tmp_path / name)
    assert not frames_taken and not list(tmp_path.iterdir())


def test_a_film_is_never_overwritten(tmp_path: pathlib.Path):
    (tmp_path / "film.gif").write_bytes(b"mine")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        video.write(frames(2), tmp_path / "film.gif")
    assert (tmp_path / "film.gif").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_an_interrupted_film_leaves_nothing(name: str, tmp_path: pathlib.Path):
    def interrupted() -> Iterator[np.ndarray]:
        yield from frames(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write(interrupted(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_odd_sizes_and_a_single_frame(suffix: str, tmp_path: pathlib.Path):
    path = tmp_path / f"film{suffix}"
    assert video.write([np.full((7, 9, 3), 200, np.uint8)], path) == 1
    assert path.stat().st_size > 0


def test_what_ffmpeg_says_is_said(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "false")  # A program that fails at once.
    with pytest.raises(OSError, match="ffmpeg could not write"):
        video.write(frames(6), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_no_frames(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="no frames"):
        video.write(iter(()), tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())

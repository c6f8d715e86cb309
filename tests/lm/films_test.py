"""Tests of lm/films.py."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from kullback.lm import blocks, films, interleaved


def written(path: pathlib.Path, num_frames: int, milliseconds: int = 500) -> pathlib.Path:
    """Writes a film, frame n of which has the level 8 n everywhere."""
    frames = [PIL.Image.new("L", (6, 4), 8 * n) for n in range(num_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds)
    return path


def test_frames_are_equally_spaced(tmp_path: pathlib.Path):
    path = written(tmp_path / "film.gif", 31)
    film = films.read(path, 4)
    chosen = interleaved.frame_indices(31, 4)
    assert [int(frame[0, 0, 0]) for frame in film.frames] == [8 * n for n in chosen]
    assert film.times == tuple(n / 2 for n in chosen)
    assert {frame.shape for frame in film.frames} == {(4, 6, 3)}
    video = interleaved.Video(tuple(range(4)), film.times, 1)
    row = interleaved.layout([video], lambda text: [ord(x) for x in text], blocks.Markers())
    text = "".join(chr(i) for i, is_text in zip(row.ids, row.is_text, strict=True) if is_text)
    assert text == "00:01  00:05  00:09  00:13 "


def test_a_still_image_is_a_film_of_one_frame(tmp_path: pathlib.Path):
    film = films.read(written(tmp_path / "still.png", 1), 3)
    assert film.times == (0.0, 0.0, 0.0)
    np.testing.assert_array_equal(film.frames[0], film.frames[2])


def test_other_films_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = written(tmp_path / "film.gif", 5)
    (tmp_path / "cut.gif").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cut\.gif cannot be decoded"):
        films.read(tmp_path / "cut.gif", 5)
    monkeypatch.setattr(films, "MOST_FRAMES", 4)
    with pytest.raises(ValueError, match="has 5 frames of 6 x 4, more than we read"):
        films.read(path)
    monkeypatch.setattr(films, "MOST_FRAMES", 10)
    monkeypatch.setattr(films, "MOST_PIXELS", 100)
    with pytest.raises(ValueError, match="has 5 frames of 6 x 4, more than we read"):
        films.read(path)
    with pytest.raises(ValueError, match="count must be >= 1 frame, got 0"):
        films.read(path, 0)

"""Tests of lm/heard.py."""

import pathlib

import numpy as np
import pytest

from kullback.lm import audio, batches, heard, hearing, interleaved
from tests import clips

CONFIG = hearing.Config(bins=8, most_tokens=12)


def medium(path: pathlib.Path, tokens: int) -> interleaved.Medium:
    return interleaved.Medium(str(path), 0, tokens)


def test_clips_are_read_once_and_have_the_features_of_their_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    clips.write(short, 440)
    clips.write(long, 880, 9000)
    read, names = audio.read_wav, list[str]()
    monkeypatch.setattr(audio, "read_wav", lambda path: names.append(path) or read(path))
    sounds = heard.Sounds(config=CONFIG)
    media = [medium(short, 1), medium(long, 4), medium(short, 1)]
    got = sounds.features(media)
    assert np.shape(got.features) == (3, 12 * 16, 8) and names == [str(short), str(long)]
    expected = [audio.log_mel(read(path), audio.Config(bins=8)) for path in (short, long, short)]
    for features, frames, clip in zip(got.features, got.frames, expected, strict=True):
        np.testing.assert_array_equal(features[:frames], clip)
        assert frames == len(clip) and not np.any(features[frames:])
    fitted = sounds.fitted(media)
    assert np.shape(fitted.features(media[:1]).features) == (1, 4 * 16, 8)
    assert np.shape(fitted.features([]).features) == (0, 4 * 16, 8)
    assert fitted.num_bytes(3) == 3 * 4 * 16 * 8 * 4 and len(names) == 2
    rows = batches.pad_features([media[:1], [], media[1:]], fitted.features)
    assert isinstance(rows, hearing.Clips) and np.shape(rows.features) == (3, 2, 64, 8)
    np.testing.assert_array_equal(
        rows.frames, [[len(expected[0]), 0], [0, 0], [len(expected[1]), len(expected[0])]]
    )
    with pytest.raises(ValueError, match=r"long\.wav has 54 frames, and 3 soft .* file changed"):
        sounds.features([medium(long, 3)])

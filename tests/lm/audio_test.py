"""Tests of lm/audio.py."""

import contextlib
import pathlib
import wave

import numpy as np
import pytest

from kullback.lm import audio

with np.load(pathlib.Path(__file__).parent / "fixtures" / "audio.npz") as arrays:
    REFERENCE = dict(arrays)
NAMES = [name.removeprefix("wave/") for name in REFERENCE if name.startswith("wave/")]


def written(
    path: pathlib.Path, data: bytes, *, width: int = 2, rate: int = 16_000, channels: int = 1
):
    with contextlib.closing(wave.open(str(path), "wb")) as file:
        file.setsampwidth(width)
        file.setframerate(rate)
        file.setnchannels(channels)
        file.writeframes(data)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_transformers(tmp_path: pathlib.Path, name: str):
    samples = REFERENCE[f"wave/{name}"]
    sound = audio.read_wav(written(tmp_path / "a.wav", samples.tobytes()))
    np.testing.assert_array_equal(sound, samples / np.float32(32_768))
    got = audio.log_mel(sound, audio.Config())
    assert got.dtype == np.float32 and got.shape == (audio.num_frames(len(samples)), 128)
    np.testing.assert_allclose(got, REFERENCE[f"features/{name}"], atol=1e-4)
    small = audio.Config(bins=10, mean=tuple(np.arange(10) / 10), std=tuple(range(1, 11)))
    np.testing.assert_allclose(audio.log_mel(sound, small), REFERENCE[f"small/{name}"], atol=1e-4)


def test_features_are_those_of_the_definition():
    # Explicit sums in float64, of the second frame.
    sound = np.random.default_rng(1).normal(size=700).astype(np.float32)
    x = sound[160 : 160 + 512].astype(np.float64)
    y = np.array([0.03 * x[0], *(x[n] - 0.97 * x[n - 1] for n in range(1, 512))])
    y *= 0.5 * (1 - np.cos(2 * np.pi * np.arange(512) / 512))
    angles = 2 * np.pi * np.arange(513)[:, None] * np.arange(512) / 1024
    magnitudes = np.hypot((y * np.cos(angles)).sum(1), (y * np.sin(angles)).sum(1))
    low, high = 2595 * np.log10(1 + np.array([125, 7600]) / 700)
    mel = np.linspace(low, high, 130)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    expected = []
    for m in range(128):
        total = 0.0
        for k, magnitude in enumerate(magnitudes):
            f = k * 16_000 / 1024
            if hertz[m] < f <= hertz[m + 1]:
                total += magnitude * (f - hertz[m]) / (hertz[m + 1] - hertz[m])
            elif hertz[m + 1] < f < hertz[m + 2]:
                total += magnitude * (hertz[m + 2] - f) / (hertz[m + 2] - hertz[m + 1])
        expected.append(np.log(max(total, 1e-5)))
    got = audio.log_mel(sound, audio.Config())
    assert got.shape == (2, 128)
    np.testing.assert_allclose(got[1], expected, atol=1e-4)


def test_a_tone_is_in_its_bin_and_silence_is_the_floor():
    tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / 16_000).astype(np.float32)
    features = audio.log_mel(tone, audio.Config())
    mel = 2595 * np.log10(1 + np.array([125, 1000, 7600]) / 700)
    nearest = round((mel[1] - mel[0]) / (mel[2] - mel[0]) * 129) - 1
    assert set(features.argmax(1)) == {nearest}
    silence = audio.log_mel(np.zeros(600, np.float32), audio.Config())
    np.testing.assert_allclose(silence, np.log(1e-5), rtol=1e-6)


def test_frames_and_tokens_are_counted():
    lengths = [513, 672, 673, 16_000, 480_000]
    assert [audio.num_frames(n) for n in lengths] == [1, 1, 2, 97, 2997]
    assert [audio.num_tokens(n) for n in lengths] == [1, 1, 1, 7, 188]
    with pytest.raises(ValueError, match="at least 513 samples, 32 ms, got 512"):
        audio.num_frames(512)
    with pytest.raises(AssertionError):
        audio.log_mel(np.zeros((2, 600), np.float32), audio.Config())


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width_are_read(tmp_path: pathlib.Path, width: int):
    levels = [-1.0, -0.5, 0.0, 0.25]
    scale = 2 ** (8 * width - 1)
    offset = 128 if width == 1 else 0
    data = b"".join(
        (int(x * scale) + offset).to_bytes(width, "little", signed=width > 1) for x in levels
    )
    got = audio.read_wav(written(tmp_path / "a.wav", data, width=width))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, levels)


def test_other_files_are_refused_in_one_line(tmp_path: pathlib.Path):
    path = tmp_path / "a.wav"
    good = written(tmp_path / "good.wav", b"\0" * 2000).read_bytes()
    compressed = good.replace(b"\x01\x00\x01\x00", b"\x55\x00\x01\x00", 1)
    for data, message in (
        (b"RIFF", "is no WAV file that we read .*ffmpeg"),
        (b"", "is no WAV file that we read"),
        (b"Dear Sir, you will hear", "is no WAV file that we read"),
        (compressed, "unknown format"),
        (good[:-500], "is cut short"),
        (good[:16] + b"\xf0\xff\xff\xff" + good[20:], "it ends too early"),
        (good[:36] + b"LIST\xf0\xff\xff\xff" + good[36:], "it ends too early"),
        (good[:34] + b"\x40\x00" + good[36:], "has samples of 8 bytes, expected 1 to 4; convert"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            audio.read_wav(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="2 channels at 16000 Hz, expected 1 at 16000; convert"):
        audio.read_wav(written(path, b"\0" * 8, channels=2))
    with pytest.raises(ValueError, match="1 channels at 44100 Hz"):
        audio.read_wav(written(path, b"\0" * 8, rate=44_100))
    with pytest.raises(ValueError, match=r"has 30\.0 seconds, more than 30"):
        audio.read_wav(written(path, b"\0" * 480_001, width=1))
    with pytest.raises(ValueError, match=r"none\.wav is missing"):
        audio.read_wav(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="is no regular file"):
        audio.read_wav(tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bins": 0}, "bins must be >= 1"),
        ({"min_frequency": 8000.0}, "expected 0 <= min_frequency < max_frequency <= 8000"),
        ({"floor": 0.0}, "floor must be"),
        ({"bins": 2, "mean": (0.0,)}, "mean must be 2 finite numbers"),
        ({"bins": 1, "std": (0.0,)}, "std must be > 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        audio.Config(**settings)  # pyright: ignore[reportArgumentType]

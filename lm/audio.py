"""Sound as log-mel features, on the host: those of transformers' extractor for Gemma 3n.

Its authors name the Universal Speech Model (Zhang et al., 2023, https://arxiv.org/abs/2303.01037),
whose features of 16 kHz signals Gemini 1.0 takes too (https://arxiv.org/abs/2312.11805, section 2).

    y_n = x_n - 0.97 x_{n-1} within a frame of 512 samples, the first one y_0 = 0.03 x_0
    features = log(max(|FFT_1024(hann y)| W, 1e-5))

W are triangles between frequencies that are equally far apart on the mel scale,
2595 log10(1 + f / 700). A frame begins every 160 samples. Shape letters: N samples, A frames,
M mel bins, F frequencies.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import wave

import chex
import numpy as np

from kullback.core import files, folders

SAMPLE_RATE = 16_000  # Samples a second.
FRAME, HOP, FFT = 512, 160, 1024  # Samples: 32 ms, 10 ms, and a frame with zeros behind it.
MOST_SAMPLES = 480_000  # 30 seconds.
FRAMES_PER_TOKEN = 16  # As in Gemma 3n: 188 soft tokens of 30 seconds.
TOKEN_MS = 1000 * FRAMES_PER_TOKEN * HOP // SAMPLE_RATE  # Of a soft token: 160.
_PRE_EMPHASIS = 0.97
_FIX = "convert it: ffmpeg -i IN -ar 16000 -ac 1 -c:a pcm_s16le OUT.wav"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of features; the defaults are those of Gemma 3n's extractor."""

    bins: int = 128  # M >= 1.
    min_frequency: float = 125.0  # Hz, >= 0, where the first triangle begins.
    max_frequency: float = 7600.0  # Hz, up to half the sample rate, where the last one ends.
    floor: float = 1e-5  # Least magnitude > 0 of a bin.
    mean: tuple[float, ...] | None = None  # Of each bin, subtracted; None: 0.
    std: tuple[float, ...] | None = None  # Of each bin, > 0, divides what is left; None: 1.

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins must be >= 1, got {self.bins}; Gemma 3n has 128")
        if not 0 <= self.min_frequency < self.max_frequency <= SAMPLE_RATE / 2:
            raise ValueError(
                f"expected 0 <= min_frequency < max_frequency <= {SAMPLE_RATE // 2} Hz, got "
                f"{self.min_frequency} and {self.max_frequency}"
            )
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor must be finite and > 0, got {self.floor}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and (
                len(value) != self.bins or not all(map(math.isfinite, value))
            ):
                raise ValueError(f"{name} must be {self.bins} finite numbers, one a bin")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be > 0 of each bin, got {min(self.std)}")


def read_wav(path: files.Path) -> np.ndarray:
    """Reads a WAV file of one channel at 16 kHz, float32 [N] in [-1, 1).

    Raises:
      ValueError: naming the file, if it is missing, damaged, cut short, compressed, of another rate
        or more channels, or longer than `MOST_SAMPLES`.
    """
    path = pathlib.Path(path)
    try:
        folders.check_regular(path)
        with path.open("rb") as file, contextlib.closing(wave.open(file)) as sound:
            rate, channels = sound.getframerate(), sound.getnchannels()
            width, count = sound.getsampwidth(), sound.getnframes()
            if (rate, channels) != (SAMPLE_RATE, 1):
                raise ValueError(
                    f"{path} has {channels} channels at {rate} Hz, expected 1 at {SAMPLE_RATE}; "
                    f"{_FIX}"
                )
            if count > MOST_SAMPLES:
                raise ValueError(
                    f"{path} has {count / SAMPLE_RATE:.1f} seconds, more than "
                    f"{MOST_SAMPLES // SAMPLE_RATE}; cut it in parts"
                )
            if width > 4:
                raise ValueError(f"{path} has samples of {width} bytes, expected 1 to 4; {_FIX}")
            data = sound.readframes(count)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing; expected a WAV file") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    # A chunk that leads out of the file is a RuntimeError, which says nothing.
    except (wave.Error, EOFError, RuntimeError) as error:
        problem = str(error) or "it ends too early"
        raise ValueError(f"{path} is no WAV file that we read ({problem}); {_FIX}") from None
    if len(data) != count * width:
        raise ValueError(f"{path} is cut short; fetch it again")
    return _samples(data, width)


def num_frames(num_samples: int) -> int:
    """Returns the frames A of a wave: 1 + (N - 513) // 160; the last samples may be in none.

    Raises:
      ValueError: for fewer than 513 samples, of which there is no frame.
    """
    if num_samples <= FRAME:
        raise ValueError(
            f"a clip must have at least {FRAME + 1} samples, {1000 * FRAME // SAMPLE_RATE} ms, got "
            f"{num_samples}"
        )
    return 1 + (num_samples - FRAME - 1) // HOP


def num_tokens(num_samples: int) -> int:
    """Returns the soft tokens of a wave, one for each 16 frames or part of them."""
    return -(-num_frames(num_samples) // FRAMES_PER_TOKEN)


def log_mel(sound: np.ndarray, config: Config) -> np.ndarray:
    """Returns the features of a wave, float32 [A, M].

    Args:
      sound: float32, [N], N >= 513, in [-1, 1] at 16 kHz.
      config: settings.
    """
    chex.assert_rank(sound, 1)
    chex.assert_type(sound, np.float32)
    count = num_frames(len(sound))
    # A sample more than a frame, as the extractor takes them; its last one is in no product.
    windows = np.lib.stride_tricks.sliding_window_view(sound, FRAME + 1)[::HOP][:count]
    frames = np.concatenate(
        [
            windows[:, :1] * (1 - _PRE_EMPHASIS),  # In no product: the window is 0 there.
            windows[:, 1:-1] - _PRE_EMPHASIS * windows[:, :-2],
        ],
        -1,
    )  # [A, 512]
    magnitudes = np.abs(np.fft.rfft(frames * _hann(), FFT))  # [A, F]
    mel = magnitudes @ mel_filters(config.bins, config.min_frequency, config.max_frequency)
    features = np.log(np.maximum(mel, config.floor))
    if config.mean is not None:
        features = features - np.asarray(config.mean)
    if config.std is not None:
        features = features / np.asarray(config.std)
    return features.astype(np.float32)


@functools.lru_cache(maxsize=8)
def mel_filters(bins: int, min_frequency: float, max_frequency: float) -> np.ndarray:
    """Returns W, float64 [F, M]: a triangle of height 1 over frequencies for each bin."""
    frequencies = np.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT)
    low, high = (2595 * math.log10(1 + f / 700) for f in (min_frequency, max_frequency))
    corners = 700 * (10 ** (np.linspace(low, high, bins + 2) / 2595) - 1)  # Hz, [M + 2].
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - left) / (peak - left)
    falling = (right - frequencies[:, None]) / (right - peak)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters.flags.writeable = False  # It is shared by all callers.
    return filters


def _hann() -> np.ndarray:
    """Returns Hann's periodic window, float32 [512].

    It is computed in float32, as in the extractor: what its rounding leaks into the quiet bins
    beside a loud tone is most of what these hold.
    """
    return 0.5 * (1 - np.cos(2 * np.pi * np.arange(FRAME, dtype=np.float32) / FRAME))


def _samples(data: bytes, width: int) -> np.ndarray:
    """Returns samples of 1 to 4 bytes as float32; those of one byte are unsigned."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    # The highest bytes of 32 bits, whose sign it then has.
    padded = np.concatenate([np.zeros((len(raw), 4 - width), np.uint8), raw], 1)
    return (padded.view("<i4")[:, 0] / 2**31).astype(np.float32)

"""WAV files of tones."""

import pathlib
import wave

import numpy as np


def write(path: pathlib.Path, hertz: float, samples: int = 3000, rate: int = 16_000) -> None:
    """Writes a tone of one channel, in 16 bits."""
    tone = np.sin(2 * np.pi * hertz * np.arange(samples) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((tone * 2**14).astype("<i2").tobytes())

"""Writes short waves and what transformers' Gemma3nAudioFeatureExtractor makes of them: FOLDER.

audio.npz: "wave/NAME" int16 [N], which / 32768 is the wave; "features/NAME" float32 [A, 128]; and
"small/NAME" [A, 10], of 10 bins with means and deviations, arange(10) / 10 and arange(1, 11).
"""

import pathlib
import sys

import numpy as np
from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor


def waves():
    """Returns int16 waves by name."""
    generator = np.random.default_rng(0)
    times = np.arange(3000) / 16_000
    chirp = np.sin(2 * np.pi * (200 * times + 15_000 * times**2)) * 0.7
    tone = np.sin(2 * np.pi * 1000 * times)
    arrays = {
        "shortest": generator.normal(size=513) * 0.1,
        "noise": generator.normal(size=1313) * 0.2,
        "chirp": chirp,
        "tone": tone * 0.5 + generator.normal(size=3000) * 0.01,
        "silence": np.zeros(900),
    }
    return {
        name: np.round(x.clip(-1, 0.9999) * 32_768).astype(np.int16) for name, x in arrays.items()
    }


def main(folder):
    """Writes the fixture."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = Gemma3nAudioFeatureExtractor()
    small = Gemma3nAudioFeatureExtractor(
        feature_size=10, per_bin_mean=np.arange(10) / 10, per_bin_stddev=np.arange(1, 11)
    )
    arrays = {}
    for name, samples in waves().items():
        arrays[f"wave/{name}"] = samples
        sound = samples.astype(np.float32) / 32_768
        for kind, extractor in (("features", whole), ("small", small)):
            given = extractor(sound, padding="longest", pad_to_multiple_of=None)
            arrays[f"{kind}/{name}"] = np.asarray(given["input_features"][0], np.float32)
    np.savez_compressed(folder / "audio.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""Words that a simple voice says, and questions whose answers are known: which word, which tone.

A word is three vowels of five. The voice is a sum of harmonics of a pitch, whose strengths a
vowel's two formants decide (Peterson & Barney, "Control Methods Used in a Study of the Vowels",
JASA 1952, men's means), and glides up or down through the word. Pitch, length of each vowel, size
of the speaker (a factor of the formants) and noise are drawn with each clip. A row has a clip and
one question about it:

    word  "word?", such as "aio"; each word as often as another
    tone  "tone?", "up" or "down", which the letters do not say

So the best answer that needs no clip is right of 1 / W, with W words, and of 1 / 2 of the rows.

n clips, N samples of the longest, M mel bins.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kullback.lm import audio, hearing

VOWELS = {"a": (730, 1090), "e": (530, 1840), "i": (270, 2290), "o": (570, 840), "u": (300, 870)}
WORDS = tuple(map("".join, itertools.product(VOWELS, repeat=3)))
TONES = ("up", "down")
QUESTIONS = {"word": "word?", "tone": "tone?"}
TOKENS = 4  # Soft tokens of a clip at most; 0.64 s.
LENGTHS = (0.10, 0.20)  # Seconds of a vowel.
PITCHES = (90.0, 220.0)  # Hz, in the middle of a word.
GLIDE = 1.35  # Factor of the pitch from the beginning to the end of a word, or its inverse.
SPEAKERS = (0.9, 1.1)  # Factors of the formants.
BANDWIDTH = 90.0  # Hz, of a formant.
SIGNAL_TO_NOISE = 10.0  # dB, of a clip.
HIGHEST = 3_000.0  # Hz, above which the voice has no harmonics.
STEP = 40  # Samples, 2.5 ms, for which pitch and formants stay: the voice is smooth enough.


class Row(NamedTuple):
    """A clip that is still to be spoken, and a question about it."""

    word: str
    tone: str
    about: str  # Name of the question's kind.

    @property
    def question(self) -> str:
        """Its text."""
        return QUESTIONS[self.about]

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.word if self.about == "word" else self.tone


def drawn(
    random: np.random.Generator, vocabulary: Sequence[str], count: int, about: str = ""
) -> list[Row]:
    """Draws rows of some words, each as likely as another, and as likely up as down.

    Args:
      random: draws.
      vocabulary: words that are spoken.
      count: of rows.
      about: kind of their questions; "" takes both in turn.
    """
    kinds = [about] if about else [*QUESTIONS]
    chosen = random.integers(0, len(vocabulary), count)
    tones = random.integers(0, 2, count)
    return [
        Row(vocabulary[int(chosen[n])], TONES[int(tones[n])], kinds[n % len(kinds)])
        for n in range(count)
    ]


def held_out(random: np.random.Generator, share: float) -> tuple[list[str], list[str]]:
    """Returns words to learn from, and others, of which no clip is learnt from, in random order."""
    order = [WORDS[i] for i in random.permutation(len(WORDS))]
    count = round(share * len(WORDS))
    return order[count:], order[:count]


def wave(random: np.random.Generator, row: Row) -> np.ndarray:
    """Speaks a row, float32 [samples] in [-1, 1] at 16 kHz."""
    steps = random.uniform(*LENGTHS, len(row.word)) * audio.SAMPLE_RATE / STEP
    lengths, speaker = steps.astype(int), random.uniform(*SPEAKERS)
    glide = np.linspace(-0.5, 0.5, sum(lengths)) * (1 if row.tone == "up" else -1)
    pitch = np.exp(random.uniform(*np.log(PITCHES))) * GLIDE**glide  # Hz, [steps].
    formants = np.repeat(np.array([VOWELS[x] for x in row.word]), lengths, 0).T * speaker
    # Neighbouring vowels run into each other over 30 ms: the mean of 12 steps.
    smooth = np.full(12, 1 / 12)
    formants = [np.convolve(np.pad(f, (6, 5), "edge"), smooth, "valid") for f in formants]
    k = np.arange(1, int(HIGHEST / pitch.min()) + 1)[:, None]  # Numbers of harmonics.
    frequencies = k * pitch
    strengths = sum(1 / (1 + ((frequencies - f) / BANDWIDTH) ** 2) for f in formants)
    strengths = np.where(frequencies < HIGHEST, strengths, 0) / np.sqrt(k)
    turn = np.exp(2j * np.pi * np.repeat(pitch, STEP) / audio.SAMPLE_RATE)
    phase = np.cumprod(turn) * np.exp(2j * np.pi * random.uniform())
    harmonics = np.cumprod(np.broadcast_to(phase, (len(k), len(phase))), 0).imag
    sound = np.sum(np.repeat(strengths, STEP, 1) * harmonics, 0)
    level = np.sqrt(np.mean(sound**2))
    sound += random.normal(size=len(sound)) * level * 10 ** (-SIGNAL_TO_NOISE / 20)
    return (sound * 0.3 / np.max(np.abs(sound))).astype(np.float32)


def clips(random: np.random.Generator, rows: Sequence[Row], bins: int) -> hearing.Clips:
    """Speaks rows, and returns the features of their clips, a clip a row, [n, 1, A, M]."""
    settings = audio.Config(bins=bins)
    features = [audio.log_mel(wave(random, row), settings) for row in rows]
    stacked = hearing.stacked(features, TOKENS, bins)
    return hearing.Clips(stacked.features[:, None], stacked.frames[:, None])


@functools.cache
def texts() -> tuple[str, ...]:
    """Returns all questions and answers."""
    return (*QUESTIONS.values(), *WORDS, *TONES)

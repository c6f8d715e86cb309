"""Tests of experiments/reproductions/spoken.py."""

import numpy as np

from kullback.experiments.reproductions import spoken
from kullback.lm import audio


def test_a_voice_has_its_vowels_formants_and_its_pitch_glides():
    """Energy of the second half against the first, and of bands in which a vowel has a formant."""
    random = np.random.default_rng(0)

    def spectrum(word: str, tone: str) -> tuple[np.ndarray, np.ndarray]:
        sound = spoken.wave(random, spoken.Row(word, tone, "word"))
        assert sound.dtype == np.float32 and np.max(np.abs(sound)) <= 0.31
        first, second = (np.abs(np.fft.rfft(x, 16_000)) for x in np.array_split(sound, 2))
        return first, second

    def band(power: np.ndarray, low: float, high: float) -> float:
        return float(np.sum(power[int(low) : int(high)] ** 2))

    bright = [band(np.add(*spectrum("iii", "up")), 1_900, 2_600) for _ in range(5)]
    dark = [band(np.add(*spectrum("uuu", "up")), 1_900, 2_600) for _ in range(5)]
    assert min(bright) > 3 * max(dark)
    for tone in spoken.TONES:
        rises = []
        for _ in range(20):
            first, second = (np.argmax(half[80:300]) for half in spectrum("uuu", tone))
            rises.append(second > first)
        # A glide may carry a formant from one harmonic to the next.
        assert (np.mean(rises) > 0.6) == (tone == "up"), (tone, rises)


def test_rows_have_both_questions_and_words_are_held_out():
    random = np.random.default_rng(0)
    known, new = spoken.held_out(random, 0.2)
    assert sorted((*known, *new)) == sorted(spoken.WORDS) and len(new) == 25
    rows = spoken.drawn(random, known, 10)
    assert [row.about for row in rows[:2]] == ["word", "tone"]
    assert {row.word for row in rows} <= {*known}
    assert all(row.answer in (row.word, row.tone) for row in rows)
    clips = spoken.clips(random, rows[:3], 16)
    assert clips.features.shape == (3, 1, 16 * spoken.TOKENS, 16)
    longest = spoken.Row("aaa", "up", "word")
    samples = max(len(spoken.wave(random, longest)) for _ in range(50))
    assert samples <= 3 * spoken.LENGTHS[1] * audio.SAMPLE_RATE
    assert audio.num_tokens(int(3 * spoken.LENGTHS[1] * audio.SAMPLE_RATE)) <= spoken.TOKENS

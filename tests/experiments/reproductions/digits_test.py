"""Tests of experiments/reproductions/digits.py."""

import sys

import numpy as np
import pytest

from kullback.experiments.reproductions import digits

SMALL = digits.Judging(copies=2, steps=150, batch_size=32, learning_rate=1e-2)


def blobs(number: int, noise: float = 0.3) -> digits.Digits:
    """Returns pictures of ten patterns with noise, which a judge can tell."""
    patterns = np.random.default_rng(7).choice([-0.6, 0.6], (10, 8, 8))
    random, labels = np.random.default_rng(number), np.arange(number) % 10
    pixels = patterns[labels] + noise * random.normal(size=(number, 8, 8))
    return digits.Digits(np.clip(pixels, -1, 1).astype(np.float32), labels.astype(np.int32))


def test_those_of_scikit_learn():
    pytest.importorskip("sklearn", reason="the extra kullback[digits] is not installed")
    got = digits.load()
    assert got.pixels.shape == (digits.NUM_PICTURES, digits.SIDE, digits.SIDE)
    assert got.pixels.min() == -1 and got.pixels.max() == 1
    assert np.bincount(got.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # A nought's middle is white, and what is around it black.
    mean = got.pixels[got.labels == 0].mean(0)
    assert mean[3:5, 3:5].max() < -0.5 and mean[1, 3:5].min() > 0.3


def test_without_scikit_learn_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'kullback\[digits\]'") as error:
        digits.load()
    assert "\n" not in str(error.value)


def test_parts_share_nothing():
    given = digits.Digits(np.arange(30.0).reshape(30, 1, 1), np.arange(30))
    parts = digits.split(given, (7, 11, 5), np.random.default_rng(0))
    assert [len(part.labels) for part in parts] == [7, 11, 5]
    drawn = np.concatenate([part.labels for part in parts])
    assert len(set(drawn.tolist())) == 23
    for part in parts:
        np.testing.assert_array_equal(part.pixels[:, 0, 0], part.labels)


def moved(
    monkeypatch: pytest.MonkeyPatch, turn: float, grow: float, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a smooth picture, and a hundred variants within these limits."""
    for name, value in {"TURN": turn, "GROW": grow, "SHIFT": shift}.items():
        monkeypatch.setattr(digits, name, value)
    y, x = np.mgrid[:8, :8] - 3.5
    picture = (2 * np.exp(-(y**2 + (x - 1) ** 2) / 4) - 1).astype(np.float32)
    given = digits.Digits(picture[None], np.zeros(1, np.int32))
    return picture, digits.varied(given, 100, np.random.default_rng(0)).pixels


def test_variants_that_do_not_move_are_the_picture(monkeypatch: pytest.MonkeyPatch):
    picture, same = moved(monkeypatch, 0, 0, 0)
    np.testing.assert_allclose(same, np.broadcast_to(picture, same.shape), atol=1e-6)


def test_variants_are_turned_about_the_middle(monkeypatch: pytest.MonkeyPatch):
    """The spot is a pixel right of it, so that its centre goes round, a pixel away."""
    _, turned = moved(monkeypatch, 90, 0, 0)
    light = turned + 1
    y, x = np.mgrid[:8, :8] - 3.5
    centres = np.stack([np.sum(light * at, (1, 2)) for at in (y, x)]) / np.sum(light, (1, 2))
    radius = np.hypot(*centres)
    assert np.all(abs(radius - radius.mean()) < 0.1) and radius.mean() > 0.8
    assert np.ptp(centres[0]) > 1.5, "from above the middle to below it"
    _, shifted = moved(monkeypatch, 0, 0, 0.5)
    light = shifted + 1
    down = np.sum(light * y, (1, 2)) / np.sum(light, (1, 2))
    assert -0.55 < down.min() < -0.3 and 0.3 < down.max() < 0.55


def test_grey_bytes():
    got = digits.as_bytes(np.array([[[-1.0, 1.0], [0.0, 2.0]]]))
    assert got.shape == (1, 2, 2, 3) and got.dtype == np.uint8
    np.testing.assert_array_equal(got[0, ..., 1], [[0, 255], [128, 255]])


@pytest.mark.parametrize("hidden", [0, 5])
def test_oracle_of_what_a_judge_says(hidden: int):
    random, pixels = np.random.default_rng(1), blobs(6).pixels
    width = hidden or 64
    params = {"out": random.normal(size=(width, 10)), "out_bias": random.normal(size=10)}
    if hidden:
        params |= {"in": random.normal(size=(64, hidden)), "in_bias": random.normal(size=hidden)}
    x = np.float64(pixels).reshape(6, 64)
    if hidden:
        x = np.maximum(x @ params["in"] + params["in_bias"], 0)
    logits = x @ params["out"] + params["out_bias"]
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    given = {name: np.float32(value) for name, value in params.items()}
    np.testing.assert_allclose(digits.log_policy(given, pixels), expected, atol=1e-3)
    labels = np.array([1, 0, 3, 3, 9, 2], np.int32)
    got = digits.told(given, digits.Digits(pixels, labels))
    np.testing.assert_allclose(got["nats"], -expected[np.arange(6), labels].mean(), rtol=1e-4)
    assert got["right"] == np.mean(expected.argmax(1) == labels)


def test_a_judge_tells_new_pictures():
    rater = digits.train_judge(SMALL, blobs(60), 0, 1)
    assert digits.told(rater, blobs(61))["right"] > 0.8
    other = digits.train_judge(SMALL, blobs(60), 0, 2)
    assert not np.array_equal(rater["out"], other["out"]), "streams draw apart"


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", -1), ("steps", 0), ("learning_rate", 0.0), ("weight_decay", -1.0)],
)
def test_settings_that_cannot_be_are_refused(field: str, value: float):
    with pytest.raises(ValueError, match=field):
        digits.Judging(**{field: value})  # pyright: ignore[reportArgumentType]

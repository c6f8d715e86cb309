"""Tests of experiments/reproductions/fragments.py."""

import pytest

from kullback.experiments.reproductions import fragments

DOCUMENT = "a b c d e f g".split()


@pytest.mark.parametrize(
    ("text", "lengths", "coverage", "density"),
    [
        ("c d e", [3], 1, 3),  # A piece of it: 9 / 3.
        ("x y", [], 0, 0),
        ("a b e f g", [2, 3], 1, 2.6),  # (4 + 9) / 5.
        ("g f e", [1, 1, 1], 1, 1),
        ("x a b y", [2], 0.5, 1),  # 2 / 4 and 4 / 4.
        ("", [], 0, 0),
    ],
)
def test_golden(text: str, lengths: list[int], coverage: float, density: float):
    measured = fragments.extractiveness(DOCUMENT, text.split())
    assert fragments.fragments(DOCUMENT, text.split()) == lengths
    assert measured == pytest.approx((coverage, density))


def test_the_longest_run_is_taken_wherever_it_begins():
    document = "a b x a b c".split()
    assert fragments.fragments(document, "a b c x".split()) == [3, 1]

"""Tests of core/names.py."""

import pytest

from kullback.core import names

KNOWN = ["atari/pong", "atari/breakout", "minatar/breakout", "gym/CartPole-v1", "atari/ms_pacman"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ALE/Pong-v5", ["atari/pong"]),
        ("PongNoFrameskip-v4", ["atari/pong"]),
        ("MinAtar/Breakout-v1", ["atari/breakout", "minatar/breakout"]),
        ("MsPacman-ram-v4", ["atari/ms_pacman"]),
        ("cart-pole", ["gym/CartPole-v1"]),
        ("pon", []),
        ("", []),
        ("/", []),
    ],
)
def test_what_others_call_so_is_alike(name, expected):
    assert names.alike(name, KNOWN) == expected


def test_the_nearest_are_named_else_all():
    assert names.unknown("game", "ALE/Pong-v5", KNOWN).endswith("; did you mean atari/pong?")
    assert "did you mean atari/pong, " in names.unknown("game", "atari/pnog", KNOWN)
    assert "expected one of a, b" in names.unknown("flag", "zzz", "ab")
    assert "expected one of a, ab" in names.unknown("flag", "a b", ["ab", "a"], show_all=True)

"""Tests of core/ranges.py."""

import types

import pytest

from kullback.core import ranges


def test_limits_of_fields_are_checked():
    config = types.SimpleNamespace(seeds=0, sizes=(3, 1), none=())
    ranges.at_least(1, config, "sizes")
    with pytest.raises(ValueError, match=r"^seeds must be >= 1, got 0$"):
        ranges.at_least(1, config, "sizes", "seeds")
    for name in ("sizes", "none"):
        with pytest.raises(ValueError, match=rf"^{name} must be numbers >= 2, got "):
            ranges.at_least(2, config, name)


def test_intervals_of_fields_are_checked():
    config = types.SimpleNamespace(rate=1.0, rates=(0.5, 0.0), none=(), nan=float("nan"))
    ranges.inside("(0, 1]", config, "rate")
    ranges.inside("[0, 1)", config, "rates")
    ranges.inside("[0, rate]", config, "none", may_be_empty=True)
    config.most = 2
    with pytest.raises(ValueError, match=r"^most must lie in \(0, rate=1\.0\], got 2$"):
        ranges.inside("(0, rate]", config, "most")
    with pytest.raises(ValueError, match=r"^most must be a multiple of 3, got 2$"):
        ranges.multiples(3, config, "most")
    with pytest.raises(ValueError, match=r"^rate must be a multiple of most=2, got 1\.0$"):
        ranges.multiples("most", config, "rate")
    for interval, name in (
        ("(0, 1)", "rate"),
        ("(0, 1]", "rates"),
        ("[0, 0.5)", "rates"),
        ("[0, 1]", "none"),
        ("[0, inf]", "nan"),
        ("(1, inf)", "rate"),
    ):
        with pytest.raises(ValueError) as raised:
            ranges.inside(interval, config, name)
        said = {"[0, inf]": "be >= 0", "(1, inf)": "be > 1 and finite"}.get(
            interval, f"lie in {interval}"
        )
        assert str(raised.value) == f"{name} must {said}, got {getattr(config, name)}"

"""Tests of `kullback reproduce conservative`."""

from typing import Any

import pytest

from kullback.theory import bounds, conservative

SIZES = ("iterations=20", "exact_iterations=20", "rates=1,0.3,0.003")


@pytest.mark.slow
def test_it_runs_and_its_checks_can_fail(
    run_small: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = run_small("conservative", *SIZES)
    for phrase in ("exact CPI contracts", "no gain is below", "never make the policy worse"):
        assert held(checks, phrase), phrase
    assert held(checks, "is too slow")

    safe_gain = bounds.safe_gain
    monkeypatch.setattr(bounds, "safe_gain", lambda *given: 0.1 + safe_gain(*given))
    make = conservative.cpi  # Of which this one mixes in less than it says.
    monkeypatch.setattr(conservative, "cpi", lambda rate, **more: make(0.01, **more))
    broken = run_small("conservative", *SIZES)
    assert held(broken, "no gain is below") is False
    assert held(broken, "exact CPI contracts") is False

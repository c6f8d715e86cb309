"""Tests of `kullback reproduce leverage-the-average`."""

from typing import Any

import jax
import pytest

from kullback.theory import bounds, mirror

SIZES = (
    *("iterations=30", "component_iterations=6"),
    *("lambdas=0.1", "betas=0,0.9"),
)


@pytest.mark.slow
def test_it_runs_and_its_checks_can_fail(
    run_small: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = run_small("leverage-the-average", *SIZES)
    for phrase in ("proposition 1", "theorem 1", "theorem 2 by component", "corollary", "g2(k)"):
        assert held(checks, phrase), phrase

    kl_gap, entropy_gap, md_vi = bounds.kl_gap, bounds.entropy_gap, mirror.md_vi
    monkeypatch.setattr(bounds, "kl_gap", lambda *given: 1e-3 * kl_gap(*given))
    monkeypatch.setattr(bounds, "entropy_gap", lambda *given: 1e-3 * entropy_gap(*given))
    monkeypatch.setattr(mirror, "md_vi", lambda lambda_, tau: md_vi(1.1 * lambda_, tau))
    jax.clear_caches()  # What is compiled has the bounds in it.
    broken = run_small("leverage-the-average", *SIZES)
    for phrase in ("proposition 1", "theorem 1", "theorem 2 by component"):
        assert held(broken, phrase) is False, phrase
    assert held(broken, "corollary")

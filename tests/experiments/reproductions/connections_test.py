"""Tests of `kullback reproduce connections`."""

from typing import Any

import pytest

from kullback.experiments.reproductions import connections
from kullback.theory import bounds

SIZES = ("iterations=12", "twin_iterations=6")


@pytest.mark.slow
def test_it_runs_and_its_checks_can_fail(
    run_small: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = run_small("connections", *SIZES)
    assert all(checks.values())
    assert len(checks) == 10

    objective, regret = connections.objective, bounds.politex_regret
    monkeypatch.setattr(connections, "objective", lambda mdp, policy: 1.01 * objective(mdp, policy))
    monkeypatch.setattr(bounds, "politex_regret", lambda *given: 1e-4 * regret(*given))
    broken = run_small("connections", *SIZES)
    # Frank-Wolfe sees the direction of a gradient alone.
    assert held(broken, "CPI, Frank-Wolfe")
    assert held(broken, "MD-MPI, mirror descent") is False
    assert held(broken, "Politex, dual averaging") is False
    assert held(broken, "Politex keeps to its bound") is False

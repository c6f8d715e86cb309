"""Tests of `kullback reproduce connections`."""

import math
from typing import Any

import numpy as np
import pytest

from kullback.experiments.reproductions import connections, garnets, study
from kullback.theory import bounds, garnet

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


def test_regret_is_of_one_state_at_a_time() -> None:
    # Gaps of two states: (1, 0), then (0, 1), then (9, 9), which comes after pi_1.
    v = -np.array([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    np.testing.assert_array_equal(connections.regret(np.zeros((1, 2)), v), [[1, 1]])


def test_what_is_not_a_number_does_not_hold() -> None:
    """Whether in a curve, in a twin or in a fall, and whatever comes first."""
    config = connections.Config()
    pairs = ["CPI, Frank-Wolfe", "MD-MPI, Politex", "mirror descent, dual averaging; anything"]
    nan = math.nan

    def judged(share: float, off: float, fall: float) -> list[bool | None]:
        curves = [
            {"family": family, "largest_share": x, "largest_fall": y}
            for family in (connections.CPI, connections.MIRROR, connections.POLITEX)
            for x, y in ((0.5, 0.0), (share, fall))
        ]
        twin = {"is_tied": False, "is_still": False}
        twins = [
            {"pair": pair, "process": i, "largest_difference": x, **twin}
            for pair in pairs
            for i, x in enumerate((1.0 if pair.startswith("mirror") else 0.0, off))
        ]
        return [
            check.verdict == "held"
            for check in connections.claims(config, {"curves": curves, "twins": twins})
        ]

    assert judged(0.9, 0.0, 0.0) == [True, True, False, True, True, True, True]
    assert judged(nan, nan, nan) == [False] * 7


@pytest.mark.slow
def test_where_nothing_can_differ_nothing_is_judged() -> None:
    sizes = garnet.Config(num_states=4, num_actions=1, branching=2)
    config = connections.Config(
        processes=garnets.Config(num_garnets=2, garnet=sizes), twin_iterations=2
    )
    rows = connections.twins(config, garnets.make(config.processes))
    families = (connections.CPI, connections.MIRROR, connections.POLITEX)
    curves = [{"family": f, "largest_share": 0.0, "largest_fall": 0.0} for f in families]
    tables = {"twins": study.split(rows, "twins")["twins"], "curves": curves}
    checks = [*connections.claims(config, tables)]
    assert [check.verdict for check in checks[:6]] == ["reported"] * 6

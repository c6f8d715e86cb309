"""Tests of `kullback reproduce momentum-theory`."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from kullback.experiments.reproductions import garnets, momentum_theory
from kullback.theory import bounds, iteration, momentum

SIZES = ("iterations=300", "weights=0.9")


@pytest.mark.slow
def test_it_runs_and_its_checks_can_fail(
    run_small: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = run_small("momentum-theory", *SIZES)
    assert held(checks, "AVI keeps to its bound") and held(checks, "MD-VI keeps to its bound")
    assert held(checks, "sampled, MoVI ends nearer") and held(checks, "without errors AVI ends at")

    mpi_gap = bounds.mpi_gap
    monkeypatch.setattr(bounds, "mpi_gap", lambda *given: 0.01 * mpi_gap(*given))
    monkeypatch.setattr(momentum, "momentum_vi", lambda b=None: iteration.value_iteration())
    broken = run_small("momentum-theory", *SIZES)
    assert held(broken, "AVI keeps to its bound") is False
    assert held(broken, "sampled, MoVI ends nearer") is False
    assert held(broken, "MD-VI keeps to its bound")


def test_discounted_norms() -> None:
    # 0.5 * 2 = 1, then 0.5 * 1 + 0.5 * 4 = 2.5.
    sums = momentum_theory._discounted(np.array([[2.0, 4.0]]), np.array([0.5]))
    np.testing.assert_allclose(sums, [[1.0, 2.5]])


def test_slope_of_a_power() -> None:
    k = np.arange(200)
    np.testing.assert_allclose(momentum_theory._slope(np.maximum(k, 1) ** -0.5), -0.5)


def test_of_one_process_and_few_iterations_little_is_judged() -> None:
    tables = {"curves": [], "errors": [], "ends": []}
    for scheme in ("AVI", "MoVI", "Speedy Q-learning", "MD-VI"):
        for kind in ("exact", "sampled"):
            row = {"scheme": scheme, "kind": kind, "end": 0.1, "largest_share": 0.5, "slope": -1.0}
            tables["ends"].append({**row, "average_norm": 0.1, "discounted_norm": 1.0})
    few = momentum_theory.Config(processes=garnets.Config(num_garnets=1), iterations=60)
    checks = list(momentum_theory.claims(few, tables))
    assert [check.verdict for check in checks] == ["undecided"] * 5 + ["held"] * 2 + ["reported"]
    tables["ends"] = tables["ends"] * 2  # Two processes, and iterations enough.
    checks = list(momentum_theory.claims(dataclasses.replace(few, iterations=400), tables))
    verdicts = [check.verdict for check in checks]
    assert verdicts == ["contradicted"] * 2 + ["undecided", "contradicted"] + ["held"] * 3 + [
        "reported"
    ]

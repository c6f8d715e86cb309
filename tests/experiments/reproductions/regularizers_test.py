"""Tests of `kullback reproduce regularizers`."""

import math
from typing import Any

import numpy as np
import pytest

from kullback.experiments.reproductions import regularizers
from kullback.theory import bounds

SIZES = ("iterations=15", "divergences=kl,alpha-1.5", "taus=0.1,1")


@pytest.mark.slow
def test_it_runs_and_its_checks_can_fail(
    run_small: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = run_small("regularizers", *SIZES)
    for phrase in ("contracts", "keeps to the bound of modified", "loses at most"):
        assert held(checks, phrase), phrase
    gap = bounds.mpi_gap
    monkeypatch.setattr(bounds, "mpi_gap", lambda *given: 1e-3 * gap(*given))
    monkeypatch.setattr(regularizers, "largest_entropy", lambda name, num_actions: 1e-3)
    broken = run_small("regularizers", *SIZES)
    assert held(broken, "contracts")
    assert held(broken, "keeps to the bound of modified") is False
    assert held(broken, "loses at most") is False


def test_largest_entropy() -> None:
    np.testing.assert_allclose(regularizers.largest_entropy("kl", 4), math.log(4))
    # f = (u - 1)^2 / 2: half of 1 - sum p^2, which is (1 - 1 / 4) / 2.
    np.testing.assert_allclose(regularizers.largest_entropy("chi_squared", 4), 0.375)
    with pytest.raises(ValueError, match="has no entropy"):
        regularizers.Config(divergences=("reverse_kl",))

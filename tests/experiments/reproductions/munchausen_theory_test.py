"""Tests of `kullback reproduce munchausen-theory`."""

import pathlib
from typing import Any

import pytest

from kullback.theory import mdp as mdps
from kullback.theory import munchausen, worlds

SIZES = ("iterations=20", "exact_iterations=400", "alphas=0,0.5")


@pytest.mark.slow
def test_it_runs_and_its_checks_can_fail(
    run_small: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = run_small("munchausen-theory", *SIZES)
    assert held(checks, "(theorem 1)") and held(checks, "keeps to MD-VI's bound")
    assert held(checks, "theorem 2 as derived") and held(checks, "and not (1 + alpha)")
    # With the factor that the paper is remembered to print, neither holds.
    monkeypatch.setattr(munchausen, "action_gap_ratio", lambda alpha: (1 + alpha) / (1 - alpha))
    broken = run_small("munchausen-theory", *SIZES)
    assert held(broken, "theorem 2 as derived") is False
    assert held(broken, "and not (1 + alpha)") is False
    assert held(broken, "(theorem 1)")


def test_a_users_process_has_no_interval(run_small: Any, held: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "chain.npz"
    mdps.save(path, worlds.chain(4, slip=0.2, discount=0.9))
    checks = run_small("munchausen-theory", f"mdp={path}", *SIZES)
    assert held(checks, "(theorem 1)") and held(checks, "and not (1 + alpha)")
    assert held(checks, "ends nearer") is None

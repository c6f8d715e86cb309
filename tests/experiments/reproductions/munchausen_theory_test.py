"""Tests of `kullback reproduce munchausen-theory`."""

import pathlib
from typing import Any

import pytest

from kullback.experiments.reproductions import garnets, munchausen_theory
from kullback.theory import mdp, munchausen, worlds

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


@pytest.mark.slow
def test_a_users_process_has_no_interval(run_small: Any, held: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "chain.npz"
    mdp.save(path, worlds.chain(4, slip=0.2, discount=0.9))
    checks = run_small("munchausen-theory", f"mdp={path}", *SIZES)
    assert held(checks, "(theorem 1)") and held(checks, "and not (1 + alpha)")
    assert held(checks, "ends nearer") is None


def test_gaps_that_had_too_few_iterations_are_not_judged() -> None:
    processes = garnets.Config(num_garnets=1)  # Whose discount is 0.9.

    def judged(alphas: tuple[float, ...]) -> dict[str, str]:
        config = munchausen_theory.Config(processes=processes, alphas=alphas)
        ends, limits = [], []
        for alpha in alphas:
            # As after 2,000 iterations: 0.995^2000 is 4e-5, and so much is missing.
            off = 0.1 * alpha**config.exact_iterations
            label = munchausen_theory.named(alpha)
            ends.append({"scheme": label, "end": 0.1, "off": 0.0, "largest_share": 0.5})
            derived, printed = 1 / (1 - alpha), munchausen_theory.printed_ratio(alpha)
            limit = {"alpha": alpha, "end": derived * (1 - off), "off_by_action": off}
            limits.append({**limit, "derived": derived, "printed": printed})
        checks = munchausen_theory.claims(config, {"ends": ends, "limits": limits})
        return {check.claim.split(" (")[0][:30]: check.verdict for check in checks}

    gaps, factor = "without errors every action ga", "the factor is 1 / "
    verdicts = judged((0.995,))
    assert {verdicts[gaps], verdicts[factor.strip()]} == {"undecided"}
    verdicts = judged((0.5, 0.995))
    assert {verdicts[gaps], verdicts[factor.strip()]} == {"held"}

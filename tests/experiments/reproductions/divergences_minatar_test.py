"""Tests of `kullback reproduce divergences-minatar`: what it judges, and a run at a tiny size."""

import dataclasses
import json
import pathlib

import pytest

from kullback.core import regularizers
from kullback.experiments import progress
from kullback.experiments.reproductions import divergences_minatar, study
from kullback.experiments.runs import run_folder

GAME = "minatar/breakout"
CONFIG = dataclasses.replace(divergences_minatar.Config(), games=(GAME,))


def rows_of(returns: dict[str, float], gaps: dict[str, float] | None = None) -> study.Rows:
    """Returns flat curves: seeds differ a little, higher labels have sparser policies."""
    labels = ["dqn", "m-dqn kl", "m-dqn alpha-1.5", "m-dqn alpha-2"]
    return [
        {
            "label": label,
            "environment": GAME,
            "seed": seed,
            "steps": 100 * (t + 1),
            "return_mean": returns.get(label, 5.0) + 0.01 * seed,
            "action_gap": (gaps or {}).get(label, 1.0) * (1 + 0.01 * seed),
            "policy_entropy": [0.0, 0.6, 0.4, 0.7][k] + 0.01 * seed,
        }
        for k, label in enumerate(labels)
        for seed in range(3)
        for t in range(20)
    ]


def judged(rows: study.Rows) -> dict[str, str]:
    return {
        check.claim.removeprefix(f"{GAME}: "): check.verdict
        for check in divergences_minatar.STUDY.claims(CONFIG, {"curves": rows})
    }


def test_what_it_judges():
    verdicts = judged(
        rows_of(
            {"m-dqn alpha-1.5": 6.0, "m-dqn alpha-2": 4.9},
            {"m-dqn alpha-2": 3.0, "m-dqn alpha-1.5": 0.5},
        )
    )
    assert verdicts["m-dqn alpha-1.5 scores above dqn over the run"] == "held"
    assert verdicts["m-dqn alpha-2 scores above dqn over the run"] == "contradicted"
    assert verdicts["m-dqn alpha-2 widens the gap of actions, in times DQN's"] == "held"
    assert verdicts["m-dqn alpha-1.5 widens the gap of actions, in times DQN's"] == "contradicted"
    alike = "m-dqn alpha-{} scores as m-dqn kl does, within 15%, over the run"
    assert verdicts[alike.format(2)] == "held"
    assert verdicts[alike.format(1.5)] == "contradicted"
    phrase = "policies of m-dqn alpha-2 are nearer to one action than KL's, in nats"
    assert verdicts[phrase] == "reported"


def test_where_dqn_has_not_learnt_nothing_is_judged():
    verdicts = judged(rows_of({"dqn": 1.0, "m-dqn alpha-1.5": 6.0}))
    assert len(verdicts) == 8 and set(verdicts.values()) == {"reported"}


def test_every_arm_is_the_agent_with_its_regularizer():
    arms = divergences_minatar.Config().arms()
    assert len(arms) == 2 * 4 and arms[0].agent == "dqn" and not arms[0].settings
    for arm in arms[1:4]:
        assert arm.settings[0] == f"regularizer={arm.label.removeprefix('m-dqn ')}"
    f = regularizers.named("alpha-2")
    assert f.at_zero == regularizers.chi_squared.at_zero == 0.5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"regularizers": ("kl",)}, "beside kl"),
        ({"regularizers": ("reverse_kl",)}, "finite f"),
        ({"regularizers": ("alpha",)}, "unknown divergence"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"games": ("gym/CartPole-v1",)}, "random policy"),
        ({"seeds": 0}, "seeds must be >= 1"),
    ],
)
def test_refusals(change: dict[str, object], match: str):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(divergences_minatar.Config(), **change)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_runs_tiny(tmp_path: pathlib.Path):
    config = dataclasses.replace(CONFIG, regularizers=("alpha-1.5",), steps=5_400, seeds=2)
    journal = study.Journal(tmp_path, progress.Progress("test", 0, 1, quiet=True))
    result = divergences_minatar.STUDY.run(config, journal)
    labels = [row["label"] for row in result.tables["final"]]
    assert labels == ["dqn", "m-dqn kl", "m-dqn alpha-1.5"]
    entropies = [row["policy_entropy"] for row in result.tables["final"]]
    assert entropies[0] == 0 and min(entropies[1:]) > 0 and entropies[1] != entropies[2]
    assert len(result.figures["divergences_minatar"].axes) == 3
    assert len(result.checks) == 4
    path = tmp_path / "m-dqn-alpha-1.5-minatar-breakout.run"
    saved = json.dumps(run_folder.RunFolder(path).config())
    assert '"regularizer": "alpha-1.5"' in saved

"""Tests of experiments/reproductions/{bond,bonded_letters,enumerated}.py."""

import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import bond, bonded_letters, enumerated, letters, study
from kullback.lm import best_of_n

SIZES = enumerated.Sizes(prompts=4, answers=6, learning_rate=0.05)
LANGUAGE = letters.Sizes(letters=4, horizon=3, held_out=4, texts=16, start_steps=2, start_batch=4)
DECODER = bonded_letters.Sizes(
    seeds=2,
    language=LANGUAGE,
    width=8,
    num_layers=1,
    prompts=4,
    steps=4,
    records=2,
    betas=(0.1,),
    samples=2,
)
CONFIG = bond.Config(
    seeds=2,
    steps=8,
    moving_steps=8,
    records=2,
    betas=(0.1, 1.0),
    anchor_samples=4,
    larger=(3,),
    anchor_period=2,
    sizes=SIZES,
    decoder=DECODER,
)
SEEDS = range(3, 5)


def test_a_policy_is_measured_by_sums_over_its_answers():
    given = enumerated.world(SIZES, SEEDS)
    reference, rewards = enumerated.softmax(given.logits[1]), given.rewards[1]
    at_start = enumerated.measured(SIZES, given, 1, 4, reference, 3)
    bests = [best_of_n.distribution(p, r, 3) for p, r in zip(reference, rewards, strict=True)]
    kls = [best_of_n.kl(p, r, 3) for p, r in zip(reference, rewards, strict=True)]
    assert at_start["kl"] == 0 and at_start["forward"] == pytest.approx(np.mean(kls))
    assert at_start["reward"] == pytest.approx(np.mean(np.sum(reference * rewards, 1)))
    there = enumerated.measured(SIZES, given, 1, 4, np.array(bests), 3)
    assert there["forward"] == there["backward"] == 0
    assert there["kl"] == pytest.approx(np.mean(kls))


def test_a_fixed_anchor_leads_to_its_best_of_n_and_reinforce_to_its_optimum():
    """Both are close after some hundred steps; a run begins at the reference."""
    sizes = dataclasses.replace(SIZES, prompts=64, answers=3)
    given = enumerated.world(sizes, SEEDS)
    settings = dataclasses.replace(CONFIG, sizes=sizes).bonds()[bond.by_weight(0.5)]
    learner = enumerated.bonded(sizes, settings)
    logits = enumerated.trained(learner, given, SEEDS, 600, 2)
    np.testing.assert_array_equal(logits[0], given.logits)
    first, last = (
        [enumerated.measured(sizes, given, n, s, p, settings.best_of) for n, (s, p) in pairs]
        for pairs in (
            enumerate(zip(SEEDS, enumerated.softmax(table), strict=True))
            for table in (logits[0], logits[-1])
        )
    )
    for before, after in zip(first, last, strict=True):
        assert after["forward"] < before["forward"] / 3, (before, after)
        assert after["backward"] < before["backward"] / 3
    logits = enumerated.trained(enumerated.reinforced(sizes, 1.0, 2), given, SEEDS, 600, 2)
    optimum = enumerated.softmax(given.logits + given.rewards)
    for at_start, at_end, best in zip(logits[0], logits[-1], optimum, strict=True):
        near, far = (enumerated.divergence(best, enumerated.softmax(x)) for x in (at_end, at_start))
        assert near < far / 5, (near, far)


def tables(config: bond.Config, ends: dict[str, dict[str, float]]) -> study.Tables:
    """Returns curves that are lines to their ends, those of all runs; seeds differ a little."""
    names = [*config.bonds(), *map(enumerated.by_beta, config.betas)]
    columns = {"reward": 1.0, "kl": 1.0, "forward": 1.0, "backward": 1.0}
    rows = [
        {
            "arm": name,
            "seed": seed,
            "steps": record,
            "tokens": record,
            **{
                column: (end + 0.01 * seed) * record / config.records
                for column, end in {**columns, **ends.get(name, {})}.items()
            },
        }
        for name in names
        for seed in range(3)
        for record in range(config.records + 1)
    ]
    return {"bond": rows, "decoder": rows}


def test_claims_are_judged_by_what_the_tables_say():
    as_said = {
        bond.by_weight(0.0): {"backward": 2.0},
        bond.by_weight(1.0): {"forward": 2.0},
        bond.by_weight(0.5): {"reward": 0.5},
        enumerated.J_BOND: {"reward": 3.0},
        bond.COPIES: {"kl": 2.0},
        bond.REGULARISED: {"kl": 0.5},
    }
    checks = [*bond.claims(CONFIG, tables(CONFIG, as_said))]
    assert {check.verdict for check in checks} == {"held", "reported"}
    assert len([check for check in checks if check.is_headline]) == 5
    against = {
        bond.by_weight(0.5): {"reward": 2.0, "forward": 3.0, "backward": 3.0},
        enumerated.J_BOND: {"reward": 0.5, "kl": 3.0},
        bond.REGULARISED: {"kl": 4.0},
    }
    checks = [*bond.claims(CONFIG, tables(CONFIG, against))]
    assert [check.verdict for check in checks].count("contradicted") == 8


def changed(config: Any, default: Any, prefix: str = "") -> list[str]:
    """Returns settings, as a user writes them, that make a configuration of the default one."""
    settings = []
    for field in dataclasses.fields(config):
        value, old = (getattr(c, field.name) for c in (config, default))
        if dataclasses.is_dataclass(value):
            settings += changed(value, old, f"{prefix}{field.name}.")
        elif value != old:
            said = ",".join(map(str, value)) if isinstance(value, tuple) else value
            settings.append(f"{prefix}{field.name}={said}")
    return settings


@pytest.mark.slow
def test_it_runs_in_small_and_says_how_long_in_large(tmp_path: pathlib.Path):
    settings = changed(CONFIG, bond.Config())
    checks = reproduce.reproduce("bond", tmp_path / "out", settings, lambda line: None)
    assert {check.num_seeds for check in checks if check.verdict != "reported"} == {2}
    with open(tmp_path / "out" / "decoder.csv") as file:
        texts = {row["arm"]: int(row["texts"]) for row in csv.DictReader(file)}
    assert texts == {enumerated.J_BOND: 4 * 3 * 4, enumerated.by_beta(0.1): 6 * 2 * 4}
    with open(tmp_path / "out" / "bond.csv") as file:
        table: Any = [*csv.DictReader(file)]
    assert len(table) == (len(CONFIG.bonds()) + 2) * 2 * 3
    tokens = {row["arm"]: int(row["tokens"]) for row in table}
    assert tokens[enumerated.J_BOND] == tokens[enumerated.by_beta(0.1)] == 8 * 3 * 4
    assert (tmp_path / "out" / "bond.png").stat().st_size > 10_000
    assert bond.seconds(bond.Config()) < 30 * 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 30}, "steps must be a multiple of 40, got 30"),
        ({"betas": ()}, "betas must be > 0 and finite, got "),
        ({"best_of": 17}, r"best_of must lie in \[2, anchor_samples=16\], got 17"),
        ({"weights": (0.5,)}, "must have 0, 0.5 and 1"),
        ({"anchor_rate": 0.0}, r"anchor_rate must lie in \(0, 1\], got 0.0"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        bond.Config(**fields)

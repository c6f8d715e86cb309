"""Tests of `kullback reproduce preferences`."""

import csv
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import preferences, reward_toy
from kullback.lm import dpo

TOY = reward_toy.Sizes(
    members=2,
    pairs=64,
    held_out=64,
    pretraining_steps=2,
    pretraining_batch=8,
    batch_size=8,
    climbed_steps=3,
    climbs=20,
    evaluation=256,
)
CONFIG = preferences.Config(seeds=2, toy=TOY)
SMALL_MODELS = [
    *(f"decoder.models.{name}" for name in ("members=2", "singles=2", "pairs=16", "held_out=16")),
    *(f"decoder.models.{name}" for name in ("batch_size=4", "steps=2", "policy_steps=4")),
    *(f"decoder.models.{name}" for name in ("policy_batch=8", "samples=2", "records=2")),
    *(f"decoder.models.{name}" for name in ("width=8", "num_layers=1", "prompts=4", "draws=4")),
    *(
        f"decoder.models.{name}"
        for name in ("counts=1,2", "language.texts=16", "language.horizon=3")
    ),
    *(f"decoder.models.language.{name}" for name in ("start_steps=2", "start_batch=4")),
]


@pytest.mark.parametrize("name", preferences.DIRECT)
def test_a_direct_way_descends_the_loss_of_log_ratios(name: str):
    """Oracle in NumPy: the gradient of each loss of d = h+ - h-, h the exact log-ratio."""
    rng = np.random.default_rng(0)
    better, worse = rng.normal(size=(2, 64, reward_toy.DIMENSIONS))
    better[:, 0] += 1
    gold = reward_toy.draw_gold(jax.random.key(0), 0.6)
    objective = CONFIG.objective(name, 0.25)
    pairs = jnp.asarray(better, jnp.float32), jnp.asarray(worse, jnp.float32)
    way = jax.jit(preferences.descent(CONFIG, objective))(pairs, gold, jax.random.key(1))
    mu, kl, right = np.zeros(reward_toy.DIMENSIONS), [0.0], [0.5]
    beta, e = (0.02 if name == "ipo" else 0.1), (0.25 if name == "robust" else 0.0)

    def slope(d: np.ndarray) -> np.ndarray:
        if name == "ipo":
            return 2 * (d - 1 / (2 * beta))
        s = 1 / (1 + np.exp(-beta * d))
        return -beta * ((1 - e) * (1 - s) + (e * s if name == "robust" else 0)) / (1 - 2 * e)

    for step in range(1, TOY.climbs + 1):
        h = [x @ mu - mu @ mu / 2 for x in (better, worse)]
        gradient = np.mean(slope(h[0] - h[1])[:, None] * (better - worse), 0)
        mu = mu - CONFIG.descent_rate * gradient / abs(slope(np.zeros(1)))
        if step % TOY.climb_every == 0:
            kl.append(mu @ mu / 2)
            right.append(np.mean((better - worse) @ mu > 0))
    np.testing.assert_allclose(way.kl, kl, rtol=1e-3)
    np.testing.assert_allclose(way.proxy, right, atol=0.02)
    x = mu + np.random.default_rng(1).normal(size=(20_000, reward_toy.DIMENSIONS))
    expected = float(jnp.mean(reward_toy.worth(gold, jnp.asarray(x, jnp.float32))))
    np.testing.assert_allclose(way.gold[-1], expected, atol=0.5)


def test_the_robust_loss_knows_the_share_of_wrong_labels():
    assert CONFIG.objective("robust", 0.25) == dpo.Objective(loss="robust", label_smoothing=0.25)
    assert CONFIG.objective("dpo", 0.25) == dpo.Objective()


def test_ways_are_compared_where_all_of_them_are():
    """Two seeds; the shortest way of the second ends at 1 nat; members are averaged."""
    rows = [
        {"corruption": 0.0, "seed": seed, "way": way, "member": m, "kl": kl, "gold": scale * kl}
        for seed, most in ((100, 4.0), (101, 1.0))
        for way, members in (("dpo", (1.0,)), ("reward-model", (1.0, 3.0)))
        for m, scale in enumerate(members)
        for kl in (0.0, most if way == "dpo" else 8.0)
    ]
    at, gold = preferences.at_kl(rows, 2.0, 0.0, ("dpo", "reward-model"))
    np.testing.assert_allclose(at, [2, 1])
    np.testing.assert_allclose(gold["dpo"], [2, 1])
    np.testing.assert_allclose(gold["reward-model"], [4, 2])


def test_a_reward_is_in_units_of_its_spread():
    model = reward_toy.MODEL.init(jax.random.key(0))
    model["head"]["w"] = jax.random.normal(jax.random.key(1), model["head"]["w"].shape)
    spread = preferences.scaled(model, CONFIG, 0)["spread"]
    twice = {**model, "head": {"w": 2 * model["head"]["w"], "b": model["head"]["b"]}}
    np.testing.assert_allclose(
        preferences.scaled(twice, CONFIG, 0)["spread"], 2 * spread, rtol=1e-5
    )


@pytest.mark.slow
def test_it_runs(tmp_path: pathlib.Path):
    settings = ["seeds=2", "decoder.seeds=2", "decoder.steps=4", "decoder.records=2"]
    settings += ["decoder.batch_size=8", *SMALL_MODELS]
    for field in dataclasses.fields(TOY):
        value = getattr(TOY, field.name)
        if value != getattr(reward_toy.SIZES, field.name):
            settings.append(f"toy.{field.name}={value}")
    checks = reproduce.reproduce("preferences", tmp_path / "out", settings, lambda line: None)
    # Without wrong labels the robust loss is DPO's, and has no claims.
    judged = [check for check in checks if check.verdict != "reported"]
    assert len(judged) == 6 + 4 + 5 + 6 and sum(check.is_headline for check in judged) == 4
    tables = {}
    for name in ("ways", "decoder"):
        with open(tmp_path / "out" / f"{name}.csv") as file:
            tables[name] = list(csv.DictReader(file))
    records = TOY.climbs // TOY.climb_every + 1
    ways = len(preferences.NAMES) + TOY.members - 1
    assert len(tables["ways"]) == 2 * 2 * ways * records
    assert len(tables["decoder"]) == 2 * (len(preferences.NAMES) + 1) * 3
    starts = [row for row in tables["ways"] if row["step"] == "0"]
    assert {row["kl"] for row in starts} == {"0.0"}
    one_seed = {row["gold"] for row in starts if row["seed"] == "100"}
    assert len(one_seed) == 1 or max(map(float, one_seed)) - min(map(float, one_seed)) < 0.5
    # All ways of a decoder begin at one policy; no pair is ranked by a log-ratio of 0.
    starts = [row for row in tables["decoder"] if row["step"] == "0" and row["seed"] == "100"]
    assert len({row["gold"] for row in starts}) == 1
    assert all(abs(float(row["kl"])) < 1e-5 for row in starts)
    assert {row["proxy"] for row in starts if row["way"] in preferences.DIRECT} == {"0.5"}

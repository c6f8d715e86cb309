"""Tests of experiments/reproductions/{warm,reward_models,reward_toy,reward_letters}.py."""

import csv
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import trees
from kullback.experiments import reproduce
from kullback.experiments.reproductions import (
    letters,
    reward_letters,
    reward_models,
    reward_toy,
    study,
    warm,
)

TOY = reward_toy.Sizes(
    members=2,
    pairs=64,
    held_out=64,
    pretraining_steps=2,
    pretraining_batch=8,
    batch_size=8,
    steps=3,
    climbed_steps=3,
    climbs=20,
    evaluation=256,
)
LANGUAGE = letters.Sizes(letters=4, horizon=3, held_out=5, texts=32, start_steps=2, start_batch=8)
LETTERS = reward_letters.Sizes(
    language=LANGUAGE,
    width=8,
    num_layers=1,
    members=2,
    pairs=16,
    held_out=16,
    corruptions=(0.0, 0.25),
    batch_size=8,
    steps=2,
    prompts=2,
    draws=8,
    counts=(1, 2, 8),
    singles=1,
    policy_steps=2,
    policy_batch=8,
    records=2,
    samples=2,
)


def gold(penalty: float = 0.6) -> reward_toy.Gold:
    return reward_toy.draw_gold(jax.random.key(0), penalty)


def test_gold_falls_beyond_the_radius_and_units_are_its_own_first():
    direction = np.ones(20) / np.sqrt(20)
    x = jnp.asarray(np.stack([5.0 * direction, 7.2 * direction]), jnp.float32)
    plain, bent = (reward_toy.worth(gold(c), x) for c in (0.0, 0.6))
    np.testing.assert_allclose(plain - bent, [0, 0.6 * 4], atol=1e-4)
    units = reward_toy.units(gold(), x)
    assert units.shape == (2, 64)
    np.testing.assert_allclose(units[:, :32] @ gold().w, plain, rtol=1e-5)


def test_pairs_are_as_gold_labels_them_and_wrong_ones_are_known():
    sizes = dataclasses.replace(TOY, pairs=200, corruption=0.25)
    data = reward_toy.draw(sizes, gold(), 0)

    def margins(pairs: reward_models.Pairs) -> jax.Array:
        one, other = (reward_toy.worth(gold(), x) for x in pairs)
        return one - other

    np.testing.assert_array_equal(np.asarray(margins(data.train)) < 0, data.is_swapped)
    assert data.is_swapped.sum() == 50
    for pairs in (data.near, data.far):
        assert bool(jnp.all(margins(pairs) >= 0))
    better, _ = data.far
    assert abs(float(jnp.std(better)) - 1.5) < 0.15 < float(jnp.mean(better))
    # What remembers each label is right of all, and what knows gold of none that is wrong.
    perfect = reward_models.accuracies(data, margins)
    assert perfect == {"corrupted": 0, "clean": 1, "near": 1, "far": 1}
    right = data._replace(is_swapped=np.zeros(200, bool))
    assert reward_models.accuracies(right, margins)["corrupted"] is None


@pytest.mark.slow
def test_a_climb_is_of_a_known_slope():
    """Up r(x) = c . x it goes on; with a price alpha of a nat it stays at mu = c / alpha."""
    sizes = dataclasses.replace(TOY, climbs=400, climb_batch=2_048, evaluation=4_096)
    slope = jnp.zeros(20).at[3].set(0.5)
    reward = lambda params, x: x @ params  # noqa: E731
    free, held = (
        jax.jit(reward_toy.climber(sizes, reward, alpha))(slope, gold(), jax.random.key(0))
        for alpha in (0.0, 0.25)
    )
    assert free.kl.shape == (41,) and float(free.kl[0]) == 0
    # 400 steps of 0.05 times the slope of 0.5: mu is 10 long.
    assert bool(jnp.all(jnp.diff(free.proxy) > 0)) and abs(float(free.kl[-1]) - 10**2 / 2) < 1
    assert abs(float(held.kl[-1]) - 2**2 / 2) < 0.2
    np.testing.assert_allclose(held.proxy[-1] - held.proxy[0], 0.5 * 2, atol=0.1)


@pytest.mark.slow
def test_of_linear_rewards_both_averages_climb_alike():
    """Members whose features are one network's differ in their heads: WA is ENS."""
    start = reward_toy.MODEL.init(jax.random.key(1))
    heads = jax.random.normal(jax.random.key(2), (2, 128)) / 10
    members = jax.tree.map(lambda x: jnp.stack([x, x]), start)
    members["head"]["w"] = heads
    rows = [*reward_toy.climbs(TOY, gold(), members, 0)]
    of = {n: [r["proxy"] for r in rows if r["reward"] == n] for n in ("ensemble", "average")}
    assert len(of["average"]) == 3
    np.testing.assert_allclose(of["ensemble"], of["average"], atol=1e-4)
    best = reward_toy.best_of(TOY, gold(), members, 0)
    picked = {n: [r["gold"] for r in best if r["reward"] == n] for n in ("ensemble", "average")}
    np.testing.assert_allclose(picked["ensemble"], picked["average"], atol=1e-5)
    proxy = [r["proxy"] for r in best if r["reward"] == "single-0"]
    assert proxy == sorted(proxy) and len(proxy) == len(reward_toy.COUNTS)


@functools.cache
def small_letters(rank: int = 0) -> reward_letters.Letters:
    return reward_letters.make(dataclasses.replace(LETTERS, rank=rank))


@pytest.mark.slow
def test_reward_models_with_adapters_differ_from_their_decoder_in_one_subspace():
    experiment = small_letters(2)
    _, members = reward_letters.tune(experiment, 0.25, 0)
    start, factors = (of(0) for of in (experiment.world.start, experiment.tuned.factors))
    before, after = (trees.named_leaves(tree) for tree in (start, members["decoder"]))
    deltas = {path: np.asarray(x) - np.asarray(before[path]) for path, x in after.items()}
    changed = {path: delta for path, delta in deltas.items() if np.any(delta)}
    a = {path.removesuffix("/a"): np.asarray(x) for path, x in trees.named_leaves(factors).items()}
    # "periods/layer_0/attention/query/a" is of ".../attention/query".
    assert len(changed) == 7 and changed.keys() == a.keys()
    for path, delta in changed.items():  # [M, P, in, out]
        assert np.max(np.abs(delta[0] - delta[1])) > 1e-5
        inside = np.einsum("pir,pjr,mpjo->mpio", a[path], a[path], delta)
        np.testing.assert_allclose(inside, delta, atol=1e-6)


@pytest.mark.slow
def test_pairs_of_letters_are_labelled_by_gold_and_swapped_where_said():
    right, language = reward_letters.draw(small_letters(), 0), small_letters().world.language(0)
    for pairs in (right.train, right.near, right.far):
        one, two = (letters.of_rows(language.tables, rows) for rows in pairs)
        assert one.shape == (16,) and bool(jnp.all(one >= two)) and bool(jnp.any(one > two))
        np.testing.assert_array_equal(pairs[0].tokens[:, :2], pairs[1].tokens[:, :2])
    wrong = reward_models.with_errors(right, 0.25, 0)
    assert wrong.is_swapped.sum() == 4
    for news, sames, others in zip(wrong.train, right.train, right.train[::-1], strict=True):
        for new, same, other in zip(news, sames, others, strict=True):
            np.testing.assert_array_equal(new[~wrong.is_swapped], same[~wrong.is_swapped])
            np.testing.assert_array_equal(new[wrong.is_swapped], other[wrong.is_swapped])
    held_out = set(map(tuple, language.held_out.tolist()))
    train, near, far = (
        set(map(tuple, np.asarray(pairs[0].tokens)[:, :2].tolist()))
        for pairs in (right.train, right.near, right.far)
    )
    assert not train & held_out and near == far == held_out


def accuracies(average: float, corruption: float | None = None) -> study.Rows:
    """Returns rows of three seeds: the average differs from all others in what it remembers."""
    rows: study.Rows = []
    for seed in range(3):
        for model, wrong, far in (
            ("single-0", 0.6, 0.7),
            ("single-1", 0.8, 0.7),
            ("ensemble", 0.7, 0.72),
            ("average", 0.7 - average, 0.72 + average),
        ):
            row = {"seed": seed, "model": model, "corrupted": wrong + 1e-3 * seed, "far": far}
            rows.append({**row, "clean": wrong + 0.1, "near": far, "corruption": corruption})
    return rows


@pytest.mark.parametrize("good", [True, False])
def test_models_are_judged(good: bool):
    gap = 0.1 if good else -0.1
    checks = warm.claims_of_models("toy", 0.25, accuracies(gap), [gap, gap, gap + 1e-3])
    assert [c.verdict for c in checks] == ["held" if good else "contradicted"] * 5
    assert len([*warm.claims_of_models("toy", 0.0, accuracies(gap), [gap, gap])]) == 4
    np.testing.assert_allclose(
        warm.values(accuracies(gap), "single", "corrupted"), [0.7, 0.701, 0.702]
    )


@pytest.mark.parametrize("good", [True, False])
def test_climbs_are_judged(good: bool):
    rows: study.Rows = []
    for seed in range(3):
        for name, peak in (("single-0", 2.0), ("single-1", 2.4), ("average", 3.0), ("gold", 9.0)):
            peak = peak if good or name == "gold" else 5 - peak
            curve = [0.0, peak + 1e-3 * seed, peak - 1] if good else [0.0, peak / 2, peak]
            proxy = [0.0, 1.0, 2.0] if good else [0.0, 2.0, 1.0]
            for step, (kl, value, climbed) in enumerate(zip((0, 8, 30), curve, proxy, strict=True)):
                row = {"seed": seed, "reward": name, "step": step, "kl": float(kl)}
                rows.append({**row, "proxy": climbed, "gold": value})
    checks = [*warm.claims_of_climbs("toy", rows)]
    peaks = ["held"] * 3 if good else ["undecided", "contradicted", "contradicted"]
    assert [c.verdict for c in checks] == ["reported", *peaks]
    assert "at 20 nats" in checks[-1].claim and checks[2].is_headline
    np.testing.assert_allclose(
        warm.falls(np.array([[0, 3, 1], [1, 2, 0], [4, 2, 1.0]])), [-1, 2, 1]
    )


def test_a_share_of_nothing_is_undecided():
    values, gained = np.array([0.1, 0.11]), np.array([1.0, 1.1])
    assert warm.of_what_gold_gains("more", values, gained).verdict == "held"
    check = warm.of_what_gold_gains("more", values, np.array([1.0, 0.0]))
    assert check.verdict == "undecided" and "gains nothing" in check.evidence


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_it_runs(tmp_path: pathlib.Path, rank: int):
    settings = ["seeds=2", "toy_seeds=2", f"letters.rank={rank}"]
    for world, sizes in (("toy", TOY), ("letters", LETTERS), ("letters.language", LANGUAGE)):
        default = type(sizes)()
        for field in dataclasses.fields(sizes):
            value = getattr(sizes, field.name)
            if field.name != "language" and value != getattr(default, field.name):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                settings.append(f"{world}.{field.name}={text}")
    checks = reproduce.reproduce("warm", tmp_path / "out", settings, lambda line: None)
    assert sum(c.verdict != "reported" for c in checks) == 2 * (5 + 1 + 3)
    tables = {}
    for path in (tmp_path / "out").glob("*.csv"):
        with open(path) as file:
            tables[path.stem] = list(csv.DictReader(file))
    assert len(tables["letters_accuracies"]) == 2 * 2 * 4
    assert len(tables["toy_accuracies"]) == 2 * 5
    assert {r["reward"] for r in tables["letters_climbs"]} == {
        "single-0",
        "ensemble",
        "average",
        "gold",
    }
    assert {p.stem for p in (tmp_path / "out").glob("*.svg")} == {"reward_models", "climbs"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reward_toy.Sizes(climbs=5), "climbs must be a multiple of climb_every=10"),
        (lambda: reward_toy.Sizes(members=1), "members must be >= 2"),
        (lambda: reward_toy.Sizes(evaluation=100), "evaluation must be >= 256"),
        (lambda: reward_letters.Sizes(singles=7), r"singles must lie in \[1, members=6\]"),
        (lambda: reward_letters.Sizes(policy_steps=5), "multiple of records=10"),
        (lambda: reward_letters.Sizes(corruptions=()), "corruptions must have one value"),
        (lambda: reward_letters.Sizes(counts=(1_000,)), r"counts must lie in \[1, draws=512\]"),
        (lambda: reward_letters.Sizes(prompts=17), "prompts must be <= held_out=16"),
        (lambda: warm.Config(seeds=0), "seeds must be >= 1"),
    ],
)
def test_refusals(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()

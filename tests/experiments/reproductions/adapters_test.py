"""Tests of experiments/reproductions/{adapters,adapted_policies}.py, and of worlds of adapters."""

import csv
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import averaging, trees, types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import (
    adapted_policies,
    adapters,
    letters,
    rewarded,
    study,
)
from kullback.lm import gemma, lora

LANGUAGE = letters.Sizes(letters=4, horizon=3, held_out=5, texts=32, start_steps=2, start_batch=8)
MODEL = gemma.make(LANGUAGE.decoder(8, 1))


def normal(init: Any) -> types.Params:
    """Returns parameters of the shapes that `init` draws, at random; nothing is compiled."""
    rng, like = np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like)


def members(settings: lora.Config) -> tuple[rewarded.World, list[types.Params]]:
    """Returns a world of adapters, and two that are drawn at random."""
    start, init = normal(MODEL.init), functools.partial(lora.init, MODEL.config, settings)
    plain = rewarded.World(MODEL, lambda seed: letters.make(LANGUAGE, seed), lambda seed: start)
    one = normal(init)
    return rewarded.adapted(plain, settings), [one, jax.tree.map(lambda x: x[..., ::-1], one)]


@pytest.mark.parametrize("shared_a", [True, False])
def test_the_mean_of_adapters_is_that_of_models_where_they_share_a(shared_a: bool):
    settings = lora.Config(rank=2, alpha=2.0, shared_a=shared_a)
    world, pair = members(settings)
    mean = averaging.mean([world.whole(0, learnt) for learnt in pair])
    of_factors = world.whole(0, averaging.mean(pair))
    error = adapted_policies.norm(mean, of_factors) / adapted_policies.norm(mean, world.start(0))
    assert (error < 1e-6) == shared_a and (0.5 < error < 1.5) != shared_a
    paths = trees.named_leaves(world.constants(0).base)
    assert any(path.endswith("query/a") for path in paths) == shared_a


def test_the_error_of_a_mean_of_factors_is_in_lengths_of_the_mean():
    begin, one, two, other = ({"w": np.array(x)} for x in ([0.0, 0], [2.0, 0], [0.0, 2], [1.0, 2]))
    seen = adapted_policies.geometry(begin, [one, two], other)
    assert seen == pytest.approx({"cosine": 0.0, "factors_error": 1 / np.sqrt(2)})


def points(good: bool) -> study.Rows:
    """Returns members of reward 1 at 10 nats and fronts of straight lines from 0, of 3 seeds."""
    rewards = {"full": 1.0, "shared": 1.0, "free": 1.0, "naive": 0.5 if good else 1.1}
    rewards |= {} if good else {"full": 0.9, "shared": 0.6, "free": 0.9}
    rows: study.Rows = []
    for seed in range(3):
        for way in adapters.NAMES:
            row = {"way": way, "seed": seed}
            rows += [{**row, "arm": "member", "at": n, "kl": 10.0, "reward": 1.0} for n in (0, 1)]
            for arm in ("mean", "slerp", *(["naive"] if way == "free" else [])):
                end = rewards["naive" if arm == "naive" else way] + 1e-3 * seed
                for at in (0.0, 0.5, 1.0):
                    rows.append({**row, "arm": arm, "at": at, "kl": 10 * at, "reward": at * end})
    return rows


@pytest.mark.parametrize("good", [True, False])
def test_what_is_judged(good: bool):
    merges = [
        {"way": way, "seed": seed, "cosine": 0.5, "factors_error": 0.7}
        for way in adapters.NAMES
        for seed in range(3)
    ]
    tables = {"points": points(good), "merges": merges}
    checks = [*adapters.claims(adapters.Config(), tables)]
    verdicts = [c.verdict for c in checks if c.verdict != "reported"]
    assert verdicts == ["held" if good else "contradicted"] * 8
    assert sum(c.is_headline for c in checks) == 3
    bars = adapters.panels(tables["points"]).draw().axes[1]
    heights = [bar.get_height() for bar in bars.patches]  # pyright: ignore
    expected = [0, 0, 0, -0.5] if good else [-0.1, -0.4, -0.1, 0.1]
    np.testing.assert_allclose(heights, np.array(expected) + 1e-3, atol=1e-9)


def test_fronts_are_compared_where_the_nearer_one_ends():
    far = np.array([[[0.0, 4.0, 8.0], [0.0, 2.0, 3.0]]])
    near = np.array([[[0.0, 2.0, 6.0], [0.0, 1.5, 2.25]]])
    np.testing.assert_allclose(adapters.more(far, near), [2.5 - 2.25])
    np.testing.assert_allclose(adapters.more(near, far), [2.25 - 2.5])


@pytest.mark.slow
def test_it_runs(tmp_path: pathlib.Path):
    settings = ["seeds=2", "first_seed=3", "policy.width=8", "policy.num_layers=1", "policy.rank=2"]
    settings += ["policy.batch_size=8", "policy.member_steps=4", "policy.records=2"]
    settings += ["policy.samples=4", "language.letters=4", "language.horizon=3"]
    settings += ["language.held_out=5", "language.texts=32", "language.start_steps=2"]
    checks = reproduce.reproduce("adapters", tmp_path / "out", settings, lambda line: None)
    assert sum(c.verdict != "reported" for c in checks) == 8
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in ("points", "merges"):
        with open(tmp_path / "out" / f"{name}.csv") as file:
            tables[name] = list(csv.DictReader(file))
    # A run's records, members, and fronts of two averages; of adapters apart, of three.
    assert len(tables["points"]) == 2 * (3 * (2 + 2 + 2 * 11) + 11)
    starts = {r["reward"] for r in tables["points"] if r["at"] == "0.0" and r["seed"] == "3"}
    assert len(starts) == 1
    of_members = [r["kl"] for r in tables["points"] if r["arm"] == "member"]
    assert len(set(of_members)) == len(of_members) == 12
    errors = {r["way"]: float(r["factors_error"]) for r in tables["merges"]}
    assert errors["free"] > 0.1 and errors["shared"] < 1e-5 and errors["full"] == 0
    assert (tmp_path / "out" / "adapters.svg").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapters.Config(seeds=0), "seeds must be >= 1"),
        (lambda: adapted_policies.Sizes(members=1), "members must be >= 2"),
        (lambda: adapted_policies.Sizes(records=7), "member_steps must be a multiple of records=7"),
        (lambda: adapted_policies.Sizes(rank=0), "rank must be >= 1"),
    ],
)
def test_refusals(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()

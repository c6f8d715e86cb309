"""Tests of experiments/reproductions/{warp,merged_policies}.py."""

import csv
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import averaging
from kullback.experiments import reproduce
from kullback.experiments.reproductions import letters, merged_policies, study, warp
from kullback.lm import merging

LANGUAGE = letters.Sizes(letters=4, horizon=3, held_out=5, texts=32, start_steps=2, start_batch=8)
SMALL: dict[str, Any] = {"width": 8, "num_layers": 1, "batch_size": 8, "member_steps": 4}
CONFIG = warp.Config(
    seeds=2,
    records=2,
    samples=4,
    language=LANGUAGE,
    toy=merged_policies.Sizes(kind="perceptron", **SMALL),
    decoder=merged_policies.Sizes(kind="decoder", rank=2, **SMALL),
)


class Silent:
    """Takes the place of `study.Journal`; an arm only tells it how far it is."""

    def tick(self, *said: Any) -> None:
        """Takes it, and nobody listens."""


@functools.cache
def iterated(
    name: str = "toy",
) -> tuple[merged_policies.Policies, study.Rows, list[merged_policies.Merge]]:
    """Returns two iterations of a perceptron, or of a decoder's adapters."""
    sizes: merged_policies.Sizes = getattr(CONFIG, name)
    model, algorithm = sizes.model(LANGUAGE), CONFIG.algorithm(name)
    policies = merged_policies.make(name, model, LANGUAGE, {}, algorithm, CONFIG.samples)
    silent: Any = Silent()
    return policies, *merged_policies.iterate(
        policies, 0, CONFIG.records, CONFIG.iterations, silent
    )


def near(one: Any, other: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", warp.POLICIES)
def test_members_are_those_of_the_learner_of_warp(name: str):
    """The merges of its own state are those of the weights that the member's learner found."""
    policies, curve, merges = iterated(name)
    first, second = merges
    near(policies.world.whole(0, first.init), policies.world.start(0))
    for one in merges:
        near(
            one.merged,
            averaging.slerp(one.members, one.init, group_of=merging.gemma_groups("layer")),
        )
        a, b = (jax.tree.leaves(params) for params in one.members)
        assert max(float(np.max(np.abs(x - y))) for x, y in zip(a, b, strict=True)) > 1e-4
    near(second.init, averaging.liti(first.init, first.merged, CONFIG.next_start))
    assert [row["at"] for row in curve] == [0, 2, 4]
    assert abs(curve[0]["kl"]) < 1e-5 < curve[-1]["kl"]
    of_member = merged_policies.point(policies, 0, "moving", 4, first.members[0])
    assert curve[-1] == of_member


@pytest.mark.slow
def test_averages_of_adapters_are_those_of_the_policies_that_they_make():
    policies, _, [one, _] = iterated("decoder")
    whole = functools.partial(policies.world.whole, 0)
    start, members = whole(one.init), [whole(member) for member in one.members]
    assert {len(jax.tree.leaves(tree)) for tree in one.members} == {7}  # B of each matrix.
    near(whole(merged_policies.merge(one, "lerp")), averaging.mean(members))
    group_of = merging.gemma_groups("layer")
    near(whole(one.merged), averaging.slerp(members, start, group_of=group_of))
    near(
        whole(averaging.liti(one.init, one.merged, 0.3)),
        averaging.liti(start, whole(one.merged), 0.3),
    )


@pytest.mark.slow
def test_ends_of_merges_are_the_members_and_the_identity_holds():
    _, _, merges = iterated()
    for way in ("slerp", "lerp"):
        for share, member in zip((0.0, 1.0), merges[0].members, strict=True):
            near(merged_policies.merge(merges[0], way, share), member)
    assert merged_policies.identity_error(merges[0]) < 1e-4
    wrong = merges[0]._replace(members=[merges[0].members[0], merges[0].init])
    # A task vector of 0 has no angle: the merge is linear, and no cosine says so.
    assert not merged_policies.identity_error(wrong) < 1e-4


def rows(slerp: float, bend: float) -> tuple[study.Rows, study.Rows]:
    """Returns points of fronts and one merge a seed; the runs have rewards 1.6 and 1.8."""
    merges: study.Rows = []
    points: study.Rows = []
    for seed in range(3):
        jitter = 1e-3 * seed
        merges.append(
            {
                "policy": "toy",
                "seed": seed,
                "iteration": 1,
                "reward_one": 1.6,
                "reward_two": 1.8,
                "reward_slerp": slerp + jitter,
                "reward_lerp": 1.7,
                "kl_slerp": 10.0 + jitter,
                "kl_lerp": 9.0 if bend > 0 else 11.0,
                "cosine_whole": 0.9,
                "cosine_least": 0.8,
                "cosine_most": 0.95,
                "identity_error": 1e-6 if bend > 0 else 1e-2,
            }
        )
        for arm in warp.NAMES:
            for at, kl, reward in ((0, 0, 0), (1, 5, 1 + bend), (2, 10, 2 + jitter)):
                point = {"kl": float(kl), "reward": float(reward)}
                points.append({"policy": "toy", "seed": seed, "arm": arm, "at": at, **point})
    return points, merges


@pytest.mark.parametrize("good", [True, False])
def test_what_is_judged(good: bool):
    points, merges = rows(*((1.72, 0.2) if good else (1.5, -0.2)))
    config = warp.Config(first_seed=0)
    areas = warp.areas(config, points)
    tables = {"points": points, "merges": merges, "areas": areas}
    checks = [*warp.claims(config, tables)]
    verdict = "held" if good else "contradicted"
    judged = [c for c in checks if c.verdict != "reported"]
    assert [c.verdict for c in judged[:3]] == [verdict] * 3
    # All fronts are the same here.
    assert {c.verdict for c in judged[3:]} == {"undecided"}
    assert sum(c.is_headline for c in judged) == 2
    assert sum("is not reproduced" in c.evidence for c in checks) == 1
    # Triangles up to the bend, 2 from there to 30 nats.
    by_hand = 5 * (1.2 / 2) + 5 * (3.2 / 2) + 20 * 2 if good else 5 * 0.4 + 5 * 1.4 + 20 * 2
    assert areas[0]["area"] == pytest.approx(by_hand, rel=0.01)
    assert areas[0]["above_chord"] == pytest.approx(1 if good else -1, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_it_runs(tmp_path: pathlib.Path, rank: int):
    settings = ["seeds=2", "records=2", "samples=4"]
    settings += [f"language.{n}={getattr(LANGUAGE, n)}" for n in ("letters", "horizon", "held_out")]
    settings += ["language.texts=32", "language.start_steps=2", "language.start_batch=8"]
    settings += [f"{p}.{n}={v}" for p in ("toy", "decoder") for n, v in SMALL.items()]
    settings += [f"decoder.rank={rank}"]
    checks = reproduce.reproduce("warp", tmp_path / "out", settings, lambda line: None)
    assert sum(c.verdict != "reported" for c in checks) == 2 * 9
    tables = {}
    for name in ("points", "merges", "areas"):
        with open(tmp_path / "out" / f"{name}.csv") as file:
            tables[name] = list(csv.DictReader(file))
    assert len(tables["merges"]) == 2 * 2 * 2 and len(tables["areas"]) == 2 * 2 * len(warp.NAMES)
    assert {p.name for p in (tmp_path / "out").glob("*.svg")} == {"fronts.svg", "merges.svg"}
    # All arms start from one policy, measured alike.
    starts = {(r["policy"], r["seed"], r["reward"]) for r in tables["points"] if r["kl"] == "0.0"}
    assert len(starts) == 4


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"records": 7}, "member_steps must be a multiple of records=7"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"reference_kl": 0.0}, r"reference_kl must be > 0 and finite"),
        ({"next_start": 0.0}, "next_start"),
    ],
)
def test_refusals(field: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        warp.Config(**field)


def test_a_perceptron_has_no_adapters():
    with pytest.raises(ValueError, match="perceptron has no adapters: rank must be 0, got 2"):
        merged_policies.Sizes(kind="perceptron", rank=2)

"""Tests of experiments/reproductions/{hacking,teacher_hacking}.py."""

import csv
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import hacking, study, teacher_hacking

TINY: dict[str, Any] = {
    "seeds": 2,
    "vocab_size": 16,
    "prompt_length": 2,
    "horizon": 3,
    "num_layers": 1,
    "oracle_width": 8,
    "oracle_samples": 16,
    "teacher_width": 8,
    "teacher_epochs": 2,
    "student_width": 8,
    "student_steps": 2,
    "batch_size": 8,
    "prompts": 16,
    "epochs": 9,
    "checkpoints": 9,
    "evaluation_prompts": 32,
}


class Silent:
    """Takes the place of `study.Journal`; an arm only tells it how far it is."""

    def tick(self, *said: Any) -> None:
        """Does nothing: nobody listens."""


@pytest.fixture(scope="module")
def models() -> hacking.Models:
    return hacking.make_models(hacking.Config(**TINY))


def test_the_diversity_arms_have_equal_data_and_the_budget_arms_grow():
    config = hacking.Config(diversity=(1, 2, 4), budget=(1, 2, 4))
    arms = [(arm.prompts, arm.completions) for arm in hacking.arms(config)[3:]]
    assert arms == [(512, 1), (256, 2), (128, 4), (128, 1), (128, 2)]  # 128 x 4 is in both.
    assert [n * k for n, k in arms[:3]] == [512] * 3


@pytest.mark.slow
def test_a_teacher_that_is_the_oracle_has_golden_equal_to_proxy(models: hacking.Models):
    config = hacking.Config(**TINY)
    oracle = jax.jit(models.oracle.init)(jax.random.key(3))
    same = models._replace(teacher=models.oracle)
    prompts = hacking.draw_prompts(config, jax.random.key(1), 32)
    golden, proxy = hacking.references(same, oracle, oracle, prompts, jax.random.key(2))
    student = jax.jit(models.student.init)(jax.random.key(4))
    measured = [float(hacking.distance(models.student, student, *x)) for x in (golden, proxy)]
    assert measured[0] == measured[1] > 0
    np.testing.assert_array_equal(golden[0].tokens, proxy[0].tokens)


@pytest.mark.slow
def test_a_student_that_is_the_teacher_is_at_proxy_0_and_at_the_teachers_golden(
    models: hacking.Models,
):
    config = hacking.Config(**TINY)
    prepared = hacking.prepare(config, models, seed=0)
    assert abs(float(hacking.distance(models.teacher, prepared.teacher, *prepared.proxy))) < 1e-6
    golden = float(hacking.distance(models.teacher, prepared.teacher, *prepared.golden))
    assert golden == prepared.golden_of_teacher > 0.01


@pytest.mark.slow
def test_offline_data_stay_and_online_data_change(models: hacking.Models):
    config = hacking.Config(**TINY)
    prepared = hacking.prepare(config, models, seed=0)
    arm = hacking.Arm("offline-8x2", "offline", 8, 2)
    data = [hacking.completed(models, prepared, arm, jax.random.key(n)) for n in (0, 0, 1)]
    np.testing.assert_array_equal(data[0].tokens, data[1].tokens)
    assert (np.asarray(data[0].tokens) != data[2].tokens).any()
    # Two completions of each of eight prompts.
    prompts = np.asarray(data[0].tokens)[:, :2]
    np.testing.assert_array_equal(prompts[:8], prompts[8:])
    np.testing.assert_array_equal(prompts[:8], prepared.prompts.tokens[:8])


def curve(golden: list[float], proxy: list[float], arm: str, seed: int) -> study.Rows:
    return [
        {
            "arm": arm,
            "seed": seed,
            "epoch": n,
            "step": 8 * n,
            "is_evenly_spaced": n > 0,
            "golden": g,
            "proxy": p,
            "train_loss": 0.01 if arm == "offline" else p,
            "golden_of_teacher": 1.0,
        }
        for n, (g, p) in enumerate(zip(golden, proxy, strict=True))
    ]


def test_a_curve_that_hacks_is_judged_so_and_one_that_does_not_is_not():
    steps = np.arange(1, 31.0)
    law = [3.0, *(2 * steps**-0.5)]
    level = [3.0, *(2 * np.minimum(steps, 12) ** -0.5 - 1e-3 * steps)]
    falling, turning = [2.0, *(1 + 1 / steps)], [2.0, *(1 + abs(steps - 10) / 50)]
    config = hacking.Config(first_seed=0, seeds=6, sources=("offline", "online-student"), epochs=30)

    def held(offline: tuple[list[float], list[float]]) -> dict[str, str]:
        curves = {"offline": offline, "online-student": (falling, law)}
        rows: study.Rows = []
        for (arm, (golden, proxy)), seed in itertools.product(curves.items(), range(6)):
            rows += curve(golden, proxy, arm, seed)
        ends = teacher_hacking.tables(config, rows)["summary"]
        noisy = [{**row, "golden_end": row["golden_end"] + 1e-3 * row["seed"]} for row in ends]
        tables = {"curves": rows, "summary": noisy}
        return {c.claim: c.verdict for c in teacher_hacking.claims(config, tables)}

    verdicts = held((turning, level))
    assert "contradicted" not in verdicts.values()
    assert [*verdicts.values()].count("held") == 11
    verdicts = held((falling, law))
    wrong = [
        claim for claim, verdict in verdicts.items() if verdict in ("contradicted", "undecided")
    ]
    # All but what is so of both: proxy falls, offline trains lower, online keeps to its law.
    assert len(wrong) == 7


@pytest.mark.slow
def test_it_runs(tmp_path: pathlib.Path):
    settings = [f"{name}={value}" for name, value in TINY.items()]
    settings += ["diversity=1,2", "sources=offline,online-student"]
    checks = reproduce.reproduce("teacher-hacking", tmp_path / "out", settings, lambda line: None)
    assert len(checks) == 13 and sum(check.verdict == "reported" for check in checks) == 1
    with open(tmp_path / "out" / "curves.csv") as file:
        rows = list(csv.DictReader(file))
    arms = {row["arm"] for row in rows}
    assert arms == {"offline", "online-student", "offline-16x1", "offline-8x2"}
    assert len(rows) == 2 * 4 * 10
    # All arms start from the same student.
    start = {(row["seed"], row["golden"], row["proxy"]) for row in rows if row["epoch"] == "0"}
    assert len(start) == 2


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"prompts": 8}, r"prompts must be >= batch_size=64 and finite"),
        ({"checkpoints": 3}, r"checkpoints must lie in \[4, epochs=100\]"),
        ({"diversity": (0,)}, r"diversity must lie in \[1, prompts=512\]"),
        ({"divergence": "kll"}, "unknown distillation loss 'kll'"),
        ({"vocab_size": 15}, "vocab_size must be >= 16"),
    ],
)
def test_refusals(field: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        hacking.Config(**field)

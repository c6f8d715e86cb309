"""Tests of experiments/reproductions/{real_sums,real_gkd,real_alignment}.py."""

import csv
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.core import files
from kullback.experiments import progress, reproduce
from kullback.experiments.pipelines import stages
from kullback.experiments.reproductions import (
    real_alignment,
    real_gkd,
    real_models,
    real_sums,
    study,
)

GKD, ALIGNMENT = real_gkd.Config(), real_alignment.Config()


@pytest.fixture
def journal(tmp_path: pathlib.Path) -> study.Journal:
    return study.Journal(tmp_path, progress.Progress("test", 0, 1, quiet=True))


def test_sums_are_a_task_whose_splits_share_nothing(journal: study.Journal):
    name = real_sums.task(2, journal)
    folder = pathlib.Path(name.removeprefix("tokens/jsonl:"))
    by_split = {}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            one, other = row["prompt"].removesuffix("=").split("+")
            assert int(one) + int(other) == int(row["completion"])
        by_split[split] = {row["prompt"] for row in rows}
    assert by_split["train"] and by_split["test"]
    assert not by_split["train"] & by_split["test"]
    # A token a digit: BOS and "99+99=", then "198" and the end.
    assert real_sums.lengths(2) == {"max_prompt_length": 7, "max_new_tokens": 4}


def test_a_reward_is_near_one_where_an_answer_is_near():
    texts = ["579", " 579 ", "580", "479", "", "57 9", "-579", "5e2", "9" * 400]
    got = real_sums.closeness(texts, texts, ["579"] * len(texts))
    assert got == pytest.approx([1, 1, 1 / 2, 1 / 101, 0, 0, 0, 0, 0])


def test_a_model_learns_until_it_is_good_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    ran: list[tuple[list[str], int]] = []

    def run(
        given: dict[str, Any], name: str, journal: study.Journal, *, before: int
    ) -> dict[str, pathlib.Path]:
        ran.append(([stage["model"] for stage in given.values()], before))
        return {stage: journal.path(name) / stage for stage in given}

    monkeypatch.setattr(real_models, "run", run)
    scores = {"tuned-1": 0.1, "tuned-2": 0.25, "tuned-3": 0.5}
    journal = study.Journal(tmp_path, progress.Progress("test", 0, 1, quiet=True))
    stage = lambda model, number: {"model": model, "steps": 5}  # noqa: E731
    chain = real_models.Chain(stage, "base", "tuned", journal)

    def score(path: pathlib.Path) -> float:
        return scores[path.name]

    assert chain.until(score, least=0.2, most_stages=3) == (2, 0.25)
    assert ran == [(["base"], 0), (["base", "{tuned-1}"], 5)]
    assert chain.last(3) == tmp_path / "tuned" / "tuned-3"
    with pytest.raises(
        ValueError, match=r"after 2 stages of learning the score is 0\.25, and 0\.4"
    ):
        chain.until(score, least=0.4, most_stages=2)


def gkd_tables(gain: float) -> study.Tables:
    """Returns tables in which a student's own texts give so much more of right sums."""
    columns = dict.fromkeys(real_gkd.COLUMNS, 0.5)
    once = [
        {"arm": arm, "seed": None, "seconds": None, **columns, "right_greedy": share}
        for arm, share in ((real_gkd.TEACHER, 0.9), (real_gkd.START, 0.4))
    ]
    rows = [
        {"arm": real_gkd.name_of(x), "seed": seed, "seconds": 9.0, **columns}
        | {"right_greedy": 0.6 + gain * x + 0.001 * seed * (1 + x)}
        for seed in range(3)
        for x in GKD.student_fractions
    ]
    return {"base": [{"model": "m", "sha256": "a5"}], "students": once + rows}


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "held"), (-0.1, "contradicted")])
def test_what_is_judged_of_students(gain: float, verdict: str):
    checks = [*real_gkd.claims(GKD, gkd_tables(gain))]
    (headline,) = [check for check in checks if check.is_headline]
    assert headline.verdict == verdict and headline.claim.startswith("lambda 1: more sums")
    beside = [c.verdict for c in checks if "before distillation" in c.claim]
    assert beside == ["held"] * 3
    drawn = real_gkd.panels(GKD, gkd_tables(gain)).draw().axes
    assert [len(axes.patches) for axes in drawn] == [3] * 4


def test_students_learn_for_equal_time():
    config = dataclasses.replace(GKD, steps=60, own_cost=2.0)
    assert [config.steps_of(x) for x in (0.0, 0.5, 1.0)] == [60, 40, 30]
    spent = [config.steps_of(x) * (1 - x + 2 * x) for x in (0.0, 0.5, 1.0)]
    assert spent == [60, 60, 60]


def test_every_stage_can_be_run(journal: study.Journal, tmp_path: pathlib.Path):
    task = "tokens/jsonl:sums"
    journal.path("student-layers").mkdir()  # Which are not chosen of a teacher, then.
    student = real_gkd.start_chain(GKD, task, tmp_path / "teacher", journal)
    assert student.model == str(journal.path("student-layers"))
    given = {
        "teacher": real_gkd.teacher_chain(GKD, task, journal).stage_of("pretrained:gemma3-270m", 0),
        "student": student.stage_of("{teacher}", 1),
    }
    for fraction in GKD.student_fractions:
        name = f"distilled-{10 * fraction:.0f}"
        given[name] = real_gkd.distillation_stage(GKD, task, "{student}", "{teacher}", fraction, 7)
    start = real_alignment.start_chain(ALIGNMENT, task, journal)
    given["start"] = start.stage_of(start.model, 2)
    for name in ALIGNMENT.algorithms:
        policy = real_alignment.stage(ALIGNMENT, name, task, "{start}", 7)
        given[real_alignment.scratch(name, 7)] = policy
    read = stages.read({"stage": given}).stages
    assert len(read) == 2 + 3 + 1 + 4
    for stage in read.values():
        stages.check(stage, trust_code=True)
    assert {given[name]["seed"] for name in ("teacher", "student", "start")} == {100, 1_100, 2_100}
    rising = {name: given[name]["settings"]["warmup_steps"] for name in ("teacher", "student")}
    assert rising == {"teacher": 6, "student": 8}
    shares = [given[f"distilled-{n}"]["settings"]["warmup_steps"] for n in (0, 5, 10)]
    assert shares == [6, 4, 3]  # A tenth of 60, 40 and 30 steps.


def alignment_tables(gain: float) -> study.Tables:
    """Returns tables in which all but RLOO have so much more reward."""
    columns = dict.fromkeys(real_alignment.COLUMNS, 0.5)
    start = {"arm": real_alignment.START, "seed": None, "seconds": None, **columns}
    rows = [
        {"arm": name, "seed": seed, "seconds": 5.0, **columns}
        | {"reward": 0.6 + 0.001 * seed + (name != "RLOO") * (gain + 0.001 * seed)}
        for seed in range(3)
        for name in ALIGNMENT.algorithms
    ]
    front = [
        {"seed": seed, "eta": eta, "reward": 0.5 + eta, "kl_start": eta}
        for seed in range(3)
        for eta in (0.0, 1.0)
    ]
    base, begun = [{"model": "m", "sha256": "a5"}], [{"stages": 2, "share": 0.65}]
    return {"base": base, "start": begun, "policies": [start, *rows], "front": front}


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "held"), (-0.05, "contradicted")])
def test_what_is_judged_of_policies(gain: float, verdict: str):
    checks = [*real_alignment.claims(ALIGNMENT, alignment_tables(gain))]
    assert [check.verdict for check in checks if check.is_headline] == [verdict] * 3
    assert [c.verdict for c in checks if "than the start" in c.claim] == ["held"] * 4
    (start,) = [check.evidence for check in checks if check.claim == "start"]
    assert start == "0.650 of sums at temperature 1 after 2 stages, more than 0.6"
    (axes,) = real_alignment.panels(ALIGNMENT, alignment_tables(gain)).draw().axes
    labels = {text.get_text() for text in axes.get_legend().get_texts()}  # pyright: ignore
    assert labels == {*ALIGNMENT.algorithms, "WARP's front", "start"}


@pytest.mark.parametrize(
    ("make", "field", "message"),
    [
        (real_gkd.Config, {"student_fractions": (0.5, 1.0)}, "must have both ends"),
        (real_gkd.Config, {"own_cost": 0.0}, r"own_cost must be > 0 and finite"),
        (real_alignment.Config, {"batch_size": 16}, "batch_size must be a multiple of 12"),
        (real_alignment.Config, {"steps": 3}, "steps must be a multiple of 2"),
    ],
)
def test_refusals(make: Any, field: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(**field)


@pytest.mark.slow
def test_students_run(tiny_base: pathlib.Path, tmp_path: pathlib.Path):
    given = [f"model={tiny_base}", "seeds=2", "student_fractions=0,1", "layers=1,3,5", "rank=2"]
    given += ["digits=1", "teacher_steps=1", "student_steps=1", "teacher_share=0"]
    given += ["student_share=0", "steps=2", "batch_size=4", "prompts=8"]
    out = tmp_path / "out"
    checks = reproduce.reproduce("real-gkd", out, given, lambda line: None)
    assert sum(check.is_headline for check in checks) == 1
    rows = {(row["arm"], row["seed"]): row for row in files.read_csv(out / "students.csv")}
    assert len(rows) == 2 + 4
    assert {row["steps"] for (arm, _), row in rows.items() if arm == "lambda 1"} == {1}
    for (arm, _), row in rows.items():
        assert arm == real_gkd.TEACHER or (row["kl_data"] > 0 and row["kl_own"] > 0)
    left = {path.name for path in (out / "parts").iterdir() if path.is_dir()}
    assert left == {"sums-1", "teacher", "start", "student-layers"}
    shape = json.loads((out / "parts" / "student-layers" / "config.json").read_text())
    assert shape["num_hidden_layers"] == 3


@pytest.mark.slow
def test_policies_run(tiny_base: pathlib.Path, tmp_path: pathlib.Path):
    given = [f"model={tiny_base}", "seeds=1", "rank=2", "digits=1", "start_steps=1"]
    given += ["start_share=0", "steps=2", "batch_size=12", "prompts=8"]
    out = tmp_path / "out"
    checks = reproduce.reproduce("real-alignment", out, given, lambda line: None)
    assert sum(check.is_headline for check in checks) == 3
    with (out / "front.csv").open(newline="") as lines:
        front = [*csv.DictReader(lines)]
    assert [float(row["eta"]) for row in front] == [0, 0.1, 0.3, 0.5, 0.8, 1]
    rows = {row["arm"]: row for row in files.read_csv(out / "policies.csv")}
    assert {*rows} == {"start", *ALIGNMENT.algorithms}
    assert rows["start"]["kl_start"] == pytest.approx(0, abs=1e-4)
    for row in rows.values():
        assert all(np.isfinite(row[column]) for column in real_alignment.COLUMNS)

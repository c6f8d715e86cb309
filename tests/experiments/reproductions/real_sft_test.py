"""Tests of experiments/reproductions/{real_summaries,real_sft}.py."""

import dataclasses
import pathlib
import types
from typing import Any

import numpy as np
import pytest

from kullback.experiments import progress, reproduce
from kullback.experiments.pipelines import stages
from kullback.experiments.reproductions import real_sft, real_summaries, study

CONFIG = real_sft.Config()
ARMS = ("base", "rank 16", "rank 4", "rank 64", "all weights")
VALUES = {"base": 0.0, "rank 16": 1.0, "rank 4": 0.6, "rank 64": 1.1, "all weights": 1.02}


def tables_of(config: real_sft.Config, sign: float) -> study.Tables:
    """Returns tables in which tuning makes everything better, or worse."""
    rows: study.Rows = []
    for arm in ARMS:
        for seed in range(100, 103) if arm == "rank 16" else (100,):
            for n in range(config.examples):
                good = sign * VALUES[arm] * (1 + 0.01 * (n % 5))
                row = {"arm": arm, "seed": seed, "example": n, "paper": n // 3, "tokens": 20 + n}
                row |= {"nats": (20 + n) * (3 - good), "ended": 1.0, "words": 20.0, "density": 2.0}
                row |= dict.fromkeys(("rouge_1", "rouge_l", "entailment"), 0.5 + 0.2 * good)
                rows.append({**row, "coverage": 0.8})
    runs = [
        {"arm": arm, "seed": 100, "seconds": 60.0, "memory": "3 GB", "checkpoint_bytes": 28_000_000}
        for arm in ARMS[1:]
    ]
    return {
        "base": [{"model": "m", "sha256": "a5"}],
        "judges": [{"role": "entailment", "kind": "encoder", "accuracy": 0.8, "auc": 0.9}],
        "summaries": rows,
        "runs": runs,
    }


@pytest.mark.parametrize(("sign", "verdict"), [(1, "held"), (-1, "contradicted")])
def test_what_is_judged(sign: float, verdict: str):
    checks = [*real_sft.claims(CONFIG, tables_of(CONFIG, sign))]
    assert [c.verdict for c in checks if c.is_headline] == [verdict] * 3
    assert {c.num_seeds for c in checks if c.is_headline} == {34}
    (behind,) = [c for c in checks if "behind all weights" in c.claim]
    assert behind.verdict == "held"
    reported = {c.claim: c.evidence for c in checks if c.verdict == "reported"}
    assert "rank 4: 3 GB, 60 s, checkpoint 28.0 MB" in reported["memory, time and a checkpoint"]
    assert len(reported["nats a token by seed"].split(", ")) == 3


def test_gains_are_of_papers():
    rows = [{**r, "a_token": r["nats"] / r["tokens"]} for r in tables_of(CONFIG, 1)["summaries"]]
    gain = real_sft.gain(rows, "a_token", "rank 16")
    expected = [-np.mean([1 + 0.01 * (n % 5) for n in range(3 * p, 3 * p + 3)]) for p in range(34)]
    np.testing.assert_allclose(gain, expected)
    panels = real_sft.panels(CONFIG, tables_of(CONFIG, 1)).draw().axes
    assert [len(axes.patches) for axes in panels] == [5] * 3


def test_each_rank_is_a_run_of_its_own():
    arms = [arm.part for arm in real_sft.arms(CONFIG)]
    assert arms[:3] == ["base", "entailment-judge", "before"]
    assert arms[3:] == [f"rank-16-{s}" for s in (100, 101, 102)] + [
        f"rank-{rank}-100" for rank in (4, 64, 0)
    ]
    for rank, rate in ((16, 2e-4), (0, 5e-5)):
        stage = real_sft.stage(CONFIG, rank, 101)
        assert stage["settings"]["learning_rate"] == rate and stage["seed"] == 101
        (read,) = stages.read({"stage": {"tuned": stage}}).stages.values()
        stages.check(read, trust_code=False)


def test_summaries_stand_side_by_side():
    rows = [
        {
            "table": "texts",
            "arm": arm,
            "seed": seed,
            "example": 0,
            "prompt": "p",
            "target": "t",
            "text": f"{arm} {seed}",
        }
        for arm, seed in (("base", None), ("rank 16", 100), ("rank 16", 101))
    ]
    (row,) = real_sft.tables(CONFIG, rows)["texts"]
    shown = {"base": "base None", "rank 16": "rank 16 100"}
    assert row == {"example": 0, "prompt": "p", "target": "t", **shown}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"ranks": (16,)}, "ranks are others than rank=16"),
        ({"papers": 101}, r"papers must lie in \[2, 100\]"),
        ({"rank": 0}, "rank must be >= 1"),
    ],
)
def test_refusals(field: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        real_sft.Config(**field)


def test_a_judge_must_be_one(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="entailment must be a folder that `kullback entailment`"):
        list(real_sft.before(dataclasses.replace(CONFIG, entailment=str(tmp_path))))


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model of entailment that knows how long a text is."""

    def log_probability(self, documents: list[str], texts: list[str]) -> np.ndarray:
        """Returns ln (words of the text / words of its document)."""
        pairs = zip(texts, documents, strict=True)
        shares = [len(text.split()) / len(document.split()) for text, document in pairs]
        return np.log(np.maximum(shares, 1e-4))


class Shown:
    """The part of an evaluator that reads an example."""

    task = types.SimpleNamespace(document=lambda example, prompt: prompt)

    def example_texts(self, example: Any) -> dict[str, str]:
        """Returns its prompt, the document itself, and its target."""
        return {"prompt": example, "target": "two three"}


def test_summaries_are_measured_beside_their_documents():
    evaluator: Any = Shown()
    examples: Any = ["one two three four", "one two three four", "five six"]
    judges: Any = {"p": Judge()}
    texts = ["two three", "two four", "two"]
    rows = real_summaries.describe(evaluator, examples, texts, judges)
    assert [row["p"] for row in rows] == pytest.approx([0.5] * 3)
    assert [row["rouge_l"] for row in rows] == pytest.approx([1, 0.5, 2 / 3])
    assert [row["density"] for row in rows] == [2, 1, 0]
    assert [row["coverage"] for row in rows] == [1, 1, 0]
    assert [row["words"] for row in rows] == [2, 2, 1] and {row["paper"] for row in rows} == {0}


@pytest.mark.slow
def test_it_runs(tiny_base: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """A judge that is no model stands in for the one that takes minutes."""
    monkeypatch.setattr(real_summaries, "ask_judge", lambda role, *given: [judged(role)])
    monkeypatch.setattr(real_sft.scorers, "load", lambda folder: Judge())
    monkeypatch.setattr(real_summaries, "PACKAGES", ("aclsum",))
    given = [f"model={tiny_base}", "seeds=1", "ranks=0", "rank=2", "steps=2", "batch_size=2"]
    given += ["papers=2", "max_prompt_length=260", "max_new_tokens=4"]
    out = tmp_path / "out"
    checks = reproduce.reproduce("real-sft", out, given, lambda line: None)
    assert sum(check.is_headline for check in checks) == 3
    journal = study.Journal(out / "parts", progress.Progress("test", 0, 1, quiet=True))
    rows = [row for part in ("before", "rank-2-100", "rank-0-100") for row in journal.kept(part)]
    summaries = study.where(rows, table="summaries")
    assert len(summaries) == 3 * 6 and all(row["tokens"] > 1 for row in summaries)
    nats = {arm: study.column(summaries, "nats", arm=arm).tolist() for arm in ("base", "rank 2")}
    assert nats["base"] != nats["rank 2"]
    runs = {row["arm"]: row for row in study.where(rows, table="runs")}
    assert runs["rank 2"]["checkpoint_bytes"] < runs["all weights"]["checkpoint_bytes"]
    assert runs["rank 2"]["memory"].split()[1] in ("kB", "MB")
    assert not [path for path in (out / "parts").iterdir() if path.is_dir()]


def judged(role: str) -> study.Row:
    """Returns how a judge judges."""
    return {"role": role, "kind": "encoder", "accuracy": 0.8, "auc": 0.9}

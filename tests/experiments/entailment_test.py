"""Tests of experiments/entailment.py: a tiny BERT learns pairs of made-up papers."""

import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from kullback.experiments import entailment as experiment
from kullback.experiments.commands import entailment as command
from kullback.lm.entailment import bert_folder, embeddings, faithfulness, scorers

TINY = pathlib.Path(__file__).parents[1] / "lm" / "fixtures" / "bert"
SHORT = scorers.Config(max_length=48, overlap=12)  # As long as its rows.
SMALL: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 3e-3,
    "tuned_layers": 2,  # Of 3.
    "max_length": 48,
    "train_per_paper": 40,
    "test_per_paper": 10,
}
Trained = Callable[[str], tuple[pathlib.Path, dict[str, Any]]]
STEPS = {"encoder": 60, "embeddings": 300}


def paper(name: str, thing: str) -> faithfulness.Paper:
    """Returns a paper in words that the tiny tokenizer knows."""
    some = [
        f"the {a} sat on 1 {thing} and do like {n} {b}"
        for n, (a, b) in enumerate(itertools.permutations(["cats", "dogs", "mats"], 2), 1)
    ]
    summary = f"cats and dogs do like the {thing}"
    # Two sentences and a hypothesis are a row.
    sections = tuple(tuple(some[n : n + 2]) for n in (0, 2, 4))
    return faithfulness.Paper(name, sections, ((summary, (some[0],)),))


PAPERS = {
    "train": [paper(f"train{n}", thing) for n, thing in enumerate(("wood", "mud", "coal", "lamp"))],
    "test": [paper(f"test{n}", thing) for n, thing in enumerate(("moss", "tea", "cake"))],
}


@pytest.fixture(scope="module", autouse=True)
def made_up_papers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(faithfulness, "read_papers", PAPERS.__getitem__)
        yield


def train(out: pathlib.Path, kind: Any, **fields: Any) -> dict[str, Any]:
    config = experiment.Config(**{"kind": kind, "steps": STEPS[kind], **SMALL, **fields})
    return experiment.train(out, config, base=TINY, quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains a model of a kind once; returns its folder and report."""

    @functools.cache
    def of(kind: str) -> tuple[pathlib.Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp(kind) / "new" / "model"
        return out, train(out, kind)

    return of


def pairs_of(split: str, seed: int, per_paper: int) -> list[faithfulness.Pair]:
    return faithfulness.pairs(PAPERS[split], seed, per_paper=per_paper)


@functools.cache
def loaded(folder: pathlib.Path) -> scorers.Entailment:
    return scorers.load(folder, SHORT)


def p_of(folder: pathlib.Path, pairs: list[faithfulness.Pair]) -> np.ndarray:
    model = loaded(folder)
    columns = [pair.premise for pair in pairs], [pair.hypothesis for pair in pairs]
    return np.exp(np.float64(model.log_probability(*columns)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [k if k == "embeddings" else pytest.param(k, marks=pytest.mark.slow) for k in experiment.KINDS],
)
def test_training_lowers_the_loss_and_the_folder_has_the_model(kind: str, trained: Trained):
    out, report = trained(kind)
    learnt = pairs_of("train", experiment.KINDS.index(kind), 40)
    assert report["train_pairs"] + report["left_pairs"] == len(learnt) == 160
    assert report["train_pairs"] > 120
    y = np.array([pair.is_entailed for pair in learnt])
    p = p_of(out, learnt)
    loss = -np.mean(np.log(np.clip(np.where(y, p, 1 - p), 1e-4, 1)))
    assert loss < math.log(2) - 0.1  # What the new head began with was P = 1/2.
    # What was judged is what the folder has.
    test = pairs_of("test", experiment.TEST_SEED, 10)
    assert report["test_pairs"] == len(test) == sum(report["test_pairs_by_kind"].values())
    judged = experiment.accuracies(p_of(out, test) >= 0.5, test)
    assert judged == {name: report[name] for name in ("accuracy", "by_kind")}
    again = experiment.scored(p_of(out, test), test, 0.5)
    assert again["auc"] == pytest.approx(report["auc"], abs=0.02)  # Float32 makes ties.
    assert again["auc_by_kind"].keys() == report["auc_by_kind"].keys()
    # The report is beside it.
    kept = json.loads((out / experiment.REPORT).read_text())
    assert kept == json.loads(json.dumps(report))
    assert kept["config"]["kind"] == kind and kept["config"]["steps"] == STEPS[kind]
    assert set(kept["baselines"]) == {"words", "logistic"}
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="is not empty; choose another name"):
        train(out, kind)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_upper_layers_and_the_head_learn_and_nothing_else_does(trained: Trained):
    old, new = bert_folder.load(TINY, experiment.LABELS), bert_folder.load(trained("encoder")[0])
    assert new.model.config.labels == experiment.LABELS
    jax.tree.map(np.testing.assert_array_equal, old.params["embeddings"], new.params["embeddings"])
    for layer in range(3):
        same = jax.tree.map(
            lambda a, b, n=layer: bool(np.array_equal(a[n], b[n])),
            old.params["layers"],
            new.params["layers"],
        )
        assert set(jax.tree.leaves(same)) == {layer < 1}, layer
    assert not np.array_equal(old.params["head"]["output"]["w"], new.params["head"]["output"]["w"])


@pytest.mark.slow
def test_the_encoder_of_embeddings_is_not_tuned_and_a_seed_decides(tmp_path: pathlib.Path):
    runs = [("a", 0), ("b", 0), ("c", 1)]
    for name, seed in runs:
        train(tmp_path / name, "embeddings", steps=5, seed=seed)
    one, same, other = (embeddings.load(tmp_path / name) for name, _ in runs)
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    name = "mlp/~/linear_0"
    assert not np.array_equal(one.params[name]["w"], other.params[name]["w"])
    base = bert_folder.load(TINY)
    for part in ("embeddings", "layers"):
        jax.tree.map(np.testing.assert_array_equal, base.params[part], one.encoder.params[part])


def test_the_kinds_learn_from_other_draws_and_are_judged_by_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    seeds = []
    draw = faithfulness.pairs

    def note(papers, seed, **given):
        seeds.append((papers[0].name, seed))
        return draw(papers, seed, **given)

    def coin(*given):
        return lambda premises, hypotheses: np.full(len(premises), 0.5), lambda *given: None, 1

    monkeypatch.setattr(faithfulness, "pairs", note)
    for kind in experiment.KINDS:
        monkeypatch.setattr(experiment, f"_{kind}", coin)
        for seed in (0, 1):
            train(tmp_path / f"{kind}{seed}", kind, seed=seed)
    assert len({seed for name, seed in seeds if name == "train0"}) == 4
    assert {seed for name, seed in seeds if name == "test0"} == {experiment.TEST_SEED}


def pair_of(kind: str, is_entailed: bool) -> faithfulness.Pair:
    return faithfulness.Pair("", "", is_entailed, kind, "p")


def chance(higher: list[float], lower: list[float]) -> float:
    """Returns how often one of the first is above one of the second, by counting."""
    return float(np.mean([(a > b) + (a == b) / 2 for a in higher for b in lower]))


def test_accuracy_and_the_area_under_the_curve_by_brute_force():
    rng = np.random.default_rng(0)
    p = rng.integers(0, 6, 60) / 5  # With many ties.
    kinds = [("sentence", "summary", "number", "order")[n] for n in rng.integers(0, 4, 60)]
    pairs = [pair_of(kind, kind in ("sentence", "summary")) for kind in kinds]
    judged = experiment.judged(lambda premises, hypotheses: p, pairs)

    def of(*wanted: str) -> list[float]:
        return [x for x, pair in zip(p, pairs, strict=True) if pair.kind in wanted]

    entailed = of("sentence", "summary")
    assert judged["auc"] == pytest.approx(chance(entailed, of("number", "order")))
    assert judged["auc_by_kind"] == {
        kind: pytest.approx(chance(entailed, of(kind))) for kind in ("number", "order")
    }
    right = [(x >= 0.5) == pair.is_entailed for x, pair in zip(p, pairs, strict=True)]
    assert judged["accuracy"] == pytest.approx(np.mean(right))
    assert judged["by_kind"] == {
        kind: pytest.approx(np.mean([(x >= 0.5) == (kind[0] == "s") for x in of(kind)]))
        for kind in ("sentence", "summary", "number", "order")
    }


def test_a_study_has_no_judge_that_judges_by_chance(tmp_path: pathlib.Path):
    (tmp_path / experiment.REPORT).write_text('{"auc": 0.52}')
    assert experiment.require_learnt(tmp_path, 0.5).get("auc", float) == 0.52
    with pytest.raises(ValueError, match=r"an area of 0\.520 .* least_area=0\.65 is needed"):
        experiment.require_learnt(tmp_path, 0.65)


def test_the_area_of_what_knows_all_and_nothing():
    pairs = [pair_of("sentence", True), pair_of("number", False), pair_of("order", False)]
    for p, area in [([0.9, 0.1, 0.2], 1), ([0.1, 0.9, 0.2], 0), ([0.5] * 3, 0.5)]:
        judged = experiment.judged(lambda premises, hypotheses, p=p: np.array(p), pairs)
        assert judged["auc"] == area


def test_a_report_is_shown_as_a_table():
    judged = {
        "accuracy": 0.75,
        "by_kind": {"sentence": 1.0, "number": 0.5},
        "auc": 0.8,
        "auc_by_kind": {"number": 0.9},
    }
    report = {
        "config": {"kind": "encoder", "steps": 240},
        "train_pairs": 8_000,
        "test_pairs": 4,
        "test_pairs_by_kind": {"sentence": 2, "number": 2},
        "seconds": 61.4,
        **judged,
        "baselines": {"words": judged, "logistic": {**judged, "accuracy": 0.6, "auc": 0.7}},
    }
    lines = experiment.show(report).splitlines()
    assert lines[0].startswith("encoder, 240 steps on 8,000 pairs in 61 s;")
    assert lines[4].split() == ["pairs", *["model", "words", "logistic"] * 2]
    assert lines[5].split() == ["all", "4", "0.750", "0.750", "0.600", "0.800", "0.800", "0.700"]
    assert lines[6].split() == ["sentence", "2", "1.000", "1.000", "1.000"]
    assert lines[7].split() == ["number", "2", *["0.500"] * 3, *["0.900"] * 3]
    assert len(lines) == 8 and max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "t5"}, "kind must be one of"),
        ({"steps": 0}, r"steps must be >= 2 \(.*\), got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"tuned_layers": 0}, "tuned_layers must be >= 1"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"train_papers": 1}, "must be >= 2"),
        ({"train_per_paper": 3}, "train_per_paper must be even and >= 2"),
        ({"test_per_paper": 0}, "test_per_paper must be even and >= 2"),
    ],
)
def test_a_wrong_configuration_is_refused(fields, said: str):
    with pytest.raises(ValueError, match=said):
        experiment.Config(**fields)


def test_what_fits_no_row_is_refused(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="no pair has at most max_length=4 tokens; raise it"):
        train(tmp_path / "model", "encoder", max_length=4)
    with pytest.raises(ValueError, match="max_length must be <= 48, the model's, got 49"):
        train(tmp_path / "model", "encoder", max_length=49)
    assert not [*tmp_path.iterdir()]


def test_defaults():
    rates = [experiment.Config(kind=kind).highest_rate for kind in ("encoder", "embeddings")]
    assert rates == [1e-4, 3e-4]
    assert [experiment.Config(kind=kind).num_steps for kind in ("encoder", "embeddings")] == [
        240,
        3_000,
    ]
    assert experiment.KINDS == command.KINDS

"""Tests of experiments/reproductions/{gaussian_classes,f_divergences}.py."""

import csv
import itertools
import pathlib

import numpy as np
import pytest

from kullback.core import regularizers
from kullback.experiments import reproduce
from kullback.experiments.reproductions import f_divergences, gaussian_classes

CLASSES = gaussian_classes.Config(classes=5, dimension=4, num_train=200, num_test=200, steps=60)


@pytest.mark.slow
def test_a_classifier_learns_and_sparse_operators_support_few_classes():
    measured = {
        name: gaussian_classes.classifier(CLASSES, regularizers.named(name))(0)
        for name in ("kl", "alpha-1.5", "alpha-2")
    }
    assert all(x["train_accuracy"] > 0.8 for x in measured.values())  # Of five classes.
    assert measured["kl"]["support"] == 5 > measured["alpha-1.5"]["support"]
    assert measured["alpha-1.5"]["support"] > measured["alpha-2"]["support"] >= 1


def test_few_noiseless_points_are_learnt_exactly():
    easy = gaussian_classes.Config(classes=3, dimension=8, noise=0.0, num_train=50, num_test=50)
    measured = gaussian_classes.classifier(easy, regularizers.named("alpha-2"))(1)
    assert (measured["train_accuracy"], measured["test_accuracy"]) == (1.0, 1.0)
    # Sparsemax reaches its target exactly, where the loss is 0 and one class is left.
    np.testing.assert_allclose([measured["loss"], measured["support"]], [0.0, 1.0], atol=1e-4)


@pytest.mark.parametrize(
    ("gap", "verdicts"),
    [
        (0.002, ["held", "held"]),
        (0.03, ["held", "contradicted"]),
        (-0.002, ["contradicted", "held"]),
    ],
)
def test_accuracies_are_judged_by_their_difference(gap: float, verdicts: list[str]):
    config = f_divergences.Config(divergences=("kl",), alphas=(1.5,))
    rows = [
        {
            "divergence": name,
            "seed": seed,
            "test_accuracy": 0.9 + (name != "kl") * (gap + 1e-4 * seed),
            "support": 20.0 if name == "kl" else 2.0 + 0.1 * seed,
        }
        for name in ("kl", "alpha-1.5")
        for seed in range(3)
    ]
    claims = f_divergences.claims(config, {"classification": rows, "text": []})
    checks = [*itertools.islice(claims, 3)]
    assert [check.verdict for check in checks] == [*verdicts, "reported"]
    assert [check.is_headline for check in checks] == [True, False, False]
    assert "share the start" in checks[0].test


@pytest.mark.slow
def test_it_runs(tmp_path: pathlib.Path):
    text = "batch_size=4 teacher_width=8 teacher_layers=1 teacher_steps=2 student_width=8 steps=2"
    classes = "classes=5 num_train=50 num_test=50 steps=20"
    settings = [f"text.{x}" for x in f"{text} student_layers=1 evaluation=8".split()]
    settings += [f"classification.{x}" for x in classes.split()]
    settings += ["seeds=2", "divergences=kl,alpha-1.5", "alphas=1.5"]
    checks = reproduce.reproduce("f-divergences", tmp_path / "out", settings, lambda line: None)
    assert len(checks) == 4 + 2 * (1 + 3)
    with open(tmp_path / "out" / "text.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    supports = {row["divergence"]: float(row["support"]) for row in rows}
    assert supports["kl"] == 262 > supports["alpha-1.5"]


def test_the_baseline_is_needed():
    with pytest.raises(ValueError, match="must name kl"):
        f_divergences.Config(divergences=("alpha-1.5",))

"""Tests of experiments/benchmarks/entailment.py: the work is what it says."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kullback.experiments.benchmarks import entailment, timing
from kullback.lm.entailment import bert

TINY = dataclasses.replace(
    entailment.CONFIG, vocab_size=50, num_layers=1, embed_dim=8, num_heads=2, hidden_dim=12
)


def test_products_are_those_of_the_weights_and_of_what_is_attended_to():
    shapes = jax.eval_shape(bert.make(entailment.CONFIG).init, jax.random.key(0))
    matrices = [leaf.shape for leaf in jax.tree.leaves(shapes["layers"]) if leaf.ndim == 3]
    weights = sum(int(np.prod(shape)) for shape in matrices)
    head = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["head"]))
    biases = 384 + 2
    # 6 layers, 128 tokens that each attend to 128, 384 numbers: scores and values.
    attention = 6 * 128 * 2 * 2 * 128 * 384
    assert entailment.cost() == 2 * 128 * weights + 2 * (head - biases) + attention


@pytest.mark.slow
def test_the_shape_is_that_of_minilm_and_all_pairs_are_scored(monkeypatch: pytest.MonkeyPatch):
    shape = dataclasses.asdict(entailment.CONFIG)
    minilm = {"vocab_size": 30_522, "num_layers": 6, "embed_dim": 384, "num_heads": 12}
    assert minilm.items() <= shape.items() and shape["hidden_dim"] == 1_536
    assert entailment.scorer(TINY)() == entailment.PAIRS == 32

    def peer(name: str, program: str, seconds: float, *given: object) -> dict[str, float]:
        *sizes, config = given
        assert (name, program, sizes) == ("transformers", "entailment", [32, 128])
        assert json.loads(str(config))["hidden_size"] == 384
        return {"pairs": 2.0, "kept_pairs": 4.0}

    monkeypatch.setattr(entailment.machine, "sgemm", lambda: lambda: {"sgemm": 1e12})
    monkeypatch.setattr(entailment, "scorer", lambda: lambda: 1e-3)
    budget = timing.Budget(seconds=0.01, rounds=1)
    row, keeping = entailment.run(budget, peer)
    assert row.peer_value == 2.0 and row.target_ratio == 1.0
    assert keeping.peer_value == 4.0 and keeping.target_ratio is None
    assert row.limit_share == pytest.approx(row.ours * entailment.cost() / 1e12)
    alone, _ = entailment.run(budget, lambda *given: {})
    assert alone.peer_value is None and not alone.peer and alone.ratio is None

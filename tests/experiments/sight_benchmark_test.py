"""Tests of experiments/benchmarks/sight.py: the work is what it says."""

import json

import jax
import numpy as np
import pytest

from kullback.experiments.benchmarks import sight, timing
from kullback.lm import siglip

TINY = siglip.Config(
    image_size=8, patch_size=4, embed_dim=8, num_layers=2, num_heads=2, hidden_dim=12
)


def test_products_are_those_of_the_weights_and_of_what_is_attended_to():
    whole = siglip.Config()
    shapes = jax.eval_shape(siglip.make(whole).init, jax.random.key(0))
    matrices = [leaf.shape for leaf in jax.tree.leaves(shapes["layers"]) if leaf.ndim == 3]
    weights = sum(int(np.prod(shape)) for shape in matrices) + 588 * 1_152
    attention = 27 * 4_096 * 2 * 2 * 4_096 * 1_152
    assert sight.cost(whole) == 2 * 4_096 * weights + attention
    assert 5.4e12 < sight.cost(whole) < 5.6e12


def test_it_measures_an_image_and_a_peer_of_the_same_shape(monkeypatch: pytest.MonkeyPatch):
    assert sight.encoder(TINY)() == 1

    def peer(name: str, program: str, seconds: float, *given: object) -> dict[str, float]:
        (shape,) = given
        assert (name, program) == ("transformers", "sight")
        fields = {"hidden_size": 1_152, "num_hidden_layers": 2, "vision_use_head": False}
        assert fields.items() <= json.loads(str(shape)).items()
        return {"images": 2.0, "kept_images": 4.0}

    monkeypatch.setattr(sight.machine, "sgemm", lambda: lambda: {"sgemm": 1e12})
    monkeypatch.setattr(sight, "encoder", lambda: lambda: 1e-3)
    budget = timing.Budget(seconds=0.01, rounds=1)
    row, keeping = sight.run(budget, peer)
    assert (row.peer_value, row.target_ratio) == (2.0, 1.0)
    assert keeping.peer_value == 4.0 and keeping.target_ratio is None
    assert row.limit_share == pytest.approx(row.ours * sight.cost() / 1e12)
    alone, _ = sight.run(budget, lambda *given: {})
    assert alone.peer_value is None and alone.ratio is None

"""Tests of experiments/reproductions/kv_cache.py."""

import csv
import pathlib

import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import kv_cache
from kullback.lm import gemma


def test_a_cache_that_is_made_has_the_bytes_counted_by_hand():
    # 5 layers, every third one global: layers 3; 1 global of 20 slots, 4 local of 6.
    config = gemma.Config(
        vocab_size=8,
        num_layers=5,
        embed_dim=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        hidden_dim=8,
        window=6,
        pattern=3,
        dtype="bfloat16",
    )
    by_hand = 3 * 2 * (2 * 1 * 4) * (20 + 4 * 6)  # Rows, bytes, keys and values, slots.
    assert kv_cache.allocated_bytes(config, 3, 20) == by_hand
    assert gemma.cache_bytes(config, 3, 20, 2) == by_hand


def test_figures_of_the_report():
    config = kv_cache.Config()
    local, whole = config.model(5, 1024), config.model(kv_cache.GLOBAL_ONLY, 1024)
    # 26 layers, 4 of them global; 2 K H = 2048; a byte a number.
    assert gemma.cache_bytes(whole, 1, 131_072, 1) == 26 * 2048 * 131_072
    assert gemma.cache_bytes(local, 1, 131_072, 1) == 2048 * (4 * 131_072 + 22 * 1024)
    assert gemma.cache_bytes(local, 1, 1024, 1) == gemma.cache_bytes(whole, 1, 1024, 1)


def test_it_runs(tmp_path: pathlib.Path):
    said: list[str] = []
    settings = ["allocated_contexts=4,64", "ratios=1,5", "num_layers=6"]
    checks = reproduce.reproduce("kv-cache", tmp_path / "out", settings, said.append)
    assert [check.verdict for check in checks] == ["held"] * 3 + ["reported"]
    with open(tmp_path / "out" / "memory.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 8
    assert (tmp_path / "out" / "kv_cache.png").stat().st_size > 10_000


def test_a_formula_that_is_wrong_is_seen(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    right = gemma.cache_bytes
    monkeypatch.setattr(gemma, "cache_bytes", lambda c, b, s, i: right(c, b, s, i) + (s > 60))
    settings = ["allocated_contexts=4,64", "ratios=1,5", "num_layers=6"]
    checks = reproduce.reproduce("kv-cache", tmp_path / "out", settings, lambda line: None)
    assert checks[0].verdict == "contradicted" and "14 of 28 sizes" in checks[0].evidence


def test_ratios_without_a_global_layer_are_refused():
    with pytest.raises(ValueError, match=r"ratios must lie in \[1, num_layers=4\)"):
        kv_cache.Config(num_layers=4)

"""Tests of experiments/runs/saver.py; training_test.py saves and restores whole runs."""

import pytest

from kullback.experiments.runs import saver


@pytest.mark.parametrize(
    "num_bytes, count",
    [(0, 3), (10**6, 3), (8 * 10**9 // 3, 3), (3_217_000_000, 2), (5 * 10**9, 1), (10**11, 1)],
)
def test_large_checkpoints_are_kept_by_size(num_bytes: int, count: int):
    assert saver.kept(num_bytes) == count

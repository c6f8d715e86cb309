"""Tests of experiments/ray_cluster.py; those that need a cluster are of who uses it."""

import pytest

from kullback.experiments import ray_cluster


@pytest.mark.parametrize(
    ("said", "line"), [("", "TimeoutError"), ("\n  gone \nwhere: here", "gone")], ids=["no", "two"]
)
def test_an_error_is_told_in_a_line(said: str, line: str):
    assert ray_cluster.first_line(TimeoutError(said)) == line

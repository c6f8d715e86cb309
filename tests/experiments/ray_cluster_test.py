"""Tests of experiments/ray_cluster.py; those that need a cluster are of who uses it."""

from kullback.experiments import ray_cluster


def test_what_ray_says_of_an_error_is_a_line():
    said = "\nThe actor died unexpectedly.\n\tclass_name: Actor\n  actor_id: 5\n"
    assert ray_cluster.first_line(RuntimeError(said)) == "The actor died unexpectedly."
    assert ray_cluster.first_line(RuntimeError()) == "RuntimeError"

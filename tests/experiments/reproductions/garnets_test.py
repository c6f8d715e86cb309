"""Tests of what the plots of theory share."""

import pathlib

import numpy as np
import pytest

from kullback.experiments.reproductions import garnets
from kullback.theory import mdp as mdps
from kullback.theory import worlds


def test_a_curve_has_mean_band_and_the_largest_share_of_its_bound_so_far() -> None:
    values = np.array([[9.0, 1.0, 4.0], [9.0, 3.0, 2.0]])
    rows = garnets.curve("x", values, np.full((2, 2), 4.0))
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    # Of iteration 0 nothing is promised; then 3 / 4, then 4 / 4.
    np.testing.assert_allclose([row["largest_share"] for row in rows], [0, 0.75, 1])
    assert [row["mean"] for row in rows] == [9, 2, 3]
    # The standard error of 1 and 3 is 1, t_{0.975, 1} = 12.7062.
    np.testing.assert_allclose(rows[1]["mean_low"], 2 - 12.7062, rtol=1e-5)
    assert np.isnan(rows[0]["bound"]) and rows[1]["bound"] == 4


def test_one_process_has_no_interval() -> None:
    assert "mean_low" not in garnets.curve("x", np.ones((1, 3)))[0]
    assert garnets.above("c", [1.0]).held is None


def test_a_broken_bound_is_seen_and_rounding_is_not() -> None:
    assert garnets.share(1.0, 0.9) > 1
    assert garnets.share(1e-13, 0.0) == 0
    assert garnets.share(1e-9, 0.0) == np.inf
    assert garnets.within("c", 1.01, "").held is False
    assert garnets.small("c", 1e-9, 1e-10, "").held is False
    assert garnets.above("c", [0.9, 1.1], 1.0).held is False


def test_a_users_process_is_a_batch_of_one_and_its_parts_are_of_its_file(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "own.npz"
    mdps.save(path, worlds.chain(3))
    config = garnets.Config(mdp=str(path))
    assert garnets.make(config).batch_shape == (1,)
    before = garnets.part(config, "a")
    mdps.save(path, worlds.chain(4))
    assert garnets.part(config, "a") != before
    with pytest.raises(ValueError, match="and nowhere is no file"):
        garnets.Config(mdp="nowhere")
    with pytest.raises(ValueError, match="num_garnets must be >= 1, got 0"):
        garnets.Config(num_garnets=0)

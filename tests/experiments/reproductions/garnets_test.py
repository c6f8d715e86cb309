"""Tests of what the plots of theory share."""

import pathlib

import jax
import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import garnets, judging
from kullback.theory import garnet, mdp, worlds


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
    rows = garnets.curve("x", np.ones((3, 2)), np.array([[1.0], [2.0], [6.0]]))
    assert rows[1]["bound"] == 3 and rows[1]["bound_median"] == 2


def test_one_process_has_no_interval() -> None:
    assert "mean_low" not in garnets.curve("x", np.ones((1, 3)))[0]
    assert garnets.above("c", [1.0]).verdict == "undecided"


def test_a_broken_bound_is_seen_and_rounding_is_not() -> None:
    assert garnets.share(1.0, 0.9) > 1
    assert garnets.share(1e-13, 0.0) == 0
    assert garnets.share(1e-9, 0.0) == np.inf
    assert judging.within("c", 1.01, "").verdict == "contradicted"
    assert judging.small("c", 1e-9, 1e-10, "").verdict == "contradicted"
    assert garnets.above("c", [0.9, 1.1], 1.0).verdict == "undecided"


def test_what_is_not_finite_never_holds() -> None:
    nan, inf = float("nan"), float("inf")
    assert judging.within("c", nan, "").verdict == "contradicted"
    assert judging.small("c", nan, 1.0, "").verdict == "contradicted"
    assert judging.small("c", -inf, 1.0, "").verdict == "contradicted"
    assert garnets.above("c", [nan, 1.0, 1.1]).verdict == "undecided"
    # Python's max is 0.5 of each of these.
    assert np.isnan(garnets.largest([0.5, nan])) and np.isnan(garnets.largest([nan, 0.5]))
    for values, bound in ((nan, 1.0), (nan, 0.0), (0.5, nan), (0.5, inf), (inf, 1.0)):
        assert np.isnan(garnets.share(values, bound)), (values, bound)
    values = np.ones((2, 4))
    values[1, 2] = nan
    rows = garnets.curve("x", values, np.full((2, 4), 2.0))
    assert rows[1]["largest_share"] == pytest.approx(0.5)
    assert (
        judging.within("c", garnets.largest(r["largest_share"] for r in rows), "").verdict
        == "contradicted"
    )
    for x in (np.array([0.5, nan, 1.0]), np.array([-inf, 0.0])):
        assert np.isnan(jax.jit(garnets.most)(x))
    np.testing.assert_array_equal(garnets.most(np.array([[1.0, 2.0], [3.0, inf]]), -1), [2, nan])


def test_too_few_iterations_are_not_judged() -> None:
    assert judging.small("c", 1e-3, 1e-6, "", remaining=1e-5).verdict == "undecided"
    assert judging.small("c", 1e-3, 1e-6, "", remaining=1e-7).verdict == "contradicted"


def test_a_users_process_is_a_batch_of_one_and_its_parts_are_of_its_file(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "own.npz"
    mdp.save(path, worlds.chain(3))
    config = garnets.Config(mdp=str(path))
    assert garnets.make(config).batch_shape == (1,)
    before = garnets.part(config, "a")
    mdp.save(path, worlds.chain(4))
    assert garnets.part(config, "a") != before
    with pytest.raises(ValueError, match="stands in their place"):
        garnets.Config(mdp=str(path), num_garnets=3)
    with pytest.raises(ValueError, match="stands in their place"):
        garnets.Config(mdp=str(path), garnet=garnet.Config(num_states=9))
    with pytest.raises(ValueError, match="and nowhere is no file"):
        garnets.Config(mdp="nowhere")
    with pytest.raises(ValueError, match="num_garnets must be >= 1, got 0"):
        garnets.Config(num_garnets=0)


def test_a_file_that_is_refused_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    path, folder = tmp_path / "own.npz", tmp_path / "run"
    with pytest.raises(ValueError, match=r"own\.npz is no \.npz file"):
        path.touch()
        reproduce.reproduce("momentum-theory", folder, [f"mdp={path}"])
    one = worlds.chain(3)
    mdp.save(path, mdp.stack([one, one._replace(reward=0 * one.reward)]))
    with pytest.raises(ValueError, match=r"own\.npz has a process all of whose rewards are 0"):
        reproduce.reproduce("momentum-theory", folder, [f"mdp={path}"])
    assert not folder.exists()


def test_the_estimate_is_of_the_file(tmp_path: pathlib.Path) -> None:
    seconds = []
    for length, count in ((3, 1), (59, 1), (59, 5)):
        path = tmp_path / f"{length}-{count}.npz"
        mdp.save(path, mdp.stack([worlds.chain(length)] * count))
        seconds.append(garnets.seconds(garnets.Config(mdp=str(path)), 1_000, 1))
    # Of 60 states an evaluation takes 8 times as long as of 30, which take 15 microseconds.
    np.testing.assert_allclose(seconds[1:], [8 + 0.12, 8 + 0.6])
    assert seconds[0] < seconds[1]


def test_what_costs_nothing_at_best_is_measured_by_its_rewards() -> None:
    process = mdp.stack([worlds.chain(3, discount=0.5)])
    # -1 where the chain pays 1: best is never to get there.
    costs = process._replace(reward=-process.reward)
    np.testing.assert_allclose(garnets.of_largest(costs, np.zeros((1, 4))), [2.0])
    np.testing.assert_allclose(garnets.of_largest(costs, np.full((1, 4), -0.5)), [0.5])

"""Tests of experiments/runs/acting.py, and of training as a program calls it."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import checkpoints, compiled, files, replay
from kullback.environments import toy
from kullback.experiments.runs import run_folder

PLACES = np.eye(8, dtype=np.float32)


@pytest.fixture(scope="module")
def run(chain_run) -> experiments.Run:
    return experiments.load(chain_run.path)


def test_a_callback_receives_each_row_of_metrics_csv(chain_run):
    written = run_folder.RunFolder(chain_run.path).rows()
    assert [{name: str(value) for name, value in row.items()} for row in chain_run.rows] == written
    assert [row["steps"] for row in chain_run.rows] == [1_000, 2_000, 3_000, 4_000]
    assert set(chain_run.rows[0]) == {
        *("seed", "steps", "frames", "episodes"),
        *("return_mean", "return_min", "return_max", "recent_return"),
        *("loss", "mean_q", "action_gap", "policy_entropy", "epsilon", "evaluation"),
        *("steps_per_second", "wall_seconds"),
    }
    assert [row["evaluation"] == row["evaluation"] for row in chain_run.rows] == [0, 1, 0, 1]


def test_a_loaded_run_is_what_was_trained(run: experiments.Run):
    assert (run.plan.agent, run.plan.environment, run.seed) == ("m-dqn", "toy/chain", 7)
    assert run.env_steps == 4_000
    assert int(run.learner.steps) == (4_000 - 500) // 4
    assert run.agent.config.temperature == 0.05


def test_it_acts_greedily_and_finds_the_shortest_way(run: experiments.Run):
    actions = run.act(PLACES, jax.random.key(0))
    assert actions.dtype == np.int32
    np.testing.assert_array_equal(actions, toy.optimal_values(8).argmax(1))
    assert run.act(PLACES[:1], jax.random.key(1)).shape == (1,)


def test_its_evaluation_is_perfect_each_time(run: experiments.Run):
    scores = run.evaluate(5)
    assert scores.shape == (5,) and np.all(scores == 1)
    np.testing.assert_array_equal(scores, run.evaluate(5))


def test_the_random_baseline_depends_on_the_seed_and_not_on_what_was_learnt(
    run: experiments.Run,
):
    # Within 40 steps a random walk reaches the end in some episodes and not in others.
    short = dataclasses.replace(
        run, make_eval_environment=lambda num_envs: toy.chain(num_envs, max_episode_steps=40)
    )
    scores = short.evaluate_random(32)
    assert 0 < scores.mean() < 1
    nothing_learnt = jax.tree.map(np.zeros_like, run.learner.params)
    other = dataclasses.replace(short, learner=run.learner._replace(params=nothing_learnt))
    np.testing.assert_array_equal(scores, other.evaluate_random(32))
    assert np.any(scores != dataclasses.replace(short, seed=8).evaluate_random(32))


def test_the_best_checkpoint_is_that_of_the_highest_evaluation(chain_run, tmp_path: pathlib.Path):
    path = tmp_path / "run"
    shutil.copytree(chain_run.path, path)
    folder = run_folder.RunFolder(path).checkpoints

    def score(step: int, value: float | None) -> None:
        one = folder / f"{step:012d}"
        contents = json.loads((one / "contents.json").read_text())
        contents["meta"]["score"] = value
        (one / "contents.json").write_text(json.dumps(contents))
        (one / "manifest.json").unlink()
        files.write_manifest(one)

    score(2_000, 3.0)
    score(4_000, 1.0)
    assert experiments.load(path, best=True).env_steps == 2_000
    assert experiments.load(path).env_steps == 4_000
    for step in checkpoints.steps(folder):
        score(step, None)
    with pytest.raises(ValueError, match="no checkpoint with a score"):
        experiments.load(path, best=True)


def test_a_run_of_parameters_that_are_not_finite_is_not_played(
    chain_run, run: experiments.Run, tmp_path: pathlib.Path
):
    shutil.copytree(chain_run.path, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    like = {
        "env_steps": jax.ShapeDtypeStruct((), np.int32),
        "learner": compiled.learner_shapes(run.agent, 1),
    }
    state, meta, step = checkpoints.restore_latest(folder, like, part=True)
    leaves, tree = jax.tree.flatten(state["learner"].params)
    leaves[-1] = np.asarray(leaves[-1]).copy()
    leaves[-1].flat[0] = np.nan
    params = jax.tree.unflatten(tree, leaves)
    broken = {**state, "learner": state["learner"]._replace(params=params)}
    checkpoints.save(folder, step + 1, broken, meta)
    with pytest.raises(ValueError, match=r"checkpoints: parameter '.*/w' is nan at \[0"):
        experiments.load(tmp_path / "run")


def test_frames_show_one_episode(run: experiments.Run):
    pictures = list(run.frames())
    assert len(pictures) == 8  # Places 0 to 7; past the end there is nothing to see.
    for place, picture in enumerate(pictures):
        assert picture.shape == (16, 128, 3) and picture.dtype == np.uint8
        assert picture[0, :, 0].argmax() == 16 * place
    assert len(list(run.frames(limit=3))) == 3


def test_parameters_come_back_from_safetensors(run: experiments.Run, tmp_path: pathlib.Path):
    path = tmp_path / "new" / "parameters.safetensors"
    run.export(path)
    like = jax.tree.map(np.zeros_like, run.learner.params)
    jax.tree.map(
        np.testing.assert_array_equal, checkpoints.import_params(path, like), run.learner.params
    )


def test_what_no_name_stands_for_must_be_handed_over_again(tmp_path: pathlib.Path):
    path = experiments.train(
        "dqn", toy.chain, family="toy", steps=4, out=tmp_path / "run", quiet=True
    )
    with pytest.raises(ValueError, match="environment was handed over in Python: pass it to load"):
        experiments.load(path)
    assert experiments.load(path, environment=toy.chain).spec.shape == (8,)


@pytest.mark.slow
def test_a_host_run_is_loaded_evaluated_and_filmed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = experiments.train(
        "dqn",
        "gym/CartPole-v1",
        steps=160,
        settings=("torso=mlp_small", "batch_size=8", "min_replay_size=100", "capacity=200"),
        environment_flags=("max_episode_steps=20",),
        out=tmp_path / "run",
        quiet=True,
    )
    for folder in ("checkpoints", "replay"):  # What a process that trains is about to rename.
        (path / folder / ".tmp-half").write_bytes(b"half")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    monkeypatch.setattr(replay, "host", None)  # It may need all of the memory.
    run = experiments.load(path)
    assert run.env_steps == 160 and int(run.learner.steps) == 15
    scores = run.evaluate(3)
    assert scores.shape == (3,) and np.all((scores >= 5) & (scores <= 20))
    np.testing.assert_array_equal(scores, run.evaluate(3))
    pictures = list(run.frames(limit=4))
    assert len(pictures) == 4 and pictures[0].shape == (400, 600, 3)
    assert np.any(pictures[0] != pictures[3])
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_a_run_whose_first_checkpoint_was_never_whole_starts_anew(tmp_path: pathlib.Path):
    path = experiments.train("dqn", "toy/chain", steps=8, out=tmp_path / "run", quiet=True)
    folder = run_folder.RunFolder(path)
    for checkpoint in folder.checkpoints.iterdir():
        checkpoint.rename(folder.checkpoints / f".tmp-{checkpoint.name}")
    folder.metrics_file.unlink()  # Rows come after the first checkpoint.
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        experiments.load(path)
    experiments.resume(path, quiet=True)
    assert experiments.load(path).env_steps == 8
    assert [row["steps"] for row in folder.rows()] == ["8"]

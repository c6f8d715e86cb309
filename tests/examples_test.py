"""Tests of examples/: each learns what it is about, in fewer steps than by default."""

import importlib.util
import pathlib
import tomllib
import types

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.environments import toy
from kullback.experiments.pipelines import running, stages
from kullback.experiments.reproductions import munchausen_atari
from kullback.experiments.runs import run_folder
from kullback.experiments.sweeps import sweep_plan


def example(root: pathlib.Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def policy(run: experiments.Run, num_places: int) -> np.ndarray:
    """Returns the greedy action in each place of a chain."""
    return run.act(np.eye(num_places, dtype=np.float32), jax.random.key(0))


def test_every_example_has_a_test_and_fits_a_page(root: pathlib.Path):
    files = sorted((root / "examples").glob("*.py"))
    assert [path.stem for path in files] == [
        "custom_environment",
        "custom_loss",
        "custom_torso",
        "gymnax_environment",
        "theory_plot",
    ]
    for path in files:
        assert len(path.read_text().splitlines()) <= 60, path


def test_custom_environment(root: pathlib.Path, tmp_path: pathlib.Path):
    module = example(root, "custom_environment")
    run = module.main(steps=4_000, out=tmp_path / "run")
    assert run.env_steps == 4_000
    assert np.all(run.evaluate(50) == 1), "a ball was missed"
    # From the middle of five columns chance catches a ball now and then.
    assert -0.9 < run.evaluate_random(200).mean() < -0.2


@pytest.mark.slow
def test_an_environment_of_gymnax(root: pathlib.Path, tmp_path: pathlib.Path):
    pytest.importorskip("gymnax", reason="the extra kullback[gymnax] is not installed")
    run = example(root, "gymnax_environment").main(steps=20_000, out=tmp_path / "run")
    assert run.evaluate(100).mean() > 0.8
    assert run.evaluate_random(100).mean() < 0


def test_the_environment_ends_where_the_ball_lands(root: pathlib.Path):
    module = example(root, "custom_environment")
    environment = module.catch(64)
    state, t = jax.jit(environment.reset)(jax.random.key(0))
    step = jax.jit(environment.step)
    columns = np.asarray(t.observation).reshape(64, 3, -1)[:, 1].argmax(-1)
    assert set(columns) == set(range(module.COLUMNS))
    for tick in range(module.ROWS - 1):
        assert not np.any(t.last())
        np.testing.assert_array_equal(t.discount, np.ones(64))
        state, t = step(state, np.ones(64, np.int32))  # The paddle stays.
        assert np.all(np.asarray(t.next_observation)[:, tick + 1] == 1), "the ball falls"
    assert np.all(t.last())
    np.testing.assert_array_equal(t.reward, np.where(columns == 2, 1.0, -1.0))
    np.testing.assert_array_equal(t.discount, np.zeros(64))
    assert np.all(np.asarray(t.observation)[:, 0] == 1), "the next ball is at the top"


@pytest.mark.slow
def test_custom_torso(
    root: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    run = example(root, "custom_torso").main(steps=4_000, out=tmp_path / "run")
    best = toy.optimal_values(10, slip=0.1).argmax(1)
    np.testing.assert_array_equal(policy(run, 10), best)
    assert any("layer_norm" in name for name in run.learner.params)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == [f"step {n}000" for n in range(1, 5)]


def test_custom_loss(root: pathlib.Path, tmp_path: pathlib.Path):
    module = example(root, "custom_loss")
    run = module.main(steps=4_000, out=tmp_path / "run")
    np.testing.assert_array_equal(policy(run, 8), toy.optimal_values(8).argmax(1))
    assert "mean_q" in run_folder.RunFolder(run.path).rows()[-1]
    # Online values choose action 0, which the target values hold to be worth 10: 1 + 0.5 * 10.
    online, target = np.array([3.0, 1.0]), np.array([10.0, 20.0])
    assert module.double_dqn_target(1.0, 0.5, online, target) == 6


def test_theory_plot(
    root: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    picture = tmp_path / "gaps.png"
    records = example(root, "theory_plot").main(iterations=100, seeds=4, out=str(picture))
    levels, averages = records["value iteration"], records["DA-VI"]
    assert levels.shape == averages.shape == (4, 101)
    np.testing.assert_allclose(levels[:, 0], averages[:, 0])  # They begin with one policy.
    assert np.all(averages[:, -1] < 0.5 * levels[:, -20:].mean(1))
    assert np.all(np.concatenate([levels, averages]) > -1e-9), "no policy is better than the best"
    assert picture.stat().st_size > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["value iteration", "DA-VI"]


def configurations(root: pathlib.Path, name: str) -> list[sweep_plan.Configuration]:
    text = (root / "examples" / f"{name}.toml").read_text()
    return sweep_plan.configurations(tomllib.loads(text))


def test_the_sweep_is_what_its_comment_says(root: pathlib.Path):
    entries = configurations(root, "sweep")
    by_agent = [
        sum(entry.fields["agent"] == agent for entry in entries) for agent in ("dqn", "m-dqn")
    ]
    assert by_agent == [2 * 2, 2 * 2 * 3] and len(entries) == sum(by_agent)
    assert {entry.seeds for entry in entries} == {tuple(range(5))}
    assert all(sweep_plan.check(entry).seeds_together for entry in entries), (
        "one program for all seeds"
    )


def test_the_benchmark_on_atari_is_that_of_the_reproduction(root: pathlib.Path):
    entries = configurations(root, "munchausen_atari")
    plans = [entry.plan(entry.seeds) for entry in entries]
    planned = {(plan.agent, plan.environment, plan.num_seeds, plan.steps) for plan in plans}
    arms = munchausen_atari.Config(full=True).arms()
    assert planned == {(arm.agent, arm.environment, arm.seeds, arm.steps) for arm in arms}
    assert len(entries) == len(arms) == 6 * 60
    for entry in entries:
        if entry.fields["environment"] == "atari/pong":
            assert not sweep_plan.check(entry).seeds_together, "a program for each seed"


@pytest.mark.parametrize("name", ["gemma3_post", "flywheel"])
def test_the_pipelines_can_be_run(root: pathlib.Path, tmp_path: pathlib.Path, name: str):
    file, lines = root / "examples" / f"{name}.toml", list[str]()
    running.run(file, out=tmp_path / "out", dry_run=True, say=lines.append)
    assert len(lines) == len(stages.read(file).stages) and not (tmp_path / "out").exists()


def test_stages_of_a_pipeline_can_be_left_out(root: pathlib.Path, tmp_path: pathlib.Path):
    file = root / "examples" / "gemma3_post.toml"
    for left_out in ("distilled", "rewards", "policy", "bits"):
        running.run(file, out=tmp_path, without=[left_out], dry_run=True, quiet=True)
    with pytest.raises(ValueError, match="pairs cannot be left out"):
        running.run(file, out=tmp_path, without=["pairs"], dry_run=True, quiet=True)

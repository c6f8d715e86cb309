"""Tests of experiments/runs/inputs.py."""

import json
import math
from typing import Any

import gymnasium
import numpy as np
import pytest

from kullback import experiments
from kullback.core import networks, types
from kullback.environments import gym
from kullback.experiments.runs import inputs, run_folder

HUGE = float(np.finfo(np.float32).max)
SPEC = types.Spec(shape=(3,), dtype=np.float32, num_actions=2)
OPTIONS = {
    "family": "toy",
    "steps": 60,
    "num_envs": 2,
    "eval_episodes": 2,
    "settings": ("min_replay_size=32", "capacity=200", "batch_size=8"),
    "checkpoint_every": 30,
    "log_every": 30,
}


class Signal(gymnasium.Env):
    """Is over after five steps; shows 0 or 1 twice, and pays 1 where the action is that."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, high: float = HUGE, dtype: Any = np.float32) -> None:
        low = [0.0, 0.0] if dtype == np.uint8 else [-high, 0.0]
        top = [255.0, 255.0] if dtype == np.uint8 else [high, 1.0]
        self.observation_space = gymnasium.spaces.Box(
            np.array(low, dtype), np.array(top, dtype), dtype=dtype
        )
        self.o = np.zeros(2, dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.o[:] = self.np_random.integers(2)
        return self.o, {}

    def step(self, action):
        self.count += 1
        reward = float(action == self.o[0])
        self.o[:] = self.np_random.integers(2)
        return self.o, reward, self.count == 5, False, {}


def make(high: float = HUGE, dtype: Any = np.float32):
    return lambda rows: gym.from_gymnasium(lambda: Signal(high, dtype), rows)


def with_old_config(folder) -> None:
    """Makes config.json what version 0.1 wrote."""
    config = run_folder.RunFolder(folder).config()
    del config["spec"]["input_rules"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_what_is_not_scaled_is_said_once(tmp_path, capsys):
    experiments.train("dqn", make(), out=tmp_path / "run", **OPTIONS)
    note = "note: 1 of 2 dimensions of the observation are not scaled (0): their declared bounds"
    assert capsys.readouterr().out.count(note) == 1
    rows = run_folder.RunFolder(tmp_path / "run").rows()
    assert math.isfinite(float(rows[-1]["loss"]))
    experiments.train("dqn", make(1.0), out=tmp_path / "other", **OPTIONS)
    assert "note:" not in capsys.readouterr().out


def test_a_grid_of_bytes_that_may_be_categories_is_said():
    def said(*shape: int, **fields: Any) -> bool:
        spec = types.Spec(shape=shape, num_actions=2, **{"dtype": np.uint8, **fields})
        return any("if they are categories" in note for note in inputs.notes(spec))

    assert said(7, 7, 3)
    assert not said(7, 7, 3, largest_byte=10)
    assert not said(7, 7, 3, dtype=np.bool_)
    assert not said(84, 84, 3) and not said(128)
    assert not said(4, 20, 20, frame_stack=4)


@pytest.mark.parametrize("dtype", [np.uint8, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_a_run_of_version_0_1_goes_on_reading_as_it_did_and_says_so(dtype, tmp_path, capsys):
    folder = experiments.train("dqn", make(HUGE, dtype), out=tmp_path / "run", **OPTIONS)
    now = experiments.load(folder, environment=make(HUGE, dtype))
    with_old_config(folder)
    old = experiments.load(folder, environment=make(HUGE, dtype))
    assert (old.spec.input_rules, now.spec.input_rules) == (1, 2)
    x = np.array([[1, 1], [200, 1], [0, 0]], dtype)
    params = now.acting()["params"]
    assert np.any(_values(old, params, x) != _values(now, params, x))
    capsys.readouterr()
    # Checkpoints of version 0.1 have no copy of config.json that theirs would be compared with.
    experiments.resume(folder, environment=make(HUGE, dtype), steps=90, accept_changes=True)
    assert capsys.readouterr().out.count("note: this run began with version 0.1") == 1
    assert "input_rules" not in run_folder.RunFolder(folder).config()["spec"]


def _values(run, params, x) -> np.ndarray:
    """Returns action values, [B, A], as the agent's own network computes them."""
    network = networks.action_values(networks.torso("mlp_small", run.spec), 2)
    return np.asarray(network.apply(params, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [4]}, r"trained on shape \[4\] and this environment has \[3\]"),
        ({"num_actions": 5}, "trained on num_actions 5 and this environment has 2"),
        ({"dtype": "uint8"}, "trained on dtype uint8 and this environment has float32"),
    ],
)
def test_another_environment_than_was_trained_in_is_refused(change, message):
    assert inputs.as_recorded(SPEC, {"spec": inputs.details(SPEC)}) == SPEC
    with pytest.raises(ValueError, match=message):
        inputs.as_recorded(SPEC, {"spec": {**inputs.details(SPEC), **change}})


def test_rules_are_recorded_where_they_make_a_difference():
    wide = types.Spec(shape=(1,), dtype=np.float32, num_actions=2, bounds=((-HUGE,), (HUGE,)))
    ram = types.Spec(shape=(128,), dtype=np.uint8, num_actions=2)
    picture = types.Spec(shape=(3, 64, 64), dtype=np.float32, num_actions=2)
    for spec in (wide, ram, picture):
        assert inputs.details(spec)["input_rules"] == 2
        old = inputs.as_recorded(spec, {"spec": {"shape": list(spec.shape)}})
        assert old.input_rules == 1 and len(inputs.notes(old)) == 1
        with pytest.raises(ValueError, match=r"spec\.input_rules must be 1 or 2, got '2'"):
            inputs.as_recorded(spec, {"spec": {**inputs.details(spec), "input_rules": "2"}})
    narrow = types.Spec(shape=(1,), dtype=np.float32, num_actions=2, bounds=((0,), (1,)))
    atari = types.Spec(shape=(4, 84, 84), dtype=np.uint8, num_actions=2, frame_stack=4)
    minatar = types.Spec(shape=(10, 10, 4), dtype=np.bool_, num_actions=2)
    for spec in (SPEC, narrow, atari, minatar):  # Old runs and new ones are put together.
        assert "input_rules" not in inputs.details(spec) and inputs.notes(spec) == []
        assert inputs.as_recorded(spec, {"spec": {"shape": list(spec.shape)}}) == spec


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda rows: gym.from_gymnasium(lambda: Signal()), "for 2 rows has 1; make as many"),
        (lambda rows: gym.from_gymnasium(Signal, rows - rows // 3), "for 3 rows has 2"),
        (Signal(), "a name or a function of the number of rows"),
    ],
)
def test_what_a_function_of_environments_returns_is_checked_before_training(
    given, message, tmp_path
):
    options = {**OPTIONS, "eval_every": 30, "eval_episodes": 3}
    with pytest.raises(ValueError, match=message):
        experiments.train("dqn", given, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_evaluation_does_not_step_the_environment_that_is_trained_in(tmp_path):
    shared = Signal()
    options = {**OPTIONS, "num_envs": 1, "eval_every": 30, "eval_episodes": 1}
    with pytest.raises(ValueError, match="environment Signal object is in use already"):
        experiments.train(
            "dqn", lambda rows: gym.from_gymnasium(shared), out=tmp_path / "run", **options
        )
    assert not (tmp_path / "run").exists()


def test_a_run_is_loaded_into_what_it_was_trained_in(tmp_path):
    folder = experiments.train("dqn", make(), out=tmp_path / "run", quiet=True, **OPTIONS)
    assert experiments.load(folder, environment=make()).evaluate(3).max() <= 5
    with pytest.raises(ValueError, match="for 2 rows has 1"):
        experiments.load(folder, environment=lambda rows: gym.from_gymnasium(Signal))
    with pytest.raises(ValueError, match="trained on shape"):
        experiments.load(
            folder,
            environment=lambda rows: gym.from_gymnasium(
                lambda: gymnasium.make("CartPole-v1"), rows
            ),
        )

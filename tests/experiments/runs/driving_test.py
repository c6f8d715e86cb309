"""Tests of experiments/runs/driving.py and of training: signals in evaluations, and closing."""

import os
import pathlib
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kullback import experiments
from kullback.core import types
from kullback.environments import toy
from kullback.experiments import interrupts
from kullback.experiments.runs import training
from tests.records import repeated

FIELDS: dict[str, Any] = {
    "steps": 120,
    "num_envs": 2,
    "log_every": 40,
    "checkpoint_every": 40,
    "eval_every": 60,
    "eval_episodes": 3,
    "settings": ("min_replay_size=40", "batch_size=8", "capacity=100"),
    "quiet": True,
    "family": "toy",
}


class Place:
    """A host environment with episodes of `length` ticks, a reward each; counts its instances."""

    instances: int = 0
    open: int = 0
    ticks: int = 0  # Of all rows of 3: those of evaluation.

    def __init__(self, num_envs: int, length: int = 5):
        self.spec = types.Spec(shape=(2,), dtype=np.float32, num_actions=2)
        self.num_envs, self._length = num_envs, length
        self._age = np.zeros(num_envs, np.int64)
        self._is_open = True
        Place.instances += 1
        Place.open += 1

    def _step(self, kind: np.ndarray, reward: float) -> types.TimeStep:
        observation = np.stack([self._age, self._age % 2], -1).astype(np.float32)
        ones = np.ones(self.num_envs, np.float32)
        return types.TimeStep(kind, ones * reward, ones, observation, observation.copy())

    def reset(self, seed: int) -> types.TimeStep:
        assert self._is_open
        self._age = np.zeros(self.num_envs, np.int64)
        return self._step(np.full(self.num_envs, types.FIRST, np.int8), 0.0)

    def send(self, action: np.ndarray) -> None:
        assert self._is_open
        if self.num_envs == FIELDS["eval_episodes"]:
            Place.ticks += 1
            self.on_tick()

    def on_tick(self) -> None:
        """Does something at each tick of an evaluation."""

    def recv(self) -> types.TimeStep:
        self._age += 1
        last = self._age == self._length
        self._age[last] = 0
        return self._step(np.where(last, types.LAST, types.MID).astype(np.int8), 1.0)

    def render(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def close(self) -> None:
        assert self._is_open, "it is closed twice"
        self._is_open = False
        Place.open -= 1


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    """Checks that all environments of a test are closed by its end."""
    Place.instances = Place.open = Place.ticks = 0
    yield
    assert Place.open == 0


class Stopped(Place):
    """Sends SIGTERM at the third tick of the process' first evaluation, and never ends itself."""

    def __init__(self, num_envs: int):
        super().__init__(num_envs, length=10**9)

    def on_tick(self) -> None:
        if Place.ticks == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        assert Place.ticks != 4, "the signal was not heard at its tick"


def train(environment: Any, out: pathlib.Path, **fields: Any) -> pathlib.Path:
    return experiments.train("dqn", environment, out=out, **{**FIELDS, **fields})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    return train(Place, tmp_path_factory.mktemp("trained") / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "eval_every",
    [
        pytest.param(60, id="in the middle"),
        pytest.param(120, id="at the end", marks=pytest.mark.slow),
    ],
)
def test_a_host_evaluation_that_is_stopped_is_done_again(eval_every, tmp_path):
    limit = {"eval_every": eval_every, "eval_max_steps": 50}
    whole = train(lambda n: Place(n, 10**9), tmp_path / "whole", **limit)
    Place.ticks = 0
    with pytest.raises(interrupts.Interrupted) as caught:
        train(Stopped, tmp_path / "run", **limit)
    assert caught.value.status == 143
    again = f"go on with: kullback train --resume {tmp_path / 'run'}"
    assert str(caught.value) == f"saved at step {eval_every}; {again}"
    assert [row["steps"] for row in repeated(tmp_path / "run")] == [
        str(step) for step in range(40, eval_every, 40)
    ]
    run = experiments.resume(tmp_path / "run", environment=lambda n: Place(n, 10**9), quiet=True)
    # Beyond it episodes on the host begin anew, as in any run that goes on.
    until = [row for row in repeated(whole) if int(row["steps"]) <= eval_every]
    assert repeated(run)[: len(until)] == until and until[-1]["evaluation"] == "50.0"
    assert len(repeated(run)) == len(repeated(whole))


@pytest.mark.slow
def test_a_compiled_evaluation_that_is_stopped_is_done_again(tmp_path):
    evaluated_in = []  # One is made before training, to be checked; the second is evaluated in.

    def stopped(num_envs: int) -> types.Environment:
        if num_envs == 3:
            evaluated_in.append(num_envs)
            if len(evaluated_in) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return toy.chain(num_envs)

    whole = train(toy.chain, tmp_path / "whole")
    with pytest.raises(training.Interrupted, match="saved at step 60; go on with") as caught:
        train(stopped, tmp_path / "run")
    assert caught.value.status == 143
    run = experiments.resume(tmp_path / "run", environment=stopped, quiet=True)
    assert repeated(run) == repeated(whole)


def test_episodes_without_an_end_are_cut_counted_and_said(tmp_path, capsys):
    run = train(lambda n: Place(n, 10**9), tmp_path / "run", eval_max_steps=20, quiet=False)
    assert [row["evaluation"] for row in repeated(run)] == ["nan", "20.0", "nan", "20.0"]
    said = " ".join(capsys.readouterr().err.split())
    assert "3 of 3 episodes of the evaluation at step 60 were cut at its limit of steps" in said
    loaded = experiments.load(run, environment=lambda n: Place(n, 10**9))
    episodes = loaded.play(2)
    assert episodes.returns.tolist() == [20, 20] and episodes.num_cut == 2
    assert loaded.evaluate(2, max_steps=7).tolist() == [7, 7]
    assert Place(1).close() is None
    ended = experiments.load(run, environment=Place).play(2)
    assert ended.returns.tolist() == [5, 5] and ended.num_cut == 0


def test_a_picture_that_a_kill_left_behind_is_drawn_when_the_finished_run_is_taken_up(
    trained, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    curve = run / "learning_curve.png"
    whole = curve.read_bytes()
    for left in ("none", "old"):
        (run / ".tmp-learning_curve.png").write_bytes(whole[:100])  # By the kill.
        if left == "none":
            curve.unlink()
        else:
            curve.write_bytes(b"of fewer steps")
            os.utime(curve, ns=(0, 0))
        experiments.resume(run, environment=Place, quiet=True)
        assert curve.read_bytes() == whole
        assert not list(run.rglob(".tmp-*"))
    drawn = curve.stat().st_mtime_ns
    experiments.resume(run, environment=Place, quiet=True)
    assert curve.stat().st_mtime_ns == drawn, "it was up to date"


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_what_is_made_is_closed(num_seeds, tmp_path):
    run = train(Place, tmp_path / "run", num_seeds=num_seeds)
    assert Place.open == 0 and Place.instances == {1: 3, 2: 6}[num_seeds]  # One is only checked.
    experiments.resume(run, steps=180, environment=Place, quiet=True)
    assert Place.open == 0


def test_what_a_loaded_run_makes_is_closed(trained):
    loaded = experiments.load(trained, environment=Place)
    assert Place.open == 0
    loaded.evaluate(2)
    loaded.evaluate_random(2)
    assert len([*loaded.frames()]) == 5
    film = loaded.frames()
    next(film)
    film.close()
    assert Place.open == 0


def test_a_film_is_made_as_the_episode_goes_on(trained):
    done = []

    class Watched(Place):
        def render(self) -> np.ndarray:
            done.append("drawn")
            return super().render()

        def recv(self) -> types.TimeStep:
            done.append("stepped")
            return super().recv()

    film = experiments.load(trained, environment=Watched).frames()
    next(film)
    assert done == ["drawn"]
    next(film)
    assert done == ["drawn", "stepped", "drawn"]
    film.close()


def test_what_is_made_is_closed_on_errors(tmp_path):
    def no_agent(spec: types.Spec) -> types.Agent:
        raise ValueError("no agent")

    with pytest.raises(ValueError, match="no agent"):
        experiments.train(no_agent, Place, out=tmp_path / "none", quiet=True)
    assert (Place.instances, Place.open) == (1, 0)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        train(Place, tmp_path / "taken")  # Said before anything is made.
    assert (Place.instances, Place.open) == (1, 0)

    class Broken(Place):
        def on_tick(self) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(Broken, tmp_path / "run")
    assert (Place.instances, Place.open) == (4, 0)
    assert experiments.load(tmp_path / "run", environment=Place).env_steps == 60  # It was saved.
    run = experiments.resume(tmp_path / "run", environment=Place, quiet=True)
    with pytest.raises(RuntimeError, match="broken"):
        experiments.load(run, environment=Broken).evaluate(3)
    with pytest.raises(ValueError, match="no agent"):
        experiments.load(run, environment=Place, agent=no_agent)

"""M-DQN on the ALE: trains, is stopped, and goes on with the learner and the replay it had."""

import os
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import host, replay
from kullback.experiments.runs import record, run_folder, saver, seeds, training

# Small, but the game, its protocol, the network and the algorithm are those of the preset.
TINY = ("min_replay_size=16", "batch_size=4", "capacity=64", "target_period=2")


def transitions(contents: replay.State) -> list[np.ndarray]:
    """Returns frames, action, reward and discount of all that may be drawn, oldest first."""
    length = len(contents.action) // len(contents.cursor)
    drawable = []
    for e, (oldest, newest) in enumerate(zip(contents.oldest, contents.newest, strict=True)):
        for n in range(oldest, newest):
            position = contents.starts[e * length + n % length]
            slots = e * length + (position + np.arange(-3, 2)) % length
            scalars = [x[slots[3]] for x in (contents.action, contents.reward, contents.discount)]
            drawable.append(np.concatenate([contents.frames[slots].ravel(), scalars]))
    return drawable


def copied(state: host.RunState) -> host.RunState:
    """Returns a copy of the state, because the replay's arrays change in place."""
    learner = state.learner._replace(key=jax.random.key_data(state.learner.key))
    return jax.tree.map(np.array, state._replace(learner=learner, key=None))


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_learner_and_replay(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    saved: list[host.RunState] = []
    loaded: list[host.RunState] = []

    class Watched(saver.Saver):
        def save(
            self,
            state: Any,
            score: float | None,
            notes: dict[str, Any],
            marks: record.Marks | None = None,
        ) -> None:
            super().save(state, score, notes, marks)
            saved.append(copied(state))

        def load(self, *, empty_replay: bool = False) -> saver.Loaded:
            checkpoint = super().load(empty_replay=empty_replay)
            loaded.append(copied(checkpoint.state))
            return checkpoint

    monkeypatch.setattr(seeds, "Saver", Watched)

    def stop(row: Mapping[str, Any]) -> None:
        if row["steps"] == 32:
            os.kill(os.getpid(), signal.SIGINT)

    folder = run_folder.RunFolder(tmp_path / "run")
    with pytest.raises(training.Interrupted, match=r"saved at step 32; go on with: .* --resume"):
        experiments.train(
            "m-dqn",
            "atari/pong",
            steps=48,
            num_envs=2,
            log_every=8,
            settings=TINY,
            out=folder.path,
            callback=stop,
            quiet=True,
        )
    experiments.resume(folder.path, quiet=True)
    assert [state.env_steps for state in saved] == [0, 32, 48]
    _, before, after = saved
    (again,) = loaded
    # A learner step per four agent steps from the 16th on.
    assert (int(before.learner.steps), int(after.learner.steps)) == (4, 8)
    jax.tree.map(np.testing.assert_array_equal, again.learner, before.learner)
    ours, theirs = transitions(again.replay), transitions(before.replay)
    assert len(theirs) == 32 and np.any(theirs[0] != theirs[15])
    np.testing.assert_array_equal(ours, theirs)
    assert [row["steps"] for row in folder.rows()] == ["8", "16", "24", "32", "40", "48"]
    assert [row["frames"] for row in folder.rows()][-1] == str(4 * 48)
    losses = [float(row["loss"]) for row in folder.rows()]
    assert np.isnan(losses[:2]).all() and np.isfinite(losses[2:]).all()

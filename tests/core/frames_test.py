"""Tests of core/frames.py: batches that are gathered from the copy are those of the host."""

import jax
import numpy as np
import pytest

from kullback.core import frames, replay
from tests.core.replay_test import ENVS, SPEC, config, episodes


@pytest.mark.parametrize(("n_step", "exponent"), [(1, 0.0), (3, 0.5)])
def test_batches_from_the_copy_are_those_of_the_host(n_step, exponent):
    store = replay.host(SPEC, config(n_step, priority_exponent=exponent), ENVS)
    contents = store.init()
    copied = frames.copy(np.asarray(contents.frames))
    for tick, (stacks, action, timestep) in enumerate(episodes(0, ticks=40, end_rate=0.2)):
        rows = store.next_rows(contents)
        contents = store.add(contents, stacks, action, timestep)
        copied = frames.write(copied, rows, contents.frames[rows])
        np.testing.assert_array_equal(copied, contents.frames)
        if tick % 8 == 7:  # The rings of eight slots and more are overwritten many times.
            drawn = store.sample(contents, np.random.default_rng(tick), 2)
            of_rows = store.sample(contents, np.random.default_rng(tick), 2, with_frames=False)
            assert of_rows.data.observation.shape == (2, 4, SPEC.frame_stack)
            jax.tree.map(np.testing.assert_array_equal, frames.gathered(copied, of_rows), drawn)
            assert frames.gathered(None, drawn) is drawn


def test_a_copy_that_the_device_has_no_room_for_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 2_000_000_000, "bytes_in_use": 500_000_000}

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    wide = np.broadcast_to(np.zeros(1, np.uint8), (1_500_000_001,))
    with pytest.raises(ValueError, match=r"are 1.50 GB and the device has room for 1.50 GB; set"):
        frames.copy(wide)


def test_the_setting_is_checked():
    with pytest.raises(ValueError, match="frames_on must be host or device, got disk"):
        replay.Config(frames_on="disk")  # pyright: ignore[reportArgumentType]

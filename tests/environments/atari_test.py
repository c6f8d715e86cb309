"""Tests of environments/atari.py."""

import functools
import itertools

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
from ale_py import roms

from kullback.core import types
from kullback.environments import atari


def actions(environment: atari.Atari, length: int, seed: int = 0) -> np.ndarray:
    shape = (length, environment.num_envs)
    draws = np.random.default_rng(seed).integers(environment.spec.num_actions, size=shape)
    return draws.astype(np.int32)


def play(environment: atari.Atari, seed: int, length: int) -> list[types.TimeStep]:
    timesteps = [environment.reset(seed)]
    for action in actions(environment, length):
        environment.send(action)
        timesteps.append(environment.recv())
    return timesteps


def test_sixty_games_have_roms():
    assert len(set(atari.GAMES)) == 60
    assert not {"defender", "surround"} & set(atari.GAMES)
    for game in atari.GAMES:
        roms.get_rom_path(game)


# Cuts at times when some games, but not all, have ended by themselves (Pong's are longer).
@pytest.mark.parametrize(
    "game, max_frames, length",
    [
        ("breakout", 800, 1_000),
        pytest.param("pong", 1_200, 1_000, marks=pytest.mark.slow),
        pytest.param("space_invaders", 1_200, 2_000, marks=pytest.mark.slow),
    ],
)
def test_equals_gymnasium(game: str, max_frames: int, length: int):
    """Returns observations, raw rewards and ends, where nothing is random."""
    gymnasium.register_envs(ale_py)
    theirs = gymnasium.make(
        f"ALE/{''.join(word.title() for word in game.split('_'))}-v5",
        frameskip=1,
        repeat_action_probability=0.0,
        full_action_space=False,
        max_num_frames_per_episode=max_frames,
        disable_env_checker=True,
    )
    theirs = gymnasium.wrappers.AtariPreprocessing(theirs, noop_max=0)
    theirs = gymnasium.wrappers.FrameStackObservation(theirs, 4, padding_type="zero")
    ours = atari.make(game, 1, repeat_probability=0.0, max_frames=max_frames)
    timestep = ours.reset(0)
    observation, _ = theirs.reset(seed=0)
    np.testing.assert_array_equal(timestep.observation[0], observation)
    ends = set()
    for action in actions(ours, length):
        ours.send(action)
        timestep = ours.recv()
        observation, reward, terminated, truncated, _ = theirs.step(int(action[0]))
        np.testing.assert_array_equal(timestep.next_observation[0], observation)
        assert timestep.reward[0] == reward
        assert timestep.last()[0] == (terminated or truncated)
        if terminated or truncated:
            assert timestep.discount[0] == (not terminated)
            ends.add("end" if terminated else "cut")
            observation, _ = theirs.reset()
        else:
            assert timestep.discount[0] == 1
        np.testing.assert_array_equal(timestep.observation[0], observation)
    assert ends == ({"cut"} if game == "pong" else {"end", "cut"})
    ours.close()
    theirs.close()


@pytest.mark.parametrize("protocol", ["sticky", "classic"])
def test_no_transition_joins_two_episodes(protocol):
    # Breakout's lives are short; a cap adds cuts, at different times by the no-ops' number.
    environment = atari.make("breakout", 4, protocol=protocol, max_frames=900)
    previous, *timesteps = play(environment, 0, 400)
    assert not np.any(previous.observation[:, :3]) and np.all(previous.step_type == types.FIRST)
    kinds = set()
    for timestep in timesteps:
        # What follows an observation shares three frames with it, at the end of an episode too.
        old, new = previous.observation[:, 1:], timestep.next_observation[:, :3]
        np.testing.assert_array_equal(old, new)
        for row in range(4):
            if timestep.last()[row]:
                assert not np.any(timestep.observation[row, :3])
                assert np.any(timestep.observation[row, 3])
            else:
                ours, theirs = timestep.observation[row], timestep.next_observation[row]
                np.testing.assert_array_equal(ours, theirs)
            kind = (bool(timestep.last()[row]), float(timestep.discount[row]))
            kinds.add(kind)
        previous = timestep
    # In the midst, at a true end, at a cut.
    assert kinds == {(False, 1.0), (True, 0.0), (True, 1.0)}
    environment.close()


@pytest.mark.slow
def test_sticky_actions_by_their_frequency():
    """Each frame of the emulator repeats the action before with probability 1/4.

    "Up" and no-op in turn: the old action is repeated for the first k of the four frames of a
    step, k with probability 3/4 (1/4)^k, and for all four with (1/4)^4. Freeway starts alike each
    time and shows each k, so an emulator that is told its actions frame by frame can say which k
    led to an observation. Episodes are short, that few of its states need be looked into.
    """
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(str(roms.get_rom_path("freeway")))
    emulator.reset_game()
    buttons = emulator.getMinimalActionSet()

    @functools.cache
    def repeats(history: tuple[int, ...]) -> tuple[ale_py.ALEState, dict[bytes, int]]:
        """Returns the state after steps with these k, and k as one more step's frame shows it."""
        step = len(history)
        old, new = buttons[step % 2], buttons[(step + 1) % 2]
        if step:
            emulator.restoreState(repeats(history[:-1])[0])
            for i in range(4):
                emulator.act(new if i < history[-1] else old)
        state, seen = emulator.cloneState(), {}
        for k in range(5):
            emulator.restoreState(state)
            frames = []
            for i in range(4):
                emulator.act(old if i < k else new)
                frames.append(emulator.getScreenGrayscale())
            frame = cv2.resize(np.maximum(*frames[2:]), (84, 84), interpolation=cv2.INTER_AREA)
            seen[frame.tobytes()] = k
        assert len(seen) == 5
        return state, seen

    # An episode of six steps and one that is not looked at: its frame is not of its end.
    environment = atari.make("freeway", 8, max_frames=28)
    environment.reset(0)
    counts = np.zeros(5)
    histories: list[tuple[int, ...]] = [()] * 8
    for i in range(32 * 7):
        environment.send(np.full(8, (i % 7 + 1) % 2, np.int32))
        timestep = environment.recv()
        assert np.all(timestep.last() == (i % 7 == 6))
        if i % 7 == 6:
            histories = [()] * 8
            continue
        for row, frame in enumerate(timestep.next_observation[:, -1]):
            k = repeats(histories[row])[1][frame.tobytes()]
            histories[row] += (k,)
            counts[k] += 1
    environment.close()
    n = counts.sum()
    assert n == 32 * 6 * 8
    p = np.array([3 / 4, 3 / 16, 3 / 64, 3 / 256, 1 / 256])
    # Four standard deviations each; the seed decides the draw, so it holds or not for good.
    assert np.all(np.abs(counts - n * p) < 4 * np.sqrt(n * p * (1 - p))), counts / n


def test_cut_after_so_many_frames():
    # 40 frames are 10 steps; the 42nd frame lies in the 11th.
    for max_frames, steps in ((40, 10), (42, 11)):
        environment = atari.make("pong", 2, max_frames=max_frames)
        timesteps = play(environment, 0, 3 * steps)
        for i, timestep in enumerate(timesteps):
            assert np.all(timestep.last() == (i > 0 and i % steps == 0))
            assert np.all(timestep.discount == 1)
        environment.close()


def test_classic_protocol_ends_episodes_with_lives_but_not_games():
    # Without no-ops and sticky actions nothing is random: the two play the same games.
    classic = atari.make("breakout", 2, protocol="classic", max_noops=0)
    whole = atari.make("breakout", 2, protocol="classic", max_noops=0, life_loss=False)
    classic.reset(0)
    whole.reset(0)
    num_lives = np.zeros(2, int)
    num_games = np.zeros(2, int)
    for action in actions(classic, 500):
        classic.send(action)
        whole.send(action)
        ours, theirs = classic.recv(), whole.recv()
        np.testing.assert_array_equal(ours.reward, theirs.reward)
        newest = ours.observation[:, -1], theirs.observation[:, -1]
        np.testing.assert_array_equal(*newest)
        np.testing.assert_array_equal(classic.game_over, theirs.last())
        np.testing.assert_array_equal(whole.game_over, theirs.last())
        np.testing.assert_array_equal(ours.discount, 1 - ours.last())
        assert np.all(ours.last()[theirs.last()])
        num_lives += ours.last()
        num_games += theirs.last()
        assert np.all(num_lives[theirs.last()] == 5 * num_games[theirs.last()])
    assert np.all(num_games >= 1)
    classic.close()
    whole.close()


def test_classic_protocol_starts_games_with_noops():
    environment = atari.make("breakout", 8, protocol="classic", max_frames=1)
    emulators = environment._emulators  # Each step ends a game; info is of the next, no-ops done.
    emulators.reset(seed=0)
    noops = [emulators.step(np.zeros(8, np.int32))[-1]["episode_frame_number"] for _ in range(13)]
    environment.close()
    assert np.min(noops) == 0 and np.max(noops) == 30 and len(np.unique(noops)) > 25


def test_actions_do_not_stick_in_the_classic_protocol():
    environment = atari.make("freeway", 4, protocol="classic", max_noops=0)
    environment.reset(0)
    for i in range(20):
        environment.send(np.full(4, i % 2, np.int32))
        frames = environment.recv().observation[:, -1]
        assert np.all(frames == frames[0])
    environment.close()


def test_a_seed_decides():
    environment = atari.make("breakout", 2)
    first = play(environment, 7, 60)
    environment.send(np.zeros(2, np.int32))  # A tick that is under way does no harm.
    again = play(environment, 7, 60)
    other = play(environment, 8, 60)
    environment.close()
    fresh = atari.make("breakout", 2, num_threads=1)
    elsewhere = play(fresh, 7, 60)
    fresh.close()
    for a, b, c in zip(first, again, elsewhere, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            np.testing.assert_array_equal(x, y)
            np.testing.assert_array_equal(x, z)
    assert any(np.any(a.observation != b.observation) for a, b in zip(first, other, strict=True))


def test_rows_and_neighbouring_seeds_differ():
    """The same actions lead elsewhere, by the sticking."""
    environment = atari.make("freeway", 2)
    histories = []
    for seed in (0, 1):
        environment.reset(seed)
        frames = []
        for i in range(40):
            environment.send(np.full(2, i % 2, np.int32))
            frames.append(environment.recv().observation[:, -1])
        histories.extend(np.stack(frames, axis=1))
    environment.close()
    for a, b in itertools.combinations(histories, 2):
        assert np.any(a != b)


def test_arrays_are_the_callers_to_keep():
    environment = atari.make("pong", 2, max_frames=40)
    timesteps, copies = [environment.reset(0)], []
    copies.append([np.array(x) for x in timesteps[0]])
    for action in actions(environment, 60):
        environment.send(action)
        timesteps.append(environment.recv())
        copies.append([np.array(x) for x in timesteps[-1]])
    environment.close()
    for timestep, copy in zip(timesteps, copies, strict=True):
        for x, y in zip(timestep, copy, strict=True):
            np.testing.assert_array_equal(x, y)


def test_dtypes_spec_and_picture():
    environment = atari.make("pong", 2)
    assert environment.spec == types.Spec(
        shape=(4, 84, 84),
        dtype=np.uint8,
        num_actions=6,
        frame_stack=4,
        frames_per_step=4,
        max_episode_steps=27_000,
    )
    timesteps = play(environment, 0, 1)
    for timestep in timesteps:
        assert timestep.step_type.dtype == np.int8
        assert timestep.reward.dtype == timestep.discount.dtype == np.float32
        assert timestep.observation.dtype == np.uint8
        assert timestep.observation.shape == timestep.next_observation.shape == (2, 4, 84, 84)
    picture = environment.render()
    assert picture.shape == (84, 84, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[..., 1], timesteps[-1].observation[0, -1])
    environment.close()
    environment.close()


@pytest.mark.parametrize(
    "game, flags",
    [
        ("pnog", {}),
        ("pong", {"protocol": "nature"}),
        ("pong", {"repeat_probability": 1.0}),
        ("pong", {"max_noops": -1}),
        ("pong", {"max_frames": 0}),
        ("pong", {"num_threads": -1}),
    ],
)
def test_refuses(game: str, flags: dict):
    with pytest.raises(ValueError, match="got"):
        atari.make(game, 1, **flags)


def test_refuses_calls_that_would_wait_for_ever():
    environment = atari.make("pong", 2)
    environment.reset(0)
    for wrong in ([0, 6], [-1, 0], [0]):
        with pytest.raises(ValueError, match=r"\[0, 6\)"):
            environment.send(np.array(wrong))
    with pytest.raises(RuntimeError, match="without send"):
        environment.recv()
    environment.send(np.zeros(2, np.int32))
    with pytest.raises(RuntimeError, match="twice"):
        environment.send(np.zeros(2, np.int32))
    environment.close()

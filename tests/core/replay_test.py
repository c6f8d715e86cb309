"""Tests of core/replay.py."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.core import replay, spans, types

ENVS, STACK, CAPACITY = 3, 3, 24
SPEC = types.Spec(shape=(STACK, 2), dtype=np.uint8, num_actions=5, frame_stack=STACK)


def config(n_step: int, **fields) -> replay.Config:
    defaults = {"capacity": CAPACITY, "min_replay_size": 4, "batch_size": 4}
    return replay.Config(n_step=n_step, **{**defaults, **fields})


def episodes(seed: int, ticks: int, end_rate: float):
    """Plays at random: frames name their environment, episode and time; some episodes are cut."""
    rng = np.random.default_rng(seed)
    frame = np.arange(ENVS, dtype=np.uint8)[:, None].repeat(2, 1)  # [E, 2]
    count = np.zeros(ENVS, np.uint8)

    def fresh_stack(e):
        count[e] += 1
        return np.concatenate([np.zeros((STACK - 1, 2)), [frame[e] + np.array([1, count[e]])]])

    stacks = np.stack([fresh_stack(e) for e in range(ENVS)]).astype(np.uint8)
    for _ in range(ticks):
        action = rng.integers(0, 5, ENVS).astype(np.int32)
        reward = rng.normal(size=ENVS).astype(np.float32) * 3
        last = rng.random(ENVS) < end_rate
        discount = np.where(last & (rng.random(ENVS) < 0.5), 0, 1).astype(np.float32)
        following = stacks.copy()
        for e in range(ENVS):
            count[e] += 1
            following[e] = np.concatenate([stacks[e, 1:], [frame[e] + np.array([1, count[e]])]])
        after = following.copy()
        for e in np.flatnonzero(last):
            after[e] = fresh_stack(e)
        step_type = np.where(last, types.LAST, types.MID).astype(np.int8)
        yield stacks, action, types.TimeStep(step_type, reward, discount, after, following)
        stacks = after


class Naive:
    """The definition: a list of transitions an environment, and a walk along it."""

    def __init__(self, n: int, settings: replay.Config, length: int):
        self.n, self.config, self.length = n, settings, length
        self.rings = [[] for _ in range(ENVS)]  # (slot, observation, action, timestep of row e).
        self.slots = [0] * ENVS

    def add(self, observation, action, timestep):
        for e in range(ENVS):
            row = jax.tree.map(lambda x, e=e: x[e], timestep)
            self.rings[e].append((self.slots[e], observation[e], action[e], row))
            self.slots[e] += 1 + bool(row.last())  # A final frame takes a slot too.

    def transitions(self):
        """Lists every n-step transition that can be drawn, as flat float vectors."""
        vectors = []
        for e, ring in enumerate(self.rings):
            first = self.slots[e] - self.length + STACK
            for i in range(len(ring) - self.n + 1):
                if ring[i][0] < first:
                    continue
                total, factor, row = 0.0, 1.0, ring[i][3]
                for j in range(self.n):
                    row = ring[i + j][3]
                    clip = self.config.reward_clip
                    total += factor * (np.clip(row.reward, -clip, clip) if clip else row.reward)
                    factor *= self.config.discount * row.discount
                    if row.last():
                        break
                parts = (ring[i][1], ring[i][2], total, factor, row.next_observation)
                vectors.append(np.concatenate([np.ravel(p) for p in parts]).astype(np.float64))
        return vectors


def flatten(batch: types.Batch) -> np.ndarray:
    d = jax.tree.map(np.asarray, batch.data)
    rows = [x.reshape(len(d.action), -1).astype(np.float64) for x in d]
    return np.concatenate(rows, axis=1)


@functools.cache
def stores(n_step: int, clip: float | None, exponent: float = 0.0):
    settings = config(n_step, reward_clip=clip, priority_exponent=exponent)
    device = replay.device(SPEC, settings, ENVS)
    jitted = replay.Replay(device.init, *map(jax.jit, device[1:]))
    return settings, replay.host(SPEC, settings, ENVS), jitted


@hypothesis.settings(deadline=None)
@hypothesis.given(
    seed=st.integers(0, 10_000),
    ticks=st.integers(4, 40),
    end_rate=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    n_step=st.sampled_from([1, 3]),
    clip=st.sampled_from([None, 1.0]),
)
def test_both_storages_hold_what_a_list_holds(seed, ticks, end_rate, n_step, clip):
    settings, host, device = stores(n_step, clip)
    naive = Naive(n_step, settings, replay.ring_length(SPEC, settings, ENVS))
    on_host, on_device = host.init(), device.init()
    for observation, action, timestep in episodes(seed, ticks, end_rate):
        naive.add(observation, action, timestep)
        on_host = host.add(on_host, observation, action, timestep)
        on_device = device.add(on_device, observation, action, timestep)
    expected = naive.transitions()
    rng = np.random.default_rng(seed)
    together = host.sample(on_host, rng, 60)
    draws = {
        "host": [host.sample(on_host, rng) for _ in range(60)],
        "host, together": [jax.tree.map(lambda x, i=i: x[i], together) for i in range(60)],
        "device": [device.sample(on_device, jax.random.key(i)) for i in range(60)],
    }
    for name, batches in draws.items():
        got = np.concatenate([flatten(b) for b in batches])
        distance = np.abs(got[:, None] - np.stack(expected)[None]).max(-1)
        assert distance.min(1).max() < 1e-4, f"{name}: a transition that is in no episode"
        for batch in batches:
            np.testing.assert_allclose(batch.probabilities, 1 / len(expected), rtol=1e-6)
        # 240 draws of at most 40 items: each is drawn unless luck is below 3e-3 an item.
        if len(expected) <= 20:
            assert np.all(distance.min(0) < 1e-4), f"{name}: a transition is never drawn"
    for a, b in zip(on_host, on_device, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))


class NaivePriorities:
    """The definition: a dict of masses by environment and slot, of what can be drawn."""

    def __init__(self, naive: Naive):
        self.naive, self.mass, self.largest = naive, {}, 1.0

    def settle(self):
        for e, ring in enumerate(self.naive.rings):
            whole = ring[: len(ring) - self.naive.n + 1]
            kept = [s for s, *_ in whole if s >= self.naive.slots[e] - self.naive.length + STACK]
            fresh = {(e, slot): self.mass.get((e, slot), self.largest) for slot in kept}
            self.mass = {at: m for at, m in self.mass.items() if at[0] != e} | fresh

    def update(self, indices, priorities):
        rows = {self.row(at): at for at in self.mass}
        masses = np.sqrt(np.float64(priorities) + 1e-10)
        self.largest = max(self.largest, masses.max())
        for i in np.argsort(masses):  # Of two for one row the larger is left.
            if indices[i] in rows:
                self.mass[rows[indices[i]]] = masses[i]

    def row(self, at):
        return at[0] * self.naive.length + at[1] % self.naive.length

    def masses(self):
        masses = np.zeros(ENVS * self.naive.length)
        for at, mass in self.mass.items():
            masses[self.row(at)] = mass
        return masses


@pytest.mark.slow
@hypothesis.settings(deadline=None)
@hypothesis.given(
    seed=st.integers(0, 10_000),
    ticks=st.integers(4, 40),
    end_rate=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    n_step=st.sampled_from([1, 3]),
)
def test_both_storages_draw_by_the_priorities_that_a_dict_holds(seed, ticks, end_rate, n_step):
    settings, host, device = stores(n_step, None, 0.5)
    naive = Naive(n_step, settings, replay.ring_length(SPEC, settings, ENVS))
    expected = NaivePriorities(naive)
    on_host, on_device, waiting = host.init(), device.init(), None
    rng = np.random.default_rng(seed)
    for t, (observation, action, timestep) in enumerate(episodes(seed, ticks, end_rate)):
        told, waiting = waiting, None
        if t >= n_step and rng.random() < 0.7:
            drawn = host.sample(on_host, rng)
            np.testing.assert_allclose(
                drawn.probabilities,
                expected.masses()[drawn.indices] / sum(expected.mass.values()),
                rtol=1e-5,
            )
            waiting = (drawn.indices, rng.exponential(size=4).astype(np.float32))
        if told is not None:  # One `add` after the draw, as on the host.
            on_host = host.update(on_host, *told)
            on_device = device.update(on_device, *told)
            expected.update(*told)
        naive.add(observation, action, timestep)
        on_host = host.add(on_host, observation, action, timestep)
        on_device = device.add(on_device, observation, action, timestep)
        expected.settle()
    for name, state in {"host": on_host, "device": on_device}.items():
        assert state.priorities is not None
        levels = [np.asarray(level) for level in state.priorities.levels]
        size = len(expected.masses())
        np.testing.assert_allclose(levels[0][:size], expected.masses(), rtol=1e-6, err_msg=name)
        assert not levels[0][size:].any()
        np.testing.assert_allclose(state.priorities.largest, expected.largest, rtol=1e-6)
    batch = device.sample(on_device, jax.random.key(seed))
    np.testing.assert_allclose(
        batch.probabilities,
        expected.masses()[np.asarray(batch.indices)] / sum(expected.mass.values()),
        rtol=1e-5,
    )
    distance = np.abs(flatten(batch)[:, None] - np.stack(naive.transitions())[None]).max(-1)
    assert distance.min(1).max() < 1e-4


def test_a_cut_leaves_the_priorities_of_what_is_kept():
    _, store, _ = stores(1, None, 0.5)
    state = store.init()
    for observation, action, timestep in episodes(3, 6, 0.0):
        state = store.add(state, observation, action, timestep)
    rows = store.sample(state, np.random.default_rng(0)).indices
    state = store.update(state, rows, np.full(4, 0.25, np.float32))
    assert state.priorities is not None
    before = state.priorities.levels[0].copy()
    assert set(np.unique(before)) == {0, 0.5, 1}
    after = store.cut(state).priorities
    assert after is not None
    np.testing.assert_array_equal(after.levels[0], before)


def test_draws_are_uniform_over_environments_of_different_contents():
    settings = config(1, batch_size=400, min_replay_size=400, capacity=400)
    store = replay.host(SPEC, settings, ENVS)
    state, lasts = store.init(), []
    for observation, action, timestep in episodes(3, 30, 0.3):
        state = store.add(state, observation, action, timestep)
        lasts.append(timestep.last())
    rng = np.random.default_rng(0)
    rows = np.concatenate([store.sample(state, rng).indices for _ in range(100)])
    _, counts = np.unique(rows, return_counts=True)
    assert len(counts) == 30 * ENVS  # Every transition, and no slot of a final frame.
    mean = 40_000 / 90
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


def test_spans_restore_the_replay_and_a_cut_ends_what_was_running():
    settings, store, _ = stores(3, None)
    state, added, since = store.init(), [], None
    for t, (observation, action, timestep) in enumerate(episodes(5, 37, 0.2)):
        state = store.add(state, observation, action, timestep)
        if t % 9 == 4 or t == 36:  # Wraps between two spans at times.
            added.append(spans.span(state, since))
            since = replay.cursors(state)
    restored = store.init()
    for arrays in added:
        spans.load_span(restored, arrays)
    restored = replay.with_cursors(restored, replay.cursors(state))
    for seed in range(20):
        expected = store.sample(state, np.random.default_rng(seed))
        got = store.sample(restored, np.random.default_rng(seed))
        jax.tree.map(np.testing.assert_array_equal, got, expected)

    running = np.asarray(state.next_age) > 0
    assert running.any()
    cursor = state.cursor.copy()
    cut = store.cut(restored)
    np.testing.assert_array_equal(cut.cursor, cursor + running)
    rows = np.arange(ENVS) * replay.ring_length(SPEC, settings, ENVS)
    at = rows + (cursor - 1) % replay.ring_length(SPEC, settings, ENVS)
    assert np.all(cut.last[at[running]]) and np.all(cut.discount[at[running]] == 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 5}, "batch_size=5 must be at most min_replay_size=4"),
        ({"capacity": 3}, "capacity=3 must be at least min_replay_size=4"),
        ({"discount": 1.5}, "discount must lie in"),
        ({"n_step": 0}, "n_step must be >= 1"),
        ({"reward_clip": -1.0}, "reward_clip must be > 0"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        config(fields.pop("n_step", 1), **fields)


def test_memory_is_compared_with_what_there_is():
    spec = types.Spec(shape=(4, 84, 84), dtype=np.uint8, num_actions=6, frame_stack=4)
    needed = replay.memory_needed(spec, replay.Config(), 4)
    assert 7.0e9 < needed < 7.15e9  # About 7.1 kB a transition.
    with pytest.raises(ValueError, match=r"needs 7\.08 GB of memory and 1\.00 GB are available"):
        replay.require_memory(spec, replay.Config(), 4, 10**9)

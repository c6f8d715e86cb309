"""Experience replay: one index logic over two storages, NumPy on the host and JAX on the device.

Each of E environments has a ring of L slots. A slot is one time step: the newest frame of its
observation, the action, and the raw reward, discount and end that followed. The frame after a
transition is in the next slot; where an episode ends, one more slot stores its final frame, so that
no frame is stored twice and no stack mixes two episodes. Slots are counted by position, from 0
without wrapping; position p is in row p % L of its ring. Transitions are numbered without gaps, and
`starts` gives the position of each, so that a uniform draw is exact although rings hold final
frames too.

Draws are uniform (Mnih et al. 2015) or in proportion to priorities that the learner returns: see
prioritized.py (Schaul et al. 2016).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from kullback.core import prioritized, ranges, returns, types

__all__ = ["Config", "Replay", "State", "device", "host"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the replay and its use; the defaults are those of DQN on Atari."""

    capacity: int = 1_000_000  # Slots over all environments: transitions and final frames.
    min_replay_size: int = 20_000  # Agent steps before the first learner step.
    batch_size: int = 32  # Transitions of a learner step.
    samples_per_update: int = 4  # Agent steps between two learner steps.
    n_step: int = 1  # Rewards summed before the bootstrap.
    discount: float = 0.99  # gamma, per agent step.
    reward_clip: float | None = 1.0  # c: each reward is clipped to [-c, c] before the sum.
    priority_exponent: float = 0.0  # omega of prioritised draws (Rainbow: 0.5); 0 is uniform.
    importance_exponent: float = 0.4  # beta of the learner's importance weights, at first;
    importance_exponent_final: float = 1.0  # beta at the end; it is linear in learner steps.
    importance_learner_steps: int = 12_500_000  # Learner steps between the two: 200 million frames.
    # The memory that batches are gathered from, where environments are on the host: its own, or the
    # accelerator's, which then holds a copy of all frames. Batches are the same.
    frames_on: Literal["host", "device"] = "host"
    # Parts of the rows, of one size, that act apart where environments are on the host; a run's
    # numbers depend on it, as each has its own key and seed. Ours, as are the next two.
    shards: int = 1
    # Iterations by which the parameters that act are behind, >= 0: 0 acts while they learn from
    # what came before, 1 also while a slow shard is awaited.
    lag: int = 0
    # Ticks that a shard acts by one version of the parameters, and those of an iteration: the more,
    # the fewer messages to workers on other machines. 0: as samples_per_update says, 1 at least.
    chunk_ticks: int = 0

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "capacity", "min_replay_size", "batch_size")
        ranges.at_least(1, self, "samples_per_update", "n_step")
        if self.batch_size > self.min_replay_size:
            raise ValueError(
                f"batch_size={self.batch_size} must be at most min_replay_size="
                f"{self.min_replay_size}; set min_replay_size={self.batch_size} or more"
            )
        if self.capacity < self.min_replay_size:
            raise ValueError(
                f"capacity={self.capacity} must be at least min_replay_size="
                f"{self.min_replay_size}; set capacity={self.min_replay_size} or more"
            )
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must lie in [0, 1], got {self.discount}; DQN uses 0.99")
        if self.reward_clip is not None and not self.reward_clip > 0:
            raise ValueError(f"reward_clip must be > 0 or None, got {self.reward_clip}")
        ranges.inside("[0, 1]", self, "priority_exponent", "importance_exponent")
        ranges.inside("[0, 1]", self, "importance_exponent_final")
        if self.frames_on not in ("host", "device"):
            raise ValueError(f"frames_on must be host or device, got {self.frames_on}")
        ranges.at_least(1, self, "shards")
        ranges.at_least(0, self, "lag", "chunk_ticks")
        if self.importance_learner_steps < 1:
            raise ValueError(
                f"importance_learner_steps must be >= 1, got {self.importance_learner_steps}; for "
                "a constant exponent set importance_exponent_final to importance_exponent"
            )


class State(NamedTuple):
    """The contents of E rings of L slots, flattened: position p of ring e is row e L + p % L."""

    frames: types.Array  # [E L + 1, ...]; the last row stays zero: the frame before an episode.
    action: types.Array  # int32, [E L].
    reward: types.Array  # float32, [E L], raw.
    discount: types.Array  # float32, [E L], 0 at a true end, else 1.
    last: types.Array  # bool, [E L]: the transition from this slot ended its episode.
    age: types.Array  # int32, [E L]: steps since the episode began.
    starts: types.Array  # int32, [E L]: row e L + n % L has the position of transition n.
    cursor: types.Array  # int32, [E]: position of the next transition; its frame may be stored.
    oldest: types.Array  # int32, [E]: number of the first transition that has all its frames.
    newest: types.Array  # int32, [E]: number of the next transition.
    next_age: types.Array  # int32, [E]: age of the next transition.
    priorities: prioritized.State | None = None  # One a row, [E L]; None if draws are uniform.


class Cursors(NamedTuple):
    """The positions of the rings: the small arrays of a `State`; int32, [E] each."""

    cursor: types.Array
    oldest: types.Array
    newest: types.Array
    next_age: types.Array


class Replay(NamedTuple):
    """A replay as functions; the host's change a state's arrays in place, but for `sample`."""

    init: Callable[[], State]
    add: Callable[[State, Any, Any, types.TimeStep], State]  # (state, observation, action, ..).
    # (state, key or NumPy generator, U=None) -> one batch, or U of them on a leading axis; with
    # with_frames=False their observations are rows of `State.frames`, int32.
    sample: Callable[..., types.Batch]
    next_rows: Callable[[State], Any]  # state -> int32, [2 E]: rows of frames that `add` writes.
    # (state, bool [E] or None for all) -> state, with the running episodes of rows truncated.
    cut: Callable[..., State]
    # (state, indices, priorities [B]) -> state, for a batch that was drawn at most one `add` ago.
    update: Callable[[State, Any, Any], State]


def host(spec: types.Spec, config: Config, num_envs: int) -> Replay:
    """Returns a replay in NumPy arrays; `sample` takes a `numpy.random.Generator`.

    Raises:
      ValueError: if the arrays do not fit into the memory that is available now.
    """
    require_memory(spec, config, num_envs, psutil.virtual_memory().available)
    return _make(np, spec, config, num_envs)


def device(spec: types.Spec, config: Config, num_envs: int) -> Replay:
    """Returns a replay in JAX arrays: pure functions for use inside a compiled program."""
    return _make(jnp, spec, config, num_envs)


def ring_length(spec: types.Spec, config: Config, num_envs: int) -> int:
    """Returns the slots L of each ring: a share of the capacity, and room for the newest item."""
    return math.ceil(config.capacity / num_envs) + spec.frame_stack + config.n_step


def memory_needed(spec: types.Spec, config: Config, num_envs: int) -> int:
    """Returns the bytes of a replay: about 7.1 kB a transition for frames of 84 x 84."""
    frame = math.prod(spec.frame_shape) * np.dtype(spec.dtype).itemsize
    size = num_envs * ring_length(spec, config, num_envs)
    tree = prioritized.memory_needed(size) if config.priority_exponent else 0
    return size * (frame + 4 + 4 + 4 + 1 + 4 + 4) + tree


def require_memory(spec: types.Spec, config: Config, num_envs: int, available: int) -> None:
    """Raises ValueError if the replay needs more than `available` bytes."""
    needed = memory_needed(spec, config, num_envs)
    if needed > available:
        fits = int(config.capacity * 0.9 * available / needed)
        raise ValueError(
            f"a replay of capacity={config.capacity} needs {needed / 1e9:.2f} GB of memory and "
            f"{available / 1e9:.2f} GB are available; set capacity={fits} or less"
        )


def cursors(state: State) -> Cursors:
    """Returns copies of the small arrays of a host replay."""
    return Cursors(*(np.array(getattr(state, name)) for name in Cursors._fields))


def with_cursors(state: State, cursors: Cursors) -> State:
    """Returns a state with other cursors, and its rows as they are."""
    return state._replace(**{n: np.array(x, np.int32) for n, x in cursors._asdict().items()})


def _put(array: Any, index: Any, value: Any) -> Any:
    """Assigns `array[index] = value`, in place if the array is NumPy's."""
    if isinstance(array, np.ndarray):
        array[index] = value
        return array
    return array.at[index].set(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rings:
    """The constants of a replay, which its functions share."""

    xp: Any  # numpy or jax.numpy.
    spec: types.Spec
    config: Config
    num_envs: int  # E.
    length: int  # L.
    start: np.ndarray  # int32, [E]: the first row of each ring.
    scheme: prioritized.Scheme | None  # None where draws are uniform.

    @property
    def num_rows(self) -> int:
        """Rows of all rings, E L; in `State.frames` also the index of the row that stays zero."""
        return self.num_envs * self.length


def _make(xp: Any, spec: types.Spec, config: Config, num_envs: int) -> Replay:
    length, scheme = ring_length(spec, config, num_envs), None
    if config.priority_exponent:
        scheme = prioritized.make(xp, num_envs * length, config.priority_exponent)
    rings = _Rings(
        xp=xp,
        spec=spec,
        config=config,
        num_envs=num_envs,
        length=length,
        start=np.arange(num_envs, dtype=np.int32) * length,
        scheme=scheme,
    )
    return Replay(
        init=functools.partial(_init, rings),
        add=functools.partial(_add, rings),
        sample=functools.partial(_sample, rings),
        next_rows=functools.partial(_next_rows, rings),
        cut=functools.partial(_cut, rings),
        update=functools.partial(_update, rings),
    )


def _init(rings: _Rings) -> State:
    def rows(dtype: Any) -> Any:
        return rings.xp.zeros(rings.num_rows, dtype)

    def per_env() -> Any:
        return rings.xp.zeros(rings.num_envs, np.int32)

    return State(
        frames=rings.xp.zeros((rings.num_rows + 1, *rings.spec.frame_shape), rings.spec.dtype),
        action=rows(np.int32),
        reward=rows(np.float32),
        discount=rows(np.float32),
        last=rows(np.bool_),
        age=rows(np.int32),
        starts=rows(np.int32),
        cursor=per_env(),
        oldest=per_env(),
        newest=per_env(),
        next_age=per_env(),
        priorities=rings.scheme.init() if rings.scheme else None,
    )


def _next_rows(rings: _Rings, state: State) -> Any:
    """Returns the rows of the frames of the next transition, at its start and at its end, [2 E]."""
    positions = [state.cursor, state.cursor + 1]
    return rings.xp.concatenate([rings.start + position % rings.length for position in positions])


def _add(
    rings: _Rings, state: State, observation: Any, action: Any, timestep: types.TimeStep
) -> State:
    xp, last = rings.xp, timestep.last()
    row = rings.start + state.cursor % rings.length  # [E]
    # Both frames are written: the next one is needed at once, and if the episode goes on, the next
    # call writes it again.
    frames = [observation, timestep.next_observation]
    if rings.spec.frame_stack > 1:
        frames = [frame[:, -1] for frame in frames]
    frames = xp.concatenate(frames)
    state = state._replace(
        frames=_put(state.frames, _next_rows(rings, state), frames),
        action=_put(state.action, row, action),
        reward=_put(state.reward, row, timestep.reward),
        discount=_put(state.discount, row, timestep.discount),
        last=_put(state.last, row, last),
        age=_put(state.age, row, state.next_age),
        starts=_put(state.starts, rings.start + state.newest % rings.length, state.cursor),
        cursor=state.cursor + 1 + last,
        newest=state.newest + 1,
        next_age=xp.where(last, 0, state.next_age + 1).astype(np.int32),
    )
    return _settle(rings, state, True)


def _forget(rings: _Rings, state: State) -> Any:
    """Returns the number of the first transition whose frames are not overwritten, int32, [E]."""
    # Positions <= cursor - L are overwritten; a stack reaches back stack - 1 positions.
    first = state.cursor - rings.length + rings.spec.frame_stack
    oldest = state.oldest
    for _ in range(2):  # A call writes at most two slots.
        is_lost = state.starts[rings.start + oldest % rings.length] < first
        oldest = oldest + (is_lost & (oldest < state.newest))
    return oldest.astype(np.int32)


def _cut(rings: _Rings, state: State, rows: Any = None) -> State:
    running = state.next_age > 0
    if rows is not None:
        running = running & rows
    row = rings.start + (state.cursor - 1) % rings.length
    state = state._replace(
        last=_put(state.last, row, state.last[row] | running),
        cursor=state.cursor + running,
        next_age=rings.xp.where(running, 0, state.next_age).astype(np.int32),
    )
    return _settle(rings, state, False)


def _settle(rings: _Rings, state: State, is_new: bool) -> State:
    """Drops transitions that are overwritten; `is_new` says that each ring has got one more."""
    oldest, scheme, xp = _forget(rings, state), rings.scheme, rings.xp
    if scheme is None:
        return state._replace(oldest=oldest)
    # Dropped transitions are drawn no longer; the one that now has its n steps is drawn from now.
    number = xp.stack([state.oldest, state.oldest + 1, state.newest - rings.config.n_step])
    is_complete = is_new & (number[2] >= oldest)
    moved = xp.stack([number[0] < oldest, number[1] < oldest, is_complete])  # [3, E].
    position = state.starts[rings.start[None] + number % rings.length]
    slots = xp.where(moved, rings.start[None] + position % rings.length, rings.num_rows)
    is_inserted = moved & (np.arange(3)[:, None] == 2)
    priorities = scheme.insert(state.priorities, slots.ravel(), is_inserted.ravel())
    return state._replace(oldest=oldest, priorities=priorities)


def _update(rings: _Rings, state: State, indices: Any, new: Any) -> State:
    if rings.scheme is None:
        return state
    return state._replace(priorities=rings.scheme.update(state.priorities, indices, new))


def _draw(rings: _Rings, state: State, key: Any, num_batches: int) -> tuple[Any, Any, Any]:
    """Draws U B transitions: first rows of their rings, positions and probabilities, [U B] each."""
    xp, shape = rings.xp, (num_batches, rings.config.batch_size)
    if rings.scheme is not None:
        uniform = key.random(shape, np.float32) if xp is np else jax.random.uniform(key, shape)
        row, probabilities = rings.scheme.draw(state.priorities, uniform)
        base = row // rings.length * rings.length
        return base, row - base, probabilities
    # Transitions of each ring that have their n steps, [E].
    counts = xp.maximum(state.newest - (rings.config.n_step - 1) - state.oldest, 0)
    ends = counts.cumsum(dtype=np.int32)
    if xp is np:
        draw = key.integers(0, ends[-1], math.prod(shape), np.int32)
        env = ends.searchsorted(draw, side="right")  # [U B]
    else:
        draw = jax.random.randint(key, (math.prod(shape),), 0, ends[-1])
        env = jnp.searchsorted(ends, draw, side="right", method="compare_all")
    base = xp.asarray(rings.start)[env]
    number = draw + (state.oldest - (ends - counts))[env]
    position = state.starts[base + number % rings.length]
    return base, position, xp.full(len(draw), 1 / ends[-1].astype(np.float32))


def _sample(
    rings: _Rings,
    state: State,
    key: Any,
    num_batches: int | None = None,
    *,
    with_frames: bool = True,
) -> types.Batch:
    config = rings.config
    base, position, probabilities = _draw(rings, state, key, num_batches or 1)
    steps_on = np.arange(config.n_step, dtype=np.int32)[None]  # [1, n]
    steps = base[:, None] + (position[:, None] + steps_on) % rings.length
    reward, discount, m = returns.n_step_return(
        state.reward[steps],
        state.discount[steps],
        state.last[steps],
        config.discount,
        config.reward_clip,
    )
    row = steps[:, 0]
    frames_of = functools.partial(_frames, rings, state) if with_frames else lambda rows: rows
    observation, next_observation = _observations(rings, state, base, position, m, frames_of)
    data = types.Transition(observation, state.action[row], reward, discount, next_observation)
    batch = types.Batch(data, row, probabilities, np.ones(len(row), np.float32))
    if num_batches is None:
        return batch
    shape = (num_batches, config.batch_size)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), batch)


def _frames(rings: _Rings, state: State, rows: Any) -> Any:
    """Returns the frames of rows [B], or stacks of them, [B, S]."""
    return state.frames[rows] if rings.spec.frame_stack == 1 else state.frames.take(rows, axis=0)


def _observations(
    rings: _Rings, state: State, base: Any, position: Any, m: Any, frames_of: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Returns stacks of frames at `position` and m steps later, with zeros before the episode."""
    length, stack = rings.length, rings.spec.frame_stack
    row = base + position % length
    if stack == 1:
        return frames_of(row), frames_of(base + (position + m) % length)
    age = state.age[row]

    def read(newest: int, position: Any, age: Any) -> Any:  # [B, stack + newest, ...]
        """Reads frames from the oldest of the stack at `position` to `newest` steps later."""
        offset = np.arange(1 - stack, 1 + newest, dtype=np.int32)[None]
        rows = base[:, None] + (position[:, None] + offset) % length
        rows = rings.xp.where(age[:, None] >= -offset, rows, rings.num_rows)
        return frames_of(rows)

    if rings.config.n_step == 1:  # The two overlap in all but one frame: read each once.
        frames = read(1, position, age)
        return frames[:, :-1], frames[:, 1:]
    return read(0, position, age), read(0, position + m, age + m)

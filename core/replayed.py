"""Learning from a replay on the host, while environments act: an iteration, tick by tick."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import acting, chunks, experience, frames, loops, metrics, replay, types

WAITED = "wait_seconds"  # Metric: how long an iteration waited for workers that act.


class Pending(NamedTuple):
    """The priorities of the last U updates, before the replay has received them."""

    indices: Any  # int32, [U, B].
    priorities: Any  # float32, [U, B]; the learner may still be computing them.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """The constants of learning from a replay on the host, its program compiled once."""

    config: replay.Config
    seed: int  # Of the run.
    num_envs: int  # B.
    constants: types.Constants
    pace: loops.Pace
    plan: chunks.Schedule
    begins: int  # Transitions in the replay after which iterations learn.
    store: replay.Replay
    num_slots: int  # Slots of all rings of the replay together.
    names: dict[str, Any]  # Names of the learner's metrics, as keys; WAITED where one may wait.
    learn: Callable[..., Any]  # `_learn`, compiled; the learner's state is donated.

    def nothing_pending(self) -> Pending | None:
        """Returns priorities of no slot, in the shape of others; None where draws are uniform."""
        if not self.config.priority_exponent:
            return None
        shape = (self.pace.updates, self.config.batch_size)
        return Pending(np.full(shape, self.num_slots, np.int32), np.zeros(shape, np.float32))


def learning(
    agent: types.Agent[replay.Config],
    spec: types.Spec,
    num_envs: int,
    seed: int,
    constants: types.Constants,
) -> Learning:
    """Returns the learning of an agent's run of B rows.

    Raises:
      ValueError: as `host.make` does.
    """
    config = agent.experience
    plan = chunks.schedule(config, num_envs)
    names = loops.feedback_names(agent, spec, constants)
    noted = {} if plan.is_plain else {WAITED: np.float32(0)}
    return Learning(
        config=config,
        seed=seed,
        num_envs=num_envs,
        constants=constants,
        pace=loops.pace(config, num_envs),
        plan=plan,
        begins=experience.learning_begins(config, num_envs, is_compiled=False),
        store=replay.host(spec, config, num_envs),
        num_slots=num_envs * replay.ring_length(spec, config, num_envs),
        names={**names, **dict.fromkeys(noted)},
        learn=jax.jit(functools.partial(_learn, agent, noted), donate_argnums=0),
    )


def _learn(
    agent: types.Agent,
    noted: dict[str, Any],
    learner: types.LearnerState,
    sums: metrics.Metrics,
    batches: types.Batch,
    constants: types.Constants,
    copied: jax.Array | None,
) -> tuple[types.LearnerState, metrics.Metrics, jax.Array | None]:
    """Takes a learner step for each of U batches, [U, ...]; returns the new priorities too, [U, B].

    It is one program, as on a GPU starting an update takes longer than the update itself. Where
    there is a copy of the frames, the batches have rows of it. `noted` are metrics of each step
    beside the learner's.
    """

    def update(carry: Any, batch: types.Batch) -> tuple[Any, jax.Array | None]:
        learner, sums = carry
        batch = frames.gathered(copied, batch)
        learner, feedback = agent.learner.step(learner, batch, constants)
        priorities = feedback.priorities if agent.experience.priority_exponent else None
        feedback = feedback._replace(metrics={**feedback.metrics, **noted})
        return (learner, metrics.learn(sums, feedback)), priorities

    (learner, sums), priorities = jax.lax.scan(update, (learner, sums), batches)
    return learner, sums, priorities


def _update_priorities(
    store: replay.Replay, contents: replay.State, pending: Pending
) -> replay.State:
    """Hands the replay its new priorities."""
    for indices, new in zip(*map(np.asarray, pending), strict=True):
        contents = store.update(contents, indices, new)
    return contents


_observe = jax.jit(metrics.observe)


@dataclasses.dataclass(kw_only=True)
class Iteration:
    """An iteration under way; the replay's arrays change in place."""

    learning: Learning
    env_steps: int  # Agent steps over all environments.
    learner: types.LearnerState
    sums: metrics.Metrics
    contents: replay.State
    pending: Pending | None
    copied: jax.Array | None  # The replay's frames on the device; see frames.py.
    drawn: types.Batch | None = None  # Of the next learner steps, on the host.
    batches: types.Batch | None = None  # The same, on the device.
    steps: int = 0  # Learner steps that it has taken.

    def draw(self, call: int = 0) -> None:
        """Draws the batches of a call of the learner's program, if enough is in the replay."""
        given = self.learning
        self.drawn = self.batches = None
        # Transitions added to the replay: env_steps, unless a replay was lost and begun anew.
        gathered = int(np.sum(self.contents.newest, dtype=np.int64))
        if gathered >= given.begins:
            # Drawn and copied while the updates of the last iteration, whose parameters act, may
            # still run. A generator is made for each draw, so that checkpoints need not hold any.
            ahead = call * given.pace.env_steps(given.num_envs)
            generator = np.random.default_rng([given.seed, self.env_steps + ahead, 0])
            with_frames, updates = self.copied is None, given.pace.updates
            self.drawn = given.store.sample(
                self.contents, generator, updates, with_frames=with_frames
            )
            self.batches = jax.device_put(self.drawn)

    def learn(self) -> None:
        """Takes the learner steps, while environments make their ticks."""
        given = self.learning
        for call in range(given.plan.calls):
            if call:
                self.draw(call)
            priorities = None
            if self.batches is not None:  # The call returns before the device is done.
                self.learner, self.sums, priorities = given.learn(
                    self.learner, self.sums, self.batches, given.constants, self.copied
                )
                self.steps += given.pace.updates
            self.tell(priorities)

    def tell(self, priorities: jax.Array | None = None) -> None:
        """Hands the replay the pending priorities, and keeps those of the batches last drawn."""
        if self.pending is None:
            return
        # The parameters of the same updates act already or will next: waiting for them costs
        # little. They are stored while environments and learner work, always one tick late.
        self.contents = _update_priorities(self.learning.store, self.contents, self.pending)
        self.pending = self.learning.nothing_pending()
        if self.drawn is not None and priorities is not None:
            self.pending = Pending(self.drawn.indices, priorities)

    def cut(self, rows: np.ndarray) -> None:
        """Cuts the episodes of rows, bool [B], whose emulators began anew."""
        self.contents = self.learning.store.cut(self.contents, rows)
        running_return = jnp.where(rows, 0.0, self.sums.running_return)
        self.sums = self.sums._replace(running_return=running_return)

    def add(self, tick: acting.Tick) -> None:
        """Adds a tick of all rows to the replay."""
        store, timestep, copied = self.learning.store, tick.timestep, self.copied
        rows = None if copied is None else store.next_rows(self.contents)
        self.contents = store.add(self.contents, tick.observation, tick.action, timestep)
        if copied is not None:
            self.copied = frames.write(copied, rows, self.contents.frames[rows])
        without_frames = timestep._replace(observation=None, next_observation=None)
        self.sums = _observe(self.sums, without_frames)
        self.env_steps += self.learning.num_envs

    def note_waiting(self, seconds: float) -> None:
        """Adds the time for which the iteration waited for workers to its metrics."""
        if WAITED in self.sums.learner and self.steps:
            total = self.sums.learner[WAITED] + np.float32(seconds * self.steps)
            self.sums = self.sums._replace(learner={**self.sums.learner, WAITED: total})

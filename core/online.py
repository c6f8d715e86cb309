"""Learning from what the present policy has just done: no replay, no target network.

An iteration acts for T ticks with fixed parameters, labels what it saw once, and learns from that
in a few epochs of shuffled minibatches (Gallici et al. 2024, https://arxiv.org/abs/2407.04811).

Shape letters: T ticks, B rows of the environment, N = T B items of an iteration.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kullback.core import metrics, ranges, rollout, types

__all__ = ["Config", "Experience", "learn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of an iteration; the defaults are PQN's."""

    length: int = 32  # Ticks T of an iteration.
    epochs: int = 2  # Passes over the items of an iteration.
    batch_size: int = 128  # Items of a learner step.
    discount: float = 0.99  # gamma, per agent step.
    reward_clip: float | None = 1.0  # c: each reward is clipped to [-c, c].

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "length", "epochs", "batch_size")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must lie in [0, 1], got {self.discount}; PQN has 0.99")
        if self.reward_clip is not None and not self.reward_clip > 0:
            raise ValueError(f"reward_clip must be > 0 or None, got {self.reward_clip}")

    def num_items(self, num_envs: int) -> int:
        """Returns the items N of an iteration, which is also its agent steps.

        Raises:
          ValueError: unless they are a whole number of batches.
        """
        number = self.length * num_envs
        if number % self.batch_size:
            raise ValueError(
                f"length={self.length} ticks of num_envs={num_envs} are {number} items, not a "
                f"multiple of batch_size={self.batch_size}"
            )
        return number


class Experience(NamedTuple):
    """Settings of an iteration, and how what was seen becomes what is learnt from."""

    config: Config
    # (acting parameters, trajectory [T, B, ...]) -> items to learn from, [T, B, ...] each.
    label: Callable[[types.Params, rollout.Trajectory], Any]


def learn(
    config: Config,
    learner: types.Learner,
    items: Any,
    state: types.LearnerState,
    sums: metrics.Metrics,
    key: types.Key,
    constants: types.Constants,
) -> tuple[types.LearnerState, metrics.Metrics]:
    """Returns the learner and the metrics after all epochs.

    Args:
      config: of the iteration.
      learner: takes the steps.
      items: [T, B, ...]; each is in one batch an epoch.
      state, sums: before.
      key: each epoch shuffles by a key split from it.
      constants: as for the learner's step.
    """
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), items)
    number = len(jax.tree.leaves(flat)[0])

    def step(carry: Any, indices: jax.Array) -> tuple[Any, None]:
        state, sums = carry
        batch = types.Batch.of(jax.tree.map(lambda x: x[indices], flat))
        state, feedback = learner.step(state, batch, constants)
        return (state, metrics.learn(sums, feedback)), None

    def epoch(carry: Any, key: types.Key) -> tuple[Any, None]:
        order = jax.random.permutation(key, number).reshape(-1, config.batch_size)
        return jax.lax.scan(step, carry, order)

    carry, _ = jax.lax.scan(epoch, (state, sums), jax.random.split(key, config.epochs))
    return carry

"""The vocabulary of Kullback: what flows between environment, policy, replay and learner.

Shape letters: B rows (environments in parallel, or items of a training batch), T time,
A actions, K seeds. "..." is the shape of one observation. Everything is batched on a leading
axis; the equations of the algorithms are written for one item and vmapped once.

The nouns are dm_env's (observation, action, reward, discount; first, mid, last).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Agent",
    "Array",
    "Batch",
    "Constants",
    "Environment",
    "Feedback",
    "HostEnvironment",
    "Key",
    "Learner",
    "LearnerState",
    "Params",
    "Policy",
    "Spec",
    "TimeStep",
    "Transition",
]

# Of NumPy, of JAX, or traced.
Array = jax.Array | np.ndarray
Key = jax.Array  # A typed key (`jax.random.key`), [].
Params = Any  # A pytree of arrays.

FIRST, MID, LAST = 0, 1, 2  # The values of dm_env.StepType.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What one row of an environment looks like from outside.

    An observation with `frame_stack` > 1 is the last frames of an episode, oldest first, on its
    leading axis (zeros before the episode began); a replay then keeps each frame once.
    """

    shape: tuple[int, ...]  # Of one observation, the stack included.
    dtype: Any  # Of the observation, a NumPy dtype.
    num_actions: int
    frame_stack: int = 1
    frames_per_step: int = 1  # Frames of the emulator in one agent step.
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # Of a vector, for scaling.
    max_episode_steps: int | None = None  # Agent steps after which it ends an episode itself.
    largest_byte: int = 255  # Declared upper bound of uint8 observations, for scaling.
    # Version of the rules by which torsos read observations: runs of version 0.1 go on by 1.
    input_rules: int = 2

    def __post_init__(self) -> None:
        if self.num_actions < 1:
            raise ValueError(f"num_actions must be >= 1, got {self.num_actions}")
        if not 1 <= self.largest_byte <= 255:
            raise ValueError(f"largest_byte must lie in [1, 255], got {self.largest_byte}")
        if self.frame_stack > 1 and self.shape[0] != self.frame_stack:
            raise ValueError(
                f"observations of shape {self.shape} must lead with frame_stack={self.frame_stack}"
            )

    def against(self, other: "Spec") -> str:
        """Returns names and values of the fields in which it differs from another."""
        theirs = vars(other)
        return ", ".join(
            f"{name} {value}" for name, value in vars(self).items() if value != theirs[name]
        )

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of what a replay stores for one time step."""
        return self.shape[1:] if self.frame_stack > 1 else self.shape

    def zeros(self, num_rows: int = 1) -> jax.Array:
        """Observations of zeros, [num_rows, ...]."""
        return jnp.zeros((num_rows, *self.shape), self.dtype)


class TimeStep(NamedTuple):
    """What B rows say after a tick.

    An environment that resets itself does so within the tick in which an episode ends:
    `observation` is then the first of the next episode, `next_observation` the last of the old
    one, so that each tick is B real transitions. Otherwise the two are equal. `discount` is 0
    at a true end and 1 elsewhere, at a cut (truncation) too; gamma is not in it, and `reward`
    is as the environment gave it.
    """

    step_type: Array  # int8, [B]: FIRST at a reset only, LAST where an episode ended, else MID.
    reward: Array  # float32, [B].
    discount: Array  # float32, [B], 0 or 1.
    observation: Array  # [B, ...], to act on.
    next_observation: Array  # [B, ...], before any reset.

    def last(self) -> Any:
        """Where an episode ended in this tick; bool, [B]."""
        return self.step_type == LAST


class Environment(NamedTuple):
    """B rows of a compiled environment, as pure functions."""

    spec: Spec
    num_envs: int  # B.
    reset: Callable[[Key], tuple[Any, TimeStep]]  # key -> (state, timestep).
    step: Callable[[Any, jax.Array], tuple[Any, TimeStep]]  # (state, action [B]) -> the same.
    auto_reset: bool = True  # If False, a finished row stays finished (and says LAST again).
    render: Callable[[np.ndarray], np.ndarray] | None = None  # [...] -> RGB uint8 [H, W, 3].


@runtime_checkable
class HostEnvironment(Protocol):
    """B rows of an environment that lives outside XLA, with NumPy arrays in its timesteps.

    `send` starts a tick and `recv` ends it; between the two the environment's threads work
    while the caller does something else.
    """

    spec: Spec
    num_envs: int

    def reset(self, seed: int) -> TimeStep:
        """Starts B episodes; the same seed gives the same episodes for the same actions."""
        ...

    def send(self, action: np.ndarray) -> None:
        """Starts a tick; `action` is int32, [B]."""
        ...

    def recv(self) -> TimeStep:
        """Ends the tick; the arrays are the caller's to keep."""
        ...

    def render(self) -> np.ndarray:
        """Picture of row 0 as it is now, RGB, uint8, [H, W, 3]."""
        ...

    def close(self) -> None:
        """Frees threads and emulators."""
        ...


class Transition(NamedTuple):
    """One step of experience, or m of them summed (n-step), as a learner reads it.

    `reward` is sum_{i<m} gamma^i clip(r_i), `discount` is gamma^m and 0 only at a true end, so
    that losses never multiply by gamma; `next_observation` is m steps on, before any reset.
    """

    observation: Array  # [B, ...].
    action: Array  # int32, [B].
    reward: Array  # float32, [B].
    discount: Array  # float32, [B].
    next_observation: Array  # [B, ...].


class Batch(NamedTuple):
    """What a learner step reads."""

    data: Any  # `Transition` in deep RL, token sequences in language models; [B, ...] each.
    indices: Array  # int32, [B]: where the replay keeps them, for new priorities.
    probabilities: Array  # float32, [B]: with which each was drawn.
    weights: Array  # float32, [B]: ones unless a learner makes importance weights.

    @classmethod
    def of(cls, data: Any) -> "Batch":
        """Returns the batch of rows [B, ...] that no replay keeps and that count alike."""
        num_rows = len(jax.tree.leaves(data)[0])
        ones = np.ones(num_rows, np.float32)
        return cls(data, np.arange(num_rows, dtype=np.int32), ones / num_rows, ones)


class Feedback(NamedTuple):
    """What a learner step says back."""

    metrics: dict[str, jax.Array]  # Scalars or [B]; the mean is logged. "loss" is always there.
    priorities: jax.Array | None = None  # float32, [B], or None if the replay is uniform.


class LearnerState(NamedTuple):
    """Everything that learning changes."""

    params: Params
    opt_state: Any
    targets: dict[str, Params]  # Named target trees; each has its rule in the learner.
    steps: jax.Array  # int32, []: learner steps done; the same for all seeds.
    key: Key
    aux: Any = None  # What else an algorithm remembers (a running normaliser).


class Constants(NamedTuple):
    """Frozen parameters that a learner reads beside its own; they are in no checkpoint."""

    base: Params = None  # What learnt parameters are added to.
    teacher: Params = None  # What is distilled.
    start: Params = None  # Where learning started, to which a policy stays near.


NO_CONSTANTS = Constants()


class Learner(NamedTuple):
    """Learning as two pure functions; jit, scan, vmap and shard them."""

    init: Callable[[Key], LearnerState]
    step: Callable[[LearnerState, Batch, Constants], tuple[LearnerState, Feedback]]


class Policy(NamedTuple):
    """Acting as two pure functions.

    `initial_state(params, context, max_length)` is None for a policy without memory; for a
    language model it prefills a cache with the context. `step(params, observation, state, key)`
    returns actions int32 [B], the next state, and a dict of extras ([B, ...] each).
    """

    initial_state: Callable[[Params, Any, int], Any]
    step: Callable[[Params, Array, Any, Key], tuple[jax.Array, Any, dict[str, jax.Array]]]


Experience = TypeVar("Experience")


class Agent(NamedTuple, Generic[Experience]):
    """A learner, a policy, which parameters act, and what is learnt from.

    `actor_params(learner_state, env_steps, evaluate)` returns what the policy's functions take
    as params: online, target or averaged weights with the exploration that goes with them.
    """

    policy: Policy
    learner: Learner
    actor_params: Callable[[LearnerState, Array, bool], Params]
    # What is learnt from, and how often: `replay.Config` in games; in language models whose texts,
    # `tuning.Mixture` or `rlhf.OnPolicy`; None where it is not the agent that says so.
    experience: Experience
    config: Any = None  # The algorithm's frozen dataclass, saved beside the results.

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

# An array of NumPy or JAX, or a traced one.
Array = jax.Array | np.ndarray
Key = jax.Array  # A typed key (`jax.random.key`), [].
Params = Any  # A pytree of arrays.

FIRST, MID, LAST = 0, 1, 2  # The values of dm_env.StepType.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """The shapes and bounds of one row of an environment, as agents see it.

    An observation with `frame_stack` > 1 stacks an episode's last frames on its leading axis,
    oldest first (zeros before the episode began); a replay then stores each frame once.
    """

    shape: tuple[int, ...]  # Shape of one observation, the stack included.
    dtype: Any  # NumPy dtype of the observation.
    num_actions: int
    frame_stack: int = 1
    frames_per_step: int = 1  # Emulator frames in one agent step.
    # Lowest and highest values of a vector's entries, for scaling.
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    max_episode_steps: int | None = None  # Agent steps after which the environment ends an episode.
    largest_byte: int = 255  # Declared upper bound of uint8 observations, for scaling.
    # Version of the rules by which torsos scale observations; runs of Kullback 0.1 resume with 1.
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
        """Returns names and values of the fields that differ from another spec's, as text."""
        theirs = vars(other)
        return ", ".join(
            f"{name} {value}" for name, value in vars(self).items() if value != theirs[name]
        )

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of what a replay stores for one time step."""
        return self.shape[1:] if self.frame_stack > 1 else self.shape

    def zeros(self, num_rows: int = 1) -> jax.Array:
        """Returns observations of zeros, [num_rows, ...]."""
        return jnp.zeros((num_rows, *self.shape), self.dtype)


class TimeStep(NamedTuple):
    """The timesteps of B rows after a tick.

    An environment that resets itself does so within the tick in which an episode ends:
    `observation` is then the first of the next episode and `next_observation` the last of the old
    one, so that each tick gives B real transitions. Otherwise the two are equal. `discount` is 0
    at a true end and 1 elsewhere, at a cut (truncation) too; gamma is not in it, and `reward`
    is as the environment gave it.
    """

    step_type: Array  # int8, [B]: FIRST at a reset only, LAST where an episode ended, else MID.
    reward: Array  # float32, [B].
    discount: Array  # float32, [B], 0 or 1.
    observation: Array  # [B, ...], to act on.
    next_observation: Array  # [B, ...], before any reset.

    def last(self) -> Any:
        """Returns whether an episode ended in this tick; bool, [B]."""
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
        """Draws row 0 as it is now; RGB, uint8, [H, W, 3]."""
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
    """The input of a learner step."""

    data: Any  # `Transition` in deep RL, token sequences in language models; [B, ...] each.
    indices: Array  # int32, [B]: where the replay keeps them, for new priorities.
    probabilities: Array  # float32, [B]: the probability with which each was drawn.
    weights: Array  # float32, [B]: ones unless a learner makes importance weights.

    @classmethod
    def of(cls, data: Any) -> "Batch":
        """Returns the batch of rows [B, ...] that come from no replay and have equal weights."""
        num_rows = len(jax.tree.leaves(data)[0])
        ones = np.ones(num_rows, np.float32)
        return cls(data, np.arange(num_rows, dtype=np.int32), ones / num_rows, ones)


class Feedback(NamedTuple):
    """The output of a learner step beside the new state."""

    metrics: dict[str, jax.Array]  # Scalars or [B]; the mean is logged. "loss" is always there.
    priorities: jax.Array | None = None  # float32, [B], or None if the replay is uniform.


class LearnerState(NamedTuple):
    """The state that learning changes."""

    params: Params
    opt_state: Any
    targets: dict[str, Params]  # Named target trees; each has its rule in the learner.
    steps: jax.Array  # int32, []: learner steps done; the same for all seeds.
    key: Key
    aux: Any = None  # State of the algorithm's own, such as a running normaliser.


class Constants(NamedTuple):
    """Frozen parameters that a learner reads; no checkpoint holds them."""

    base: Params = None  # Parameters to which the learnt ones are added, as adapters are.
    teacher: Params = None  # Parameters of the model that is distilled.
    start: Params = None  # Parameters before learning; those of a KL penalty's reference policy.


NO_CONSTANTS = Constants()


class Learner(NamedTuple):
    """A learner as two pure functions, to be jitted, scanned, vmapped and sharded."""

    init: Callable[[Key], LearnerState]
    step: Callable[[LearnerState, Batch, Constants], tuple[LearnerState, Feedback]]


class Policy(NamedTuple):
    """A policy as two pure functions.

    `initial_state(params, context, max_length)` is None for a policy without memory; for a
    language model it prefills a key-value cache with the context. `step(params, observation,
    state, key)` returns actions int32 [B], the next state, and a dict of extras, [B, ...] each.
    """

    initial_state: Callable[[Params, Any, int], Any]
    step: Callable[[Params, Array, Any, Key], tuple[jax.Array, Any, dict[str, jax.Array]]]


Experience = TypeVar("Experience", covariant=True)


class Agent(NamedTuple, Generic[Experience]):
    """A learner, a policy, the rule for the acting parameters, and settings of the experience.

    `actor_params(learner_state, env_steps, evaluate, constants)` returns what the policy's
    functions take as params: online, target or averaged weights, by themselves or over a frozen
    base, and settings of exploration such as epsilon.
    """

    policy: Policy
    learner: Learner
    actor_params: Callable[[LearnerState, Array, bool, Constants], Params]
    # Settings of the data to learn from: in games `replay.Config`; in language models the source of
    # texts, `tuning.Mixture` or `rollouts.OnPolicy`; None where the agent leaves it to its caller.
    experience: Experience
    config: Any = None  # The algorithm's frozen dataclass, saved beside the results.

"""Finite Markov decision processes, as arrays.

Shape letters: S states, A actions, N successors of a state and action, M processes of a batch
(a leading axis of every field). Schemes use the dynamics through `MDP.expect` only, which
costs O(S A N): Garnets of 100,000 states are solved on a laptop.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from kullback.core import archives, files, types
from kullback.theory import precision

__all__ = ["MDP", "load", "make", "save", "stack"]

ROUNDING = 1e-6  # How far from one probabilities may sum: float32 is off by some 1e-7.
EXACT = 1e-12  # Probabilities are not rescaled if their sum is this close to one.


class MDP(NamedTuple):
    """A finite Markov decision process; a batch of M has a leading axis M on every field.

    Make one with `make`, which checks it; the fields are not to be trusted otherwise. The methods
    compute in float64, and are of one process: map them over a batch by `jax.vmap`.
    """

    successors: types.Array | None  # int32, [S, A, N]; None is 0, ..., S - 1 for all (N = S).
    probabilities: types.Array  # [S, A, N], of the successors.
    reward: types.Array  # [S, A], in units of reward.
    discount: types.Array  # [], in [0, 1).
    initial: types.Array  # [S], distribution of the first state.

    @property
    def num_states(self) -> int:
        """Number of states, S."""
        return self.reward.shape[-2]

    @property
    def num_actions(self) -> int:
        """Number of actions, A."""
        return self.reward.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(M,) of a batch, () of a single process."""
        return self.reward.shape[:-2]

    @precision.float64
    def expect(self, v: types.Array) -> types.Array:
        """Returns P v, the expected value of the next state, [S, A], of values [S]."""
        if self.successors is None:
            return jnp.asarray(self.probabilities) @ v
        # `make` has seen to it that no index is out of bounds.
        next_v = jnp.asarray(v).at[self.successors].get(mode="promise_in_bounds")
        return jnp.sum(self.probabilities * next_v, -1)

    @precision.float64
    def backup(self, v: types.Array) -> types.Array:
        """Returns the action values r + gamma P v, [S, A], of state values [S]."""
        return self.reward + self.discount * self.expect(v)

    @precision.float64
    def follow(self, action: types.Array) -> "MDP":
        """Returns the process whose states have one action each, A = 1: `action`, int32 [S]."""

        def chosen(x: types.Array) -> types.Array:
            index = jnp.reshape(action, (-1,) + (1,) * (jnp.ndim(x) - 1))
            return jnp.take_along_axis(jnp.asarray(x), index, 1)

        successors = None if self.successors is None else chosen(self.successors)
        return self._replace(
            successors=successors,
            probabilities=chosen(self.probabilities),
            reward=chosen(self.reward),
        )

    @precision.float64
    def transitions(self, policy: types.Array) -> types.Array:
        """Returns P_pi, [S, S], the transition matrix under a policy [S, A] of probabilities."""
        weights = policy[:, :, None] * self.probabilities  # [S, A, N]
        if self.successors is None:
            return jnp.sum(weights, 1)
        states = jnp.arange(self.num_states)[:, None, None]
        zeros = jnp.zeros((self.num_states, self.num_states), weights.dtype)
        return zeros.at[states, self.successors].add(weights, mode="promise_in_bounds")

    @precision.float64
    def sample(self, key: types.Key, num_samples: int) -> "MDP":
        """Returns an empirical process of `num_samples` drawn successors a state and action."""
        below = jnp.cumsum(self.probabilities, -1)[..., None, :]  # [S, A, 1, N]
        # Scaled by the last cumulative sum, which rounding may leave below one.
        u = jax.random.uniform(key, (*self.reward.shape, num_samples, 1), below.dtype)
        drawn = jnp.sum(below <= u * below[..., -1:], -1, dtype=jnp.int32)
        if self.successors is not None:
            drawn = jnp.take_along_axis(jnp.asarray(self.successors), drawn, -1)
        share = jnp.full(drawn.shape, 1 / num_samples, below.dtype)
        return self._replace(successors=drawn, probabilities=share)


def make(
    probabilities: npt.ArrayLike,
    reward: npt.ArrayLike,
    discount: npt.ArrayLike,
    *,
    successors: npt.ArrayLike | None = None,
    initial: npt.ArrayLike | None = None,
) -> MDP:
    """Returns a checked process of NumPy arrays in float64.

    Probabilities whose sum is off by no more than `ROUNDING` are divided by it.

    Args:
      probabilities: [S, A, N]; with N = S and no successors, of the states in turn. All arguments
        may have a leading axis M.
      reward: [S, A], or [S] if it depends on the state only.
      discount: in [0, 1), a number; of a batch also [M].
      successors: integers in [0, S), [S, A, N]; one may come twice, then its probabilities add.
      initial: distribution of the first state, [S]; uniform by default.

    Raises:
      ValueError: naming state and action, unless the arrays make a process.
    """
    probabilities = _numbers("probabilities", probabilities)
    if probabilities.ndim not in (3, 4):
        raise ValueError(
            f"probabilities must be [S, A, N], or [M, S, A, N] of a batch, got shape "
            f"{probabilities.shape}"
        )
    if not probabilities.size:
        raise ValueError(
            "there must be a state, an action and a successor at least (and a process in a batch), "
            f"got probabilities of shape {probabilities.shape}"
        )
    *batch, num_states, num_actions, num_successors = probabilities.shape
    reward = _numbers("reward", reward)
    if reward.shape == (*batch, num_states):
        if batch == [num_states] == [num_actions]:
            raise ValueError(
                f"reward of shape {reward.shape} is ambiguous, as there are as many processes as "
                "states and actions: of states or of a process? give all of [M, S, A]"
            )
        reward = np.broadcast_to(reward[..., None], (*batch, num_states, num_actions))
    discount = _numbers("discount", discount)
    if discount.size == 1:  # Some programs save a number as an array of one.
        discount = np.broadcast_to(discount.reshape(()), batch)
    if initial is None:
        initial = np.full((*batch, num_states), 1 / num_states)
    process = MDP(
        successors=None if successors is None else np.asarray(successors),
        probabilities=probabilities,
        reward=reward,
        discount=discount,
        initial=_numbers("initial", initial),
    )
    for name, expected in (
        ("successors", probabilities.shape),
        ("reward", (*batch, num_states, num_actions)),
        ("discount", tuple(batch)),
        ("initial", (*batch, num_states)),
    ):
        got = getattr(process, name)
        if got is not None and got.shape != expected:
            raise ValueError(
                f"{name} must have shape {expected}, as probabilities are "
                f"{probabilities.shape}, got {got.shape}"
            )
    if successors is None and num_successors != num_states:
        raise ValueError(
            f"probabilities of {num_successors} successors in {num_states} states need "
            "`successors`, which says where they lead"
        )
    _check(process)
    if process.successors is not None:
        process = process._replace(successors=process.successors.astype(np.int32))
    return process._replace(
        probabilities=_normalised(probabilities), initial=_normalised(np.asarray(process.initial))
    )


def save(path: str | pathlib.Path, mdp: MDP) -> None:
    """Writes the process whole to `path`, a NumPy .npz file, under the names of its fields."""
    fields = {name: x for name, x in mdp._asdict().items() if x is not None}
    with files.atomic_path(path) as temporary:
        with open(temporary, "wb") as file:  # Given a name, NumPy would add a suffix to it.
            np.savez(file, **fields)


def load(path: str | pathlib.Path) -> MDP:
    """Reads and checks a process that `save`, or anyone, wrote; nothing is unpickled.

    Raises:
      ValueError: naming the file, if it is no .npz, lacks a field, or holds no process.
    """
    fields = archives.read(path)
    needed = {"probabilities", "reward", "discount"}
    if missing := needed - set(fields):
        raise ValueError(f"{path} lacks {sorted(missing)}; it has {sorted(fields)}")
    if unknown := set(fields) - set(MDP._fields):
        raise ValueError(f"{path} has {sorted(unknown)}; expected {list(MDP._fields)}")
    try:
        return make(**fields)
    except ValueError as error:
        raise ValueError(f"{path} holds no process: {error}") from error


def stack(mdps: list[MDP]) -> MDP:
    """Stacks processes of equal shapes into a batch [M, ...]."""
    return jax.tree.map(lambda *fields: np.stack(fields), *mdps)


def check_key(key: types.Key) -> None:
    """Raises ValueError unless it is a typed key: an old one is an array of numbers, [2]."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key must be typed, got {key.dtype} of shape {key.shape}; make it by "
            "jax.random.key(seed), not by jax.random.PRNGKey"
        )


def _numbers(name: str, x: npt.ArrayLike) -> np.ndarray:
    """Returns real numbers as float64; raises ValueError for anything else."""
    try:
        numbers = np.asarray(x)
    except ValueError as error:  # Rows of different lengths.
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real numbers, got {numbers.dtype}")
    return numbers.astype(np.float64)


def _normalised(probabilities: np.ndarray) -> np.ndarray:
    """Divides probabilities [..., N] by their sum where that is further than `EXACT` from one."""
    sums = probabilities.sum(-1, keepdims=True)
    return np.where(np.abs(sums - 1) <= EXACT, probabilities, probabilities / sums)


def _check(mdp: MDP) -> None:
    discount = np.asarray(mdp.discount)
    if not np.all((discount >= 0) & (discount < 1)):
        raise ValueError(f"discount must lie in [0, 1), got {discount}")
    _refuse(~np.isfinite(mdp.reward), "reward", mdp.reward, "finite")
    p = np.asarray(mdp.probabilities)
    _refuse(~(p >= 0), "a probability", p, ">= 0")
    sums = p.sum(-1)
    _refuse(
        ~(np.abs(sums - 1) <= ROUNDING),
        "the sum of the probabilities",
        sums,
        f"1 within {ROUNDING:g}",
        "; divide each row by its sum, in float64",
    )
    if mdp.successors is not None:
        successors = np.asarray(mdp.successors)
        if not np.issubdtype(successors.dtype, np.integer):
            raise ValueError(f"successors must be integers, got {successors.dtype}")
        outside = (successors < 0) | (successors >= mdp.num_states)
        _refuse(outside, "a successor", successors, f"in [0, {mdp.num_states})")
    initial = np.asarray(mdp.initial)
    if not np.all(initial >= 0) or not np.all(np.abs(initial.sum(-1) - 1) <= ROUNDING):
        raise ValueError(f"initial must be a distribution over states, got {initial}")


def _refuse(
    wrong: np.ndarray, name: str, values: types.Array, expected: str, fix: str = ""
) -> None:
    """Raises for the first wrong entry; the axes are [(M,) S, A (, N)]."""
    if not wrong.any():
        return
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    is_row = name.startswith("a ")  # One entry of N.
    *batch, state, action = index[:-1] if is_row else index
    where = f"state {state} and action {action}" + (f" of process {batch[0]}" if batch else "")
    got = np.asarray(values)[index]
    raise ValueError(f"{name} of {where} must be {expected}, got {got}{fix}")

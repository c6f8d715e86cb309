"""Finite Markov decision processes, as arrays.

Shape letters: S states, A actions, N successors of a state and action, M processes of a batch
(a leading axis of every field). Whatever a scheme needs of the dynamics is `MDP.expect`, so it
costs O(S A N): Garnets of 100,000 states are solved on a laptop.
"""

import pathlib
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from kullback.core import types
from kullback.theory import precision

ROUNDING = 1e-8  # How far from one a row of probabilities may sum.


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
        """S."""
        return self.reward.shape[-2]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.reward.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(M,) of a batch, () of a single process."""
        return self.reward.shape[:-2]

    @precision.float64
    def expect(self, v: types.Array) -> types.Array:
        """P v, the expected value of the next state, [S, A], of values [S]."""
        if self.successors is None:
            return jnp.asarray(self.probabilities) @ v
        # `make` has seen to it that no index is out of bounds.
        next_v = jnp.asarray(v).at[self.successors].get(mode="promise_in_bounds")
        return jnp.sum(self.probabilities * next_v, -1)

    @precision.float64
    def backup(self, v: types.Array) -> types.Array:
        """Action values r + gamma P v, [S, A], of state values [S]."""
        return self.reward + self.discount * self.expect(v)

    @precision.float64
    def follow(self, action: types.Array) -> "MDP":
        """The process with one action a state, A = 1: the given one; int32, [S]."""

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
        """P_pi, [S, S]: from which state to which, under a policy [S, A] of probabilities."""
        weights = policy[:, :, None] * self.probabilities  # [S, A, N]
        if self.successors is None:
            return jnp.sum(weights, 1)
        states = jnp.arange(self.num_states)[:, None, None]
        zeros = jnp.zeros((self.num_states, self.num_states), weights.dtype)
        return zeros.at[states, self.successors].add(weights, mode="promise_in_bounds")

    @precision.float64
    def sample(self, key: types.Key, num_samples: int) -> "MDP":
        """An empirical process: every state and action with `num_samples` drawn successors."""
        below = jnp.cumsum(self.probabilities, -1)[..., None, :]  # [S, A, 1, N]
        # Times the last sum, so that rounding leaves no gap above it.
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
    """A checked process of NumPy arrays in float64.

    Args:
      probabilities: [S, A, N]; with N = S and no successors, of the states in turn. All arguments
        may have a leading axis M.
      reward: [S, A], or [S] if it depends on the state only.
      discount: in [0, 1).
      successors: integers in [0, S), [S, A, N]; one may come twice, then its probabilities add.
      initial: distribution of the first state, [S]; uniform by default.

    Raises:
      ValueError: naming state and action, for what is no process.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim not in (3, 4):
        raise ValueError(
            f"probabilities must be [S, A, N], or [M, S, A, N] of a batch, got shape "
            f"{probabilities.shape}"
        )
    *batch, num_states, num_actions, num_successors = probabilities.shape
    reward = np.asarray(reward, np.float64)
    if reward.shape[-1:] == (num_states,) and reward.ndim == len(batch) + 1:
        reward = np.broadcast_to(reward[..., None], (*batch, num_states, num_actions))
    if initial is None:
        initial = np.full((*batch, num_states), 1 / num_states)
    process = MDP(
        successors=None if successors is None else np.asarray(successors),
        probabilities=probabilities,
        reward=reward,
        discount=np.broadcast_to(np.asarray(discount, np.float64), batch),
        initial=np.asarray(initial, np.float64),
    )
    for name, expected in (
        ("successors", probabilities.shape),
        ("reward", (*batch, num_states, num_actions)),
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
    return process


def save(path: str | pathlib.Path, mdp: MDP) -> None:
    """Writes the process to `path`, a NumPy .npz file, under the names of its fields."""
    fields = {name: x for name, x in mdp._asdict().items() if x is not None}
    with open(path, "wb") as file:  # Given a name, NumPy would add a suffix to it.
        np.savez(file, **fields)


def load(path: str | pathlib.Path) -> MDP:
    """Reads and checks a process that `save`, or anyone, wrote; nothing is unpickled.

    Raises:
      ValueError: for a file that is no .npz, lacks a field, or holds no process.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error
    needed = {"probabilities", "reward", "discount"}
    if missing := needed - set(fields):
        raise ValueError(f"{path} lacks {sorted(missing)}; it has {sorted(fields)}")
    if unknown := set(fields) - set(MDP._fields):
        raise ValueError(f"{path} has {sorted(unknown)}; expected {list(MDP._fields)}")
    return make(**fields)


def stack(mdps: list[MDP]) -> MDP:
    """A batch [M, ...] of processes of equal shapes."""
    return jax.tree.map(lambda *fields: np.stack(fields), *mdps)


def _check(mdp: MDP) -> None:
    discount = np.asarray(mdp.discount)
    if not np.all((discount >= 0) & (discount < 1)):
        raise ValueError(f"discount must lie in [0, 1), got {discount}")
    _refuse(~np.isfinite(mdp.reward), "reward", mdp.reward, "finite")
    p = np.asarray(mdp.probabilities)
    _refuse(~(p >= 0), "a probability", p, ">= 0")
    sums = p.sum(-1)
    _refuse(~(np.abs(sums - 1) <= ROUNDING), "the sum of the probabilities", sums, "1")
    if mdp.successors is not None:
        successors = np.asarray(mdp.successors)
        if not np.issubdtype(successors.dtype, np.integer):
            raise ValueError(f"successors must be integers, got {successors.dtype}")
        outside = (successors < 0) | (successors >= mdp.num_states)
        _refuse(outside, "a successor", successors, f"in [0, {mdp.num_states})")
    initial = np.asarray(mdp.initial)
    if not np.all(initial >= 0) or not np.all(np.abs(initial.sum(-1) - 1) <= ROUNDING):
        raise ValueError(f"initial must be a distribution over states, got {initial}")


def _refuse(wrong: np.ndarray, name: str, values: types.Array, expected: str) -> None:
    """Raises for the first wrong entry; the axes are [(M,) S, A (, N)]."""
    if not wrong.any():
        return
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    is_row = name.startswith("a ")  # One entry of N.
    *batch, state, action = index[:-1] if is_row else index
    where = f"state {state} and action {action}" + (f" of process {batch[0]}" if batch else "")
    raise ValueError(f"{name} of {where} must be {expected}, got {np.asarray(values)[index]}")

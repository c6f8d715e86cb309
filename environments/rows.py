"""B environments of other libraries, stepped in turn, as one `types.HostEnvironment`.

Nothing is taken on trust here: each observation is copied before the environment is called again
(many write theirs in place), its shape, type and numbers are checked, and an exception becomes one
line that names the environment and the place.
"""

import contextlib
import pathlib
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from kullback.core import types

Result = TypeVar("Result")


class Step(NamedTuple):
    """Result of one row's step, as its library gives it."""

    observation: Any  # Perhaps an array that the row overwrites at its next step.
    reward: Any
    discount: float  # 0 at a true end, else 1.
    last: bool  # Whether the episode ended or was cut.


class Row(Protocol):
    """One environment of another library."""

    spec: types.Spec
    name: str  # For messages.
    underlying: Any  # The object that is stepped, whatever wraps it.
    is_owned: bool  # Whether the row closes it if another row cannot be made.

    def reset(self, seed: int | None) -> Any:
        """Begins an episode and returns its first observation; None goes on drawing."""
        ...

    def step(self, action: int) -> Step:
        """Acts; `action` is one of ours, from 0."""
        ...

    def render(self) -> np.ndarray:
        """Returns a picture, RGB, uint8, [H, W, 3]."""
        ...

    def close(self) -> None:
        """Frees the row's resources."""
        ...


# Rows by the identity of what they step, while they are in use: one object cannot be two rows.
_IN_USE: weakref.WeakValueDictionary[int, "Rows"] = weakref.WeakValueDictionary()


class Rows:
    """B rows, stepped in turn; a `types.HostEnvironment`."""

    def __init__(self, make_rows: Sequence[Callable[[], Row]]) -> None:
        """Makes the rows; if one fails, those that were made before are closed.

        Raises:
          ValueError: if one cannot be made, differs from the first, or is in use already.
        """
        self._rows: list[Row] = []
        try:
            for number, make_row in enumerate(make_rows):
                row = make_row()
                if id(row.underlying) in _IN_USE:
                    raise ValueError(
                        f"row {number}: this {row.name} object is in use already; a row needs an "
                        "object of its own, so hand over a function that makes a new one each time"
                    )
                _IN_USE[id(row.underlying)] = self
                self._rows.append(row)
                if row.spec != self._rows[0].spec:
                    first = self._rows[0].spec
                    raise ValueError(
                        f"rows must be alike, but row {number} is of {row.spec.against(first)} and "
                        f"row 0 of {first.against(row.spec)}"
                    )
            if not self._rows:
                raise ValueError("an environment needs at least one row, got none")
        except BaseException:
            self._release(only_owned=True)
            raise
        self.num_envs = len(self._rows)
        self.spec = self._rows[0].spec
        self._action: np.ndarray | None = None

    def reset(self, seed: int) -> types.TimeStep:
        """Starts B episodes; each row has a seed of its own, drawn from `seed` (>= 0)."""
        self._action = None
        # seed, seed + 1, ... for the rows would share episodes between neighbouring seeds.
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        observation = self._empty()
        with np.errstate(over="ignore"):  # Overflows are found below, as they are not finite.
            for number, (row, row_seed) in enumerate(zip(self._rows, seeds, strict=True)):
                self._keep(observation, number, row.reset(row_seed), "reset")
        self._require_finite(observation, "reset")
        return types.TimeStep(
            step_type=np.full(self.num_envs, types.FIRST, np.int8),
            reward=np.zeros(self.num_envs, np.float32),
            discount=np.ones(self.num_envs, np.float32),
            observation=observation,
            next_observation=observation,
        )

    def send(self, action: np.ndarray) -> None:
        """Takes the actions of the next `recv`; `action` is int32, [B]."""
        if self._action is not None:
            raise RuntimeError("send was called twice; recv comes between")
        self._action = np.array(action, np.int64)

    def recv(self) -> types.TimeStep:
        """Steps the rows, and resets those whose episode ends."""
        if self._action is None:
            raise RuntimeError("recv was called without send")
        actions, self._action = self._action.tolist(), None
        last = np.zeros(self.num_envs, bool)
        reward, discount = np.zeros((2, self.num_envs), np.float32)
        next_observation = observation = self._empty()
        with np.errstate(over="ignore"):
            for number, (row, action) in enumerate(zip(self._rows, actions, strict=True)):
                step = row.step(action)
                # Copied at once, as the reset below may write into the same array.
                self._keep(next_observation, number, step.observation, "step")
                reward[number] = _number(step.reward, row)
                discount[number], last[number] = step.discount, step.last
                if step.last:
                    if observation is next_observation:
                        observation = self._empty()
                    self._keep(observation, number, row.reset(None), "reset")
        if observation is not next_observation:
            observation[~last] = next_observation[~last]
            self._require_finite(observation, "reset")
        self._require_finite(next_observation, "step")
        return types.TimeStep(
            step_type=np.where(last, types.LAST, types.MID).astype(np.int8),
            reward=reward,
            discount=discount,
            observation=observation,
            next_observation=next_observation,
        )

    def render(self) -> np.ndarray:
        """Returns a picture of row 0, RGB, uint8, [H, W, 3]."""
        return self._rows[0].render()

    def close(self) -> None:
        """Closes the rows."""
        self._release()

    def _release(self, *, only_owned: bool = False) -> None:
        with contextlib.ExitStack() as closing:  # Closes all rows, even if one of them raises.
            for row in self._rows:
                # After a second `close` the identity may belong to another object.
                if _IN_USE.get(id(row.underlying)) is self:
                    del _IN_USE[id(row.underlying)]
                if row.is_owned or not only_owned:
                    closing.callback(row.close)

    def _empty(self) -> np.ndarray:
        return np.empty((self.num_envs, *self.spec.shape), self.spec.dtype)

    def _keep(self, into: np.ndarray, number: int, observation: Any, call: str) -> None:
        """Checks the observation of a row and copies it into row `number` of `into`."""
        name = self._rows[number].name
        try:
            array = np.asarray(observation)
        except ValueError as error:  # Lists of unequal lengths.
            raise ValueError(f"{name}: {call} must return one array, got {error}") from error
        if array.shape != self.spec.shape:
            raise ValueError(
                f"{name}: {call} returned an observation of shape {array.shape}; the environment "
                f"declares {self.spec.shape}"
            )
        if not _fits(array, into.dtype):
            raise ValueError(
                f"{name}: {call} returned an observation of {_described(array)}; the environment "
                f"declares {into.dtype}"
            )
        into[number] = array

    def _require_finite(self, observation: np.ndarray, call: str) -> None:
        if observation.dtype.kind != "f" or np.isfinite(observation).all():
            return
        number, *place = np.argwhere(~np.isfinite(observation))[0].tolist()
        value = observation[(number, *place)]
        raise ValueError(
            f"{self._rows[number].name}: {call} returned an observation that is {value} at "
            f"{place} (row {number}); it must be finite, in float32"
        )


def called(name: str, call: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Returns `function(*arguments)`.

    Raises:
      ValueError: in place of any exception; one line with what was raised, and where.
    """
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(f"{name}: {call} raised {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Describes an exception in one line: type, text and place."""
    text = " ".join(str(error).split())
    # The last frame that is not of this file: the library's line that raised.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    place = f" ({pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _number(reward: Any, row: Row) -> np.float32:
    number = np.asarray(reward)
    if number.size != 1 or number.dtype.kind not in "biuf":
        raise ValueError(f"{row.name}: step must return one number for a reward, got {reward!r}")
    value = np.float32(number.item())
    if not np.isfinite(value):
        raise ValueError(f"{row.name}: step returned the reward {reward!r}; it must be finite")
    return value


def _fits(array: np.ndarray, dtype: np.dtype) -> bool:
    if dtype == np.uint8 and array.dtype.kind in "iu":
        return array.dtype == dtype or bool(np.all((array >= 0) & (array <= 255)))
    return array.dtype.kind in ("b" if dtype == np.uint8 else "biuf")


def _described(array: np.ndarray) -> str:
    if array.dtype.kind in "iu":
        return f"{array.dtype} from {array.min()} to {array.max()}"
    return f"type {array.dtype}"

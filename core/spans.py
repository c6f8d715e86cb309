"""Parts of a host replay added between two checkpoints: taken, and put back."""

from typing import Any

import numpy as np

from kullback.core import replay

_ROWS = ("frames", "action", "reward", "discount", "last", "age")  # What a slot holds.


def span(state: replay.State, since: replay.Cursors | None) -> dict[str, np.ndarray]:
    """Returns the part of a host replay added since `since`, or all of it, to be saved once.

    Slots up to the newest frame are included. The newest one is in the next span too, by then with
    its action, and so is the slot before it, which `cut` may have changed. Slots overwritten
    meanwhile are left out.
    """
    num_envs = len(state.cursor)
    length = len(state.action) // num_envs
    base = np.arange(num_envs, dtype=np.int32) * length

    def ranges(first: Any, end: Any) -> tuple[np.ndarray, np.ndarray]:  # Environments, values.
        env = np.repeat(np.arange(num_envs, dtype=np.int32), end - first)
        parts = [np.arange(a, b, dtype=np.int32) for a, b in zip(first, end, strict=True)]
        return env, np.concatenate(parts)

    zeros = np.zeros(num_envs, np.int32)
    from_slot = np.maximum(since.cursor - 1 if since else zeros, state.cursor + 1 - length)
    from_slot = np.maximum(from_slot, 0)
    from_number = np.maximum(since.newest if since else zeros, state.oldest)
    env, position = ranges(from_slot, state.cursor + 1)
    number_env, number = ranges(from_number, np.maximum(state.newest, from_number))
    row = base[env] + position % length
    starts_row = base[number_env] + number % length
    return {
        "row": row.astype(np.int32),
        "starts_row": starts_row.astype(np.int32),
        "starts": np.asarray(state.starts)[starts_row],
        **{name: np.asarray(getattr(state, name))[row] for name in _ROWS},
    }


def load_span(state: replay.State, arrays: dict[str, np.ndarray]) -> None:
    """Puts a span back, in place; spans go in the order in which they were taken.

    Raises:
      ValueError: if arrays are missing, of another shape or type, or of rows that do not exist.
    """
    _check_span(state, arrays)
    for name in _ROWS:
        getattr(state, name)[arrays["row"]] = arrays[name]
    np.asarray(state.starts)[arrays["starts_row"]] = arrays["starts"]


def _check_span(state: replay.State, arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless arrays are a span of a replay of this shape."""
    indices = {"row": _ROWS, "starts_row": ("starts",)}  # And what stands in those rows.
    expected = {*indices, *_ROWS, "starts"}
    if arrays.keys() != expected:
        raise ValueError(
            f"a segment of a replay holds {sorted(expected)}, this one {sorted(arrays)}"
        )
    size = len(state.action)
    for index, held in indices.items():
        rows = arrays[index]
        if rows.dtype != np.int32 or rows.ndim != 1 or np.any((rows < 0) | (rows >= size)):
            raise ValueError(
                f"{index} of a segment must be int32 in [0, {size}), rows of the replay"
            )
        for name in held:
            whole, added = getattr(state, name), arrays[name]
            shape = (len(rows), *whole.shape[1:])
            if added.shape != shape or added.dtype != whole.dtype:
                raise ValueError(
                    f"{name} of a segment must be {whole.dtype}{[*shape]}, as the replay is, got "
                    f"{added.dtype}{[*added.shape]}"
                )

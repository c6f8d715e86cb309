"""Figures of a trainer's steps, as torch comes, and keeping freed memory, which no user gets."""

import pathlib
import tempfile

from rate import keep_freed_memory, peak_memory


def figures(train):
    """Returns steps a second and the peak in bytes; those that keep freed memory are "kept_...".

    Args:
      train: an empty folder -> the clock of its steps, and other figures.
    """
    result = {}
    for prefix, prepare in (("", lambda: None), ("kept_", keep_freed_memory)):
        prepare()
        with tempfile.TemporaryDirectory() as folder:
            clock, others = train(pathlib.Path(folder))
        result |= {f"{prefix}{name}": value for name, value in others.items()}
        result[f"{prefix}rate"] = 1 / min(clock.times)
        result[f"{prefix}learner_rate"] = 1 / min(clock.rests)
        result.setdefault("peak_bytes", peak_memory())
    return result

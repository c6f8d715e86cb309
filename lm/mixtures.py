"""Mixtures of data sets whose weights change over a run, such as text, images and audio.

Gemini was trained on all modalities from the beginning, with data of some domains given more weight
towards the end (Gemini Team, 2023, https://arxiv.org/abs/2312.11805, section 4). The weights are
not published; here they move on a line, from a start to an end that each sum to 1:

    w_s(t) = start_s + (end_s - start_s) min(t / T, 1)

A batch has floor(B w_s) or one more rows of data set s, on average B w_s: row b of a batch with
offset U_t in [0, 1) is at (b + U_t) / B in the cumulated weights. A data set's items come in
epochs, each a permutation. All of it depends on the seed and the step alone.

Shape letters: B rows, S data sets, t steps.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kullback.core import ranges
from kullback.lm import epochs

_STREAM = 2**62  # Keeps the bits of a mixture apart from those of epochs.
_EPOCHS = 40  # Bits of the number of an epoch; above them is the data set's.


class Part(NamedTuple):
    """A data set of a mixture, and its weight >= 0 over a run; sums of weights are divided out."""

    task: str  # Its name.
    start: float
    end: float


class Mixed(NamedTuple):
    """Named data sets of a mixture, before their examples are read."""

    parts: tuple[Part, ...]
    steps: int  # T >= 1, learner steps over which the weights change.

    def over(self, sources: Sequence[int], batch_size: int, seed: int) -> "Mixture":
        """Returns the mixture of examples.

        Args:
          sources: number of each example's data set, which do not fall.
          batch_size, seed: as of `Mixture`.

        Raises:
          ValueError: for a data set with a weight and without an example.
        """
        sizes = np.bincount(sources, minlength=len(self.parts)).tolist()
        kept: list[tuple[int, Part]] = []
        for part, size in zip(self.parts, sizes, strict=True):
            if size:
                kept.append((size, part))
            elif part.start or part.end:
                raise ValueError(
                    f"no example of {part.task} is left to learn from, and it has a weight: they "
                    "were dropped; raise max_prompt_length or max_new_tokens"
                )
        return Mixture(
            sizes=tuple(size for size, _ in kept),
            start=tuple(part.start for _, part in kept),
            end=tuple(part.end for _, part in kept),
            num_steps=self.steps,
            batch_size=batch_size,
            seed=seed,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names of data sets and their weights, but for where their files are."""
        named = [(part.task.partition(":"), part) for part in self.parts]
        facts = [
            [kind, pathlib.PurePath(path).name, part.start, part.end]
            for (kind, _, path), part in named
        ]
        return hashlib.sha256(json.dumps([facts, self.steps]).encode()).hexdigest()


class Draw(NamedTuple):
    """The rows of a batch."""

    sources: np.ndarray  # int64, [B]: number of the data set.
    items: np.ndarray  # int64, [B]: number of the example in it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Data sets, and their weights over a run."""

    sizes: tuple[int, ...]  # Examples >= 1 of each data set, [S].
    start: tuple[float, ...]  # Weights >= 0 at step 0, [S]; their sum is divided out.
    end: tuple[float, ...]  # Weights >= 0 from step `num_steps` on, likewise.
    num_steps: int  # T >= 1, learner steps over which the weights change.
    batch_size: int  # B >= 1.
    seed: int = 0  # In [0, 2^62).

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"each data set needs at least one example, got sizes {self.sizes}")
        for name in ("start", "end"):
            value = getattr(self, name)
            is_right = len(value) == len(self.sizes) and all(0 <= w < math.inf for w in value)
            if not is_right or not sum(value) > 0:
                raise ValueError(
                    f"{name} must be {len(self.sizes)} finite weights >= 0, one a data set, not "
                    f"all 0, got {value}"
                )
        ranges.at_least(1, self, "num_steps", "batch_size")
        if not 0 <= self.seed < _STREAM:
            raise ValueError(f"seed must lie in [0, 2^62), got {self.seed}")

    def weights(self, steps: np.ndarray) -> np.ndarray:
        """Returns the share of each data set at some steps, float64 [..., S], which sums to 1."""
        start, end = (np.asarray(w) / sum(w) for w in (self.start, self.end))
        fraction = np.minimum(np.asarray(steps) / self.num_steps, 1.0)
        return start + (end - start) * fraction[..., None]

    def counts(self, num_steps: int) -> np.ndarray:
        """Returns the rows of each data set in the first steps, int64 [t, S], B in each step."""
        bits = np.random.Philox(key=np.array([self.seed, _STREAM], np.uint64)).random_raw(num_steps)
        offsets = (bits >> np.uint64(11)) * 2.0**-53  # U_t.
        ends = np.cumsum(self.weights(np.arange(num_steps)), -1) * self.batch_size
        # Rows b with b + U_t < end; the last data set has the rest, whatever the sum's rounding.
        before = np.clip(np.ceil(ends - offsets[:, None]), 0, self.batch_size)
        # A data set of weight 0 at the end has no rest.
        last = np.flatnonzero(np.asarray(self.start) + np.asarray(self.end))[-1]
        before[:, last:] = self.batch_size
        return np.diff(before, axis=-1, prepend=0).astype(np.int64)

    def draw(self, step: int) -> Draw:
        """Returns the rows of a step's batch, in random order.

        Raises:
          ValueError: for a negative step.
        """
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        # As many steps as a power of two, so that a run counts few times.
        before, counts = _cumulated(self, 1 << step.bit_length())
        items = [
            epochs.stream(int(begin), int(count), size, self.seed, first=source << _EPOCHS)
            for source, (begin, count, size) in enumerate(
                zip(before[step], counts[step], self.sizes, strict=True)
            )
            if count
        ]
        order = epochs.permutation(self.batch_size, self.seed, _STREAM + 1 + step)
        sources = np.repeat(np.arange(len(self.sizes)), counts[step])
        return Draw(sources[order], np.concatenate(items)[order])

    def rows(self, step: int) -> np.ndarray:
        """Returns the same as numbers in the concatenated data sets, int64 [B]."""
        sources, items = self.draw(step)
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]])[sources] + items


@functools.lru_cache(maxsize=4)
def _cumulated(mixture: Mixture, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of each data set before each step, and in it, int64 [t, S]."""
    counts = mixture.counts(num_steps)
    return np.cumsum(counts, 0) - counts, counts

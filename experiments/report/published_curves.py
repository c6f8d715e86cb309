"""Published learning curves on Atari, a figure each 10 million frames, and how they were made.

published_atari.csv has the figures, published_atari.md where each comes from and its licence. Only
the figures and the settings are kept, which are facts; no line of their authors' code is.
"""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

FILE = pathlib.Path(__file__).with_name("published_atari.csv")
FRAMES_PER_STEP = 4  # Emulator frames of an agent step, in all of them.
EVERY = 10_000_000  # Frames between two figures.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A publication of curves: where it is, what its figures are, how its agents were run."""

    title: str  # For captions and legends.
    where: str  # Repository and revision.
    licence: str
    score: str  # The key of `scores.KINDS` whose quantity the figures are nearest to.
    meaning: str  # The quantity that a figure is.
    # Flags of environments/atari.py that differ from its defaults.
    flags: Mapping[str, str]
    # By published torso: the name of ours that is the same, if one is, and what it is.
    torsos: Mapping[str, tuple[str, str]]
    # By agent: settings of ours by bare name, "num_envs" too, with the values that were published.
    settings: Mapping[str, Mapping[str, float]]


class Curve(NamedTuple):
    """The published curve of an agent on a game."""

    agent: str  # Its name in our registry.
    torso: str  # A key of its source's torsos.
    frames: np.ndarray  # int64 [G], increasing.
    means: np.ndarray  # float64 [G]: over seeds, raw returns.
    fewest_seeds: int  # Of a figure, see published_atari.md.

    @property
    def label(self) -> str:
        """The name in figures and tables."""
        return f"{self.agent}, {self.torso}"

    def at(self, frames: int) -> float:
        """Returns the figure at exactly so many frames; NaN where there is none."""
        place = np.flatnonzero(self.frames == frames)
        return float(self.means[place[0]]) if len(place) else float("nan")

    def first_at_least(self, score: float) -> int | None:
        """Returns the frames of the first figure that is `score` or more; None if none is."""
        above = np.flatnonzero(self.means >= score)
        return int(self.frames[above[0]]) if len(above) else None


# Dopamine's gin files have these for all of its agents.
_DOPAMINE: Mapping[str, float] = {
    "discount": 0.99,
    "capacity": 1_000_000,
    "min_replay_size": 20_000,
    "batch_size": 32,
    "samples_per_update": 4,
    "target_period": 2_000,  # Learner steps: 8,000 agent steps.
    "epsilon": 0.01,
    "epsilon_decay_env_steps": 250_000,
    "reward_clip": 1.0,
    "n_step": 1,
    "priority_exponent": 0.0,
    "num_envs": 1,
}
_THREE = {**_DOPAMINE, "n_step": 3}
_PRIORITIZED = {**_THREE, "priority_exponent": 0.5}

SOURCES: Mapping[str, Source] = {
    "dopamine": Source(
        title="Dopamine's JAX agents",
        where=(
            "github.com/google/dopamine, baselines/atari/data at "
            "5873f5494ee0c2d7c016d0ab2ad530354fec59d0"
        ),
        licence="Apache-2.0",
        score="training",
        meaning=(
            "mean return of the training episodes that ended in the last million frames, mean of 5 "
            "seeds (3 or 4 of a few)"
        ),
        flags={},
        torsos={
            "cnn": ("nature_same", "Nature's, padded, as nature_same is"),
            "impala": ("", "IMPALA's, of 16, 32 and 32 channels, without normalisation"),
        },
        settings={
            "dqn": {**_DOPAMINE, "learning_rate": 6.25e-5, "adam_epsilon": 1.5e-4},
            "c51": {**_DOPAMINE, "learning_rate": 2.5e-4, "adam_epsilon": 3.125e-4},
            "qr-dqn": {**_PRIORITIZED, "learning_rate": 5e-5, "num_quantiles": 200},
            "iqn": {
                **_THREE,
                "learning_rate": 5e-5,
                "adam_epsilon": 3.125e-4,
                "online": 64,
                "target": 64,
                "policy": 32,
            },
            "rainbow": {**_PRIORITIZED, "learning_rate": 6.25e-5, "adam_epsilon": 1.5e-4},
        },
    ),
    "btr": Source(
        title="BTR's authors",
        where=(
            "github.com/VIPTankz/BeyondTheRainbowICML, results.csv at "
            "86ee767289de5dfcc12450f84ab6c5543e233c09"
        ),
        licence="MIT, (c) 2024 VIPTankz",
        score="evaluation",
        meaning=(
            "mean return of 100 games of evaluation, without noise, at an epsilon of 0.01 until "
            "125 million frames and 0 then; 1 seed, as far as the figures tell"
        ),
        flags={"max_noops": "30"},
        torsos={"impala-2": ("impala", "IMPALA's, twice as wide, normalised")},
        settings={
            "btr": {
                "num_envs": 64,
                "batch_size": 256,
                "samples_per_update": 64,
                "learning_rate": 1e-4,
                "adam_epsilon": 0.005 / 256,
                "max_gradient_norm": 10.0,
                "discount": 0.997,
                "n_step": 3,
                "target_period": 500,
                "capacity": 2**20,
                "min_replay_size": 200_000,
                "priority_exponent": 0.2,
                "online": 8,
                "temperature": 0.03,
                "log_policy_scale": 0.9,
                "log_policy_min": -1.0,
                "width": 2,
                "adaptive_pool": 6,
                "noise": 0.5,
                "epsilon": 0.01,
                "epsilon_evaluate": 0.01,
                "reward_clip": 1.0,
            }
        },
    ),
}


@functools.cache
def load(source: str) -> Mapping[str, tuple[Curve, ...]]:
    """Returns the curves of a source by environment, "atari/pong"; the file is read once.

    Args:
      source: of SOURCES.
    """
    curves: dict[str, list[Curve]] = {}
    with FILE.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["source"] == source:
                curves.setdefault(f"atari/{row['game']}", []).append(_curve(row))
    return {game: tuple(on_game) for game, on_game in curves.items()}


def _curve(row: Mapping[str, Any]) -> Curve:
    points = {int(key): float(value) for key, value in row.items() if key.isdecimal()}
    return Curve(
        agent=row["agent"],
        torso=row["torso"],
        frames=np.array(list(points), np.int64) * 1_000_000,
        means=np.array(list(points.values())),
        fewest_seeds=int(row["fewest_seeds"]),
    )

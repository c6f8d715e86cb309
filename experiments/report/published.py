"""Published aggregates, to stand in a table beside ours, never on an axis with other games."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NAME = "munchausen"  # Of this table, for `--published`.
SOURCE = "published"
WHERE = "Vieillard, Pietquin & Geist 2020, Table 1, https://arxiv.org/abs/2007.14430"
GAMES = "60 games of Atari, sticky actions, 3 seeds"
FRAMES = 200_000_000


class Row(NamedTuple):
    """An agent's aggregates in percent, of returns of training at the end."""

    agent: str
    human_mean: float
    human_median: float
    rainbow_mean: float
    rainbow_median: float


TABLE = (
    Row("m-iqn", 563, 165, 130, 109),
    Row("rainbow", 414, 150, 100, 100),
    Row("iqn", 441, 139, 105, 99),
    Row("m-dqn", 340, 124, 89, 92),
    Row("c51", 339, 111, 84, 70),
    Row("dqn", 228, 71, 51, 51),
)


def rows(ours: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Returns the published table, and ours after it.

    Args:
      ours: rows with the keys of this table; those that are missing stay empty.
    """
    published = [
        {
            "agent": row.agent,
            "source": SOURCE,
            "games": GAMES,
            "frames": FRAMES,
            "human-normalised mean, %": row.human_mean,
            "human-normalised median, %": row.human_median,
            "Rainbow-normalised mean, %": row.rainbow_mean,
            "Rainbow-normalised median, %": row.rainbow_median,
        }
        for row in TABLE
    ]
    return [*published, *({**dict.fromkeys(published[0], ""), **row} for row in ours)]

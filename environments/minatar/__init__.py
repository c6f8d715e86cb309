"""The five MinAtar games, compiled: ten thousand rows step in the time that one takes in Python.

Young & Tian, "MinAtar", 2019, https://arxiv.org/abs/1903.03176.
"""

from kullback.core import names, types
from kullback.environments.minatar import (
    asterix,
    breakout,
    freeway,
    games,
    seaquest,
    space_invaders,
)

__all__ = ["GAMES", "make"]

# The five games by name.
GAMES: dict[str, games.Game] = {
    "asterix": asterix.GAME,
    "breakout": breakout.GAME,
    "freeway": freeway.GAME,
    "seaquest": seaquest.GAME,
    "space_invaders": space_invaders.GAME,
}


def make(
    game: str,
    num_envs: int,
    *,
    sticky_action_prob: float = 0.1,
    difficulty_ramping: bool = True,
    max_episode_steps: int | None = 10_000,
    minimal_actions: bool = False,
) -> types.Environment:
    """Returns `num_envs` rows of `game`, one of GAMES; the flags are those of `games.make`."""
    if game not in GAMES:
        raise ValueError(names.unknown("MinAtar game", game, GAMES))
    return games.make(
        GAMES[game],
        num_envs,
        sticky_action_prob=sticky_action_prob,
        difficulty_ramping=difficulty_ramping,
        max_episode_steps=max_episode_steps,
        minimal_actions=minimal_actions,
    )

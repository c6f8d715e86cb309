"""`kullback reproduce munchausen-atari`: the benchmark of the Munchausen paper, or a piece of it.

Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.14430: six agents, 60 games, three seeds, 200 million frames each, sticky
actions. `--full` is that, for accelerators. The default runs two agents on one game for some
minutes and says, from the speed it measures, what the whole would take; nothing is learnt in so few
steps and nothing is judged. `examples/munchausen_atari.toml` is the whole as a sweep, which several
machines can share.
"""

import dataclasses
from typing import Any

import numpy as np

from kullback.experiments import catalog
from kullback.experiments.reproductions import agent_runs, agent_studies, judging, study

AGENTS = ("dqn", "m-dqn", "c51", "rainbow", "iqn", "m-iqn")
# All that the catalogue lists: the 57 usual games without Defender and Surround, and five more.
GAMES = tuple(row.name for row in catalog.ENVIRONMENTS if row.name.startswith("atari/"))
WARM_UP = 20_000  # Agent steps before learning begins.
STEPS, SEEDS = 50_000_000, 3  # 200 million frames, as published.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of the benchmark on Atari: what is compared, and the sizes."""

    full: bool = False  # The published protocol; --full.
    agents: tuple[str, ...] = ("dqn", "m-dqn")
    games: tuple[str, ...] = ("atari/pong",)
    steps: int = 25_000  # Learning begins after 20,000.
    seeds: int = 1
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        agent_runs.check(self)
        for name, given, known in (("agents", self.agents, AGENTS), ("games", self.games, GAMES)):
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"{name} are {', '.join(known)}, got {unknown[0]}")

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        agents, games = (AGENTS, GAMES) if self.full else (self.agents, self.games)
        seeds, steps = (SEEDS, STEPS) if self.full else (self.seeds, self.steps)
        kinds = {agent: [agent] for agent in agents}
        plain = agent_runs.arms(kinds, games, seeds, steps, self.first_seed)
        return [arm._replace(log_every=1_000) for arm in plain]


def cost(runs: agent_runs.Runs, arm: agent_runs.Arm) -> dict[str, Any]:
    """Returns the speed while it learns, of the second half of what came after the warm-up."""
    steps, wall = runs.curve(arm.label, arm.environment, "wall_seconds")
    begin = (steps[-1] + min(WARM_UP, steps[-2])) / 2
    learning = np.flatnonzero(steps >= begin)
    first, last = learning[0], learning[-1]
    speed = (steps[last] - steps[first]) / (wall[0, last] - wall[0, first])
    return {
        "agent": arm.agent,
        "environment": arm.environment,
        "steps_per_second": float(speed),
        "days_of_all_games": float(len(GAMES) * SEEDS * STEPS / speed / 86_400),
    }


def costs(config: Config, runs: agent_runs.Runs) -> study.Tables:
    """Returns the table of what the published protocol would take on this machine."""
    return {"cost": [cost(runs, arm) for arm in config.arms()]}


def checks(config: Config, runs: agent_runs.Runs) -> list[judging.Check]:
    """Judges the published protocol, game by game; reports what it would take."""
    judged = [
        judging.headline(
            judging.above(
                f"{better} ends above {worse} on more than half of the games (53 and 40 of 60)",
                [wins(runs, better, worse, game) for game in GAMES],
                0.5,
                ("game", "games"),
            )
        )
        for better, worse in (("m-dqn", "dqn"), ("m-iqn", "iqn"))
        if config.full
    ]
    return judged + [
        judging.reported(
            f"{row['agent']} on {len(GAMES)} games, {SEEDS} seeds, 200M frames, on this machine",
            f"{row['days_of_all_games']:,.0f} days at {row['steps_per_second']:,.0f} agent steps/s "
            f"on {row['environment']}",
        )
        for row in costs(config, runs)["cost"]
    ]


def wins(runs: agent_runs.Runs, better: str, worse: str, game: str) -> float:
    """Returns 1 where the mean over seeds of the one ends above that of the other, else 0."""
    one, other = (runs.measure(agent_runs.END, x, game).mean() for x in (better, worse))
    return float(one > other)


STUDY = agent_studies.make(
    claim="a scaled log-policy in the reward lifts DQN and IQN on most Atari games",
    source="Vieillard, Pietquin & Geist 2020",
    config=Config(),
    figure="munchausen_atari",
    checks=checks,
    tables=costs,
)

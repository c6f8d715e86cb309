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
from matplotlib.figure import Figure

from kullback.experiments import catalog, reproduce
from kullback.experiments.reproductions import agents_on, verdicts

AGENTS = ("dqn", "m-dqn", "c51", "rainbow", "iqn", "m-iqn")
# All that the catalogue lists: the 57 usual games without Defender and Surround, and five more.
GAMES = tuple(row.name for row in catalog.ENVIRONMENTS if row.name.startswith("atari/"))
WARM_UP = 20_000  # Agent steps before learning begins.
STEPS, SEEDS = 50_000_000, 3  # 200 million frames, as published.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is compared, and the sizes."""

    full: bool = False  # The published protocol; --full.
    agents: tuple[str, ...] = ("dqn", "m-dqn")
    games: tuple[str, ...] = ("atari/pong",)
    steps: int = 25_000  # Learning begins after 20,000.
    seeds: int = 1

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps) < 1:
            raise ValueError("seeds and steps must be >= 1")
        for name, given, known in (("agents", self.agents, AGENTS), ("games", self.games, GAMES)):
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"{name} are {', '.join(known)}, got {unknown[0]}")

    def arms(self) -> list[agents_on.Arm]:
        """All that is run."""
        agents, games = (AGENTS, GAMES) if self.full else (self.agents, self.games)
        seeds, steps = (SEEDS, STEPS) if self.full else (self.seeds, self.steps)
        return [agents_on.Arm(a, a, game, seeds, steps) for game in games for a in agents]


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """All arms, their speed, and what the whole takes at that speed."""
    arms = config.arms()
    rows = agents_on.train_all(work, arms, log_every=1_000)
    costs = [cost(rows, arm) for arm in arms]
    checks = [*judge(config, rows), *judge_cost(costs)]
    tables = {"curves": rows, "final": agents_on.summary(rows, arms), "cost": costs}
    return reproduce.Found(tables, {"munchausen_atari": draw(arms, rows)}, checks)


def cost(rows: reproduce.Rows, arm: agents_on.Arm) -> dict[str, Any]:
    """Speed while it learns, of the second half of what came after the warm-up."""
    steps, wall = agents_on.curve(rows, arm.label, arm.environment, "wall_seconds")
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


def judge_cost(costs: reproduce.Rows) -> list[reproduce.Check]:
    """What the published protocol would take on this machine."""
    return [
        reproduce.Check(
            f"{row['agent']} on {len(GAMES)} games, {SEEDS} seeds, 200M frames, on this machine",
            None,
            f"{row['days_of_all_games']:,.0f} days at {row['steps_per_second']:,.0f} agent steps/s "
            f"on {row['environment']}",
        )
        for row in costs
    ]


def judge(config: Config, rows: reproduce.Rows) -> list[reproduce.Check]:
    """Of the published protocol: M-DQN against DQN and M-IQN against IQN, game by game."""
    if not config.full:
        return []
    checks = []
    for better, worse in (("m-dqn", "dqn"), ("m-iqn", "iqn")):
        wins = [
            float(
                agents_on.final(rows, better, game).mean()
                > agents_on.final(rows, worse, game).mean()
            )
            for game in GAMES
        ]
        claim = f"{better} ends above {worse} on more than half of the games (53 and 40 of 60)"
        checks.append(verdicts.above(claim, wins, 0.5, ("game", "games")))
    return checks


def draw(arms: list[agents_on.Arm], rows: reproduce.Rows) -> Figure:
    """Learning curves, ten games a row."""
    games = list(dict.fromkeys(arm.environment for arm in arms))
    agents = list(dict.fromkeys(arm.label for arm in arms))
    columns = min(len(games), 10)
    figure = reproduce.figure(columns=columns, rows=-(-len(games) // columns))
    for axes, game in zip(figure.axes, games, strict=False):
        agents_on.draw(axes, rows, agents, game)
    return figure


REPRODUCTION = agents_on.reproduction(
    claim="a scaled log-policy in the reward lifts DQN and IQN on most Atari games",
    source="Vieillard, Pietquin & Geist 2020",
    config=Config(),
    run=run,
)

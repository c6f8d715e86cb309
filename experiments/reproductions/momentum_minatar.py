"""`kullback reproduce momentum-minatar`: acting greedily on an average of past values.

Vieillard, Scherrer, Pietquin & Geist, "Momentum in Reinforcement Learning", AISTATS 2020,
https://arxiv.org/abs/1910.09322, whose Momentum-DQN learns beside q an average h of its past, and
is greedy on that. Its gains over DQN on Atari are of 200 million frames; here are two games of
MinAtar, with the weight b fixed or approaching 1 as that of a plain mean does.
"""

import dataclasses

from matplotlib.figure import Figure

from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import agents_on, verdicts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, and the sizes."""

    games: tuple[str, ...] = ("minatar/breakout", "minatar/asterix")
    fixed: tuple[float, ...] = (0.9,)  # Weights b, each a run; beside the one that rises.
    steps: int = 150_000
    seeds: int = 3

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps) < 1:
            raise ValueError("seeds and steps must be >= 1")
        for game in self.games:
            agents_on.random_score(game)

    def arms(self) -> list[agents_on.Arm]:
        """All that is run."""
        kinds = [
            ("dqn", "dqn", ()),
            ("mo-dqn", "mo-dqn", ()),
            *(
                (f"mo-dqn b={b:g}", "mo-dqn", (f"momentum_max={b}", "momentum_copies=0"))
                for b in self.fixed
            ),
        ]
        return [
            agents_on.Arm(label, agent, game, self.seeds, self.steps, settings)
            for game in self.games
            for label, agent, settings in kinds
        ]


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """All arms, then what they show."""
    return agents_on.compare(config, work, "momentum_minatar", judge, draw)


def judge(config: Config, rows: reproduce.Rows) -> list[reproduce.Check]:
    """Momentum against DQN, over the run; where DQN has learnt."""
    checks: list[reproduce.Check] = []
    for game in config.games:
        difference = agents_on.area(rows, "mo-dqn", game) - agents_on.area(rows, "dqn", game)
        check = verdicts.above(f"{game}: mo-dqn scores above dqn over the run", difference)
        if not agents_on.has_learnt(rows, game):
            check = check._replace(held=None)
        checks.append(check)
        for b in config.fixed:
            fixed = agents_on.area(rows, f"mo-dqn b={b:g}", game)
            found = statistics.t_interval(agents_on.area(rows, "mo-dqn", game) - fixed)
            claim = f"{game}: a weight that rises against b={b:g}, mean return over the run"
            checks.append(reproduce.Check(claim, None, str(found)))
    return checks


def draw(config: Config, rows: reproduce.Rows) -> Figure:
    """Learning curves, a column a game."""
    figure = reproduce.figure(columns=len(config.games))
    labels = list(dict.fromkeys(arm.label for arm in config.arms()))
    for axes, game in zip(figure.axes, config.games, strict=True):
        agents_on.draw(axes, rows, labels, game)
    return figure


REPRODUCTION = agents_on.reproduction(
    claim="acting on an average of past values is worth more than acting on the last ones",
    source="Vieillard, Scherrer, Pietquin & Geist 2020",
    config=Config(),
    run=run,
)

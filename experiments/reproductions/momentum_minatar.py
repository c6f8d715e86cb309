"""`kullback reproduce momentum-minatar`: acting greedily on an average of past values.

Vieillard, Scherrer, Pietquin & Geist, "Momentum in Reinforcement Learning", AISTATS 2020,
https://arxiv.org/abs/1910.09322, whose Momentum-DQN learns beside q an average h of its past, and
is greedy on that. Its gains over DQN on Atari are of 200 million frames; here are two games of
MinAtar, with the weight b fixed or approaching 1 as that of a plain mean does.
"""

import dataclasses

from kullback.experiments.reproductions import agent_runs, agent_studies
from kullback.experiments.reproductions.agent_studies import above, reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of Momentum-DQN on MinAtar: what is varied, and the sizes."""

    games: tuple[str, ...] = ("minatar/breakout", "minatar/asterix")
    fixed: tuple[float, ...] = (0.9,)  # Weights b, each a run; beside the one that rises.
    steps: int = 150_000
    seeds: int = 3

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps) < 1:
            raise ValueError("seeds and steps must be >= 1")
        for game in self.games:
            agent_runs.random_score(game)

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        kinds = [
            ("dqn", "dqn", ()),
            ("mo-dqn", "mo-dqn", ()),
            *(
                (f"mo-dqn b={b:g}", "mo-dqn", (f"momentum_max={b}", "momentum_copies=0"))
                for b in self.fixed
            ),
        ]
        return [
            agent_runs.Arm(label, agent, game, self.seeds, self.steps, settings)
            for game in self.games
            for label, agent, settings in kinds
        ]


def claims(config: Config) -> list[agent_studies.Claim]:
    """Returns the claims of momentum against DQN, over the run, and of its weights."""
    scores = agent_runs.SCORE
    rises = "{game}: a weight that rises against b=%g, mean return over the run"
    return [
        above("mo-dqn", "dqn", "{game}: {better} scores above {over} over the run", scores),
        *(reported("mo-dqn", f"mo-dqn b={b:g}", rises % b, scores) for b in config.fixed),
    ]


STUDY = agent_studies.make(
    claim="acting on an average of past values is worth more than acting on the last ones",
    source="Vieillard, Scherrer, Pietquin & Geist 2020",
    config=Config(),
    figure="momentum_minatar",
    learner="dqn",
    claims=lambda config, runs: claims(config),
    panels=lambda config, runs: agent_studies.grid(runs, ("return_mean", None)),
)

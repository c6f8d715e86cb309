"""`kullback reproduce momentum-minatar`: acting greedily on an average of past values.

Vieillard, Scherrer, Pietquin & Geist, "Momentum in Reinforcement Learning", AISTATS 2020,
https://arxiv.org/abs/1910.09322, whose Momentum-DQN learns beside q an average h of its past, and
is greedy on that. Its gains over DQN on Atari are of 200 million frames; here are two games of
MinAtar, with the weight b fixed or approaching 1 as that of a plain mean does.
"""

import dataclasses
from collections.abc import Iterator

from kullback.experiments.reproductions import agent_runs, agent_studies
from kullback.experiments.reproductions.agent_studies import headline, reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of Momentum-DQN on MinAtar: what is varied, and the sizes."""

    games: tuple[str, ...] = ("minatar/breakout", "minatar/asterix")
    fixed: tuple[float, ...] = (0.9,)  # Weights b, each a run; beside the one that rises.
    steps: int = 150_000
    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        agent_runs.check(self, *self.games)

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        kinds = {agent: [agent] for agent in ("dqn", "mo-dqn")}
        for b in self.fixed:
            kinds[f"mo-dqn b={b:g}"] = ["mo-dqn", f"momentum_max={b}", "momentum_copies=0"]
        return agent_runs.arms(kinds, self.games, self.seeds, self.steps, self.first_seed)


def claims(config: Config, runs: agent_runs.Runs) -> Iterator[agent_studies.Claim]:
    """Yields the claims of momentum against DQN, over the run, and of its weights."""
    del runs
    scores = agent_runs.SCORE
    yield headline("mo-dqn", "dqn", "{game}: {better} scores above {over} over the run", scores)
    for b in config.fixed:
        rises = f"{{game}}: a weight that rises against b={b:g}, mean return over the run"
        yield reported("mo-dqn", f"mo-dqn b={b:g}", rises, scores)


STUDY = agent_studies.make(
    claim="acting on an average of past values is worth more than acting on the last ones",
    source="Vieillard, Scherrer, Pietquin & Geist 2020",
    config=Config(),
    figure="momentum_minatar",
    learner="dqn",
    claims=claims,
)

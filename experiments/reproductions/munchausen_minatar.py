"""`kullback reproduce munchausen-minatar`: what a log-policy in the reward is worth.

Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.14430, whose ablation (DQN, Soft-DQN, AL, M-DQN) and whose M-IQN against
IQN are run on MinAtar, as Ceron & Castro, "Revisiting Rainbow", ICML 2021, did at forty times the
steps. The quantile agents take N = N' = K = 8 here, where the paper has 64, 64 and 32 on Atari.
No claim is judged on a game where DQN stays under five times a random policy.
"""

import dataclasses

from kullback.core import ranges
from kullback.experiments.reproductions import agent_runs, agent_studies
from kullback.experiments.reproductions.agent_studies import above, headline, wider

SCALAR = ("dqn", "soft-dqn", "al-dqn", "m-dqn")
QUANTILE = ("iqn", "m-iqn")
GAMES = tuple(
    f"minatar/{name}" for name in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of the ablation on MinAtar: what is compared, and the sizes."""

    full: bool = False  # All five games and Rainbow too; --full.
    games: tuple[str, ...] = ("minatar/breakout", "minatar/asterix")
    quantile_games: tuple[str, ...] = ("minatar/breakout",)
    steps: int = 300_000
    seeds: int = 5
    quantile_seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        for game in (*self.games, *self.quantile_games):
            if game not in GAMES:
                raise ValueError(f"games are {', '.join(GAMES)}, got {game}")
        ranges.at_least(1, self, "seeds", "quantile_seeds", "steps")
        ranges.at_least(0, self, "first_seed")

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        scalar = (*SCALAR, "rainbow") if self.full else SCALAR
        games, few = (GAMES, GAMES) if self.full else (self.games, self.quantile_games)
        plain, quantile = ({agent: [agent] for agent in some} for some in (scalar, QUANTILE))
        return [
            *agent_runs.arms(plain, games, self.seeds, self.steps, self.first_seed),
            *agent_runs.arms(quantile, few, self.quantile_seeds, self.steps, self.first_seed),
        ]


CLAIMS = [
    headline("m-dqn", over="dqn"),
    *(above("m-dqn", over=other) for other in SCALAR[1:-1]),
    above("al-dqn", over="dqn"),
    headline("m-iqn", over="iqn"),  # On Atari; on MinAtar Ceron & Castro report the contrary.
    wider("m-dqn", over="dqn"),
    wider("al-dqn", over="dqn"),
]


PANELS = [
    ("return_mean", (*SCALAR, "rainbow")),
    ("return_mean", QUANTILE),
    ("action_gap", SCALAR),
]

STUDY = agent_studies.make(
    claim="a scaled log-policy in the reward of DQN is worth more than an entropy bonus",
    source="Vieillard, Pietquin & Geist 2020",
    config=Config(),
    figure="munchausen_minatar",
    learner="dqn",
    says_so=True,
    claims=lambda config, runs: CLAIMS,
    panels=lambda config, runs: agent_studies.grid(runs, *PANELS),
)

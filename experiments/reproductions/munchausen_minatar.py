"""`kullback reproduce munchausen-minatar`: what a log-policy in the reward is worth.

Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.14430, whose ablation (DQN, Soft-DQN, AL, M-DQN) and whose M-IQN against
IQN are run on MinAtar, as Ceron & Castro, "Revisiting Rainbow", ICML 2021, did at forty times the
steps. The quantile agents take N = N' = K = 8 here, where the paper has 64, 64 and 32 on Atari.
No claim is judged on a game where DQN stays under five times a random policy.
"""

import dataclasses
import itertools

from matplotlib.figure import Figure

from kullback.experiments import reproduce
from kullback.experiments.reproductions import agents_on, verdicts

SCALAR = ("dqn", "soft-dqn", "al-dqn", "m-dqn")
QUANTILE = ("iqn", "m-iqn")
GAMES = tuple(
    f"minatar/{name}" for name in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is compared, and the sizes."""

    full: bool = False  # All five games and Rainbow too; --full.
    games: tuple[str, ...] = ("minatar/breakout", "minatar/asterix")
    quantile_games: tuple[str, ...] = ("minatar/breakout",)
    steps: int = 300_000
    seeds: int = 5
    quantile_seeds: int = 3

    def __post_init__(self) -> None:
        for game in (*self.games, *self.quantile_games):
            if game not in GAMES:
                raise ValueError(f"games are {', '.join(GAMES)}, got {game}")
        if min(self.seeds, self.quantile_seeds, self.steps) < 1:
            raise ValueError("seeds, quantile_seeds and steps must be >= 1")

    def arms(self) -> list[agents_on.Arm]:
        """All that is run."""
        games = GAMES if self.full else self.games
        quantile_games = GAMES if self.full else self.quantile_games
        scalar = (*SCALAR, "rainbow") if self.full else SCALAR
        pairs = [
            *((agent, game, self.seeds) for game, agent in itertools.product(games, scalar)),
            *(
                (agent, game, self.quantile_seeds)
                for game, agent in itertools.product(quantile_games, QUANTILE)
            ),
        ]
        return [agents_on.Arm(agent, agent, game, n, self.steps) for agent, game, n in pairs]


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """All arms, then what they show."""
    return agents_on.compare(config, work, "munchausen_minatar", judge, draw)


def judge(config: Config, rows: reproduce.Rows) -> list[reproduce.Check]:
    """Munchausen against each ablation and its baseline, game by game."""
    checks: list[reproduce.Check] = []
    ran = {(arm.agent, arm.environment) for arm in config.arms()}
    games = dict.fromkeys(arm.environment for arm in config.arms())
    pairs = [("m-dqn", other) for other in SCALAR[:-1]] + [("al-dqn", "dqn"), ("m-iqn", "iqn")]
    for game in games:
        has_learnt = ("dqn", game) in ran and agents_on.has_learnt(rows, game)
        for better, worse in pairs:
            if not {(better, game), (worse, game)} <= ran:
                continue
            claim = f"{game}: {better} ends above {worse}"
            difference = agents_on.final(rows, better, game) - agents_on.final(rows, worse, game)
            check = verdicts.above(claim, difference)
            # That M-IQN is no better on MinAtar is what Ceron & Castro report.
            if not has_learnt or better != "m-dqn":
                check = check._replace(held=None)
            checks.append(check)
        for agent in ("m-dqn", "al-dqn"):
            if not {(agent, game), ("dqn", game)} <= ran:
                continue
            gaps, of_dqn = (agents_on.final(rows, a, game, "action_gap") for a in (agent, "dqn"))
            check = verdicts.above(
                f"{game}: {agent} widens the gap of actions, in times DQN's", gaps / of_dqn, 1.0
            )
            checks.append(check if has_learnt else check._replace(held=None))
        if ("dqn", game) in ran and not has_learnt:
            limit = f"{agents_on.LEARNT:g}"
            note = f"{game}: DQN stays under {limit} times a random policy, so nothing is judged"
            score = float(agents_on.final(rows, "dqn", game).mean())
            evidence = f"{score:.3g} against {agents_on.random_score(game):g}"
            checks.append(reproduce.Check(note, None, evidence))
    return checks


def draw(config: Config, rows: reproduce.Rows) -> Figure:
    """A column a game: returns of DQN's family, of IQN's, and the gaps of actions."""
    arms = config.arms()
    games = list(dict.fromkeys(arm.environment for arm in arms))
    figure = reproduce.figure(columns=len(games), rows=3)
    for k, game in enumerate(games):
        column = figure.axes[k :: len(games)]
        agents = [arm.agent for arm in arms if arm.environment == game]
        scalar = [agent for agent in agents if agent not in QUANTILE]
        quantile = [agent for agent in agents if agent in QUANTILE]
        for axes, labels, name in (
            (column[0], scalar, "return_mean"),
            (column[1], quantile, "return_mean"),
            (column[2], [a for a in scalar if a != "rainbow"], "action_gap"),
        ):
            if labels:
                agents_on.draw(axes, rows, labels, game, name)
            else:
                axes.set_axis_off()
    return figure


REPRODUCTION = agents_on.reproduction(
    claim="a scaled log-policy in the reward of DQN is worth more than an entropy bonus",
    source="Vieillard, Pietquin & Geist 2020",
    config=Config(),
    run=run,
)

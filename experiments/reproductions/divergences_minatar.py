"""`kullback reproduce divergences-minatar`: M-DQN with another f-divergence than KL. Ours.

What the log-policy of Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS
2020, https://arxiv.org/abs/2007.14430, becomes for the regularisers of Roulet et al. 2025,
https://arxiv.org/abs/2501.18537, is in theory/munchausen_f.py: that theory promises of every f the
same average of errors and the same widening of gaps, 1 / (1 - alpha), and so gives no reason for
one to score above another. Here that is run on MinAtar with networks, beside DQN. Targets of KL
and of alpha-divergences of 1 or more differ by at most tau ln A, 0.05 at the paper's tau = 0.03
with six actions; `temperature` makes it more.
"""

import dataclasses

from matplotlib.figure import Figure

from kullback.agents import munchausen
from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import agents_on, verdicts

PAPERS = "kl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, and the sizes."""

    games: tuple[str, ...] = ("minatar/breakout", "minatar/asterix")
    regularizers: tuple[str, ...] = ("alpha-1.5", "alpha-2")  # Beside KL; the sparse ones.
    temperature: float = 0.03  # tau > 0, of all.
    steps: int = 150_000
    seeds: int = 3

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps) < 1:
            raise ValueError("seeds and steps must be >= 1")
        if not self.regularizers or PAPERS in self.regularizers:
            raise ValueError(f"regularizers are those beside {PAPERS}, got {self.regularizers}")
        for name in self.regularizers:
            munchausen.Config(regularizer=name, temperature=self.temperature)
        for game in self.games:
            agents_on.random_score(game)

    def arms(self) -> list[agents_on.Arm]:
        """All that is run."""
        kinds = [("dqn", "dqn", ())] + [
            (labelled(name), "m-dqn", (f"regularizer={name}", f"temperature={self.temperature}"))
            for name in (PAPERS, *self.regularizers)
        ]
        return [
            agents_on.Arm(label, agent, game, self.seeds, self.steps, settings)
            for game in self.games
            for label, agent, settings in kinds
        ]


def labelled(regularizer: str) -> str:
    """An arm's name in tables and figures."""
    return f"m-dqn {regularizer}"


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """All arms, then what they show."""
    arms = config.arms()
    rows = agents_on.train_all(work, arms)
    entropies = [
        {**row, "policy_entropy": float(agents_on.final(rows, *at, "policy_entropy").mean())}
        for row in agents_on.summary(rows, arms)
        if (at := (row["label"], row["environment"]))
    ]
    tables = {"curves": rows, "final": entropies}
    return reproduce.Found(tables, {"divergences_minatar": draw(config, rows)}, judge(config, rows))


def judge(config: Config, rows: reproduce.Rows) -> list[reproduce.Check]:
    """Each f against DQN and against KL, game by game; where DQN has learnt."""
    checks: list[reproduce.Check] = []
    for game in config.games:
        judged: list[reproduce.Check] = []
        for name in config.regularizers:
            label = labelled(name)
            score, of_kl, of_dqn = (
                agents_on.area(rows, other, game) for other in (label, labelled(PAPERS), "dqn")
            )
            claim = f"{game}: {label} scores above dqn over the run"
            judged.append(verdicts.above(claim, score - of_dqn))
            gap, dqn_gap = (
                agents_on.final(rows, other, game, "action_gap") for other in (label, "dqn")
            )
            claim = f"{game}: {label} widens the gap of actions, in times DQN's"
            judged.append(verdicts.above(claim, gap / dqn_gap, 1.0))
            kl_entropy, entropy = (
                agents_on.final(rows, other, game, "policy_entropy")
                for other in (labelled(PAPERS), label)
            )
            # 1 / f'' at 1 / A, what a policy near the uniform one moves by, is larger than KL's.
            claim = f"{game}: policies of {label} are nearer to one action than KL's, in nats"
            judged.append(verdicts.above(claim, kl_entropy - entropy))
            claim = f"{game}: {label} less {labelled(PAPERS)}, mean return over the run"
            found = statistics.t_interval(score - of_kl)
            judged.append(reproduce.Check(claim, None, str(found)))
        if not agents_on.has_learnt(rows, game):
            judged = [check._replace(held=None) for check in judged]
        checks += judged
    return checks


def draw(config: Config, rows: reproduce.Rows) -> Figure:
    """A column a game: returns, gaps of actions, entropies of the policies."""
    columns = ("return_mean", "action_gap", "policy_entropy")
    figure = reproduce.figure(columns=len(config.games), rows=len(columns))
    labels = list(dict.fromkeys(arm.label for arm in config.arms()))
    for k, axes in enumerate(figure.axes):
        row, column = divmod(k, len(config.games))
        # DQN evaluates the greedy policy, whose entropy is nothing.
        chosen = labels if columns[row] != "policy_entropy" else labels[1:]
        agents_on.draw(axes, rows, chosen, config.games[column], columns[row])
    return figure


REPRODUCTION = agents_on.reproduction(
    claim="Munchausen's bonus works with any f-divergence, not with KL alone",
    source="ours, after Vieillard et al. 2020 and Roulet et al. 2025",
    config=Config(),
    run=run,
)

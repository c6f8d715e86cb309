"""`kullback reproduce conservative-cartpole`: small steps of the policy make learning steadier.

Vieillard, Pietquin & Geist, "Deep Conservative Policy Iteration", AAAI 2020,
https://arxiv.org/abs/1906.09784. DQN's values and a policy that moves to the greedy one by a rate a
each target copy, on CartPole; a = 1 is greedy at once. The paper's statements: a rate between is
better and steadier than 1 and than DQN, too small a one is slow. The score of a seed is its mean
return over the whole run, its unsteadiness the standard deviation of the return between the rows
of the log in the second half.
"""

import dataclasses

import numpy as np
from matplotlib.figure import Figure

from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import agents_on, verdicts

GAME = "gym/CartPole-v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, and the sizes."""

    rates: tuple[float, ...] = (1.0, 0.5, 0.1, 0.05, 0.01)  # Descending, 1 among them.
    adaptive: bool = True  # A run whose rate follows the advantage of the greedy policy.
    steps: int = 30_000
    seeds: int = 5

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps) < 1:
            raise ValueError("seeds and steps must be >= 1")
        if list(self.rates) != sorted(set(self.rates), reverse=True) or self.rates[0] != 1:
            raise ValueError(f"rates must descend from 1, got {self.rates}")
        if len(self.rates) < 3 or self.rates[-1] <= 0:
            raise ValueError(f"rates must be three or more in (0, 1], got {self.rates}")

    def arms(self) -> list[agents_on.Arm]:
        """All that is run."""

        def arm(label: str, agent: str, *settings: str) -> agents_on.Arm:
            return agents_on.Arm(label, agent, GAME, self.seeds, self.steps, settings)

        adaptive = [arm("dcpi adaptive", "dcpi", "rate=normalised", "mixture_rate=1.0")]
        return [
            arm("dqn", "dqn"),
            *(arm(f"dcpi {a:g}", "dcpi", f"mixture_rate={a}") for a in self.rates),
            *(adaptive if self.adaptive else []),
        ]


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """All arms, then what they show."""
    arms = config.arms()
    rows = agents_on.train_all(work, arms)
    final = [
        {**row, "unsteadiness": float(np.mean(unsteadiness(rows, row["label"])))}
        for row in agents_on.summary(rows, arms)
    ]
    figures = {"conservative_cartpole": draw(config, rows)}
    return reproduce.Found({"curves": rows, "final": final}, figures, judge(config, rows))


def unsteadiness(rows: reproduce.Rows, label: str) -> np.ndarray:
    """Standard deviation of the return between rows of the log, second half, [seeds]."""
    steps, values = agents_on.curve(rows, label, GAME)
    return np.nanstd(values[:, steps > steps[-1] / 2], axis=1)


def judge(config: Config, rows: reproduce.Rows) -> list[reproduce.Check]:
    """The best rate between against 1, against DQN and against the smallest."""

    def score(label: str) -> np.ndarray:
        return agents_on.area(rows, label, GAME)

    between = [f"dcpi {a:g}" for a in config.rates[1:-1]]
    best = max(between, key=lambda label: float(score(label).mean()))
    slowest = f"dcpi {config.rates[-1]:g}"
    checks = [
        verdicts.above(
            f"{best}, the best between, scores above {other}", score(best) - score(other)
        )
        for other in ("dcpi 1", "dqn", slowest)
    ]
    checks += [
        verdicts.above(
            f"{best} is steadier than {other}, in returns",
            unsteadiness(rows, other) - unsteadiness(rows, best),
        )
        for other in ("dcpi 1", "dqn")
    ]
    if config.adaptive:
        claim = "a rate that follows the advantage scores above DQN"
        checks.append(verdicts.above(claim, score("dcpi adaptive") - score("dqn")))
    return checks


def draw(config: Config, rows: reproduce.Rows) -> Figure:
    """Learning curves, then score and unsteadiness against the rate, with DQN's as lines."""
    figure = reproduce.figure(columns=3)
    agents_on.draw(figure.axes[0], rows, [arm.label for arm in config.arms()], GAME)
    measures = (
        ("mean return over the run", lambda label: agents_on.area(rows, label, GAME)),
        ("unsteadiness of the return", lambda label: unsteadiness(rows, label)),
    )
    for axes, (name, measure) in zip(figure.axes[1:], measures, strict=True):
        found = [statistics.t_interval(measure(f"dcpi {a:g}")) for a in config.rates]
        means = [i.mean for i in found]
        errors = [[i.mean - i.low for i in found], [i.high - i.mean for i in found]]
        if config.seeds > 1:
            axes.errorbar(config.rates, means, errors, marker="o", capsize=3, label="dcpi")
        else:
            axes.plot(config.rates, means, marker="o", label="dcpi")
        axes.axhline(float(np.mean(measure("dqn"))), color="k", linestyle="--", label="dqn")
        axes.set_xscale("log")
        axes.set_xlabel("mixture rate a")
        axes.set_ylabel(name)
        axes.legend(fontsize="small")
    return figure


REPRODUCTION = agents_on.reproduction(
    claim="a conservative policy step makes DQN better and steadier",
    source="Vieillard, Pietquin & Geist 2020, deep conservative policy iteration",
    config=Config(),
    run=run,
)

"""`kullback reproduce conservative-cartpole`: small steps of the policy make learning steadier.

Vieillard, Pietquin & Geist, "Deep Conservative Policy Iteration", AAAI 2020,
https://arxiv.org/abs/1906.09784. DQN's values and a policy that moves to the greedy one by a rate a
each target copy, on CartPole; a = 1 is greedy at once. The paper's statements: a rate between is
better and steadier than 1 and than DQN, too small a one is slow. The score of a seed is its mean
return over the whole run, its unsteadiness the standard deviation of the return between the rows
of the log in the second half, its drop how much of its best return so far it has lost there.

The headline is a trend: the larger the rate, the less steady. Which rate is best was not known
before, so that the best between is compared with a correction for having been chosen.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from kullback.experiments.reproductions import agent_runs, agent_studies, charts, judging
from kullback.experiments.reproductions.agent_studies import Claim

GAME = "gym/CartPole-v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of the study on CartPole: what is varied, and the sizes."""

    rates: tuple[float, ...] = (1.0, 0.5, 0.1, 0.05, 0.01)  # Descending, 1 among them.
    adaptive: bool = True  # A run whose rate follows the advantage of the greedy policy.
    steps: int = 30_000
    seeds: int = 10
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        agent_runs.check(self)
        if list(self.rates) != sorted(set(self.rates), reverse=True) or self.rates[0] != 1:
            raise ValueError(f"rates must descend from 1, got {self.rates}")
        if len(self.rates) < 3 or self.rates[-1] <= 0:
            raise ValueError(f"rates must be three or more in (0, 1], got {self.rates}")

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        kinds = {"dqn": ["dqn"]}
        kinds |= {f"dcpi {a:g}": ["dcpi", f"mixture_rate={a}"] for a in self.rates}
        if self.adaptive:
            kinds["dcpi adaptive"] = ["dcpi", "rate=normalised", "mixture_rate=1.0"]
        return agent_runs.arms(kinds, [GAME], self.seeds, self.steps, self.first_seed)


def unsteadiness(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the deviation of the return between rows of the log, second half, [seeds]."""
    return np.nanstd(values[:, steps > steps[-1] / 2], axis=1)


def drop(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the mean share of the best return so far that is lost, second half, [seeds]."""
    best = np.fmax.accumulate(values, axis=1)
    return np.nanmean((1 - values / best)[:, steps > steps[-1] / 2], axis=1)


SCORE = agent_runs.SCORE
UNSTEADINESS = agent_runs.Measure("return_mean", unsteadiness)
DROP = agent_runs.Measure("return_mean", drop)


def checks(config: Config, runs: agent_runs.Runs) -> list[judging.Check]:
    """Judges the trends over the rate, and the best rate between against 1, DQN and the least."""

    def of(label: str, measure: agent_runs.Measure = SCORE) -> np.ndarray:
        return runs.measure(measure, label, GAME)

    labels, least = [f"dcpi {rate:g}" for rate in config.rates], f"dcpi {config.rates[-1]:g}"
    rates, between = np.log10(config.rates), {label: of(label) for label in labels[1:-1]}
    steadier = "the smaller the rate, the steadier (deviation of the return, a decade of the rate)"
    lost = "the smaller the rate, the less is lost (share of the best so far, a decade of the rate)"
    scores = "{{best}}, the best rate between, scores above {}"
    unsteady = [of(label, UNSTEADINESS) for label in labels]
    return [
        judging.headline(judging.trend(steadier, rates, unsteady)),
        judging.trend(lost, rates, [of(label, DROP) for label in labels]),
        judging.headline(judging.best_of(scores.format("dqn"), between, of("dqn"))),
        *(judging.best_of(scores.format(over), between, of(over)) for over in ("dcpi 1", least)),
    ]


def claims(config: Config, runs: agent_runs.Runs) -> Iterator[Claim]:
    """Yields the claim of the rate that follows the advantage."""
    del config, runs
    yield Claim("dcpi adaptive", "dqn", "a rate that follows the advantage scores above DQN", SCORE)


def panels(config: Config, runs: agent_runs.Runs) -> charts.Grid:
    """Draws learning curves, then score and unsteadiness against the rate, with DQN's as lines."""

    def by_rate(name: str, measure: agent_runs.Measure) -> charts.Panel:
        samples = [runs.measure(measure, f"dcpi {rate:g}", GAME) for rate in config.rates]
        of_dqn = float(np.mean(runs.measure(measure, "dqn", GAME)))
        return charts.Panel(
            marks=[
                charts.Bars(config.rates, samples, "dcpi"),
                charts.Level(of_dqn, {"color": "k", "linestyle": "--", "label": "dqn"}),
            ],
            axes={"xscale": "log", "xlabel": "mixture rate a", "ylabel": name},
            legend={"fontsize": "small"},
        )

    return charts.Grid(
        panels=[
            agent_studies.curves(runs, runs.labels(GAME), GAME),
            by_rate("mean return over the run", SCORE),
            by_rate("unsteadiness of the return", UNSTEADINESS),
        ]
    )


STUDY = agent_studies.make(
    claim="a conservative policy step makes DQN better and steadier",
    source="Vieillard, Pietquin & Geist 2020, deep conservative policy iteration",
    config=Config(),
    figure="conservative_cartpole",
    claims=claims,
    checks=checks,
    panels=panels,
    measures={"unsteadiness": UNSTEADINESS, "drop": DROP},
)

"""`kullback reproduce momentum-theory`: sampling, and which schemes average it away.

Vieillard, Scherrer, Pietquin & Geist, "Momentum in Reinforcement Learning", AISTATS 2020,
https://arxiv.org/abs/1910.09322. Every evaluation sees one sampled successor of each state and
action. Value iteration's bound adds up the norms of these errors, which stays as it is; momentum
averages the errors, and an average shrinks. Bounds are drawn where one is proved: of value
iteration, and of MD-VI(lambda, 0), which averages too.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import charts, garnets, judging, study
from kullback.theory import bounds, iteration, mirror, momentum, run
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme

AVI, MOVI, SPEEDY, MIRROR = "AVI", "MoVI", "Speedy Q-learning", "MD-VI"
AVERAGE = "norm of the average of the errors"
SUM = "discounted average of their norms"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the experiment on Garnets."""

    processes: garnets.Config = dataclasses.field(default_factory=garnets.Config)
    iterations: int = 800
    samples: int = 1  # Successors of each state and action, in each iteration.
    noise_seed: int = 1
    weights: tuple[float, ...] = (0.9, 0.99)  # Constant b of a moving average, in (0, 1).
    lambda_: float = 0.03  # Temperature > 0 of MD-VI, in units of reward.

    def __post_init__(self) -> None:
        ranges.at_least(20, self, "iterations")
        ranges.at_least(1, self, "samples")
        ranges.inside("(0, 1)", self, "weights", may_be_empty=True)  # 0 would be AVI.
        ranges.inside("(0, inf)", self, "lambda_")  # Speedy Q-learning is its limit.


def schemes(config: Config) -> dict[str, Scheme]:
    """Returns the schemes that are compared, by name."""
    return {
        AVI: iteration.value_iteration(),
        MOVI: momentum.momentum_vi(),
        SPEEDY: momentum.speedy_vi(),
        MIRROR: mirror.md_vi(config.lambda_),
        **{constant(weight): momentum.momentum_vi(weight) for weight in config.weights},
    }


def constant(weight: float) -> str:
    """Returns momentum with a constant weight, in words."""
    return f"constant b = {weight:g}"


def compare(config: Config, processes: MDP, label: str, scheme: Scheme) -> study.Rows:
    """Returns curves of one scheme, exact and sampled, and where it ended in each process."""
    best, discounts = garnets.measured_by(processes), np.asarray(processes.discount)
    rows: study.Rows = []
    for kind in ("exact", "sampled"):
        noise = garnets.sampling(config) if kind == "sampled" else {}
        records = run.run(
            scheme,
            processes,
            config.iterations,
            measure=garnets.measure,
            context=garnets.context(best.q),
            clip=label == MIRROR,  # Its theorem asks for it.
            **noise,
        ).records
        gap, errors = records["gap"] / best.mean, records["error"][:, 1:]
        norms = np.max(np.abs(errors), (-2, -1))  # [M, K]
        counts = np.arange(1, config.iterations + 1)
        average_norms = np.max(np.abs(np.cumsum(errors, 1)), (-2, -1)) / counts
        discounted = _discounted(norms, discounts)
        bound = None  # Of max (q_* - q_pi), where one is proved.
        if label == AVI:  # q_0 = 0 is max |q_*| from q_*.
            bound = garnets.each(bounds.mpi_gap, norms, best.largest[:, 0], discounts)
        elif label == MIRROR:
            bound = garnets.each(
                lambda norms, r_max, gamma: bounds.kl_gap_norm(
                    norms, processes.num_actions, r_max, gamma, config.lambda_
                ),
                *(average_norms, best.r_max, discounts),
            )
        last: dict[str, Any] = {
            "largest_share": 0.0,
            "average_norm": average_norms[:, -1].tolist(),
            "discounted_norm": discounted[:, -1].tolist(),
        }
        if bound is not None:
            shares = garnets.share(records["largest_gap"][:, 1:], bound, best.largest)
            last["largest_share"] = float(shares.max())
            bound = bound / best.mean
        last["slope"] = _slope(gap.mean(0)) if kind == "sampled" else 0.0
        late = gap[:, -(config.iterations // 10) :].mean(1)
        rows += study.tagged("curves", garnets.curve(label, gap, bound, kind=kind))
        rows += study.tagged("ends", garnets.ends(label, late, kind=kind, **last))
        if label == MOVI and kind == "sampled":
            for what, values in ((AVERAGE, average_norms), (SUM, discounted)):
                rows += study.tagged("errors", garnets.curve(what, values, first=1))
    return rows


def _discounted(norms: np.ndarray, discount: np.ndarray) -> np.ndarray:
    """Returns (1 - gamma) sum_{j <= k} gamma^{k-j} ||eps_j||, [M, K]: AVI's bound is made of it."""
    total, sums = np.zeros(len(norms)), []
    for norm in norms.T:
        total = discount * total + (1 - discount) * norm
        sums.append(total)
    return np.stack(sums, 1)


def _slope(values: np.ndarray) -> float:
    """Returns the exponent of k after the first tenth of the iterations; values [K + 1]."""
    k = np.arange(len(values))
    late = (k >= len(values) // 10) & (values > 0)
    return float(np.polyfit(np.log(k[late]), np.log(values[late]), 1)[0]) if late.any() else 0.0


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the paper's statements."""
    counted = garnets.counted(config.processes, config.iterations)
    # Of value iteration without errors theory allows this to be left, relative to max |q_*|.
    gamma = float(np.max(garnets.make(config.processes).discount))
    remaining = 2 * gamma**config.iterations / (1 - gamma)

    def end(scheme: str, kind: str, column: str = "end") -> np.ndarray:
        return study.column(tables["ends"], column, scheme=scheme, kind=kind)

    claim = "without errors AVI ends at the optimum (relative distance)"
    yield judging.small(claim, end(AVI, "exact").max(), 1e-10, counted, remaining)
    claim = "without errors MoVI converges: its old values weigh ever less (relative distance)"
    late = end(MOVI, "exact")
    and_median = f"and a median of {np.median(late):.2g} {counted}"
    yield judging.small(claim, late.max(), 1e-4, and_median, remaining)
    avi, movi = end(AVI, "sampled"), end(MOVI, "sampled")
    claim = "sampled, MoVI ends nearer to the optimum than AVI (difference)"
    yield garnets.above(claim, avi - movi)
    claim = "sampled, it ends at less than a tenth of AVI's distance (that less MoVI's)"
    yield garnets.above(claim, avi / 10 - movi)
    yield garnets.above(
        "the average of the errors has shrunk to less than a quarter of their discounted norms "
        "(a quarter of these less the norm of that)",
        end(MOVI, "sampled", "discounted_norm") / 4 - end(MOVI, "sampled", "average_norm"),
    )
    for scheme in (AVI, MIRROR):
        shares = (end(scheme, kind, "largest_share").max() for kind in ("exact", "sampled"))
        yield judging.within(f"{scheme} keeps to its bound", garnets.largest(shares), counted)
    slopes = {s: end(s, "sampled", "slope")[0] for s in (AVI, MOVI, SPEEDY, MIRROR)}
    yield judging.reported(
        "distance of the policy as a power of k; the values of an average near theirs as "
        "k^-1/2, and policies are nearer than values",
        ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()),
    )


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns sampled and exact curves, and the two measures of the errors."""
    distance = r"$\Vert q_* - q_{\pi_k} \Vert_1 \,/\, \Vert q_* \Vert_1$"
    sampled = f"{garnets.successors(config.samples)} ({garnets.MEAN}; dashed: bounds)"
    of_errors = f"Errors of MoVI's evaluations ({garnets.MEAN})"
    none = f"No errors ({garnets.MEDIAN}; dashed: bounds)"

    def curves(kind: str, title: str, median: bool) -> charts.Panel:
        named = {MIRROR: f"{MIRROR}, lambda = {config.lambda_:g}"}
        rows = study.where(tables["curves"], kind=kind)
        marks = [
            garnets.line(study.where(rows, scheme=label), named.get(label, label), median=median)
            for label in schemes(config)
        ]
        return garnets.panel(marks, title, distance, 2, xlim=(1, config.iterations))

    errors = garnets.lines(tables["errors"], (AVERAGE, SUM))
    late = 2, config.iterations  # The first error is 0, as q_0 is.
    # Below rounding there is nothing to see. The upper end is that of a linear axis.
    exact = curves("exact", none, median=True)
    return charts.Grid(
        panels=[
            curves("sampled", sampled, median=False),
            garnets.panel(errors, of_errors, "units of reward", 1, xlim=late),
            dataclasses.replace(exact, axes={"ylim": (1e-12, None), **exact.axes}),
        ],
        width=4.8,
        height=4.2,
        title_size=10,
    )


STUDY = study.Study(
    claim="With sampled successors momentum value iteration averages its errors and converges, "
    "where approximate value iteration does not.",
    source="Vieillard et al. 2020, arXiv:1910.09322",
    config=Config(),
    arms=lambda config: [
        garnets.arm(
            config, item[0].lower().replace(" ", "-"), 2 * config.iterations, compare, *item
        )
        for item in schemes(config).items()
    ],
    tables=lambda config, rows: study.split(rows, "curves", "ends", "errors"),
    claims=claims,
    figures=lambda config, tables: {"momentum": panels(config, tables)},
    seconds=lambda config: garnets.seconds(
        config.processes, 2 * config.iterations, 4 + len(config.weights)
    ),
)

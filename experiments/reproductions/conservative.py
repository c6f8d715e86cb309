"""`kullback reproduce conservative`: rates of conservative policy iteration (CPI).

Vieillard, Pietquin & Geist, "Deep Conservative Policy Iteration", AAAI 2020,
https://arxiv.org/abs/1906.09784: constant rates in the scheme that deep CPI samples (one backup an
iteration), and with exact evaluation the adaptive rates of Kakade & Langford, ICML 2002, and of
Pirotta et al., ICML 2013, whose lower bounds of the gain are checked at every iteration.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import charts, garnets, judging, study
from kullback.theory import bounds, conservative, run, solve
from kullback.theory.mdp import MDP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes, and the rates that are compared."""

    processes: garnets.Config = dataclasses.field(default_factory=garnets.Config)
    iterations: int = 400  # Of constant rates, one backup each.
    samples: int = 1  # Successors of each state and action, in each of these.
    noise_seed: int = 1
    rates: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # In (0, 1]; 1 is AVI.
    exact_iterations: int = 200  # Of the rates below, exact evaluations.
    exact_rate: float = 0.1  # The constant rate beside the adaptive ones, in (0, 1].

    def __post_init__(self) -> None:
        ranges.at_least(20, self, "iterations", "exact_iterations")
        ranges.at_least(1, self, "samples")
        ranges.inside("(0, 1]", self, "rates", "exact_rate")


def adaptive_rates(config: Config) -> dict[str, Any]:
    """Returns rates with exact evaluation, by name."""
    return {
        "optimal (Kakade & Langford)": conservative.optimal,
        "adaptive (Pirotta et al.)": conservative.adaptive,
        "line search": conservative.line_search,
        f"constant {config.exact_rate:g}": config.exact_rate,
    }


def sampled(config: Config, processes: MDP) -> study.Rows:
    """Returns curves of constant rates, and how good and how steady each process's policies are."""
    q = garnets.optimum(processes).q
    gaps = run.run(
        lambda rate: conservative.cpi(rate, m=1),
        processes,
        config.iterations,
        parameters={"rate": np.array(config.rates)},
        **garnets.sampling(config),
        measure=distance,
        context=q,
    ).records / garnets.of_mean(q)
    rows: study.Rows = []
    for rate, gap in zip(config.rates, gaps, strict=True):
        late = gap[:, config.iterations // 2 :]
        rows += study.tagged("sampled", garnets.curve(named(rate), gap))
        steady = {"spread": late.std(1).tolist(), "mean": gap.mean(1).tolist()}
        end = garnets.ends(named(rate), late.mean(1), rate=rate, **steady)
        rows += study.tagged("stability", end)
    return rows


def distance(mdp: MDP, record: run.Record, optimal_q: Any) -> Any:
    """Returns the mean distance of the policy's values from the optimal ones."""
    _, q = solve.policy_values(mdp, record.state.log_policy)
    return jnp.mean(abs(optimal_q - q))


def progress(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """Returns the policy's value, and what the bounds of the next step's gain are made of."""
    state = record.state
    gain = conservative.advantage(mdp, state)
    v = jnp.sum(jnp.exp(state.log_policy) * state.q, -1)  # q_k is exact here.
    rate = context["rate"]
    return {
        "gap": garnets.most(context["v"] - v),
        "value": jnp.sum(mdp.initial * v),
        "mean": gain.mean,
        "largest": garnets.most(abs(gain.per_state)),
        "distance": gain.distance,
        "span": garnets.most(gain.per_state) + garnets.most(-gain.per_state),
        "rate": rate(mdp, state) if callable(rate) else jnp.asarray(rate),
    }


def exact(config: Config, processes: MDP, label: str, rate: Any) -> study.Rows:
    """Returns the curve of one rate with its bounds, and all gains beside theirs."""
    v = garnets.optimum(processes).v

    def measure(mdp: MDP, record: run.Record, context: Any) -> dict[str, Any]:
        return progress(mdp, record, {"v": context, "rate": rate})

    scheme = conservative.cpi(rate, m=math.inf)
    records = run.run(
        scheme, processes, config.exact_iterations, measure=measure, context=v
    ).records
    scale = garnets.of_largest(processes, v)[:, None]
    gamma = np.asarray(processes.discount)[:, None]
    now = {name: x[:, :-1] for name, x in records.items()}
    # Of the positive part, that is the contraction; what it gives from the start on is the bound.
    factors = 1 - now["rate"] * (1 - gamma)
    bound = records["gap"][:, :1] * np.cumprod(factors, 1)
    gain = np.diff(records["value"], axis=1)
    promised = {
        "mixture": bounds.cpi_gain(now["rate"], now["mean"], now["largest"], gamma),
        "safe": bounds.safe_gain(now["rate"], now["mean"], now["distance"], now["span"], gamma),
    }
    is_optimal = rate is conservative.optimal and np.min(processes.reward) >= 0
    if is_optimal:  # Its bound is of rewards in [0, r_max].
        r_max = np.max(np.abs(processes.reward), (-2, -1))[:, None]
        promised["optimal"] = bounds.cpi_optimal_gain(now["mean"], r_max, gamma)
    # How far a gain is below what was promised, in units of the largest value; rounding remains.
    broken = garnets.largest([0.0, *(np.max((low - gain) / scale) for low in promised.values())])
    curve = garnets.curve(label, records["gap"] / scale, bound / scale)
    used = promised["optimal" if is_optimal else "safe"]
    gains = {"gain": gain / scale, "promised": used / scale, "rate": now["rate"]}
    fall = garnets.largest([0.0, np.max(-gain / scale)])
    by_iteration: study.Rows = []
    for k in garnets.kept(config.exact_iterations - 1):
        medians = {name: float(np.median(x[:, k])) for name, x in gains.items()}
        row = {"scheme": label, "iteration": int(k) + 1, **medians}
        by_iteration.append({**row, "largest_break": broken, "largest_fall": fall})
    return study.tagged("exact", curve) + study.tagged("gains", by_iteration)


def named(rate: float) -> str:
    """Returns a constant rate, in words."""
    return "a = 1 (AVI)" if rate == 1 else f"a = {rate:g}"


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the bounds, and what the paper says of constant rates."""
    counted = garnets.counted(config.processes, config.exact_iterations)
    gains, labels = tables["gains"], list(adaptive_rates(config))
    yield judging.within(
        "exact CPI contracts: max (v_* - v_k) is at most its start times the product of "
        "1 - a (1 - gamma)",
        garnets.largest(row["largest_share"] for row in tables["exact"]),
        counted,
    )
    broken = {
        "no gain is below its lower bounds (of the mixture, of safe policy iteration, and of the "
        "optimal rate; by how much, relative)": [row["largest_break"] for row in gains],
        "the adaptive rates never make the policy worse (by how much, relative)": [
            row["largest_fall"] for row in gains if row["scheme"] in labels[:3]
        ],
    }
    for claim, by in broken.items():
        yield judging.small(claim, garnets.largest(by), garnets.ROUNDING, counted)

    def of(rate: float, name: str) -> np.ndarray:
        return study.column(tables["stability"], name, rate=rate)

    means = {rate: float(of(rate, "mean").mean()) for rate in config.rates}
    best, fast, slow = min(means, key=means.__getitem__), max(means), min(means)
    if fast <= slow:
        return
    is_finite = bool(np.all(np.isfinite(list(means.values()))))
    is_between = is_finite and best not in (fast, slow)
    between = judging.exactly(
        "sampled, a rate between the largest and the smallest is best over the whole run",
        is_between,
        ", ".join(f"{named(rate)} {mean:.3f}" for rate, mean in means.items()),
    )
    # A mean of one is no mean.
    yield between if len(of(best, "mean")) > 1 else between._replace(verdict="undecided")
    for rate, what, name in (
        (fast, "is worse than", "mean"),
        (fast, "is less steady (spread over the last half) than", "spread"),
        (slow, "is too slow: worse over the run than", "mean"),
    ):
        yield garnets.above(f"{named(rate)} {what} {named(best)}", of(rate, name) - of(best, name))


def panels(config: Config, tables: study.Tables) -> Iterator[charts.Panel]:
    """Yields constant rates by iteration and against each other; adaptive rates, their gains."""
    gap = r"$\Vert q_* - q_{\pi_k} \Vert_1 \,/\, \Vert q_* \Vert_1$"
    rates, labels = sorted(config.rates), list(adaptive_rates(config))

    def by_rate(name: str, label: str) -> charts.Line:
        samples = [study.column(tables["stability"], name, rate=rate) for rate in rates]
        return garnets.means(rates, samples, label, marker="o")

    def gain(label: str) -> charts.Line:
        of = functools.partial(study.column, tables["gains"], scheme=label)
        return charts.Line(of("iteration"), of("gain"), label, {"lw": 1.4}, bound=of("promised"))

    constant = garnets.lines(tables["sampled"], [named(rate) for rate in config.rates])
    title = f"{garnets.successors(config.samples)}, one backup, m = 1 ({garnets.MEAN})"
    yield garnets.panel(constant, title, gap, 3, xlim=(1, config.iterations))

    lines = {"mean": "mean over the run", "spread": "spread over its last half"}
    stability, axes = [by_rate(*line) for line in lines.items()], {"xlabel": "mixture rate a"}
    title = f"Sampled: distance and steadiness ({garnets.MEAN})"
    yield garnets.panel(stability, title, gap, 3, **axes, yscale="linear")

    exactly = garnets.lines(tables["exact"], labels, median=True)
    title = f"Exact evaluation ({garnets.MEDIAN}; dashed: contraction)"
    gap, least = r"$\max (v_* - v_{\pi_k})$, relative", (1e-12, None)
    yield garnets.panel(exactly, title, gap, 2, xscale="linear", ylim=least)

    title = (
        "Gain of a step (median; dashed: bound of Pirotta et al.,\n"
        r"$A^2 / (8 v_{\max})$ of the optimal rate)"
    )
    gains, least = [gain(label) for label in labels], (1e-8, None)
    gained = r"$\langle \mu, v_{\pi_k} - v_{\pi_{k-1}} \rangle$, relative"
    yield garnets.panel(gains, title, gained, 2, xscale="linear", ylim=least)


def arms(config: Config) -> list[study.Arm]:
    """Returns the constant rates under sampling, then all rates with exact evaluation."""
    adaptive = [
        garnets.arm(config, f"exact-{number}", config.exact_iterations, exact, *rate)
        for number, rate in enumerate(adaptive_rates(config).items())
    ]
    steps = config.iterations * len(config.rates)
    return [garnets.arm(config, "constant", steps, sampled), *adaptive]


STUDY = study.Study(
    claim="Mixing the greedy policy in by a rate keeps to the bounds of conservative policy "
    "iteration, and under sampling an intermediate rate is better and steadier than rate 1.",
    source="Vieillard et al. 2020, arXiv:1906.09784",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: study.split(rows, "sampled", "stability", "exact", "gains"),
    claims=claims,
    figures=lambda config, tables: {
        "conservative": garnets.grid(panels(config, tables), height=4.3),
    },
    seconds=lambda c: (
        garnets.seconds(c.processes, c.iterations * len(c.rates), 1)
        + garnets.seconds(c.processes, 5 * c.exact_iterations, len(adaptive_rates(c)))
    ),
)

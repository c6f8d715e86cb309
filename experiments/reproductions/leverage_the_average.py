"""`kullback reproduce leverage-the-average`: KL regularisation averages errors.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average", NeurIPS 2020,
https://arxiv.org/abs/2003.14089, figure 1, on 100 Garnets with one sampled successor of each state
and action: DA-VI(lambda, 0) beside approximate value iteration, the rate g2(k) of theorem 2, and
DA-VI(lambda, tau). Beta is lambda / (lambda + tau).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, types
from kullback.experiments.reproductions import charts, garnets, judging, study
from kullback.theory import bounds, convex, iteration, mirror, run
from kullback.theory.mdp import MDP
from kullback.theory.scheme import State

AVI = "AVI"
HALFWAY = 100  # Iteration at which rates are compared; sooner in shorter runs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The experiment of appendix D; its grids of lambda and beta are not printed."""

    processes: garnets.Config = dataclasses.field(default_factory=garnets.Config)
    iterations: int = 800
    samples: int = 1  # Successors of each state and action, in each iteration.
    noise_seed: int = 1
    lambdas: tuple[float, ...] = (0.1, 1.0, 10.0)  # Temperatures > 0, in units of reward.
    tau: float = 1e-3  # Temperature > 0 of the right panel, in units of reward.
    betas: tuple[float, ...] = (0.0, 0.9, 0.99)  # In [0, 1), ascending.
    # Theorem 2 by component takes the square of the iterations; it is looked at in the first ones.
    component_iterations: int = 30
    component_processes: int = 20

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "component_processes", "samples")
        ranges.inside("[1, iterations]", self, "component_iterations")
        ranges.inside("(0, inf)", self, "lambdas", "tau")
        ranges.inside("[0, 1)", self, "betas")


def measure(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """Returns `with_policy`, and how far a step of MD-VI leads from one of DA-VI."""
    measures = with_policy(mdp, record, context)
    state, zeros = record.state, jnp.zeros_like(record.state.q)
    temperatures = context["lambda_"], context["tau"]
    averaged = mirror.da_vi(*temperatures).step(mdp, state, zeros)
    mirrored = mirror.md_vi(*temperatures).step(
        mdp, State(state.q, convex.Point(state.log_policy, state.steps)), zeros
    )
    off = garnets.most(abs(averaged.q - mirrored.q))
    return {**measures, "twin_off": off}


def with_policy(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """Returns `garnets.measure` and the policy."""
    measures = garnets.measure(mdp, record, context)
    return {**measures, "log_policy": record.state.log_policy, "twin_off": jnp.zeros(())}


def simulate(
    config: Config, processes: MDP, lambda_: float | None, tau: float, optimal_q: types.Array
) -> dict[str, np.ndarray]:
    """Returns records of DA-VI(lambda, tau), or of AVI, [M, K + 1, ...]."""
    of_process = np.full(len(optimal_q), lambda_ or 0.0)
    how = garnets.sampling(config) | {
        "context": {**garnets.context(optimal_q, tau), "lambda_": of_process},
        "clip": tau == 0,  # Theorem 1 asks for it.
    }
    if lambda_ is None:
        avi = iteration.value_iteration()
        return run.run(avi, processes, config.iterations, measure=with_policy, **how).records
    how["parameters"] = {"lambda_": np.array([lambda_]), "tau": np.array([tau])}  # Compiled once.
    records = run.run(mirror.da_vi, processes, config.iterations, measure=measure, **how).records
    return {name: x[0] for name, x in records.items()}


def averaged(config: Config, processes: MDP, lambda_: float | None) -> study.Rows:
    """Returns rows of DA-VI(lambda, 0) with theorem 1, or of AVI with its bound."""
    best = garnets.measured_by(processes)
    records = simulate(config, processes, lambda_, 0.0, best.q)
    if lambda_ is None:
        norms = np.max(np.abs(records["error"][:, 1:]), (-2, -1))
        bound = garnets.each(bounds.mpi_gap, norms, best.largest[:, 0], processes.discount)
        shares = garnets.share(records["largest_gap"][:, 1:], bound, best.largest)
    else:
        bound, shares = by_component(bounds.kl_gap, processes, best, records, lambda_)
    share, label = float(shares.max()), AVI if lambda_ is None else f"lambda = {lambda_:g}"
    return rows_of("lambda", label, best, records, bound, share, share)


def regularized(config: Config, processes: MDP, beta: float) -> study.Rows:
    """Returns rows of DA-VI(lambda, tau) with theorem 2; what is drawn is its corollary."""
    lambda_, tau = beta / (1 - beta) * config.tau, config.tau
    best = garnets.measured_by(processes, tau)
    records = simulate(config, processes, lambda_, tau, best.q)
    errors = records["error"][:, 1:]
    bound = garnets.entropy_bound(processes, errors, best, beta, lambda_, tau)
    by_norm = garnets.share(records["largest_gap"][:, 1:], bound, best.largest)
    first = {name: x[:, : config.component_iterations + 1] for name, x in records.items()}
    few = jax.tree.map(lambda x: x[: config.component_processes], (processes, best, first))
    _, shares = by_component(bounds.entropy_gap, *few, lambda_, tau)
    worst = float(by_norm.max()), float(shares.max())
    return rows_of("beta", f"beta = {beta:g}", best, records, bound, *worst)


def rows_of(
    panel: str,
    label: str,
    best: garnets.Optimum,
    records: dict[str, np.ndarray],
    bound: np.ndarray,
    share: float,
    share_by_component: float,
) -> study.Rows:
    """Returns the curve of a scheme, and of every process how it begins and ends."""
    gap = records["gap"] / best.mean
    last = garnets.ends(
        label,
        gap[:, -max(1, gap.shape[1] // 10) :].mean(1),
        early=gap[:, 1:11].mean(1).tolist(),
        panel=panel,
        largest_share=share,
        largest_share_by_component=share_by_component,
        twin_off=float(records["twin_off"].max()),
    )
    curve = garnets.curve(label, gap, bound / best.mean, panel=panel)
    return study.tagged("curves", curve) + study.tagged("ends", last)


def by_component(
    theorem: Callable[..., types.Array],
    processes: MDP,
    best: garnets.Optimum,
    records: dict[str, np.ndarray],
    *temperatures: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a bound's mean over components, and the largest share a gap has of it; [M, K]."""
    later = (records[name][:, 1:] for name in ("log_policy", "error", "gaps"))
    with jax.enable_x64(True):
        given = processes, best.log_policy, *later
        return jax.tree.map(np.asarray, _by_component(theorem, given, *temperatures))


# One process after the other: the theorems hold a system of S equations for each iteration.
@functools.partial(jax.jit, static_argnums=0)
def _by_component(
    theorem: Callable[..., types.Array], given: tuple[Any, ...], *temperatures: types.Array
) -> tuple[jax.Array, jax.Array]:
    def one(given: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        *of_theorem, gaps = given
        bound = jnp.asarray(theorem(*of_theorem, *temperatures))
        return bound.mean((-2, -1)), garnets.most(gaps / bound, (-2, -1))

    return jax.lax.map(one, given)


def rates(config: Config, processes: MDP) -> study.Rows:
    """Returns the rate g2(k) of theorem 2, of the first process."""
    r_max, gamma = float(np.max(np.abs(processes.reward[0]))), float(processes.discount[0])
    rows: study.Rows = []
    for beta in config.betas:
        g2 = bounds.entropy_start(
            config.iterations,
            processes.num_actions,
            r_max,
            gamma,
            beta / (1 - beta) * config.tau,
            config.tau,
        )
        rows += [
            {"beta": beta, "iteration": int(k), "g2": float(g2[k])}
            for k in garnets.kept(config.iterations - 1)
        ]
    return rows


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the paper's statements, each of the runs of this configuration."""
    ends, counted = tables["ends"], garnets.counted(config.processes, config.iterations)

    def of(scheme: str, name: str = "end") -> np.ndarray:
        return study.column(ends, name, scheme=scheme)

    def largest(name: str, *panels: str) -> float:
        return garnets.largest(row[name] for row in ends if row["panel"] in panels)

    yield judging.small(
        "a step of MD-VI leads from every iterate of DA-VI to its next q (proposition 1)",
        largest("twin_off", "lambda", "beta"),
        1e-10,
        counted,
    )
    few = min(len(of(AVI)), config.component_processes)
    few = f"over {few} processes and {config.component_iterations} iterations"
    component = "largest_share_by_component"
    for claim, share, where in (
        (
            "AVI and DA-VI(lambda, 0) keep to their bounds, the latter by component (theorem 1)",
            largest("largest_share", "lambda"),
            counted,
        ),
        ("DA-VI(lambda, tau) keeps to theorem 2 by component", largest(component, "beta"), few),
        ("and to its corollary in the supremum norm", largest("largest_share", "beta"), counted),
    ):
        yield judging.within(claim, share, where)
    lambdas = [f"lambda = {value:g}" for value in sorted(config.lambdas)]
    betas = [f"beta = {value:g}" for value in sorted(config.betas)]
    for label in lambdas:
        claim = f"{label} ends nearer than AVI, which does not converge"
        yield garnets.above(claim, of(AVI) - of(label))
    for small, large in itertools.pairwise(lambdas):
        claim = f"{large} is slower than {small} (difference over iterations 1 to 10)"
        yield garnets.above(claim, of(large, "early") - of(small, "early"))
    for small, large in itertools.pairwise(betas):
        yield garnets.above(f"{large} ends nearer than {small}", of(small) - of(large))
    # The last row of each beta that is not after it.
    halfway = {row["beta"]: row for row in tables["rates"] if row["iteration"] <= HALFWAY}
    k = halfway[config.betas[0]]["iteration"]
    ordered = [halfway[beta]["g2"] for beta in sorted(config.betas)]
    yield judging.exactly(
        f"the larger beta, the slower the rate g2(k), what theorem 2 is without errors in the "
        f"first process (k = {k})",
        all(a < b for a, b in itertools.pairwise(ordered)),
        ", ".join(f"{value:.3g}" for value in ordered),
    )
    starts = ", ".join(f"{label} {of(label, 'early').mean():.3f}" for label in betas)
    yield judging.reported("mean distance over iterations 1 to 10", starts)


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns the three panels of figure 1, with the bounds."""
    betas = [f"beta = {value:g}" for value in config.betas]
    lambdas = [AVI, *(f"lambda = {value:g}" for value in config.lambdas)]
    panel = functools.partial(garnets.panel, xlim=(1, config.iterations))

    def left() -> charts.Panel:
        distance = r"$\Vert q_* - q_{\pi_k} \Vert_1 \,/\, \Vert q_* \Vert_1$"
        curves = garnets.lines(tables["curves"], lambdas)
        return panel(curves, r"DA-VI($\lambda$, 0), theorem 1", distance)

    def middle() -> charts.Panel:
        marks: list[charts.Line] = []
        for label, beta in zip(betas, config.betas, strict=True):
            of = functools.partial(study.column, tables["rates"], beta=beta)
            marks.append(charts.Line(of("iteration"), of("g2"), label, {"lw": 1.4}))
        rate, least = r"rate $g_2(k)$, units of reward", (1e-4, None)
        return panel(marks, "Theorem 2 without errors, first process", rate, ylim=least)

    def right() -> charts.Panel:
        distance = r"$\Vert q_*^\tau - q_{\pi_k}^\tau \Vert_1 \,/\, \Vert q_*^\tau \Vert_1$"
        title = rf"DA-VI($\lambda$, $\tau$ = {config.tau:g}), theorem 2"
        return panel(garnets.lines(tables["curves"], betas), title, distance)

    return charts.Grid(
        panels=[left(), middle(), right()],
        width=4.8,
        height=4.2,
        title=f"{garnets.successors(config.samples)}; {garnets.MEAN}, dashed: mean of the bounds",
    )


def arms(config: Config) -> list[study.Arm]:
    """Returns the runs of both panels; AVI has no temperature."""
    compared: list[tuple[str, Callable[..., study.Rows], float | None]]
    compared = [(AVI, averaged, None)]
    compared += [(f"lambda-{x:g}", averaged, x) for x in config.lambdas]
    compared += [(f"beta-{x:g}", regularized, x) for x in config.betas]
    return [garnets.arm(config, name, config.iterations, rows, x) for name, rows, x in compared]


STUDY = study.Study(
    claim="KL regularisation averages the errors of value iteration, and keeps to its bounds.",
    source="Vieillard et al. 2020, arXiv:2003.14089",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: {
        **study.split(rows, "curves", "ends"),
        "rates": rates(config, garnets.make(config.processes)),
    },
    claims=claims,
    figures=lambda config, tables: {"leverage_the_average": panels(config, tables)},
    seconds=lambda config: garnets.seconds(
        config.processes, 3 * config.iterations, 1 + len(config.lambdas) + len(config.betas)
    ),
)

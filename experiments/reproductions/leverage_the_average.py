"""`kullback reproduce leverage-the-average`: KL regularisation averages errors.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average", NeurIPS 2020,
https://arxiv.org/abs/2003.14089, figure 1, on 100 Garnets with one sampled successor of each state
and action: DA-VI(lambda, 0) beside approximate value iteration, the rate g2(k) of theorem 2, and
DA-VI(lambda, tau). Beta is lambda / (lambda + tau).
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import garnets, study
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
        if not 1 <= self.component_iterations <= self.iterations:
            raise ValueError(
                f"component_iterations must lie in [1, iterations={self.iterations}], got "
                f"{self.component_iterations}"
            )
        if self.component_processes < 1:
            raise ValueError(f"component_processes must be >= 1, got {self.component_processes}")
        if self.samples < 1:
            raise ValueError(f"samples must be >= 1, got {self.samples}")
        if not self.lambdas or min(self.lambdas) <= 0:
            raise ValueError(f"lambdas must be > 0, got {self.lambdas}")
        if not self.betas or min(self.betas) < 0 or max(self.betas) >= 1:
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if not self.tau > 0:
            raise ValueError(f"tau must be > 0, got {self.tau}")


def measure(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """Returns `with_policy`, and how far a step of MD-VI leads from one of DA-VI."""
    measures = garnets.measure(mdp, record, context)
    state, zeros = record.state, jnp.zeros_like(record.state.q)
    temperatures = context["lambda_"], context["tau"]
    averaged = mirror.da_vi(*temperatures).step(mdp, state, zeros)
    mirrored = mirror.md_vi(*temperatures).step(
        mdp, State(state.q, convex.Point(state.log_policy, state.steps)), zeros
    )
    off = garnets.most(abs(averaged.q - mirrored.q))
    return {**measures, "log_policy": state.log_policy, "twin_off": off}


def with_policy(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """Returns `garnets.measure` and the policy."""
    measures = garnets.measure(mdp, record, context)
    return {**measures, "log_policy": record.state.log_policy, "twin_off": jnp.zeros(())}


def simulate(
    config: Config, processes: MDP, lambda_: float | None, tau: float, optimal_q: types.Array
) -> dict[str, np.ndarray]:
    """Returns records of DA-VI(lambda, tau), or of AVI, [M, K + 1, ...]."""

    def simulated(scheme: Any, measured: Any, **more: Any) -> Any:
        context = garnets.context(optimal_q, tau)
        context["lambda_"] = np.full(len(optimal_q), lambda_ or 0.0)
        return run.run(
            scheme,
            processes,
            config.iterations,
            **garnets.sampling(config),
            measure=measured,
            context=context,
            clip=tau == 0,  # Theorem 1 asks for it.
            **more,
        ).records

    if lambda_ is None:
        return simulated(iteration.value_iteration(), with_policy)
    given = {"lambda_": np.array([lambda_]), "tau": np.array([tau])}  # Compiled once for all.
    records = simulated(mirror.da_vi, measure, parameters=given)
    return {name: x[0] for name, x in records.items()}


def averaged(config: Config, processes: MDP, lambda_: float | None) -> reproduce.Rows:
    """Returns rows of DA-VI(lambda, 0) with theorem 1, or of AVI with its bound."""
    best = garnets.measured_by(processes)
    records = simulate(config, processes, lambda_, 0.0, best.q)
    if lambda_ is None:
        norms = np.max(np.abs(records["error"][:, 1:]), (-2, -1))
        bound = garnets.each(bounds.mpi_gap, norms, best.largest[:, 0], processes.discount)
        share = float(garnets.share(records["largest_gap"][:, 1:], bound, best.largest).max())
    else:
        bound, shares = theorem_1(processes, best, records, lambda_)
        share = float(shares.max())
    label = AVI if lambda_ is None else f"lambda = {lambda_:g}"
    return rows_of("lambda", label, best, records, bound, share, share)


def regularized(config: Config, processes: MDP, beta: float) -> reproduce.Rows:
    """Returns rows of DA-VI(lambda, tau) with theorem 2; what is drawn is its corollary."""
    lambda_, tau = beta / (1 - beta) * config.tau, config.tau
    best = garnets.measured_by(processes, tau)
    records = simulate(config, processes, lambda_, tau, best.q)

    def promised(errors: types.Array, r_max: float, gamma: float) -> types.Array:
        norms = jnp.max(abs(bounds.moving_average(errors, beta)), (-2, -1))
        actions = processes.num_actions
        return bounds.entropy_gap_norm(norms, actions, r_max, gamma, lambda_, tau)

    bound = garnets.each(promised, records["error"][:, 1:], best.r_max, processes.discount)
    by_norm = garnets.share(records["largest_gap"][:, 1:], bound, best.largest)
    by_component = theorem_2(processes, best, records, lambda_, config)
    label = f"beta = {beta:g}"
    return rows_of("beta", label, best, records, bound, float(by_norm.max()), by_component)


def rows_of(
    panel: str,
    label: str,
    best: garnets.Optimum,
    records: dict[str, np.ndarray],
    bound: np.ndarray,
    share: float,
    share_by_component: float,
) -> reproduce.Rows:
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


def theorem_1(
    processes: MDP, optimum: garnets.Optimum, records: dict[str, np.ndarray], lambda_: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bound's mean over components, and the largest share a gap has of it; [M, K]."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _shares_1(_given(processes, optimum, records), lambda_))


def theorem_2(
    processes: MDP,
    optimum: garnets.Optimum,
    records: dict[str, np.ndarray],
    lambda_: float,
    config: Config,
) -> float:
    """Returns the largest share that any component of a gap has of its bound."""
    few = slice(config.component_processes)
    processes, optimum, records = jax.tree.map(lambda x: x[few], (processes, optimum, records))
    given = _given(processes, optimum, records, config.component_iterations)
    with jax.enable_x64(True):
        return float(np.max(_shares_2(given, lambda_, config.tau)))


def _given(
    processes: MDP,
    optimum: garnets.Optimum,
    records: dict[str, np.ndarray],
    num_iterations: int | None = None,
) -> tuple[Any, ...]:
    """Returns processes, their optimal policies, policies, errors and gaps, for the theorems."""
    names = ("log_policy", "error", "gaps")
    later = (records[name][:, 1:][:, :num_iterations] for name in names)
    return processes, optimum.log_policy, *later


# One process after the other: the theorems hold a system of S equations for each iteration.
@jax.jit
def _shares_1(given: tuple[Any, ...], lambda_: types.Array) -> tuple[jax.Array, jax.Array]:
    def one(given: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        mdp, log_optimal, log_policies, errors, gaps = given
        bound = bounds.kl_gap(mdp, log_optimal, log_policies, errors, lambda_)  # pyright: ignore[reportArgumentType]  # Traced.
        return bound.mean((-2, -1)), garnets.most(gaps / bound, (-2, -1))

    return jax.lax.map(one, given)


@jax.jit
def _shares_2(given: tuple[Any, ...], lambda_: types.Array, tau: types.Array) -> jax.Array:
    def one(given: tuple[Any, ...]) -> jax.Array:
        mdp, log_optimal, log_policies, errors, gaps = given
        bound = bounds.entropy_gap(mdp, log_optimal, log_policies, errors, lambda_, tau)
        return garnets.most(gaps / bound)

    return jax.lax.map(one, given)


def rates(config: Config, processes: MDP) -> reproduce.Rows:
    """Returns the rate g2(k) of theorem 2, of the first process."""
    r_max, gamma = float(np.max(np.abs(processes.reward[0]))), float(processes.discount[0])
    rows: reproduce.Rows = []
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


def claims(config: Config, tables: study.Tables) -> list[reproduce.Check]:
    """Judges the paper's statements, each of the runs of this configuration."""
    ends, counted = tables["ends"], garnets.counted(config.processes, config.iterations)

    def of(scheme: str, name: str = "end") -> np.ndarray:
        return study.column(ends, name, scheme=scheme)

    def largest(name: str, *panels: str) -> float:
        return garnets.largest(row[name] for row in ends if row["panel"] in panels)

    few = (
        f"over {min(len(of(AVI)), config.component_processes)} processes and "
        f"{config.component_iterations} iterations"
    )
    checks = [
        study.small(
            "a step of MD-VI leads from every iterate of DA-VI to its next q (proposition 1)",
            largest("twin_off", "lambda", "beta"),
            1e-10,
            counted,
        ),
        study.within(
            "AVI and DA-VI(lambda, 0) keep to their bounds, the latter by component (theorem 1)",
            largest("largest_share", "lambda"),
            counted,
        ),
        study.within(
            "DA-VI(lambda, tau) keeps to theorem 2 by component",
            largest("largest_share_by_component", "beta"),
            few,
        ),
        study.within(
            "and to its corollary in the supremum norm", largest("largest_share", "beta"), counted
        ),
    ]
    lambdas = [f"lambda = {value:g}" for value in sorted(config.lambdas)]
    betas = [f"beta = {value:g}" for value in sorted(config.betas)]
    for label in lambdas:
        claim = f"{label} ends nearer than AVI, which does not converge"
        checks.append(garnets.above(claim, of(AVI) - of(label)))
    for small, large in itertools.pairwise(lambdas):
        claim = f"{large} is slower than {small} (difference over iterations 1 to 10)"
        checks.append(garnets.above(claim, of(large, "early") - of(small, "early")))
    for small, large in itertools.pairwise(betas):
        checks.append(garnets.above(f"{large} ends nearer than {small}", of(small) - of(large)))
    # The last row of each beta that is not after it.
    halfway = {row["beta"]: row for row in tables["rates"] if row["iteration"] <= HALFWAY}
    k = halfway[config.betas[0]]["iteration"]
    ordered = [halfway[beta]["g2"] for beta in sorted(config.betas)]
    starts = ", ".join(f"{label} {of(label, 'early').mean():.3f}" for label in betas)
    return [
        *checks,
        reproduce.Check(
            f"the larger beta, the slower the rate g2(k), what theorem 2 is without errors in the "
            f"first process (k = {k})",
            all(a < b for a, b in itertools.pairwise(ordered)),
            ", ".join(f"{value:.3g}" for value in ordered),
        ),
        study.reported("mean distance over iterations 1 to 10", starts),
    ]


def panels(config: Config, tables: study.Tables) -> study.Grid:
    """Returns the three panels of figure 1, with the bounds."""
    betas = [f"beta = {value:g}" for value in config.betas]
    lambdas = [AVI, *(f"lambda = {value:g}" for value in config.lambdas)]
    g2 = [
        study.Line(study.column(rows, "iteration"), study.column(rows, "g2"), label, {"lw": 1.4})
        for label, beta in zip(betas, config.betas, strict=True)
        for rows in [study.where(tables["rates"], beta=beta)]
    ]
    whole = (1, config.iterations)
    return study.Grid(
        panels=[
            garnets.panel(
                garnets.lines(tables["curves"], lambdas),
                r"DA-VI($\lambda$, 0), theorem 1",
                r"$\Vert q_* - q_{\pi_k} \Vert_1 \,/\, \Vert q_* \Vert_1$",
                xlim=whole,
            ),
            garnets.panel(
                g2,
                r"Theorem 2 without errors, first process",
                r"rate $g_2(k)$, units of reward",
                xlim=whole,
                ylim=(1e-4, None),
            ),
            garnets.panel(
                garnets.lines(tables["curves"], betas),
                rf"DA-VI($\lambda$, $\tau$ = {config.tau:g}), theorem 2",
                r"$\Vert q_*^\tau - q_{\pi_k}^\tau \Vert_1 \,/\, \Vert q_*^\tau \Vert_1$",
                xlim=whole,
            ),
        ],
        width=4.8,
        height=4.2,
        title=f"{garnets.successors(config.samples)}; {garnets.MEAN}, dashed: mean of the bounds",
    )


def arms(config: Config) -> list[study.Arm]:
    """Returns the runs of both panels; AVI has no temperature."""
    temperatures = {AVI: None, **{f"lambda-{x:g}": x for x in config.lambdas}}
    return [
        *(
            garnets.arm(config, name, config.iterations, averaged, x)
            for name, x in temperatures.items()
        ),
        *(
            garnets.arm(config, f"beta-{x:g}", config.iterations, regularized, x)
            for x in config.betas
        ),
    ]


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

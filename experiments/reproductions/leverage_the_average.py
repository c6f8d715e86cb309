"""`kullback reproduce leverage-the-average`: KL regularisation averages errors.

Vieillard, Kozuno, Scherrer, Pietquin, Munos & Geist, "Leverage the Average", NeurIPS 2020,
https://arxiv.org/abs/2003.14089, figure 1, on 100 Garnets with one sampled successor of each state
and action: DA-VI(lambda, 0) beside approximate value iteration, the rate g2(k) of theorem 2, and
DA-VI(lambda, tau). Beta is lambda / (lambda + tau).
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from kullback.core import types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import garnets
from kullback.theory import bounds, convex, iteration, mirror, run, solve
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


def execute(config: Config, work: reproduce.Work) -> reproduce.Found:
    """The runs of both panels, and that MD-VI is DA-VI."""
    processes = garnets.make(config.processes)
    arms = [(AVI, functools.partial(averaged, config, processes, None))]
    arms += [
        (f"lambda-{x:g}", functools.partial(averaged, config, processes, x)) for x in config.lambdas
    ]
    arms += [
        (f"beta-{x:g}", functools.partial(regularized, config, processes, x)) for x in config.betas
    ]
    rows: reproduce.Rows = []
    for name, compute in arms:
        rows += work.part(garnets.part(config.processes, name), config.iterations, compute)
    tables = {name: garnets.where(rows, table=name) for name in ("curves", "ends")}
    tables["rates"] = rates(config, processes)
    counted = garnets.counted(processes, config.iterations)
    checks = judge(config, tables, counted)
    return reproduce.Found(tables, {"leverage_the_average": draw(config, tables)}, checks)


def measure(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """`garnets.measure` and the policy; how far a step of MD-VI leads from one of DA-VI."""
    found = garnets.measure(mdp, record, context)
    state, zeros = record.state, jnp.zeros_like(record.state.q)
    temperatures = context["lambda_"], context["tau"]
    averaged = mirror.da_vi(*temperatures).step(mdp, state, zeros)
    mirrored = mirror.md_vi(*temperatures).step(
        mdp, State(state.q, convex.Point(state.log_policy, state.steps)), zeros
    )
    off = garnets.most(abs(averaged.q - mirrored.q))
    return {**found, "log_policy": state.log_policy, "twin_off": off}


def with_policy(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """`garnets.measure` and the policy."""
    found = garnets.measure(mdp, record, context)
    return {**found, "log_policy": record.state.log_policy, "twin_off": jnp.zeros(())}


def simulate(
    config: Config, processes: MDP, lambda_: float | None, tau: float, optimal_q: types.Array
) -> dict[str, np.ndarray]:
    """Records of DA-VI(lambda, tau), or of AVI, [M, K + 1, ...]."""

    def simulated(scheme: Any, measured: Any, **more: Any) -> Any:
        context = garnets.context(optimal_q, tau)
        context["lambda_"] = np.full(len(optimal_q), lambda_ or 0.0)
        return run.run(
            scheme,
            processes,
            config.iterations,
            noise=run.sampled(config.samples),
            key=jax.random.key(config.noise_seed),
            measure=measured,
            context=context,
            clip=tau == 0,  # Theorem 1 asks for it.
            **more,
        ).records

    if lambda_ is None:
        return simulated(iteration.value_iteration(), with_policy)
    given = {"lambda_": np.array([lambda_]), "tau": np.array([tau])}  # Compiled once for all.
    found = simulated(mirror.da_vi, measure, parameters=given)
    return {name: x[0] for name, x in found.items()}


def averaged(config: Config, processes: MDP, lambda_: float | None) -> reproduce.Rows:
    """Rows of DA-VI(lambda, 0) with theorem 1, or of AVI with its bound."""
    optimum = garnets.optimum(processes)
    found = simulate(config, processes, lambda_, 0.0, optimum.q)
    scale, size = garnets.of_mean(optimum.q), np.max(np.abs(optimum.q), (-2, -1))[:, None]
    if lambda_ is None:
        norms = np.max(np.abs(found["error"][:, 1:]), (-2, -1))
        bound = garnets.each(bounds.mpi_gap, norms, size[:, 0], processes.discount)
        shares = garnets.share(found["largest_gap"][:, 1:], bound, size)
        label = AVI
    else:
        bound, shares = theorem_1(processes, optimum, found, lambda_)
        label = f"lambda = {lambda_:g}"
    rows = garnets.curve(label, found["gap"] / scale, bound / scale, panel="lambda")
    last = garnets.ends(
        label,
        late(found["gap"] / scale),
        early=early(found["gap"] / scale),
        panel="lambda",
        largest_share=float(shares.max()),
        largest_share_by_component=float(shares.max()),
        twin_off=float(found["twin_off"].max()),
    )
    return garnets.tagged("curves", rows) + garnets.tagged("ends", last)


def regularized(config: Config, processes: MDP, beta: float) -> reproduce.Rows:
    """Rows of DA-VI(lambda, tau) with theorem 2; the bound that is drawn is its corollary."""
    lambda_, tau = beta / (1 - beta) * config.tau, config.tau
    optimum = garnets.optimum(processes, tau)
    found = simulate(config, processes, lambda_, tau, optimum.q)
    scale, size = garnets.of_mean(optimum.q), np.max(np.abs(optimum.q), (-2, -1))[:, None]
    r_max = np.max(np.abs(processes.reward), (-2, -1))

    def promised(errors: types.Array, r_max: float, gamma: float) -> types.Array:
        norms = jnp.max(abs(bounds.moving_average(errors, beta)), (-2, -1))
        actions = processes.num_actions
        return bounds.entropy_gap_norm(norms, actions, r_max, gamma, lambda_, tau)

    bound = garnets.each(promised, found["error"][:, 1:], r_max, processes.discount)
    by_norm = garnets.share(found["largest_gap"][:, 1:], bound, size)
    by_component = theorem_2(processes, optimum, found, lambda_, config)
    label = f"beta = {beta:g}"
    rows = garnets.curve(label, found["gap"] / scale, bound / scale, panel="beta")
    last = garnets.ends(
        label,
        late(found["gap"] / scale),
        early=early(found["gap"] / scale),
        panel="beta",
        largest_share=float(by_norm.max()),
        largest_share_by_component=by_component,
        twin_off=float(found["twin_off"].max()),
    )
    return garnets.tagged("curves", rows) + garnets.tagged("ends", last)


def late(gap: np.ndarray) -> np.ndarray:
    """Mean over the last tenth of the iterations, [M], of [M, K + 1]."""
    return gap[:, -max(1, gap.shape[1] // 10) :].mean(1)


def early(gap: np.ndarray) -> list[float]:
    """Mean over iterations 1 to 10, [M]."""
    return gap[:, 1:11].mean(1).tolist()


def theorem_1(
    processes: MDP, optimum: solve.Solution, found: dict[str, np.ndarray], lambda_: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the bound over components, and the largest share that a gap has of it; [M, K]."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _shares_1(_given(processes, optimum, found), lambda_))


def theorem_2(
    processes: MDP,
    optimum: solve.Solution,
    found: dict[str, np.ndarray],
    lambda_: float,
    config: Config,
) -> float:
    """The largest share that any component of a gap has of its bound."""
    few = slice(config.component_processes)
    processes, optimum, found = jax.tree.map(lambda x: x[few], (processes, optimum, found))
    given = _given(processes, optimum, found, config.component_iterations)
    with jax.enable_x64(True):
        return float(np.max(_shares_2(given, lambda_, config.tau)))


def _given(
    processes: MDP,
    optimum: solve.Solution,
    found: dict[str, np.ndarray],
    num_iterations: int | None = None,
) -> tuple[Any, ...]:
    """What the theorems take: processes, their optimal policies, policies, errors and gaps."""
    names = ("log_policy", "error", "gaps")
    later = (found[name][:, 1:][:, :num_iterations] for name in names)
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
    """The rate g2(k) of theorem 2, of the first process."""
    r_max, gamma = float(np.max(np.abs(processes.reward[0]))), float(processes.discount[0])
    rows: reproduce.Rows = []
    for beta in config.betas:
        found = bounds.entropy_start(
            config.iterations,
            processes.num_actions,
            r_max,
            gamma,
            beta / (1 - beta) * config.tau,
            config.tau,
        )
        rows += [
            {"beta": beta, "iteration": int(k), "g2": float(found[k])}
            for k in garnets.kept(config.iterations - 1)
        ]
    return rows


def judge(config: Config, tables: dict[str, reproduce.Rows], counted: str) -> list[reproduce.Check]:
    """The paper's statements, each of the runs of this configuration."""
    ends = tables["ends"]

    def of(scheme: str, column: str = "end") -> np.ndarray:
        return np.array([row[column] for row in garnets.where(ends, scheme=scheme)])

    def largest(panel: str, column: str) -> float:
        return garnets.largest(row[column] for row in garnets.where(ends, panel=panel))

    few = (
        f"over {min(len(of(AVI)), config.component_processes)} processes and "
        f"{config.component_iterations} iterations"
    )
    checks = [
        garnets.small(
            "a step of MD-VI leads from every iterate of DA-VI to its next q (proposition 1)",
            garnets.largest(largest(panel, "twin_off") for panel in ("lambda", "beta")),
            1e-10,
            counted,
        ),
        garnets.within(
            "AVI and DA-VI(lambda, 0) keep to their bounds, the latter by component (theorem 1)",
            largest("lambda", "largest_share"),
            counted,
        ),
        garnets.within(
            "DA-VI(lambda, tau) keeps to theorem 2 by component",
            largest("beta", "largest_share_by_component"),
            few,
        ),
        garnets.within(
            "and to its corollary in the supremum norm", largest("beta", "largest_share"), counted
        ),
    ]
    lambdas = [f"lambda = {value:g}" for value in sorted(config.lambdas)]
    betas = [f"beta = {value:g}" for value in sorted(config.betas)]
    for label in lambdas:
        checks.append(
            garnets.above(
                f"{label} ends nearer than AVI, which does not converge", of(AVI) - of(label)
            )
        )
    for small, large in itertools.pairwise(lambdas):
        checks.append(
            garnets.above(
                f"{large} is slower than {small} (difference over iterations 1 to 10)",
                of(large, "early") - of(small, "early"),
            )
        )
    for small, large in itertools.pairwise(betas):
        checks.append(garnets.above(f"{large} ends nearer than {small}", of(small) - of(large)))
    # The last row of each beta that is not after it.
    halfway = {row["beta"]: row for row in tables["rates"] if row["iteration"] <= HALFWAY}
    k = halfway[config.betas[0]]["iteration"]
    ordered = [halfway[beta]["g2"] for beta in sorted(config.betas)]
    checks.append(
        reproduce.Check(
            f"the larger beta, the slower the rate g2(k), what theorem 2 is without errors in the "
            f"first process (k = {k})",
            all(a < b for a, b in itertools.pairwise(ordered)),
            ", ".join(f"{value:.3g}" for value in ordered),
        )
    )
    starts = ", ".join(f"{label} {of(label, 'early').mean():.3f}" for label in betas)
    return [*checks, reproduce.Check("mean distance over iterations 1 to 10", None, starts)]


def draw(config: Config, tables: dict[str, reproduce.Rows]) -> Figure:
    """The three panels of figure 1, with the bounds."""
    drawn = reproduce.figure(3, width=4.8, height=4.2)
    left, middle, right = drawn.axes
    labels = [AVI, *(f"lambda = {value:g}" for value in config.lambdas)]
    for label in labels:
        garnets.draw(left, garnets.where(tables["curves"], scheme=label), label)
    for beta in config.betas:
        rows = garnets.where(tables["rates"], beta=beta)
        x, y = [row["iteration"] for row in rows], [row["g2"] for row in rows]
        middle.plot(x, y, lw=1.4, label=f"beta = {beta:g}")
        label = f"beta = {beta:g}"
        garnets.draw(right, garnets.where(tables["curves"], scheme=label), label)
    left.set(
        title=r"DA-VI($\lambda$, 0), theorem 1",
        ylabel=r"$\Vert q_* - q_{\pi_k} \Vert_1 \,/\, \Vert q_* \Vert_1$",
    )
    middle.set(
        title=r"Theorem 2 without errors, first process", ylabel=r"rate $g_2(k)$, units of reward"
    )
    right.set(
        title=rf"DA-VI($\lambda$, $\tau$ = {config.tau:g}), theorem 2",
        ylabel=r"$\Vert q_*^\tau - q_{\pi_k}^\tau \Vert_1 \,/\, \Vert q_*^\tau \Vert_1$",
    )
    for axes in drawn.axes:
        axes.set(xlabel="iterations k", xscale="log", yscale="log", xlim=(1, config.iterations))
        garnets.legend(axes)
    middle.set(ylim=(1e-4, None))
    drawn.suptitle(
        f"{garnets.successors(config.samples)}; {garnets.MEAN}, dashed: mean of the bounds",
        fontsize=10,
    )
    return drawn


REPRODUCTION = reproduce.Reproduction(
    claim="KL regularisation averages the errors of value iteration, and keeps to its bounds.",
    source="Vieillard et al. 2020, arXiv:2003.14089",
    config=Config(),
    steps=lambda config: config.iterations * (1 + len(config.lambdas) + len(config.betas)),
    seconds=lambda config: garnets.seconds(
        config.processes, 3 * config.iterations, 1 + len(config.lambdas) + len(config.betas)
    ),
    run=execute,
)

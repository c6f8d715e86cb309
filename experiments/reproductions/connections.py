"""`kullback reproduce connections`: CPI is Frank-Wolfe, MD-MPI mirror descent, Politex averages.

Vieillard, Pietquin & Geist, "On Connections between Constrained Optimization and Reinforcement
Learning", 2019, https://arxiv.org/abs/1910.08476. The twins minimise -J, J = <mu, v_pi>, of which
they know the gradient alone, by automatic differentiation; the schemes know q_pi alone. The figure
has the schemes with their bounds, with exact and sampled evaluation, and their ways through the
polytope of the values of two states.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kullback.core import regularizers
from kullback.experiments import reproduce
from kullback.experiments.reproductions import garnets
from kullback.theory import bounds, conservative, convex, mirror, politex, run, scheme, solve
from kullback.theory import mdp as mdps
from kullback.theory.mdp import MDP

CPI, MIRROR, POLITEX = "CPI", "MD-MPI", "Politex"
TIE = 1e-9  # Two best actions as near as this are chosen between by rounding.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and step sizes."""

    processes: garnets.Config = dataclasses.field(default_factory=garnets.Config)
    iterations: int = 200
    rates: tuple[float, ...] = (0.1, 0.5, 1.0)  # Of CPI, in (0, 1].
    etas: tuple[float, ...] = (0.1, 1.0, 10.0)  # Step sizes > 0, in inverse units of reward.
    samples: int = 1  # Successors of each state and action in a sampled evaluation.
    noise_seed: int = 1
    backups: tuple[int, ...] = (1, 5)  # m of MD-MPI, beside m = inf.
    twin_iterations: int = 50  # In which schemes and optimisers are compared.

    def __post_init__(self) -> None:
        for name in ("iterations", "twin_iterations", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.rates or any(not 0 < rate <= 1 for rate in self.rates):
            raise ValueError(f"rates must lie in (0, 1], got {self.rates}")
        if not self.etas or min(self.etas) <= 0:
            raise ValueError(f"etas must be > 0, got {self.etas}")
        if any(m < 1 for m in self.backups):
            raise ValueError(f"backups must be >= 1, got {self.backups}")

    @property
    def eta(self) -> float:
        """The step size in the middle, where only one is shown."""
        return sorted(self.etas)[len(self.etas) // 2]

    @property
    def rate(self) -> float:
        """The smallest rate, likewise."""
        return min(self.rates)


def families(config: Config) -> dict[str, tuple[Callable[..., scheme.Scheme], str, np.ndarray]]:
    """Schemes with exact evaluation: constructor, its parameter, and the values of that."""
    etas = np.array(config.etas)
    return {
        CPI: (conservative.cpi, "rate", np.array(config.rates)),
        MIRROR: (md_pi, "lambda_", 1 / etas),
        POLITEX: (politex.politex, "eta", etas),
    }


def md_pi(lambda_: Any, m: float = math.inf) -> scheme.Scheme:
    """MD-MPI(lambda, 0) without the regularised evaluation: type 2."""
    return mirror.md_mpi(lambda_, m=m, regularized=False)


def sizes(config: Config, family: str) -> list[str]:
    """The arms of a family, in words."""
    if family == CPI:
        return [f"a = {rate:g}" for rate in config.rates]
    return [f"eta = {eta:g}" for eta in config.etas]


def execute(config: Config, work: reproduce.Work) -> reproduce.Found:
    """The families with exact evaluation, the variants, and the twins."""
    processes = garnets.make(config.processes)
    arms: dict[str, Callable[[], reproduce.Rows]] = {
        family: functools.partial(exact, config, processes, family) for family in families(config)
    }
    arms |= {
        "variants": functools.partial(variants, config, processes),
        "twins": functools.partial(twins, config, processes),
    }
    rows: reproduce.Rows = []
    for name, compute in arms.items():
        rows += work.part(garnets.part(config.processes, name), config.iterations, compute)
    names = ("curves", "variants", "twins")
    tables = {name: garnets.where(rows, table=name) for name in names}
    tables["polytope"] = polytope(config)
    checks = judge(tables, garnets.counted(processes, config.iterations), config)
    return reproduce.Found(tables, {"connections": draw(config, tables)}, checks)


def value(mdp: MDP, record: run.Record, optimal_v: Any) -> dict[str, Any]:
    """Gap of the policy, and its value."""
    v = solve.linear_values(mdp, record.state.log_policy, jnp.zeros(mdp.num_states))
    return {"gap": jnp.max(optimal_v - v), "v": v}


def exact(config: Config, processes: MDP, family: str) -> reproduce.Rows:
    """Curves of a family with their bounds; how much a step may make any state worse."""
    make, parameter, values = families(config)[family]
    make = functools.partial(make, m=math.inf)
    v = garnets.optimum(processes).v
    found = run.run(
        make,
        processes,
        config.iterations,
        parameters={parameter: values},
        measure=value,
        context=v,
    ).records
    scale = np.max(np.abs(v), -1)[:, None]
    gamma = np.asarray(processes.discount)[:, None]
    # Gaps do not change with a constant reward, so that rewards may begin at 0.
    r_max = np.ptp(np.asarray(processes.reward), axis=(-2, -1))[:, None]
    k = np.arange(1, config.iterations + 1)
    rows: reproduce.Rows = []
    for i, label in enumerate(sizes(config, family)):
        gap = found["gap"][i]
        if family == CPI:
            bound = gap[:, :1] * bounds.cpi_contraction(1.0, values[i], gamma) ** k
        elif family == MIRROR:
            every = [
                [
                    bounds.md_pi_gap(int(n), processes.num_actions, float(r), float(g), values[i])
                    for n in k
                ]
                for r, g in zip(r_max[:, 0], gamma[:, 0], strict=True)
            ]
            bound = np.array(every)
        else:  # Of the mean gap of the policies before k.
            every = [
                [
                    bounds.politex_regret(
                        int(n), processes.num_actions, float(r), float(g), values[i]
                    )
                    / n
                    for n in k
                ]
                for r, g in zip(r_max[:, 0], gamma[:, 0], strict=True)
            ]
            bound = np.array(every)
            gap = np.cumsum(gap, 1) / np.arange(1, config.iterations + 2)
            gap = np.concatenate([gap[:, :1], gap[:, :-1]], 1)
        fall = float(np.max(-np.diff(found["v"][i], axis=1) / scale[:, None]))
        rows += garnets.tagged(
            "curves",
            garnets.curve(label, gap / scale, bound / scale, family=family, largest_fall=fall),
        )
    return rows


def variants(config: Config, processes: MDP) -> reproduce.Rows:
    """Curves with sampled evaluation, and of MD-MPI with other numbers of backups."""
    v = garnets.optimum(processes).v
    scale = np.max(np.abs(v), -1)[:, None]
    noise = {"noise": run.sampled(config.samples), "key": jax.random.key(config.noise_seed)}
    compared = {
        "PI": (conservative.cpi(1.0), noise),
        f"CPI, a = {config.rate:g}": (conservative.cpi(config.rate), noise),
        f"MD-MPI, eta = {config.eta:g}": (md_pi(1 / config.eta), noise),
        **{f"m = {m}": (md_pi(1 / config.eta, m), {}) for m in config.backups},
        "m = inf": (md_pi(1 / config.eta), {}),
    }
    rows: reproduce.Rows = []
    for label, (made, more) in compared.items():
        found = run.run(made, processes, config.iterations, measure=value, context=v, **more)
        kind = "sampled" if more else "backups"
        rows += garnets.curve(label, found.records["gap"] / scale, kind=kind)
    return garnets.tagged("variants", rows)


def objective(mdp: MDP, policy: Any) -> Any:
    """J = <mu, v_pi> of probabilities [S, A]."""
    matrix = jnp.eye(mdp.num_states) - mdp.discount * mdp.transitions(policy)
    return jnp.sum(mdp.initial * solve.linear_solve(matrix, jnp.sum(policy * mdp.reward, -1)))


def twins(config: Config, processes: MDP) -> reproduce.Rows:
    """The largest difference of each scheme's policies from its twin's, of every process."""
    iterations, lambda_ = config.twin_iterations, 1 / config.eta
    rate = min(config.rate, 0.5)  # A deterministic policy may never come to some state.
    # J weighs all states, whatever the process begins with.
    initial = np.full_like(processes.initial, 1 / processes.num_states)
    processes = processes._replace(initial=initial)

    def one(mdp: MDP) -> dict[str, Any]:
        start = scheme.uniform(mdp)

        def gradient(log_x: Any) -> Any:
            return -jax.grad(functools.partial(objective, mdp))(jnp.exp(log_x))

        def natural(log_x: Any) -> Any:  # Without the weight of a state: the weighted divergence.
            weights = solve.occupancy(mdp, log_x) / (1 - mdp.discount)
            return gradient(log_x) / weights[:, None]

        def points(method: convex.Method, size: Any, oracle: Any = natural) -> Any:
            return jnp.exp(convex.minimize(method, oracle, start, size, iterations).log_x)

        def policies(made: scheme.Scheme) -> Any:
            def body(state: Any, _: None) -> tuple[Any, Any]:
                state = made.step(mdp, state, jnp.zeros_like(mdp.reward))
                return state, state

            first = made.init(mdp)
            _, states = jax.lax.scan(body, first, None, length=iterations)
            stacked = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, states)
            return jnp.exp(stacked.log_policy), stacked.q

        def off(x: Any, y: Any) -> Any:
            return jnp.max(jnp.abs(x - y))

        def fading(k: Any) -> Any:
            return lambda_ * jnp.sqrt(k + 1.0)

        sparse = regularizers.alpha(2.0)
        mixed, q = policies(conservative.cpi(rate))
        mirrored, _ = policies(md_pi(lambda_))
        averaged, _ = policies(politex.politex(config.eta))
        two = jax.lax.top_k(q, 2)[0] if mdp.num_actions > 1 else jnp.stack([q[..., 0]] * 2, -1)
        return {
            "CPI, Frank-Wolfe": off(mixed, points(convex.frank_wolfe(), rate, gradient)),
            "MD-MPI, mirror descent": off(mirrored, points(convex.mirror_descent(), lambda_)),
            "Politex, dual averaging": off(averaged, points(convex.dual_averaging(), lambda_)),
            "MD-MPI, Politex": off(mirrored, averaged),
            "mirror descent, dual averaging; a step size that fades": off(
                points(convex.mirror_descent(), fading), points(convex.dual_averaging(), fading)
            ),
            "mirror descent, dual averaging; another divergence": off(
                points(convex.mirror_descent(divergence=sparse), lambda_),
                points(convex.dual_averaging(divergence=sparse), lambda_),
            ),
            "distance of the best two actions": jnp.min(two[..., 0] - two[..., 1]),
        }

    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, jax.jit(functools.partial(jax.lax.map, one))(processes))
    tie = found.pop("distance of the best two actions")
    return garnets.tagged(
        "twins",
        [
            {
                "pair": pair,
                "process": i,
                "largest_difference": float(x),
                "is_tied": bool(tie[i] < TIE),
            }
            for pair, values in found.items()
            for i, x in enumerate(values)
        ],
    )


def two_states() -> MDP:
    """Two states with two actions each, whose values make a polytope that one can draw."""
    probabilities = np.array([[[0.12, 0.88], [0.63, 0.37]], [[0.0, 1.0], [0.0, 1.0]]])
    return mdps.make(probabilities, np.array([[-0.1, 0.5], [0.1, 0.0]]), 0.8)


def polytope(config: Config) -> reproduce.Rows:
    """Values of both states: of the edges of the polytope, and of three schemes on their way."""
    mdp = two_states()
    rows: reproduce.Rows = []

    def add(what: str, log_policies: np.ndarray) -> None:
        for k, log_policy in enumerate(log_policies):
            v, _ = solve.policy_values(mdp, log_policy)
            rows.append({"what": what, "iteration": k, "v1": float(v[0]), "v2": float(v[1])})

    line = np.linspace(0, 1, 21)
    for state in (0, 1):
        for action in (0, 1):
            first = np.empty((len(line), 2))
            first[:, state], first[:, 1 - state] = action, line
            with np.errstate(divide="ignore"):
                edge = np.log(np.stack([first, 1 - first], -1))
            add(f"edge {state} {action}", edge)

    def fading(k: Any) -> Any:
        return config.eta / jnp.sqrt(k + 1.0)

    paths = {
        f"CPI, a = {config.rate:g}": conservative.cpi(config.rate),
        f"MD-MPI, eta = {config.eta:g}": md_pi(1 / config.eta),
        f"Politex, eta = {config.eta:g} / sqrt(k + 1)": politex.politex(fading),
    }
    for label, made in paths.items():
        records = run.run(made, mdp, min(config.iterations, 40)).records
        add(label, records.state.log_policy)
    return rows


def judge(tables: dict[str, reproduce.Rows], counted: str, config: Config) -> list[reproduce.Check]:
    """The correspondences, where they stop, and the bounds."""
    pairs = dict.fromkeys(row["pair"] for row in tables["twins"])
    checks: list[reproduce.Check] = []
    for pair in pairs:
        rows = garnets.where(tables["twins"], pair=pair)
        if "Frank-Wolfe" in pair:
            rows = [row for row in rows if not row["is_tied"]] or rows
        off = [row["largest_difference"] for row in rows]
        said = f"over {len(off)} processes and {config.twin_iterations} iterations"
        if not pair.startswith("mirror descent"):
            checks.append(garnets.small(f"{pair}: the same policies", max(off), 1e-10, said))
        else:
            checks.append(
                reproduce.Check(
                    f"{pair}: different policies",
                    min(off) > 1e-6,
                    f"by {min(off):.2g} at least {said}",
                )
            )
    for family in (CPI, MIRROR, POLITEX):
        rows = garnets.where(tables["curves"], family=family)
        share = max(row["largest_share"] for row in rows)
        checks.append(garnets.within(f"{family} keeps to its bound", share, counted))
    fall = max(row["largest_fall"] for row in tables["curves"])
    checks.append(
        garnets.small(
            "with exact evaluation no step makes any state worse (by how much, relative)",
            max(fall, 0.0),
            garnets.ROUNDING,
            counted,
        )
    )
    return checks


def draw(config: Config, tables: dict[str, reproduce.Rows]) -> Figure:
    """Three families with bounds; the polytope, sampled evaluation, numbers of backups."""
    drawn = reproduce.figure(3, 2, width=4.8, height=4.3)
    for axes, family in zip(drawn.axes[:3], (CPI, MIRROR, POLITEX), strict=True):
        for label in sizes(config, family):
            rows = garnets.where(tables["curves"], family=family, scheme=label)
            garnets.draw(axes, rows, label, median=True)
        axes.set_title(f"{family}, exact evaluation (dashed: bounds)")
    polygon, sampled, backups = drawn.axes[3:]
    _draw_polytope(polygon, tables["polytope"])
    for axes, kind in ((sampled, "sampled"), (backups, "backups")):
        rows = garnets.where(tables["variants"], kind=kind)
        for label in dict.fromkeys(row["scheme"] for row in rows):
            garnets.draw(axes, garnets.where(rows, scheme=label), label, median=kind == "backups")
    sampled.set_title(f"Evaluation of {config.samples} sampled successor(s)")
    backups.set_title(f"MD-MPI, eta = {config.eta:g}, m backups")
    gap = r"$\max (v_* - v_{\pi_k}) \,/\, \max |v_*|$"
    for axes in (*drawn.axes[:3], sampled, backups):
        axes.set(xlabel="iterations k", ylabel=gap, xscale="log", yscale="log")
        axes.set_xlim(1, config.iterations)
    drawn.axes[0].set_ylim(1e-12, None)
    drawn.axes[2].set_ylabel("mean over the policies before k of " + gap, fontsize=8)
    for axes in drawn.axes:
        axes.title.set_fontsize(10)
        garnets.legend(axes, 1 if axes is polygon else 3)
    return drawn


def _draw_polytope(axes: Axes, rows: reproduce.Rows) -> None:
    for number, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        x, y = zip(*((r["v1"], r["v2"]) for r in rows if r["what"] == what), strict=True)
        if what.startswith("edge"):
            axes.plot(x, y, color="0.5", lw=1, label=None if number else "one state deterministic")
        else:
            axes.plot(x, y, "o-", markersize=3, lw=1, label=what)
    axes.set(xlabel=r"$v_\pi(s_1)$", ylabel=r"$v_\pi(s_2)$", title="Ways through the values")


REPRODUCTION = reproduce.Reproduction(
    claim="Conservative policy iteration is Frank-Wolfe, mirror-descent policy iteration is mirror "
    "descent and Politex is dual averaging, up to where their correspondence stops.",
    source="Vieillard et al. 2019, arXiv:1910.08476",
    config=Config(),
    steps=lambda config: 5 * config.iterations,
    seconds=lambda c: garnets.seconds(
        c.processes, 3 * c.iterations, 1 + len(c.rates) + 2 * len(c.etas)
    ),
    run=execute,
)

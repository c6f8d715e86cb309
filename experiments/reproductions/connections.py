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
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, regularizers, types
from kullback.experiments.reproductions import charts, garnets, judging, polytope, study
from kullback.theory import bounds, conservative, convex, mirror, politex, run, scheme, solve
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
        ranges.at_least(1, self, "iterations", "twin_iterations", "samples")
        ranges.inside("(0, 1]", self, "rates")
        ranges.inside("[1e-300, 1e300]", self, "etas")  # Schemes and bounds take 1 / eta.
        ranges.inside("[1, inf)", self, "backups", may_be_empty=True)

    @property
    def eta(self) -> float:
        """The step size in the middle, where only one is shown."""
        return sorted(self.etas)[len(self.etas) // 2]

    @property
    def rate(self) -> float:
        """The smallest rate, likewise."""
        return min(self.rates)


def families(config: Config) -> dict[str, tuple[Callable[..., scheme.Scheme], str, np.ndarray]]:
    """Returns schemes with exact evaluation: constructor, its parameter, and the values of that."""
    etas = np.array(config.etas)
    return {
        CPI: (conservative.cpi, "rate", np.array(config.rates)),
        MIRROR: (md_pi, "lambda_", 1 / etas),
        POLITEX: (politex.politex, "eta", etas),
    }


def md_pi(lambda_: Any, m: float = math.inf) -> scheme.Scheme:
    """Returns MD-MPI(lambda, 0) without the regularised evaluation: type 2."""
    return mirror.md_mpi(lambda_, m=m, regularized=False)


def sizes(config: Config, family: str) -> list[str]:
    """Returns the arms of a family, in words."""
    if family == CPI:
        return [f"a = {rate:g}" for rate in config.rates]
    return [f"eta = {eta:g}" for eta in config.etas]


def value(mdp: MDP, record: run.Record, optimal_v: Any) -> dict[str, Any]:
    """Returns the gap of the policy, and its value."""
    v = solve.linear_values(mdp, record.state.log_policy, jnp.zeros(mdp.num_states))
    return {"gap": garnets.most(optimal_v - v), "v": v}


def exact(config: Config, processes: MDP, family: str) -> study.Rows:
    """Returns curves of a family with their bounds; how much a step may make any state worse."""
    make, parameter, values = families(config)[family]
    make = functools.partial(make, m=math.inf)
    v = garnets.optimum(processes).v
    records = run.run(
        make,
        processes,
        config.iterations,
        parameters={parameter: values},
        measure=value,
        context=v,
    ).records
    scale = garnets.of_largest(processes, v)[:, None]
    gamma = np.asarray(processes.discount)[:, None]
    k = np.arange(1, config.iterations + 1)
    rows: study.Rows = []
    for i, label in enumerate(sizes(config, family)):
        gap = records["gap"][i]
        if family == CPI:
            bound = gap[:, :1] * bounds.cpi_contraction(1.0, values[i], gamma) ** k
        elif family == MIRROR:
            bound = by_iteration(bounds.md_pi_gap, processes, config.iterations, values[i])
        else:  # Of the mean gap of the policies before k, in the state where that is largest.
            bound = by_iteration(bounds.politex_regret, processes, config.iterations, values[i]) / k
            gap = np.concatenate([gap[:, :1], regret(v, records["v"][i]) / k], 1)
        fall = float(np.max(-np.diff(records["v"][i], axis=1) / scale[:, None]))
        columns = {"family": family, "largest_fall": fall}
        rows += garnets.curve(label, gap / scale, bound / scale, **columns)
    return study.tagged("curves", rows)


def by_iteration(
    bound: Callable[..., float], processes: MDP, iterations: int, parameter: float
) -> np.ndarray:
    """Returns a bound of every process at iterations 1 to K, [M, K]."""
    # Gaps do not change with a constant reward, so that rewards may begin at 0.
    r_max = np.ptp(np.asarray(processes.reward), axis=(-2, -1))
    steps, actions = range(1, iterations + 1), processes.num_actions
    return np.array(
        [
            [bound(n, actions, float(r), float(gamma), parameter) for n in steps]
            for r, gamma in zip(r_max, np.asarray(processes.discount), strict=True)
        ]
    )


def regret(optimal_v: types.Array, v: np.ndarray) -> np.ndarray:
    """Returns the largest sum of a state's gaps before k, [M, K] for 1, ..., K.

    Args:
      optimal_v: v_*, [M, S].
      v: of pi_0, ..., pi_K, [M, K + 1, S].
    """
    gaps = np.asarray(optimal_v)[:, None] - v
    return np.max(np.cumsum(gaps[:, :-1], 1), -1)


def variants(config: Config, processes: MDP) -> study.Rows:
    """Returns curves with sampled evaluation, and of MD-MPI with other numbers of backups."""
    v = garnets.optimum(processes).v
    scale = garnets.of_largest(processes, v)[:, None]
    noise = garnets.sampling(config)
    compared = {
        "PI": (conservative.cpi(1.0), noise),
        f"CPI, a = {config.rate:g}": (conservative.cpi(config.rate), noise),
        f"MD-MPI, eta = {config.eta:g}": (md_pi(1 / config.eta), noise),
        **{f"m = {m}": (md_pi(1 / config.eta, m), {}) for m in config.backups},
        "m = inf": (md_pi(1 / config.eta), {}),
    }
    rows: study.Rows = []
    for label, (algorithm, more) in compared.items():
        result = run.run(algorithm, processes, config.iterations, measure=value, context=v, **more)
        kind = "sampled" if more else "backups"
        rows += garnets.curve(label, result.records["gap"] / scale, kind=kind)
    return study.tagged("variants", rows)


def objective(mdp: MDP, policy: Any) -> Any:
    """Returns J = <mu, v_pi> of probabilities [S, A]."""
    matrix = jnp.eye(mdp.num_states) - mdp.discount * mdp.transitions(policy)
    return jnp.sum(mdp.initial * solve.linear_solve(matrix, jnp.sum(policy * mdp.reward, -1)))


def twins(config: Config, processes: MDP) -> study.Rows:
    """Returns each process's largest difference of a scheme's policies from its twin's."""
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

        def policies(algorithm: scheme.Scheme) -> Any:
            def body(state: Any, _: None) -> tuple[Any, Any]:
                state = algorithm.step(mdp, state, jnp.zeros_like(mdp.reward))
                return state, state

            first = algorithm.init(mdp)
            _, states = jax.lax.scan(body, first, None, length=iterations)
            stacked = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, states)
            return jnp.exp(stacked.log_policy), stacked.q

        def off(x: Any, y: Any) -> Any:
            return garnets.most(jnp.abs(x - y))

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
            "way of CPI": off(mixed, jnp.exp(start)[None]),
            "way of mirror descent": off(mirrored, jnp.exp(start)[None]),
        }

    with jax.enable_x64(True):
        each = jax.jit(functools.partial(jax.lax.map, one))(processes)
        distances = jax.tree.map(np.asarray, each)
    tie = distances.pop("distance of the best two actions")
    ways = {CPI: distances.pop("way of CPI"), MIRROR: distances.pop("way of mirror descent")}
    rows: study.Rows = []
    for pair, values in distances.items():
        way = ways[CPI if pair.startswith(CPI) else MIRROR]
        for i, x in enumerate(values):
            row = {"pair": pair, "process": i, "largest_difference": float(x)}
            # Where all actions are alike policies stay uniform, and cannot differ.
            rows.append({**row, "is_tied": bool(tie[i] < TIE), "is_still": bool(way[i] < TIE)})
    return study.tagged("twins", rows)


def ways(config: Config) -> study.Rows:
    """Returns three schemes on their way through the polytope of values."""

    def fading(k: Any) -> Any:
        return config.eta / jnp.sqrt(k + 1.0)

    schemes = {
        f"CPI, a = {config.rate:g}": conservative.cpi(config.rate),
        f"MD-MPI, eta = {config.eta:g}": md_pi(1 / config.eta),
        f"Politex, eta = {config.eta:g} / sqrt(k + 1)": politex.politex(fading),
    }
    return polytope.rows(schemes, min(config.iterations, 40))


def same(config: Config, pair: str, rows: study.Rows) -> judging.Check:
    """Judges whether the policies of a pair are the same, or are not, as theory has it."""
    if "Frank-Wolfe" in pair:
        rows = study.where(rows, is_tied=False) or rows
    off = study.column(rows, "largest_difference", is_still=False)
    said = f"over {len(off)} processes and {config.twin_iterations} iterations"
    is_same = not pair.startswith("mirror descent")
    claim = f"{pair}: {'the same' if is_same else 'different'} policies"
    if not len(off):
        nothing = "every action is as good as any other, so that no policy changes"
        return judging.reported(claim, nothing)
    if is_same:
        return judging.small(claim, garnets.largest(off), 1e-10, said)
    least = float(np.min(off))
    return judging.exactly(claim, bool(least > 1e-6), f"by {least:.2g} at least {said}")


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the correspondences, where they stop, and the bounds."""
    counted = garnets.counted(config.processes, config.iterations)
    twin_rows, curves = tables["twins"], tables["curves"]
    for pair in study.distinct(twin_rows, "pair"):
        yield same(config, pair, study.where(twin_rows, pair=pair))
    for family in (CPI, MIRROR, POLITEX):
        share = garnets.largest(study.column(curves, "largest_share", family=family))
        yield judging.within(f"{family} keeps to its bound", share, counted)
    fall = garnets.largest([0.0, *study.column(curves, "largest_fall")])
    claim = "with exact evaluation no step makes any state worse (by how much, relative)"
    yield judging.small(claim, fall, garnets.ROUNDING, counted)


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns three families with bounds; the polytope, sampled evaluation, numbers of backups."""
    gap = r"$\max (v_* - v_{\pi_k}) \,/\, \max |v_*|$"
    mean = (
        r"mean of $v_* - v_{\pi_j}$ over $j < k$," + "\n" + r"largest of a state, $/\, \max |v_*|$"
    )
    whole = (1, config.iterations)

    def exact(family: str, ylabel: str, **axes: Any) -> charts.Panel:
        rows = study.where(tables["curves"], family=family)
        marks = garnets.lines(rows, sizes(config, family), median=True)
        title = f"{family}, exact evaluation (dashed: bounds)"
        return garnets.panel(marks, title, ylabel, 3, xlim=whole, **axes)

    def variant(kind: str, title: str, median: bool) -> charts.Panel:
        rows = study.where(tables["variants"], kind=kind)
        labels = study.distinct(rows, "scheme")
        return garnets.panel(garnets.lines(rows, labels, median=median), title, gap, 3, xlim=whole)

    sampled = f"Evaluation of {garnets.successors(config.samples)}"
    return charts.Grid(
        panels=[
            exact(CPI, gap, ylim=(1e-12, None)),
            exact(MIRROR, gap),
            exact(POLITEX, mean),
            polytope.panel(tables["polytope"]),
            variant("sampled", sampled, median=False),
            variant("backups", f"MD-MPI, eta = {config.eta:g}, m backups", median=True),
        ],
        columns=3,
        width=4.8,
        height=4.3,
        title=f"Of the processes: {garnets.MEDIAN} (of bounds the median); sampled: {garnets.MEAN}",
        title_size=10,
    )


def arms(config: Config) -> list[study.Arm]:
    """Returns the families with exact evaluation, the variants, and the twins."""
    arm = functools.partial(garnets.arm, config)
    exact_arms = [arm(family, config.iterations, exact, family) for family in families(config)]
    others = {"variants": variants, "twins": twins}
    return exact_arms + [arm(name, config.iterations, rows) for name, rows in others.items()]


STUDY = study.Study(
    claim="Conservative policy iteration is Frank-Wolfe, mirror-descent policy iteration is mirror "
    "descent and Politex is dual averaging, up to where their correspondence stops.",
    source="Vieillard et al. 2019, arXiv:1910.08476",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: {
        **study.split(rows, "curves", "variants", "twins"),
        "polytope": ways(config),
    },
    claims=claims,
    figures=lambda config, tables: {"connections": panels(config, tables)},
    seconds=lambda c: garnets.seconds(
        c.processes, 3 * c.iterations, 1 + len(c.rates) + 2 * len(c.etas)
    ),
)

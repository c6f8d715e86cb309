"""`kullback reproduce regularizers`: decision processes regularised by f-divergences.

Geist, Scherrer & Pietquin, "A Theory of Regularized Markov Decision Processes", ICML 2019,
https://arxiv.org/abs/1901.11275, with the entropies H_f of Roulet et al., 2025,
https://arxiv.org/abs/2501.18537: what they make of two actions, that regularised (modified policy)
iteration contracts and propagates errors as its bound says, and how much is lost for how smooth a
policy.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, regularizers
from kullback.experiments.reproductions import charts, garnets, judging, study
from kullback.theory import bounds, convex, iteration, run, solve
from kullback.theory.mdp import MDP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes, regularisers and temperatures."""

    processes: garnets.Config = dataclasses.field(default_factory=garnets.Config)
    divergences: tuple[str, ...] = ("kl", "alpha-1.5", "chi_squared")  # Those with an entropy.
    iterations: int = 200
    tau: float = 0.1  # Temperature > 0 of the runs, in units of reward.
    noise: float = 0.05  # Standard deviation of the errors, in units of reward.
    noise_seed: int = 1
    backups: tuple[int, ...] = (5,)  # m > 1, beside m = 1 and m = inf.
    taus: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # Of the loss, > 0.

    def __post_init__(self) -> None:
        ranges.at_least(2, self, "iterations")
        if not self.divergences:
            raise ValueError("divergences must name one at least, such as kl")
        for name in self.divergences:
            if not math.isfinite(regularizers.named(name).at_zero):
                raise ValueError(f"{name} has no entropy, as f(0) is infinite; e.g. kl has one")
        ranges.inside("(0, inf)", self, "tau", "taus")
        ranges.inside("[0, inf)", self, "noise")
        ranges.inside("[2, inf)", self, "backups", may_be_empty=True)


def measure(mdp: MDP, record: run.Record, context: Any, *, tau: float, name: str) -> dict[str, Any]:
    """Returns errors of the values and of the policy's, in the regularised process, and noise."""
    log_policy, divergence = record.state.log_policy, regularizers.named(name)
    bonus = -convex.penalty(log_policy, log_policy, 0.0, tau, divergence)
    q = mdp.backup(solve.linear_values(mdp, log_policy, bonus))
    return {
        "value": garnets.most(abs(context - record.state.q)),
        "gap": garnets.most(context - q),
        "norm": garnets.most(abs(record.error)),
    }


def regularised(config: Config, processes: MDP, name: str) -> study.Rows:
    """Returns rows of one regulariser."""
    divergence = regularizers.named(name)
    q = config.tau * optimum(processes, config.tau, divergence).q
    size = np.max(np.abs(q), (-2, -1))[:, None]
    gamma = np.asarray(processes.discount)
    shape = (len(size), config.iterations, *processes.reward.shape[-2:])
    errors = config.noise * np.random.default_rng(config.noise_seed).normal(size=shape)
    judged = functools.partial(measure, tau=config.tau, name=name)
    rows: study.Rows = []
    for m in (1, *config.backups, math.inf):
        # Without errors m = 1 is shown, in the program that is compiled for it anyway.
        kinds = {backups(m): errors} | ({"exact": np.zeros(shape)} if m == 1 else {})
        scheme = iteration.modified_policy_iteration(m, config.tau, divergence)
        for kind, given in kinds.items():
            records = run.run(
                scheme, processes, config.iterations, errors=given, measure=judged, context=q
            ).records
            if kind == "exact":
                powers = gamma[:, None] ** np.arange(config.iterations + 1)
                values, bound = records["value"], records["value"][:, :1] * powers
            else:
                values = records["gap"]
                norms, start = records["norm"][:, 1:], records["value"][:, 0]
                bound = garnets.each(bounds.mpi_gap, norms, start, gamma)
            rows += garnets.curve(name, values / size, bound / size, kind=kind)
    return study.tagged("curves", rows) + study.tagged("losses", losses(config, processes, name))


def optimum(processes: MDP, tau: float, divergence: regularizers.Divergence) -> solve.Solution:
    """Returns optimal values with entropy tau, over tau, from one program for all temperatures."""
    scaled = processes._replace(reward=np.asarray(processes.reward) / tau)
    return solve.policy_iteration(scaled, tau=1.0, divergence=divergence, tolerance=1e-12)


def backups(m: float) -> str:
    """Returns a number of backups, in words."""
    return f"m = {m:g}"


def largest_entropy(name: str, num_actions: int) -> float:
    """Returns H_f of the uniform policy, the range of H_f: D_f(e, 1) - D_f(u, 1)."""
    with jax.enable_x64(True):
        u = jnp.asarray(np.full((1, num_actions), -math.log(num_actions)))
        return -float(convex.penalty(u, u, 0.0, 1.0, regularizers.named(name))[0])


def losses(config: Config, processes: MDP, name: str) -> study.Rows:
    """Returns the losses of the optimal regularised policies, and how many actions they take."""
    divergence = regularizers.named(name)
    v = garnets.optimum(processes).v
    scale = garnets.of_largest(processes, v)
    gamma = np.asarray(processes.discount)
    rows: study.Rows = []
    for tau in config.taus:
        solution = optimum(processes, tau, divergence)
        lost = np.max(v - solve.policy_values(processes, solution.log_policy)[0], -1)
        bound = tau * largest_entropy(name, processes.num_actions) / (1 - gamma)
        rows += garnets.ends(
            name,
            lost / scale,
            tau=tau,
            bound=(bound / scale).tolist(),
            share=garnets.share(lost, bound, scale).tolist(),
            actions=np.mean(np.sum(np.exp(solution.log_policy) > 0, -1), -1).tolist(),
        )
    return rows


def two_actions(config: Config) -> study.Rows:
    """Returns the probability of the first of two actions over how much better it is."""
    gaps = np.linspace(-4, 4, 161)
    q = np.stack([gaps, np.zeros_like(gaps)], -1)
    rows: study.Rows = []
    for name in config.divergences:
        with jax.enable_x64(True):
            divergence = regularizers.named(name)
            log_policy, value = regularizers.greedy(q, np.zeros_like(q), 0.0, 1.0, divergence)
            probabilities = np.exp(np.asarray(log_policy))[:, 0]
        rows += [
            {"scheme": name, "gap": float(x), "probability": float(p), "value": float(v)}
            for x, p, v in zip(gaps, probabilities, np.asarray(value), strict=True)
        ]
    return rows


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges contraction, propagation of errors and the loss; reports which policies are sparse."""
    curves, lost = tables["curves"], tables["losses"]
    counted = garnets.counted(config.processes, config.iterations)
    exact = study.where(curves, kind="exact")
    noisy = [row for row in curves if row["kind"] != "exact"]
    contracts = "contracts: max |q_* - q_k| is at most gamma^k its start"
    keeps = "keeps to the bound of modified policy iteration"
    for claim, rows in (
        (f"regularised value iteration {contracts}", exact),
        (f"with errors, regularised MPI of any m {keeps}", noisy),
    ):
        share = garnets.largest(row["largest_share"] for row in rows)
        yield judging.within(claim, share, counted)
    yield judging.within(
        "an optimal regularised policy loses at most tau max H_f / (1 - gamma)",
        garnets.largest(row["share"] for row in lost),
        f"over {len(lost):,} processes, regularisers and temperatures",
    )
    least = min(config.taus)
    for name in config.divergences:
        # Shannon's policies are positive, though the least probabilities may round to 0.
        kind = "sparse" if regularizers.named(name).is_sparse else "dense"
        taken = study.column(lost, "actions", scheme=name, tau=least)
        yield judging.reported(
            f"{name}: actions with a positive probability, of a state, tau = {least:g} ({kind} by "
            "theory)",
            f"{taken.mean():.3g} on average",
        )


def panels(config: Config, tables: study.Tables) -> Iterator[charts.Panel]:
    """Yields two actions, contraction, errors, loss."""
    names, taus = config.divergences, sorted(config.taus)
    styles: dict[str, dict[str, Any]] = {
        name: {"color": f"C{number}"} for number, name in enumerate(names)
    }
    shown = [backups(m) for m in (1, *config.backups, math.inf)]
    dashes = dict(zip(shown, itertools.cycle("- : -.".split()), strict=False))

    def curve(name: str, kind: str, label: str, **how: Any) -> charts.Line:
        rows = study.where(tables["curves"], scheme=name, kind=kind)
        return garnets.line(rows, label, **how, **styles[name])

    def two(name: str) -> charts.Line:
        of = functools.partial(study.column, tables["two_actions"], scheme=name)
        return charts.Line(of("gap"), of("probability"), name, styles[name])

    def lost(name: str) -> list[charts.Line]:
        rows = study.where(tables["losses"], scheme=name)

        def by_tau(column: str) -> list[np.ndarray]:
            return [study.column(rows, column, tau=tau) for tau in taus]

        dots = {"marker": "o", "lw": 1.2, "markersize": 4, **styles[name]}
        dashed = {"ls": "--", "lw": 1.2, "markersize": 4, **styles[name]}
        bound = [float(np.mean(x)) for x in by_tau("bound")]
        return [
            garnets.means(taus, by_tau("end"), name, **dots),
            charts.Line(taus, bound, None, dashed),
        ]

    apart = r"$(q(a_1) - q(a_2)) / \tau$"
    of_two, title = [two(name) for name in names], "Regularised greedy policy of two actions"
    linear: dict[str, Any] = {"xscale": "linear", "yscale": "linear"}
    yield garnets.panel(of_two, title, r"$\pi(a_1)$", 3, xlabel=apart, **linear)

    exact = [curve(name, "exact", name, median=True) for name in names]
    title = rf"Reg-VI, no errors, $\tau$ = {config.tau:g} ({garnets.MEDIAN}; dashed: $\gamma^k$)"
    value = r"$\Vert q_{*,\Omega} - q_k \Vert_\infty$, relative"
    yield garnets.panel(exact, title, value, 3, xscale="linear", ylim=(1e-13, None))

    noisy = [
        curve(name, m, f"{name}, {m}", ls=dash, bound=m == shown[0])
        for name in names
        for m, dash in dashes.items()
    ]
    title = f"Reg-MPI, errors of deviation {config.noise:g} ({garnets.MEAN};"
    title += "\ndashed: bound, for m = 1)"
    gap = r"$\max (q_{*,\Omega} - q_{\pi_k,\Omega})$, relative"
    yield garnets.panel(noisy, title, gap, 3, xlim=(1, config.iterations))

    losses = [line for name in names for line in lost(name)]
    title = f"Loss of regularising ({garnets.MEAN};\n" r"dashed: $\tau \max H_f / (1 - \gamma)$)"
    value = r"$\max (v_* - v_{\pi_{*,\Omega}})$, relative"
    yield garnets.panel(losses, title, value, 3, xlabel=r"temperature $\tau$, units of reward")


STUDY = study.Study(
    claim="Decision processes regularised by the entropy of an f-divergence contract, propagate "
    "errors and bias the optimum as the theory of regularised processes bounds it.",
    source="Geist et al. 2019, arXiv:1901.11275",
    config=Config(),
    arms=lambda config: [
        garnets.arm(config, name, config.iterations * (3 + len(config.backups)), regularised, name)
        for name in config.divergences
    ],
    tables=lambda config, rows: {
        **study.split(rows, "curves", "losses"),
        "two_actions": two_actions(config),
    },
    claims=claims,
    figures=lambda config, tables: {
        "regularizers": garnets.grid(panels(config, tables), height=4.3),
    },
    seconds=lambda c: garnets.seconds(
        c.processes, 4 * c.iterations, len(c.divergences) * (3 + len(c.backups))
    ),
)

"""`kullback reproduce munchausen-theory`: Munchausen value iteration, M-VI(alpha, tau).

Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.14430. Theorem 1: it is MD-VI(alpha tau, (1 - alpha) tau), so it inherits
that scheme's bounds. Theorem 2: it widens the gaps between actions, by 1 / (1 - alpha) as our
derivation has it (`theory.munchausen.action_gap_ratio`), and not by (1 + alpha) / (1 - alpha), as
the paper is remembered to print; the figure has both.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import charts, garnets, judging, study
from kullback.theory import mirror, munchausen, run
from kullback.theory.mdp import MDP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes, and what is varied."""

    processes: garnets.Config = dataclasses.field(default_factory=garnets.Config)
    iterations: int = 400  # With sampled successors.
    exact_iterations: int = 2_000  # Of the gaps, which take long to widen where alpha is near 1.
    samples: int = 1  # Successors of each state and action, in each iteration.
    noise_seed: int = 1
    tau: float = 0.03  # Temperature > 0, in units of reward.
    alphas: tuple[float, ...] = (0.0, 0.5, 0.9, 0.95)  # In [0, 1).

    def __post_init__(self) -> None:
        ranges.at_least(20, self, "iterations", "exact_iterations")
        ranges.at_least(1, self, "samples")
        ranges.inside("[0, 1)", self, "alphas")
        ranges.inside("(0, inf)", self, "tau")

    def parameters(self, alpha: float) -> dict[str, np.ndarray]:
        """Returns parameters of M-VI, for the one program of all alphas."""
        return {"alpha": np.array([alpha]), "tau": np.array([self.tau])}


def printed_ratio(alpha: float) -> float:
    """Returns the limit of the action gaps' ratio as the paper is remembered to print it."""
    return (1 + alpha) / (1 - alpha)


def measure(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """Returns `garnets.measure` of M-VI, and its values as MD-VI sees them."""
    alpha, tau = context["alpha"], context["temperature"]
    mirrored = munchausen.to_mirror(record.state, alpha, tau)
    return {**garnets.measure(mdp, record, context), "mirrored": mirrored}


def sampled(config: Config, processes: MDP, alpha: float) -> study.Rows:
    """Returns curves of M-VI under sampling with their bound; the difference from MD-VI."""
    entropy = (1 - alpha) * config.tau
    best = garnets.measured_by(processes, entropy)
    size = len(best.q)
    context = garnets.context(best.q, entropy)
    context |= {"alpha": np.full(size, alpha), "temperature": np.full(size, config.tau)}
    records = run.run(
        munchausen.munchausen_vi,
        processes,
        config.iterations,
        parameters=config.parameters(alpha),
        **garnets.sampling(config),
        measure=measure,
        context=context,
    ).records
    records = {name: x[0] for name, x in records.items()}
    twin = run.run(
        mirror.md_vi,
        processes,
        config.iterations,
        parameters={"lambda_": np.array([alpha * config.tau]), "tau": np.array([entropy])},
        errors=records["error"][:, 1:],
        measure=lambda mdp, record, context: record.state.q,
    ).records[0]
    off = np.max(np.abs(twin - records["mirrored"]), (-2, -1))
    temperatures = alpha * config.tau, entropy
    errors = records["error"][:, 1:]
    bound = garnets.entropy_bound(processes, errors, best, alpha, *temperatures)
    share = garnets.share(records["largest_gap"][:, 1:], bound, best.largest)
    label, gap = named(alpha), records["gap"] / best.mean
    late = gap[:, -(config.iterations // 10) :].mean(1)
    by_process = {"largest_share": share.max(1).tolist(), "off": off.max(1).tolist()}
    end = garnets.ends(label, late, **by_process)
    return [
        *study.tagged("curves", garnets.curve(label, gap, bound / best.mean)),
        *study.tagged("twins", garnets.curve(label, off)),
        *study.tagged("ends", end),
    ]


def gaps(mdp: MDP, record: run.Record, context: dict[str, Any]) -> dict[str, Any]:
    """Returns how much wider the gaps of q_k are than those of the soft optimal values."""
    del mdp
    wide, narrow = munchausen.action_gap(record.state.q), context["gap"]
    ratio = jnp.sum(wide) / jnp.sum(narrow)
    return {"ratio": ratio, "off": garnets.most(abs(wide - narrow * context["limit"]))}


def exact(config: Config, processes: MDP, alpha: float) -> study.Rows:
    """Returns the ratio of the gaps without errors, by iteration and at the end."""
    best = garnets.measured_by(processes, (1 - alpha) * config.tau)
    limit, narrow = (munchausen.action_gap_ratio(alpha), np.asarray(munchausen.action_gap(best.q)))
    records = run.run(
        munchausen.munchausen_vi,
        processes,
        config.exact_iterations,
        parameters=config.parameters(alpha),
        measure=gaps,
        context={"gap": narrow, "limit": np.full(len(best.q), limit)},
    ).records
    ratio = records["ratio"][0]
    last = garnets.ends(
        named(alpha),
        ratio[:, -1],
        alpha=alpha,
        derived=limit,
        printed=printed_ratio(alpha),
        # In every state and for every action, in units of the largest value.
        off_by_action=(records["off"][0, :, -1] / best.largest[:, 0]).tolist(),
    )
    return study.tagged("ratios", garnets.curve(named(alpha), ratio)) + study.tagged("limits", last)


def named(alpha: float) -> str:
    """Returns a scheme of the comparison, in words."""
    return f"alpha = {alpha:g}"


def remaining(config: Config, alpha: float, gamma: float) -> float:
    """Returns what may be left of a gap's distance from its limit, in units of the largest value.

    Two things fade, as alpha^k and gamma^k, and one drives the other: K max(alpha, gamma)^K.
    """
    return config.exact_iterations * max(alpha, gamma) ** config.exact_iterations


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the two theorems, and what they are for."""
    counted = garnets.counted(config.processes, config.iterations)
    processes = garnets.make(config.processes)
    ends, gamma = tables["ends"], float(np.max(processes.discount))
    # Of alphas that had the iterations to get to their limits; if of none, of the least.
    near = [alpha for alpha in config.alphas if remaining(config, alpha, gamma) <= 1e-6]
    judged = near or [min(config.alphas)]
    left = remaining(config, max(judged), gamma)
    limits = [row for row in tables["limits"] if row["alpha"] in judged]
    far = [f"{alpha:g}" for alpha in config.alphas if alpha not in judged]

    def of(alpha: float) -> np.ndarray:
        return study.column(ends, "end", scheme=named(alpha))

    apart = [row for row in limits if row["alpha"] > 0]
    exact_counted = f"over {len(of(config.alphas[0]))} processes"
    if far:
        exact_counted += f" (too few iterations for alpha = {', '.join(far)})"
    yield judging.small(
        "M-VI(alpha, tau) is MD-VI(alpha tau, (1 - alpha) tau), errors and all (theorem 1)",
        garnets.largest(row["off"] for row in ends),
        1e-10,
        counted,
    )
    largest_share = garnets.largest(row["largest_share"] for row in ends)
    yield judging.within("M-VI keeps to MD-VI's bound", largest_share, counted)
    yield judging.small(
        "without errors every action gap becomes 1 / (1 - alpha) times that of the soft "
        "optimal values (theorem 2 as derived; in units of the largest value)",
        garnets.largest(row["off_by_action"] for row in limits),
        1e-6,
        exact_counted,
        left,
    )
    if apart:
        # The paper's factor, were it right, would fit as closely.
        wrong = -garnets.largest(-abs(row["end"] / row["printed"] - 1) for row in apart)
        right = garnets.largest(abs(row["end"] / row["derived"] - 1) for row in apart)
        alpha = max(row["alpha"] for row in apart)
        ratio = [row["end"] for row in apart if row["alpha"] == alpha]
        factor = judging.exactly(
            "the factor is 1 / (1 - alpha) and not (1 + alpha) / (1 - alpha), as remembered",
            bool(right < 1e-3 < wrong),
            f"for alpha = {alpha:g} it is {np.mean(ratio):.6g}, derived "
            f"{munchausen.action_gap_ratio(alpha):.6g}, remembered {printed_ratio(alpha):.6g}; "
            f"off by {right:.1g} of the one at most, by {wrong:.2g} of the other at least",
        )
        yield factor if near else factor._replace(verdict="undecided")
    small, large = min(config.alphas), max(config.alphas)
    if small < large:
        nearer = f"sampled, {named(large)} ends nearer to its optimum than {named(small)}"
        yield garnets.above(nearer, of(small) - of(large))


def panels(config: Config, tables: study.Tables) -> Iterator[charts.Panel]:
    """Yields error propagation, the twins' difference, the gaps by iteration and their limit."""
    labels = [named(alpha) for alpha in config.alphas]
    sampled = garnets.lines(tables["curves"], labels)
    twins = garnets.lines(tables["twins"], labels, median=True)
    gap = r"$\Vert q_*^{(1-\alpha)\tau} - q_{\pi_k}^{(1-\alpha)\tau} \Vert_1$, relative"
    title = f"M-VI, {garnets.successors(config.samples)} ({garnets.MEAN}; dashed: bounds)"
    xlim = 1, config.iterations
    yield garnets.panel(sampled, title, gap, 5, xlim=xlim)

    level = charts.Level(1e-10, {"color": "k", "ls": "--", "lw": 0.9, "label": "1e-10"})
    title = rf"M-VI less MD-VI($\alpha\tau$, $(1-\alpha)\tau$) ({garnets.MEDIAN})"
    limited = {"xlim": xlim, "ylim": (1e-17, 1e-9)}
    yield garnets.panel([*twins, level], title, "largest difference", 5, **limited)

    ratios: list[charts.Mark] = []
    for number, line in enumerate(garnets.lines(tables["ratios"], labels, median=True)):
        limit = munchausen.action_gap_ratio(config.alphas[number])
        ratios += [line, charts.Level(limit, {"ls": "--", "lw": 0.9, "color": f"C{number}"})]
    ratio = r"gap of $q_k$ / gap of $q_*^{(1-\alpha)\tau}$"
    title = f"Action gaps, no errors ({garnets.MEDIAN}; dashed: derived limit)"
    limited = {"xlim": (2, config.exact_iterations), "ylim": (0.3, None)}
    yield garnets.panel(ratios, title, ratio, 5, **limited)

    by_alpha, linear = limits(config, tables["limits"]), {"xlabel": r"$\alpha$", "xscale": "linear"}
    yield garnets.panel(by_alpha, "Action gap, theorem 2", "limit of the ratio", 2, **linear)


def limits(config: Config, rows: study.Rows) -> list[charts.Line]:
    """Returns the measured limits of the gaps' ratios, and both formulae."""
    dots = {"ls": "", "marker": "o", "color": "k", "markersize": 5}
    measured: list[charts.Line] = []
    for number, alpha in enumerate(config.alphas):
        ends = study.column(rows, "end", scheme=named(alpha))
        label = None if number else "measured, every process"
        measured.append(charts.Line(np.full(len(ends), alpha), ends, label, dots))
    alphas = np.linspace(0, max(*config.alphas, 0.5), 200)
    derived = [munchausen.action_gap_ratio(alpha) for alpha in alphas]
    printed = [printed_ratio(alpha) for alpha in alphas]
    remembered = r"remembered of the paper: $(1 + \alpha) / (1 - \alpha)$"
    return [
        *measured,
        charts.Line(alphas, derived, r"derived: $1 / (1 - \alpha)$"),
        charts.Line(alphas, printed, remembered, {"ls": "--"}),
    ]


def arms(config: Config) -> list[study.Arm]:
    """Returns an arm an alpha: the sampled run and its twin, and the exact one."""

    def rows(config: Config, processes: MDP, alpha: float) -> study.Rows:
        return [*sampled(config, processes, alpha), *exact(config, processes, alpha)]

    steps = 2 * config.iterations + config.exact_iterations
    return [garnets.arm(config, f"alpha-{a:g}", steps, rows, a) for a in config.alphas]


STUDY = study.Study(
    claim="Munchausen value iteration is mirror descent with entropy, keeps to its bounds, and "
    "widens the gaps between actions by 1 / (1 - alpha).",
    source="Vieillard et al. 2020, arXiv:2007.14430",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: study.split(rows, "curves", "twins", "ratios", "limits", "ends"),
    claims=claims,
    figures=lambda config, tables: {"munchausen": garnets.grid(panels(config, tables))},
    seconds=lambda c: garnets.seconds(c.processes, 2 * c.iterations, len(c.alphas)) + 8,
)

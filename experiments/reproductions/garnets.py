"""Processes of studies of theory, rows of their curves with bounds, lines and panels.

The processes are Garnets by the hundred, or a user's own. A curve is [M, K + 1]: M processes, K
iterations. Every plot draws it as the papers do, by its mean, with the interval of that mean; or,
where it falls by many orders of magnitude, by its median and quartiles. What is not finite never
counts as held: a number that could not be computed proves nothing.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from kullback.core import ranges, types
from kullback.experiments import statistics
from kullback.experiments.reproductions import charts, effects, judging, study
from kullback.theory import bounds, convex, garnet, mdp, run, solve
from kullback.theory.mdp import MDP

ROUNDING = 1e-11  # Of values, relative to the largest: what float64 is off by after long sums.
NUM_KEPT = 150  # Iterations of a curve that are kept, evenly spaced in their logarithm.
MEAN = "mean, 95% interval"  # What lines and bands are, in the titles of plots.
MEDIAN = "median, quartiles"
GarnetConfig = garnet.Config  # Within `Config`, `garnet` is a field.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of the processes: how they are drawn, or where they are read."""

    # Path of an .npz file as `theory.mdp.save` writes it, in place of the Garnets: none of the
    # fields below goes with it.
    mdp: str = ""
    num_garnets: int = 100
    garnet_seed: int = 0
    garnet: GarnetConfig = dataclasses.field(default_factory=GarnetConfig)

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "num_garnets")
        if not self.mdp:
            return
        if not pathlib.Path(self.mdp).is_file():
            raise ValueError(f"mdp must be the path of an .npz file, and {self.mdp} is no file")
        if dataclasses.replace(self, mdp="") != Config():
            raise ValueError(
                f"num_garnets, garnet_seed and garnet.* are of Garnets, and {self.mdp} stands in "
                "their place; set one or the other"
            )
        # Now, so that a file that is refused leaves nothing behind.
        if np.any(np.all(np.asarray(mdp.load(self.mdp).reward) == 0, (-2, -1))):
            raise ValueError(
                f"{self.mdp} has a process all of whose rewards are 0: so are its values, and "
                "nothing can be relative to them"
            )


def make(config: Config) -> MDP:
    """Returns the processes, a batch of M; one of the user's own is a batch of one."""
    return _make(config, _digest(config))


@functools.lru_cache(maxsize=1)
def _make(config: Config, digest: str) -> MDP:
    del digest  # A file that has changed holds other processes.
    if config.mdp:
        processes = mdp.load(config.mdp)
        return processes if processes.batch_shape else mdp.stack([processes])
    return garnet.make(
        jax.random.split(jax.random.key(config.garnet_seed), config.num_garnets), config.garnet
    )


def _digest(config: Config) -> str:
    path = pathlib.Path(config.mdp)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if config.mdp else ""


def part(config: Config, name: str) -> str:
    """Returns the name of a part: parts of a user's process are of what its file holds."""
    return f"{name}-{_digest(config)}" if config.mdp else name


class Study(Protocol):
    """Configuration of a study of processes."""

    @property
    def processes(self) -> Config:
        """Which they are."""
        ...


class Sampled(Protocol):
    """Configuration of a study whose evaluations see sampled successors."""

    @property
    def samples(self) -> int:
        """Successors of a state and an action that an evaluation sees."""
        ...

    @property
    def noise_seed(self) -> int:
        """Seed of which ones."""
        ...


def arm(
    config: Study, name: str, steps: int, rows: Callable[..., study.Rows], *of_arm: Any
) -> study.Arm:
    """Returns the arm that computes `rows(config, processes, *of_arm)`.

    Args:
      config: of the study.
      name: of the part.
      steps: amount of work.
      rows: makes them.
      *of_arm: what it takes besides.
    """

    def compute(journal: study.Journal) -> study.Rows:
        del journal  # A scheme is one compiled call, which tells nothing on the way.
        return rows(config, make(config.processes), *of_arm)

    return study.Arm(part(config.processes, name), steps, compute)


def sampling(config: Sampled) -> dict[str, Any]:
    """Returns what `run.run` takes for evaluations of a study's sampled successors."""
    return {"noise": run.sampled(config.samples), "key": jax.random.key(config.noise_seed)}


def optimum(processes: MDP, tau: float = 0.0) -> solve.Solution:
    """Returns the optimal values, with entropy tau."""
    return solve.policy_iteration(processes, tolerance=1e-12, tau=tau)


def measure(mdp: MDP, record: run.Record, context: dict[str, types.Array]) -> dict[str, Any]:
    """Returns how far the values of an iterate's policy are from the optimal ones.

    Args:
      mdp, record: see `run.Measure`.
      context: "q", the optimal values with entropy "tau", and "tau" itself, of both.
    """
    tau, log_policy = context["tau"], record.state.log_policy
    bonus = -convex.penalty(log_policy, log_policy, 0.0, tau)
    gap = context["q"] - mdp.backup(solve.linear_values(mdp, log_policy, bonus))
    return {
        "gap": abs(gap).mean(),
        "largest_gap": most(gap),
        "gaps": gap,
        "error": record.error,
    }


def context(optimal_q: types.Array, tau: float = 0.0) -> dict[str, np.ndarray]:
    """Returns the context of `measure`, for a batch."""
    return {"q": np.asarray(optimal_q), "tau": np.full(len(optimal_q), tau)}


def most(x: types.Array, axis: Any = None) -> Any:
    """Returns the largest entry, nan unless all are finite, as compiled maxima do not do."""
    return jnp.where(jnp.all(jnp.isfinite(x), axis), jnp.max(x, axis), jnp.nan)


def largest(values: Iterable[float]) -> float:
    """Returns the largest, nan if there is one: Python's max is what comes first, then."""
    return float(np.max(list(values))) + 0.0  # And -0 is 0.


def each(function: Callable[..., types.Array], *arguments: types.Array) -> np.ndarray:
    """Returns a bound of every process: arguments have a leading axis M, and so has the result."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(function))(*arguments))


def entropy_bound(
    processes: MDP,
    errors: np.ndarray,
    best: "Optimum",
    weight: float,
    lambda_: float,
    tau: float,
) -> np.ndarray:
    """Returns the bound of DA-VI(lambda, tau) by the norms of its averaged errors, [M, K].

    Args:
      processes: M of them.
      errors: eps_1, ..., eps_K, [M, K, S, A].
      best: the optimum with entropy tau.
      weight: of the moving average, lambda / (lambda + tau).
      lambda_, tau: temperatures, in units of reward.
    """

    def bound(errors: types.Array, r_max: float, gamma: float) -> types.Array:
        norms = jnp.max(abs(bounds.moving_average(errors, weight)), (-2, -1))
        return bounds.entropy_gap_norm(norms, processes.num_actions, r_max, gamma, lambda_, tau)

    return each(bound, errors, best.r_max, processes.discount)


class Optimum(NamedTuple):
    """Optimal values, and what errors and gaps are measured by."""

    q: np.ndarray  # [M, S, A].
    log_policy: types.Array  # [M, S, A].
    mean: np.ndarray  # Of |q|, [M, 1]: what gaps are divided by.
    largest: np.ndarray  # Of |q|, [M, 1].
    r_max: np.ndarray  # The largest |r|, [M].


def measured_by(processes: MDP, tau: float = 0.0) -> Optimum:
    """Returns the optimum with entropy tau, and its sizes."""
    best = optimum(processes, tau)
    q = np.asarray(best.q)
    largest, r_max = (np.max(np.abs(x), (-2, -1)) for x in (q, np.asarray(processes.reward)))
    return Optimum(q, best.log_policy, of_mean(q), largest[:, None], r_max)


def of_largest(processes: MDP, v: types.Array) -> np.ndarray:
    """Returns the largest |v_*|, [M]; where all are 0, what rewards of that size could give."""
    size = np.max(np.abs(np.asarray(v)), -1)
    top = np.max(np.abs(np.asarray(processes.reward)), (-2, -1)) / (1 - processes.discount)
    return np.where(size > 0, size, top)


def of_mean(q: types.Array) -> np.ndarray:
    """Returns the mean of |q| over states and actions, [M, 1]: what errors are divided by."""
    return np.mean(np.abs(np.asarray(q)), axis=(-2, -1))[:, None]


def kept(num_iterations: int) -> np.ndarray:
    """Returns iterations 0, 1, 2, ..., K that are kept of a curve, ever fewer."""
    later = np.geomspace(1, num_iterations, NUM_KEPT)
    return np.unique(np.concatenate([[0.0], later]).round().astype(int))


def curve(
    scheme: str,
    values: types.Array,
    bound: types.Array | None = None,
    *,
    first: int = 0,
    **columns: Any,
) -> study.Rows:
    """Returns rows of a curve, over processes.

    Args:
      scheme: its name.
      values: [M, K + 1].
      first: iteration of the first of them.
      bound: what they must not exceed, [M, K + 1] or [M, K] for the iterations from 1.
      columns: more columns, the same in every row.

    Returns:
      A row an iteration kept: mean and its 95% interval (of two processes at least), median,
      quartiles; with a bound its mean and median, and `largest_share`, the largest value / bound
      of any process in any iteration so far.
    """
    values = np.asarray(values)
    num_processes, length = values.shape
    by_column: dict[str, np.ndarray] = {"mean": values.mean(0)}
    if num_processes > 1:
        half = scipy.stats.t.ppf(0.975, num_processes - 1) * scipy.stats.sem(values, axis=0)
        by_column |= {"mean_low": by_column["mean"] - half, "mean_high": by_column["mean"] + half}
    quartiles = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    by_column |= dict(zip(("quartile_low", "median", "quartile_high"), quartiles, strict=True))
    if bound is not None:
        bound = np.asarray(bound)
        known = bound.shape[1]  # Of iteration 0 theorems say nothing.
        shares = np.zeros(values.shape)
        shares[:, length - known :] = share(values[:, length - known :], bound)
        bound = np.concatenate([np.full((num_processes, length - known), np.nan), bound], 1)
        by_column |= {"bound": bound.mean(0), "bound_median": np.median(bound, 0)}
        by_column["largest_share"] = np.maximum.accumulate(shares.max(0))
    head = {"scheme": scheme, **columns, "processes": num_processes}
    return [
        {
            **head,
            "iteration": int(k) + first,
            **{name: float(x[k]) for name, x in by_column.items()},
        }
        for k in kept(length - 1)
    ]


def share(
    values: types.Array | float, bound: types.Array | float, scale: types.Array | float = 1.0
) -> np.ndarray:
    """Returns values / bound, rounding taken off the values (of numbers as large as `scale`).

    It is nan where either is not finite: a bound that is infinite promises nothing.
    """
    excess = np.maximum(np.asarray(values) - ROUNDING * np.asarray(scale), 0)
    bound = np.asarray(bound)
    shares = np.divide(excess, bound, out=np.where(excess > 0, np.inf, 0.0), where=bound > 0)
    return np.where(np.isfinite(excess) & np.isfinite(bound), shares, np.nan)


def ends(scheme: str, end: types.Array, **columns: Any) -> study.Rows:
    """Returns rows of one number a process, [M]; a column is one value for all, or a list of M."""

    def of(i: int) -> dict[str, Any]:
        return {name: x[i] if isinstance(x, list) else x for name, x in columns.items()}

    return [{"scheme": scheme, "process": i, "end": float(x), **of(i)} for i, x in enumerate(end)]


def above(claim: str, values: effects.Numbers, threshold: float = 0) -> judging.Check:
    """Judges whether a mean over processes, [M], lies above a threshold; see judging.above."""
    units, shared = ("process", "processes"), "their processes"
    return judging.above(claim, values, threshold, units, shared)


def line(
    rows: study.Rows,
    label: str | None,
    *,
    median: bool = False,
    bound: bool = True,
    **style: Any,
) -> charts.Line:
    """Returns one curve, its band and, if wanted, its bound; of a median its median."""
    centre = "median" if median else "mean"
    edges = ("quartile_low", "quartile_high") if median else ("mean_low", "mean_high")
    is_many, has_bound = rows[0]["processes"] > 1, bound and "bound" in rows[0]
    return charts.Line(
        study.column(rows, "iteration"),
        study.column(rows, centre),
        label,
        {"lw": 1.4, **style},
        (study.column(rows, edges[0]), study.column(rows, edges[1])) if is_many else None,
        study.column(rows, "bound_median" if median else "bound") if has_bound else None,
    )


def lines(rows: study.Rows, labels: Iterable[str], **how: Any) -> list[charts.Line]:
    """Returns the curves of schemes, in the order of their labels; see `line`."""
    return [line(study.where(rows, scheme=label), label, **how) for label in labels]


def means(
    x: Sequence[float], samples: Sequence[np.ndarray], label: str | None, **style: Any
) -> charts.Line:
    """Returns means over processes against x, with the bands of their intervals."""
    intervals = [statistics.t_interval(sample) for sample in samples]
    band = ([i.low for i in intervals], [i.high for i in intervals])
    is_many = len(samples[0]) > 1
    return charts.Line(
        x, [float(np.mean(s)) for s in samples], label, style, band if is_many else None
    )


def panel(
    marks: Sequence[charts.Mark], title: str, ylabel: str, legend: int = 4, **axes: Any
) -> charts.Panel:
    """Returns a panel of iterations, both axes logarithmic unless `axes` says otherwise.

    Args:
      marks: curves and levels.
      title: of the panel.
      ylabel: of the vertical axis.
      legend: columns of the legend, which stands below, where no curve is.
      **axes: as `Axes.set` takes them, in this order and after the scales.
    """
    common = {"xlabel": "iterations k", "xscale": "log", "yscale": "log"}
    below = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": legend}
    axes = {"title": title, "ylabel": ylabel, **common, **axes}
    return charts.Panel(marks=marks, axes=axes, legend=below)


def grid(panels: Iterable[charts.Panel], height: float = 4.2) -> charts.Grid:
    """Returns a grid of two columns; the height is of one panel, in inches."""
    return charts.Grid(panels=[*panels], columns=2, width=5.4, height=height, title_size=11)


def counted(config: Config, num_iterations: int) -> str:
    """Returns in words what a check looked at."""
    return f"over {_size(config)[0]} processes and {num_iterations:,} iterations"


def _size(config: Config) -> tuple[int, int]:
    """Returns the numbers of processes and of states."""
    if not config.mdp:
        return config.num_garnets, config.garnet.num_states
    processes = make(config)
    return processes.batch_shape[0], processes.num_states


def seconds(config: Config, iterations: int, schemes: int) -> float:
    """Estimates so many runs: each is compiled, then evaluates a policy an iteration."""
    size, num_states = _size(config)
    each = 15e-6 * (num_states / 30) ** 3
    return 6 + schemes * (2 + iterations * size * each)


def successors(samples: int) -> str:
    """Returns a number of sampled successors, in words."""
    return f"{samples} sampled successor" + ("" if samples == 1 else "s")

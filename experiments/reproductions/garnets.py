"""What the plots of theory share: the processes, rows of curves with their bounds, lines and bands.

The processes are Garnets by the hundred, or a user's own. A curve is [M, K + 1]: M processes, K
iterations. Every plot draws it as the papers do, by its mean, with the interval of that mean; or,
where it falls by many orders of magnitude, by its median and quartiles. What is not finite never
counts as held: a number that could not be computed proves nothing.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from matplotlib.axes import Axes

from kullback.core import types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import study
from kullback.theory import convex, run, solve
from kullback.theory import garnet as generator
from kullback.theory import mdp as mdps
from kullback.theory.mdp import MDP

ROUNDING = 1e-11  # Of values, relative to the largest: what float64 is off by after long sums.
NUM_KEPT = 150  # Iterations of a curve that are kept, evenly spaced in their logarithm.
MEAN = "mean, 95% interval"  # What lines and bands are, in the titles of plots.
MEDIAN = "median, quartiles"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which processes."""

    # Path of an .npz file as `theory.mdp.save` writes it, in place of the Garnets: none of the
    # fields below goes with it.
    mdp: str = ""
    num_garnets: int = 100
    garnet_seed: int = 0
    garnet: generator.Config = dataclasses.field(default_factory=generator.Config)

    def __post_init__(self) -> None:
        if self.num_garnets < 1:
            raise ValueError(f"num_garnets must be >= 1, got {self.num_garnets}")
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
        if np.any(np.all(np.asarray(mdps.load(self.mdp).reward) == 0, (-2, -1))):
            raise ValueError(
                f"{self.mdp} has a process all of whose rewards are 0: so are its values, and "
                "nothing can be relative to them"
            )


def make(config: Config) -> MDP:
    """The processes, a batch of M; one of the user's own is a batch of one."""
    if config.mdp:
        own = mdps.load(config.mdp)
        return own if own.batch_shape else mdps.stack([own])
    return generator.make(
        jax.random.split(jax.random.key(config.garnet_seed), config.num_garnets), config.garnet
    )


def part(config: Config, name: str) -> str:
    """Name of a part: parts of a user's process are of what its file holds."""
    if not config.mdp:
        return name
    return f"{name}-{hashlib.sha256(pathlib.Path(config.mdp).read_bytes()).hexdigest()[:12]}"


def optimum(processes: MDP, tau: float = 0.0) -> solve.Solution:
    """Their optimal values, with entropy tau."""
    return solve.policy_iteration(processes, tolerance=1e-12, tau=tau)


def measure(mdp: MDP, record: run.Record, context: dict[str, types.Array]) -> dict[str, Any]:
    """What the plots show of an iterate: how far its policy's values are from the optimal ones.

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
    """The context of `measure`, for a batch."""
    return {"q": np.asarray(optimal_q), "tau": np.full(len(optimal_q), tau)}


def most(x: types.Array, axis: Any = None) -> Any:
    """The largest entry, nan unless all are finite, whatever a compiled maximum does with nan."""
    return jnp.where(jnp.all(jnp.isfinite(x), axis), jnp.max(x, axis), jnp.nan)


def largest(values: Iterable[float]) -> float:
    """The largest, nan if there is one: Python's max is what comes first, then."""
    return float(np.max(list(values))) + 0.0  # And -0 is 0.


def each(function: Callable[..., types.Array], *arguments: types.Array) -> np.ndarray:
    """A bound of one process, of all: arguments have a leading axis M, and so has the result."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(function))(*arguments))


def of_largest(processes: MDP, v: types.Array) -> np.ndarray:
    """The largest |v_*|, [M]; where all are 0, the largest that rewards of that size could give."""
    size = np.max(np.abs(np.asarray(v)), -1)
    top = np.max(np.abs(np.asarray(processes.reward)), (-2, -1)) / (1 - processes.discount)
    return np.where(size > 0, size, top)


def of_mean(q: types.Array) -> np.ndarray:
    """Mean of |q| over states and actions, [M, 1]: what errors are divided by."""
    return np.mean(np.abs(np.asarray(q)), axis=(-2, -1))[:, None]


def kept(num_iterations: int) -> np.ndarray:
    """Iterations 0, 1, 2, ..., K that are kept of a curve, ever fewer."""
    later = np.geomspace(1, num_iterations, NUM_KEPT)
    return np.unique(np.concatenate([[0.0], later]).round().astype(int))


def curve(
    scheme: str,
    values: types.Array,
    bound: types.Array | None = None,
    *,
    first: int = 0,
    **columns: Any,
) -> reproduce.Rows:
    """Rows of a curve, over processes.

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
    found: dict[str, np.ndarray] = {"mean": values.mean(0)}
    if num_processes > 1:
        half = scipy.stats.t.ppf(0.975, num_processes - 1) * scipy.stats.sem(values, axis=0)
        found |= {"mean_low": found["mean"] - half, "mean_high": found["mean"] + half}
    quartiles = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    found |= dict(zip(("quartile_low", "median", "quartile_high"), quartiles, strict=True))
    if bound is not None:
        bound = np.asarray(bound)
        known = bound.shape[1]  # Of iteration 0 theorems say nothing.
        shares = np.zeros(values.shape)
        shares[:, length - known :] = share(values[:, length - known :], bound)
        bound = np.concatenate([np.full((num_processes, length - known), np.nan), bound], 1)
        found |= {"bound": bound.mean(0), "bound_median": np.median(bound, 0)}
        found["largest_share"] = np.maximum.accumulate(shares.max(0))
    head = {"scheme": scheme, **columns, "processes": num_processes}
    return [
        {**head, "iteration": int(k) + first, **{name: float(x[k]) for name, x in found.items()}}
        for k in kept(length - 1)
    ]


def share(
    values: types.Array | float, bound: types.Array | float, scale: types.Array | float = 1.0
) -> np.ndarray:
    """Values / bound, rounding taken off the values (of numbers as large as `scale`).

    It is nan where either is not finite: a bound that is infinite promises nothing.
    """
    excess = np.maximum(np.asarray(values) - ROUNDING * np.asarray(scale), 0)
    bound = np.asarray(bound)
    found = np.divide(excess, bound, out=np.where(excess > 0, np.inf, 0.0), where=bound > 0)
    return np.where(np.isfinite(excess) & np.isfinite(bound), found, np.nan)


def ends(scheme: str, end: types.Array, **columns: Any) -> reproduce.Rows:
    """Rows of one number a process, [M]; a column is one value for all, or a list of M."""

    def of(i: int) -> dict[str, Any]:
        return {name: x[i] if isinstance(x, list) else x for name, x in columns.items()}

    return [{"scheme": scheme, "process": i, "end": float(x), **of(i)} for i, x in enumerate(end)]


def within(claim: str, largest_share: float, counted: str) -> reproduce.Check:
    """Whether a bound was never broken; `largest_share` is the largest value / bound."""
    return reproduce.Check(
        claim,
        bool(0 <= largest_share <= 1),
        f"at most {largest_share:.3g} of it {counted}",
    )


def small(
    claim: str, difference: float, limit: float, counted: str, remaining: float = 0.0
) -> reproduce.Check:
    """Whether numbers that should be equal differ by `limit` at most.

    Args:
      claim, difference, limit: what, by how much, and by how much at most.
      counted: what was looked at.
      remaining: what theory allows to be left of the difference after the iterations that were
        run; where it is more than the limit, these are too few to judge by.
    """
    evidence = f"at most {difference:.2g} {counted}, against {limit:g}"
    if remaining > limit and np.isfinite(difference):
        few = f"; not judged: after so few iterations {remaining:.2g} may be left"
        return reproduce.Check(claim, None, evidence + few)
    held = bool(np.isfinite(difference) and difference <= limit)
    return reproduce.Check(claim, held, evidence)


def above(
    claim: str, values: Sequence[float] | np.ndarray, threshold: float = 0
) -> reproduce.Check:
    """Whether the 95% interval of the mean over processes, values [M], lies above a threshold."""
    return study.above(claim, values, threshold, units=("process", "processes"))


def draw(
    axes: Axes,
    rows: reproduce.Rows,
    label: str | None,
    *,
    median: bool = False,
    bound: bool = True,
    **style: Any,
) -> None:
    """One curve, its band and, dashed in the same colour, its bound: of a median its median."""
    centre = "median" if median else "mean"
    low, high = ("quartile_low", "quartile_high") if median else ("mean_low", "mean_high")
    x = np.array([row["iteration"] for row in rows])
    (line,) = axes.plot(x, [row[centre] for row in rows], label=label, **{"lw": 1.4, **style})
    if rows[0]["processes"] > 1:
        bottom, top = ([row[name] for row in rows] for name in (low, high))
        axes.fill_between(x, bottom, top, color=line.get_color(), alpha=0.2, lw=0)
    if bound and "bound" in rows[0]:
        promised = [row["bound_median" if median else "bound"] for row in rows]
        axes.plot(x, promised, "--", color=line.get_color(), lw=0.9)


def where(rows: reproduce.Rows, **columns: Any) -> reproduce.Rows:
    """The rows with these values, without those columns that `table` picks them by."""
    chosen = [row for row in rows if all(row[name] == value for name, value in columns.items())]
    return [{k: v for k, v in row.items() if k != "table"} for row in chosen]


def tagged(table: str, rows: reproduce.Rows) -> reproduce.Rows:
    """Rows that say which table they go to; `where(rows, table=...)` takes them out again."""
    return [{"table": table, **row} for row in rows]


def counted(processes: MDP, num_iterations: int) -> str:
    """In words, what a check looked at."""
    return f"over {processes.reward.shape[0]} processes and {num_iterations:,} iterations"


def legend(axes: Axes, columns: int = 4) -> None:
    """The legend of some axes, below them, where no curve is."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)


def seconds(config: Config, iterations: int, schemes: int) -> float:
    """Estimate for so many runs: each is compiled, then evaluates a policy an iteration."""
    size, num_states = config.num_garnets, config.garnet.num_states
    if config.mdp:
        own = make(config)
        size, num_states = own.batch_shape[0], own.num_states
    each = 15e-6 * (num_states / 30) ** 3
    return 6 + schemes * (2 + iterations * size * each)


def successors(samples: int) -> str:
    """A number of sampled successors, in words."""
    return f"{samples} sampled successor" + ("" if samples == 1 else "s")

"""The front of reward against KL that a run of WARP ends with, and the merged policy behind it.

Every eta of (1 - eta) theta_sft + eta theta_slerp writes texts to the same held-out prompts, with
the same random numbers. The run's folder then has

    front.csv, front.png   reward and KL by eta
    merged-STEPS/          theta_slerp, a folder as Hugging Face has them

`kullback merge --method liti merged-STEPS --base START --interpolation ETA` makes the policy of
any point of the front.
"""

import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from kullback.core import averaging, files, types
from kullback.experiments import plots
from kullback.experiments.runs import episodes, exports, model_files
from kullback.lm import tokenizer, warp

PROMPTS = 256  # Held-out ones, at most.


class Ends(NamedTuple):
    """The ends of the front, in what is learnt: adapters, where there are some."""

    start: types.Params  # theta_sft.
    merged: types.Params  # theta_slerp.
    # What is learnt -> the parameters that act.
    acts_by: Callable[[types.Params], types.Params] = lambda learnt: learnt


class Point(NamedTuple):
    """A policy of the front; means over prompts."""

    eta: float
    reward: float
    reward_error: float  # Standard error of the mean.
    kl_start: float  # Nats of a whole text.
    kl_error: float
    answer_tokens: float


def front(
    actor: episodes.Actor,
    ends: Ends,
    *,
    etas: Sequence[float] = warp.ETAS,
    count: int,
    key: types.Key,
) -> list[Point]:
    """Returns the points of (1 - eta) start + eta merged, on the first `count` held-out prompts."""
    count = actor.evaluator.kept(count)
    points, start = [], ends.acts_by(ends.start)
    for eta in etas:
        acting = {"params": ends.acts_by(averaging.liti(ends.start, ends.merged, eta))}
        held_out = actor.held_out(acting, start, count, key)
        errors = [float(np.std(x) / np.sqrt(count)) for x in (held_out.rewards, held_out.kl_start)]
        means = [float(np.mean(x)) for x in held_out]
        points.append(Point(eta, means[0], errors[0], means[1], errors[1], means[2]))
    return points


def finish(
    folder: pathlib.Path,
    actor: episodes.Actor,
    student: model_files.Checkpoint,
    ends: Ends,
    merged: Callable[[], types.Params],
    steps: int,
) -> None:
    """Writes the front of a run that is over, once; each file whole or not at all.

    Args:
      folder: of the run.
      actor: writes texts.
      student: shape, tokenizer, notice and sight of the policy.
      ends: of the front.
      merged: () -> the whole parameters of theta_slerp.
      steps: learner steps of the run.
    """
    out = folder / f"merged-{steps:06d}"
    if out.exists():
        return
    points = front(actor, ends, count=PROMPTS, key=jax.random.key(0))
    write(folder, points)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer_files = tokenizer.save(student.tokenizer, scratch)
        exports.save(student._replace(params=merged()), out, tokenizer_files)


def write(folder: pathlib.Path, points: Sequence[Point]) -> None:
    """Writes front.csv and front.png."""
    files.write_csv(folder / "front.csv", [point._asdict() for point in points])
    figure = plots.figure(6.4, 4.0)
    axes = figure.add_subplot()
    column = {name: [getattr(p, name) for p in points] for name in Point._fields}
    axes.errorbar(
        column["kl_start"],
        column["reward"],
        xerr=column["kl_error"],
        yerr=column["reward_error"],
        fmt="o-",
        markersize=4,
        capsize=2,
    )
    for point in points:
        place = point.kl_start, point.reward
        axes.annotate(f"{point.eta:g}", place, xytext=(4, -10), textcoords="offset points")
    axes.set_xlabel("KL to the supervised start (nats of a text)")
    axes.set_ylabel("reward")
    axes.set_title("(1 - η) start + η merge, by η; bars: standard errors")
    plots.save(figure, folder / "front.png")

"""`kullback reproduce teacher-hacking`: a student that nears its teacher and leaves the truth.

Tiapkin et al., "On Teacher Hacking in Language Model Distillation", ICML 2025,
https://arxiv.org/abs/2502.02671, with models of fifty to eighty thousand parameters. A
random model is the truth, the oracle. Teacher and student are fine-tuned on its samples, the
teacher to the point of overfitting; then the student is distilled from the teacher on more prompts.
Only whose completions it learns from differs: the teacher's, sampled once (offline) or at every
visit of a prompt, or its own. On prompts that nothing was learnt from,

    golden = KL(oracle || student),  proxy = KL(teacher || student),  of whole sequences, in nats.

Where the paper has T5 models and texts, here are 16 tokens, prompts of 4 and completions of 12 of
them; there is no end of sequence.

The headline is that golden turns up offline and does not online, both judged by the same test. It
is a fair one where the teacher is nearer to the truth than the student ever comes; with the default
sizes it is farther, so that who imitates it must leave the truth, online too. What golden of the
teacher is stands in the last report.
"""

import functools
import itertools
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from kullback.experiments.reproductions import charts, effects, hacking, judging, study
from kullback.experiments.reproductions.hacking import Config

TURNS = 1.05  # Times the least golden, above which it has turned up.
SHARED = "oracle, teacher and student"  # Of arms with one seed.


def arms(config: Config) -> list[study.Arm]:
    """Returns all arms with all seeds."""
    models = functools.cache(lambda: hacking.make_models(config))
    prepared = functools.cache(lambda seed: hacking.prepare(config, models(), seed))

    def compute(seed: int, arm: hacking.Arm, journal: study.Journal) -> study.Rows:
        return hacking.distil(config, models(), prepared(seed), arm, seed, journal)

    return [
        study.Arm(f"{arm.name}-{seed}", config.steps, functools.partial(compute, seed, arm))
        for seed, arm in itertools.product(study.seeds_of(config), hacking.arms(config))
    ]


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns curves, and where each of them ended."""
    ends = itertools.product(hacking.arms(config), study.seeds_of(config))
    return {"curves": rows, "summary": [hacking.end(rows, arm.name, s) for arm, s in ends]}


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the paper's statements, each over the seeds; pairs of arms have seeds in common."""
    of = functools.partial(study.column, tables["summary"])

    def less(adjective: str, arm: str, than: str, column: str) -> judging.Check:
        difference = of(column, arm=than) - of(column, arm=arm)
        claim = f"{arm}: {adjective} than {than} (difference)"
        return judging.above(claim, difference, shared=SHARED)

    for source in config.sources:
        rise, is_offline = of("golden_rise", arm=source), source == "offline"
        claim = f"{source}: golden turns up, ending above {TURNS} times its least"
        if not is_offline:
            claim = f"{source}: golden ends within {TURNS} times its least ({TURNS} less that)"
        values, threshold = (rise, TURNS) if is_offline else (TURNS - rise, 0.0)
        yield judging.headline(judging.above(claim, values, threshold))
    if "offline" in config.sources:
        offline = functools.partial(of, arm="offline")
        yield judging.above(
            "offline: proxy falls all the same from there to the end (by nats)",
            offline("proxy_fall_since"),
        )
        yield judging.above(
            "offline: proxy falls over the second half of the steps (nats an e-fold of steps)",
            -late_slopes(study.where(tables["curves"], arm="offline"), config.steps),
        )
        for online in (source for source in config.sources if source != "offline"):
            yield less("golden rises less, as a ratio,", online, "offline", "golden_rise")
            yield less("a lower golden at the end", online, "offline", "golden_end")
            yield less("a lower proxy at the end", online, "offline", "proxy_end")
            yield less("a lower training loss at the end", "offline", online, "train_loss_end")
            yield judging.above(
                f"offline: in the last 70% of the steps the exponent of proxy is below 0.6 of "
                f"{online}'s (0.6 of that, less it)",
                0.6 * of("late_exponent", arm=online) - offline("late_exponent"),
                shared=SHARED,
            )
    for source in config.sources:
        left = of("left_power_law_at_step", arm=source)
        least = of("step_of_golden_least", arm=source)
        leaves = source == "offline"
        yield judging.mostly(
            f"{source}: proxy {'leaves' if leaves else 'keeps to'} its power law",
            (left >= 0) == leaves,
            f"left at step {left.tolist()}, -1 for never; golden least at {least.tolist()}",
        )
    for what, varied in hacking.varied(config).items():
        if len(varied) > 1:
            few, many = (f(varied, key=operator.attrgetter(what)).name for f in (min, max))
            yield less(f"with more {what} a lower golden", many, few, "golden_end")
    first = hacking.arms(config)[0].name
    nearest = {"teacher": of("golden_of_teacher", arm=first)}
    nearest |= {
        arm: of("golden_least", arm=arm) for arm in study.distinct(tables["summary"], "arm")
    }
    yield judging.reported("golden of the teacher, and the students' least", judging.means(nearest))


def late_slopes(rows: study.Rows, steps: int) -> np.ndarray:
    """Returns the slope of proxy over ln(step), second half, [seeds]."""
    late = [row for row in rows if row["step"] >= steps / 2 and row["is_evenly_spaced"]]
    at = study.distinct(late, "step")
    return effects.slopes(np.log(at), study.by_seed(late, "proxy"))


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns golden over proxy, and golden, proxy and training loss over steps; a line a seed."""
    over: list[charts.Mark] = []
    along: dict[str, list[charts.Mark]] = {"golden": [], "proxy": [], "train_loss": []}
    for number, arm in enumerate(hacking.arms(config)):
        for seed in study.seeds_of(config):
            of = functools.partial(study.column, tables["curves"], arm=arm.name, seed=seed)
            style: dict[str, Any] = {"color": f"C{number}", "alpha": 0.85, "lw": 1.2}
            dot = {"ls": "None", "marker": "o", "markersize": 4, **style}
            proxy, golden, label = (
                of("proxy"),
                of("golden"),
                arm.name if seed == config.first_seed else None,
            )
            over.append(charts.Line(proxy, golden, label, style))
            over.append(charts.Line(proxy[-1:], golden[-1:], style=dot))
            for column, marks in along.items():
                marks.append(charts.Line(of("step")[1:], of(column)[1:], style=style))
    along["proxy"] += [
        law(row, config.steps) for row in tables["summary"] if row["left_power_law_at_step"] >= 0
    ]
    step, sequence = "learner step", "nats a sequence"
    return charts.Grid(
        panels=[
            panel(over, "Golden over proxy (a dot: the end)", "proxy, nats", "golden, nats"),
            panel(along["golden"], "Golden: distance to the oracle", step, sequence),
            panel(
                along["proxy"], "Proxy: distance to the teacher (x: off its law)", step, sequence
            ),
            panel(along["train_loss"], "Training loss", step, "nats a token"),
        ],
        columns=2,
        width=5.0,
        title_size=10,
    )


def law(end: dict[str, Any], last: int) -> charts.Line:
    """Returns the power law that a curve left, with a cross where it did."""
    at = np.array([0.05 * last, end["left_power_law_at_step"], last])
    cross = {"marker": "x", "markevery": [1], "markersize": 5}
    values = end["law_scale"] * at ** -end["law_exponent"]
    return charts.Line(at, values, style={"color": "k", "ls": ":", "lw": 1, **cross})


def panel(marks: list[charts.Mark], title: str, x: str, y: str) -> charts.Panel:
    """Returns a panel whose axes are logarithmic, and say their numbers in full."""
    is_over_proxy, has_decades = x.startswith("proxy"), y.endswith("token")

    def finish(axes: Axes) -> None:
        for axis in (axes.xaxis, axes.yaxis) if is_over_proxy else (axes.yaxis,):
            axis.set_minor_formatter(ticker.ScalarFormatter())
            axis.set_major_formatter(ticker.ScalarFormatter())
        if has_decades:
            axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
        axes.tick_params(axis="both", which="both", labelsize=7)

    return charts.Panel(
        marks=marks,
        axes={"title": title, "xlabel": x, "ylabel": y, "xscale": "log", "yscale": "log"},
        legend={"fontsize": 8} if is_over_proxy else None,
        finish=finish,
    )


STUDY = study.Study(
    claim="A student distilled from fixed sequences of its teacher goes on nearing the teacher "
    "while it leaves the truth; sequences sampled anew mitigate it, and a departure from the power "
    "law shows it.",
    source="Tiapkin et al. 2025, arXiv:2502.02671",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {"teacher_hacking": panels(config, tables)},
    # Compiling, then 0.03 s a step of 64 sequences, a third of it sampling.
    seconds=lambda config: (
        40 + config.seeds * len(hacking.arms(config)) * config.steps * 0.03 * config.batch_size / 64
    ),
)

"""`kullback reproduce gkd`: whose sequences a student should learn from.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes"
(GKD), ICLR 2024, https://arxiv.org/abs/2306.13649. A student that was fine-tuned first is distilled
with a share lambda of steps on what it writes itself, the others on the data set. What the
objective promises is judged: lambda = 0 comes nearest to the teacher after what the teacher
writes, lambda = 1 after what the student writes. Whether answers get better for it is reported.

Where the paper has T5 models on XSum, WMT and GSM8K, here a decoder of one layer and 7,000
parameters learns sums of two numbers below 100 from one of three layers and 140,000, which it
cannot match: a student that can ends at its teacher whatever lambda. One pair more, on summaries of
papers (three hundred examples), is too small to judge.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from kullback.core import types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import students, verdicts
from kullback.lm import distillation

ARITHMETIC = students.Sizes()
SUMMARIES = students.Sizes(
    task="tokens/summaries",
    max_prompt_length=96,  # Of some 430 tokens; the last ones, which say what is asked for.
    max_new_tokens=96,
    max_vocab_size=512,
    batch_size=8,
    teacher_width=64,
    teacher_steps=300,
    student_width=32,
    student_layers=2,
    student_steps=100,
    steps=100,
    evaluation=64,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, and the sizes of both tasks."""

    seeds: int = 3
    divergences: tuple[str, ...] = ("kl",)  # D; the paper: reverse_kl, jsd-0.1, -0.5, -0.9 too.
    student_fractions: tuple[float, ...] = (0.0, 0.5, 1.0)  # lambda.
    # Students begin to be distilled once they answer so much of what the teacher does, greedily.
    start: float = 0.5
    temperature: float = 1.0  # Divides both logits inside D while learning.
    arithmetic: students.Sizes = ARITHMETIC
    with_summaries: bool = True  # With one seed.
    summaries: students.Sizes = SUMMARIES

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be >= 1, got {self.seeds}")
        fractions = self.student_fractions
        if not {0.0, 1.0} <= set(fractions) or not all(0 <= f <= 1 for f in fractions):
            raise ValueError(
                f"student_fractions must lie in [0, 1], both ends among them, got {fractions}"
            )
        if not 0 < self.start <= 1:
            raise ValueError(f"start must lie in (0, 1], got {self.start}; the paper's is good")
        for divergence in self.divergences:
            distillation.named(divergence, self.temperature)


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """Both tasks, all arms."""
    rows = distilled(config, config.arithmetic, config.seeds, work)
    tables = {"arithmetic": rows}
    checks = [check for d in config.divergences for check in judge(config, rows, d)]
    if config.with_summaries:
        tables["summaries"] = distilled(config, config.summaries, 1, work)
        for column, what in (
            ("nats_a_token", "nats a held-out token"),
            ("rouge_l_greedy", "ROUGE-L, greedy"),
        ):
            evidence = _by_fraction(tables["summaries"], config.divergences[0], column)
            checks.append(reproduce.Check(f"summaries: {what}", None, evidence))
    return reproduce.Found(tables, {"gkd": draw(config, rows)}, checks)


def distilled(
    config: Config, sizes: students.Sizes, seeds: int, work: reproduce.Work
) -> reproduce.Rows:
    """The teacher, students as they start, and students of each divergence and lambda.

    The teacher is trained once; a seed draws the student, its batches and its sequences.
    """
    room = students.make(sizes)
    name = sizes.task.removeprefix("tokens/")
    programs = {d: students.distiller(room, d, config.temperature) for d in config.divergences}
    distances = {d: students.distance(room, d) for d in config.divergences}

    tune = students.tuner(room, room.student)

    @functools.cache
    def teacher() -> types.Params:
        program = students.tuner(room, room.teacher)
        return students.from_data(room, program, sizes.teacher_steps, 0, tick=work.tick)

    @functools.cache
    def start(seed: int) -> types.Params:
        judge, is_judged = room.judge(room.student, "kl"), "score_greedy" in of_teacher

        def is_good(params: types.Params) -> bool:
            if not is_judged:  # Then fine-tuning has all of its steps.
                return False
            scores = judge.scores({"params": params}, sizes.evaluation, jax.random.key(seed))
            return bool(scores.mean() >= config.start * of_teacher["score_greedy"])

        return students.from_data(
            room, tune, sizes.student_steps, seed, tick=work.tick, is_enough=is_good
        )

    def measure_teacher() -> reproduce.Rows:
        return [students.quality(room, room.teacher, teacher(), 0)]

    [of_teacher] = work.part(f"{name}-teacher", sizes.teacher_steps, measure_teacher)

    def measured(seed: int, divergence: str, fraction: float | None) -> reproduce.Rows:
        params = start(seed)
        if fraction is not None:
            params = students.distil(
                room, programs[divergence], params, teacher(), fraction, seed, work.tick
            )
        link = students.link_of(divergence)
        theirs = students.prefixes(room, room.teacher, teacher(), seed)
        own = students.prefixes(room, room.student, params, seed, link)
        after_teacher, _ = distances[divergence](params, teacher(), theirs)
        after_student, entropy = distances[divergence](params, teacher(), own)
        return [
            {
                "divergence": divergence,
                "student_fraction": "start" if fraction is None else fraction,
                "seed": seed,
                "after_teachers_prefixes": float(after_teacher),
                "after_own_prefixes": float(after_student),
                "entropy": float(entropy),
                **students.quality(room, room.student, params, seed, link),
                **{f"{name}_of_teacher": value for name, value in of_teacher.items()},
            }
        ]

    rows: reproduce.Rows = []
    for seed, divergence in itertools.product(range(seeds), config.divergences):
        for fraction in (None, *config.student_fractions):

            def compute(
                seed: int = seed, divergence: str = divergence, fraction: float | None = fraction
            ) -> reproduce.Rows:
                return measured(seed, divergence, fraction)

            steps = sizes.student_steps if fraction is None else sizes.steps
            label = "start" if fraction is None else f"{fraction:g}"
            rows += work.part(f"{name}-{divergence}-{label}-{seed}", steps, compute)
    return rows


def judge(config: Config, rows: reproduce.Rows, divergence: str) -> list[reproduce.Check]:
    """Whether each end of lambda is the best where it learns; pairs of arms share seeds."""

    def of(fraction: float | str, column: str) -> np.ndarray:
        return np.array(
            [
                row[column]
                for row in rows
                if row["divergence"] == divergence and row["student_fraction"] == fraction
            ]
        )

    checks: list[reproduce.Check] = []
    for best, column, whose in (
        (0.0, "after_teachers_prefixes", "the teacher's"),
        (1.0, "after_own_prefixes", "the student's own"),
    ):
        for other in config.student_fractions:
            if other != best:
                difference = of(other, column) - of(best, column)
                claim = (
                    f"{divergence}: after {whose} prefixes lambda {best:g} is nearer to the "
                    f"teacher than {other:g} (difference, nats a token)"
                )
                checks.append(verdicts.above(claim, difference.tolist()))
    started, taught = of("start", "score_greedy"), of("start", "score_greedy_of_teacher")
    reached = np.divide(started, taught, out=np.full_like(started, np.nan), where=taught > 0)
    checks.append(
        reproduce.Check(
            f"{divergence}: share of the teacher's score from which students start; what the paper "
            "says of quality supposes a good start",
            None,
            str(reproduce.interval(reached)),
        )
    )
    for column, what in (
        ("score_greedy", "exact answers, greedy"),
        ("score_temperature_1", "exact answers at temperature 1"),
        ("entropy", "entropy, nats a token of its own"),
        ("after_teachers_prefixes", "distance after the teacher's prefixes"),
        ("after_own_prefixes", "distance after its own prefixes"),
    ):
        evidence = _by_fraction(rows, divergence, column)
        checks.append(reproduce.Check(f"{divergence}: {what}", None, evidence))
    return checks


def draw(config: Config, rows: reproduce.Rows) -> Figure:
    """Distances and scores over lambda: thin lines are seeds, a thick one their mean."""
    columns = {
        "after_teachers_prefixes": ("After the teacher's prefixes", "D to the teacher, a token"),
        "after_own_prefixes": ("After the student's own prefixes", "D to the teacher, a token"),
        "score_greedy": ("Held-out sums", "exact answers, greedy"),
    }
    at = sorted(config.student_fractions)
    drawn = reproduce.figure(3, width=4.2, height=3.6)
    for axes, (column, (title, label)) in zip(drawn.axes, columns.items(), strict=True):
        started = np.mean([row[column] for row in rows if row["student_fraction"] == "start"])
        for number, divergence in enumerate(config.divergences):
            found = np.array(
                [
                    [
                        row[column]
                        for row in rows
                        if (row["divergence"], row["student_fraction"]) == (divergence, fraction)
                    ]
                    for fraction in at
                ]
            )  # [fractions, seeds]
            style: dict[str, Any] = {"color": f"C{number}"}
            axes.plot(at, found, "o-", lw=0.8, markersize=3, alpha=0.5, **style)
            axes.plot(at, found.mean(1), lw=2, label=divergence, **style)
        axes.set_title(f"{title}\n(before: {started:.3g})", fontsize=10)
        axes.set_xlabel("lambda: share of steps on own sequences")
        axes.set_ylabel(label)
        axes.set_xticks(at)
    drawn.axes[0].legend(fontsize=8)
    return drawn


def _by_fraction(rows: reproduce.Rows, divergence: str, column: str) -> str:
    found: dict[Any, list[float]] = {}
    for row in rows:
        if row["divergence"] == divergence:
            found.setdefault(row["student_fraction"], []).append(row[column])
    said = {f: reproduce.interval(v) if len(v) > 1 else f"{v[0]:.4g}" for f, v in found.items()}
    return ", ".join(
        f"{'start' if f == 'start' else f'lambda {f:g}'} {value}" for f, value in said.items()
    )


def _arms(config: Config, sizes: students.Sizes, seeds: int) -> int:
    each = sizes.student_steps + len(config.student_fractions) * sizes.steps
    return sizes.teacher_steps + seeds * len(config.divergences) * each


def steps(config: Config) -> int:
    """Learner steps of all models."""
    found = _arms(config, config.arithmetic, config.seeds)
    return found + (_arms(config, config.summaries, 1) if config.with_summaries else 0)


def seconds(config: Config) -> float:
    """On two cores: compiling, and steps by their size."""

    def cost(sizes: students.Sizes, seeds: int) -> float:
        tokens = sizes.batch_size * (sizes.max_prompt_length + sizes.max_new_tokens)
        of_students = _arms(config, sizes, seeds) - sizes.teacher_steps
        return tokens / 768 * (0.022 * sizes.teacher_steps + 0.008 * of_students)

    found = 60 + cost(config.arithmetic, config.seeds)
    return found + (30 + cost(config.summaries, 1) if config.with_summaries else 0)


REPRODUCTION = reproduce.Reproduction(
    claim="A student comes nearest to its teacher on the sequences that it learnt from: lambda = 0 "
    "on the teacher's, lambda = 1 on its own.",
    source="Agarwal et al. 2024, arXiv:2306.13649",
    config=Config(),
    steps=steps,
    seconds=seconds,
    run=run,
)

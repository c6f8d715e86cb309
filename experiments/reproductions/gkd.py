"""`kullback reproduce gkd`: whose sequences a student should learn from.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes"
(GKD), ICLR 2024, https://arxiv.org/abs/2306.13649. A student that was fine-tuned first is distilled
with a share lambda of steps on what it writes itself, the others on the data set. What the
objective promises is judged: lambda = 0 comes nearest to the teacher after what the teacher
writes, lambda = 1 after what the student writes. Whether sequences get better is reported.

It is judged on a line of tokens (line.py): the teacher is known exactly, and a student of one layer
cannot match it. Each end of lambda leads there where it learns, by gaps that dwarf those between
seeds. The student starts poor, the paper's start well: lambda = 0 writes the better sequences here.
Where a teacher is learnt, of sums of two numbers below 100 (the paper: T5 models on XSum, WMT,
GSM8K), arms differ less than seeds do. So that is reported only, as is one seed of summaries of
papers, three hundred examples.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from kullback.core import types
from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import line as line_teacher
from kullback.experiments.reproductions import students, study
from kullback.lm import distillation

LINE = line_teacher.Sizes()
ARITHMETIC = students.Sizes(steps=750)
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

# Columns that are reported and drawn, and what they are.
DISTANCES = {
    "after_teachers_prefixes": "distance after the teacher's prefixes",
    "after_own_prefixes": "distance after its own prefixes",
    "entropy": "entropy, nats a token of its own",
}
OF_LINE = {"near_the_line": "share of its sequences that ends within 1 of the line"}
OF_SUMS = {
    "score_greedy": "exact answers, greedy",
    "score_temperature_1": "exact answers at temperature 1",
}
OF_START = {"share_of_teachers_score": "share of the teacher's score, greedy"}
OF_SUMMARIES = {"nats_a_token": "nats a held-out token", "rouge_l_greedy": "ROUGE-L, greedy"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, and the sizes of the tasks."""

    seeds: int = 3
    divergences: tuple[str, ...] = ("kl",)  # D; the paper: reverse_kl, jsd-0.1, -0.5, -0.9 too.
    student_fractions: tuple[float, ...] = (0.0, 0.5, 1.0)  # lambda.
    # On texts, students are distilled once they answer so much of what the teacher does, greedily.
    start: float = 0.5
    temperature: float = 1.0  # Divides both logits inside D while learning.
    line: line_teacher.Sizes = LINE
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
    """All tasks, all arms."""
    rows = distilled(config, on_the_line(config.line, work), config.seeds, work)
    sums = distilled(config, on_texts(config, config.arithmetic, work), config.seeds, work)
    tables = {"line": rows, "arithmetic": sums}
    figures = {
        "gkd": draw(config, rows, DISTANCES | OF_LINE),
        "arithmetic": draw(config, sums, DISTANCES | OF_SUMS),
    }
    checks: list[reproduce.Check] = []
    for divergence in config.divergences:
        checks += judge(config, rows, divergence)
        checks += report("line", rows, divergence, DISTANCES | OF_LINE)
        checks += report("arithmetic", sums, divergence, DISTANCES | OF_SUMS | OF_START)
    if config.with_summaries:
        texts = distilled(config, on_texts(config, config.summaries, work), 1, work)
        tables["summaries"] = texts
        checks += report("summaries", texts, config.divergences[0], OF_SUMMARIES)
    return reproduce.Found(tables, figures, checks)


def on_the_line(sizes: line_teacher.Sizes, work: reproduce.Work) -> students.Lesson:
    """The teacher that follows a line, and students that were fine-tuned on what it writes."""
    room = line_teacher.rooms(sizes)
    program = students.tuner(room(0), room(0).student)

    @functools.cache
    def start(seed: int) -> types.Params:
        return students.from_data(room(seed), program, sizes.student_steps, seed, tick=work.tick)

    def quality(params: types.Params, seed: int, link: str) -> dict[str, float]:
        made = students.prefixes(room(seed), room(seed).student, params, seed, link)
        return {"near_the_line": line_teacher.near(made.tokens, sizes.vocab_size)}

    return students.Lesson("line", sizes.student_steps, room, dict, start, quality)


def on_texts(config: Config, sizes: students.Sizes, work: reproduce.Work) -> students.Lesson:
    """A teacher that is trained once, and students that were fine-tuned to a good start."""
    room, name = students.make(sizes), sizes.task.removeprefix("tokens/")
    tune = students.tuner(room, room.student)
    evaluator = room.evaluator and room.evaluator(room.student, "kl")

    @functools.cache
    def teacher() -> types.Params:
        program = students.tuner(room, room.teacher)
        return students.from_data(room, program, sizes.teacher_steps, 0, tick=work.tick)

    @functools.cache
    def start(seed: int) -> types.Params:
        def is_good(params: types.Params) -> bool:
            if evaluator is None or "score_greedy" not in of_teacher:
                return False  # It has all of its steps.
            acting, key = {"params": params}, jax.random.key(seed)
            scores = evaluator.scores(acting, sizes.evaluation, key)
            return bool(scores.mean() >= config.start * of_teacher["score_greedy"])

        return students.from_data(
            room, tune, sizes.student_steps, seed, tick=work.tick, is_enough=is_good
        )

    def measure_teacher() -> reproduce.Rows:
        return [students.quality(room, room.teacher, teacher(), 0)]

    [of_teacher] = work.part(f"{name}-teacher", sizes.teacher_steps, measure_teacher)

    def quality(params: types.Params, seed: int, link: str) -> dict[str, float]:
        own = students.quality(room, room.student, params, seed, link)
        if (taught := of_teacher.get("score_greedy")) is not None:
            own["share_of_teachers_score"] = own["score_greedy"] / taught if taught else np.nan
        return own | {f"{column}_of_teacher": value for column, value in of_teacher.items()}

    return students.Lesson(name, sizes.student_steps, lambda seed: room, teacher, start, quality)


def distilled(
    config: Config, lesson: students.Lesson, seeds: int, work: reproduce.Work
) -> reproduce.Rows:
    """Students as they start, and students of each divergence and lambda.

    A seed draws the student, its batches and its sequences; on the line, the data set too.
    """
    room = lesson.room(0)  # Programs are those of all seeds.
    programs = {d: students.distiller(room, d, config.temperature) for d in config.divergences}
    distances = {d: students.distance(room, d) for d in config.divergences}

    def compute(seed: int, divergence: str, fraction: float | None) -> reproduce.Rows:
        room, params, teacher = lesson.room(seed), lesson.start(seed), lesson.teacher()
        if fraction is not None:
            program = programs[divergence]
            params = students.distil(room, program, params, teacher, fraction, seed, work.tick)
        measure = distances[divergence]
        return [
            {
                "divergence": divergence,
                "student_fraction": "start" if fraction is None else fraction,
                "seed": seed,
                **students.measured(room, measure, params, teacher, seed, divergence),
                **lesson.quality(params, seed, students.link_of(divergence)),
            }
        ]

    rows: reproduce.Rows = []
    for seed, divergence in itertools.product(range(seeds), config.divergences):
        for fraction in (None, *config.student_fractions):
            steps = lesson.steps if fraction is None else room.steps
            label = "start" if fraction is None else f"{fraction:g}"
            part = functools.partial(compute, seed, divergence, fraction)
            rows += work.part(f"{lesson.name}-{divergence}-{label}-{seed}", steps, part)
    return rows


def judge(config: Config, rows: reproduce.Rows, divergence: str) -> list[reproduce.Check]:
    """Whether each end of lambda is the best where it learns; pairs of arms share seeds."""
    checks: list[reproduce.Check] = []
    for best, column, whose in (
        (0.0, "after_teachers_prefixes", "the teacher's"),
        (1.0, "after_own_prefixes", "the student's own"),
    ):
        for other in config.student_fractions:
            if other != best:
                farther, nearer = (
                    study.column(rows, column, divergence=divergence, student_fraction=f)
                    for f in (other, best)
                )
                claim = (
                    f"line, {divergence}: after {whose} prefixes lambda {best:g} is nearer to the "
                    f"teacher than {other:g} (difference, nats a token)"
                )
                checks.append(study.above(claim, (farther - nearer).tolist()))
    return checks


def report(
    task: str, rows: reproduce.Rows, divergence: str, columns: dict[str, str]
) -> list[reproduce.Check]:
    """Means over seeds by lambda, unjudged; `columns` are those of the table, with their words."""
    checks: list[reproduce.Check] = []
    for column, what in columns.items():
        said: list[str] = []
        for fraction in dict.fromkeys(row["student_fraction"] for row in rows):
            values = study.column(rows, column, divergence=divergence, student_fraction=fraction)
            mean = statistics.t_interval(values) if len(values) > 1 else f"{values[0]:.4g}"
            said.append(f"{'start' if fraction == 'start' else f'lambda {fraction:g}'} {mean}")
        checks.append(reproduce.Check(f"{task}, {divergence}: {what}", None, ", ".join(said)))
    return checks


def draw(config: Config, rows: reproduce.Rows, columns: dict[str, str]) -> Figure:
    """Columns over lambda: thin lines are seeds, a thick one their mean."""
    at = sorted(config.student_fractions)
    drawn = reproduce.figure(len(columns), width=3.6, height=3.6)
    for axes, (column, what) in zip(drawn.axes, columns.items(), strict=True):
        started = np.mean([row[column] for row in rows if row["student_fraction"] == "start"])
        for number, divergence in enumerate(config.divergences):
            found = np.stack(
                [study.column(rows, column, divergence=divergence, student_fraction=f) for f in at]
            )  # [fractions, seeds]
            style: dict[str, Any] = {"color": f"C{number}"}
            axes.plot(at, found, "o-", lw=0.8, markersize=3, alpha=0.5, **style)
            axes.plot(at, found.mean(1), lw=2, label=divergence, **style)
        axes.set_title(f"{what}\n(before: {started:.3g})", fontsize=8)
        axes.set_xlabel("lambda: share of steps on own sequences")
        axes.set_xticks(at)
    drawn.axes[0].legend(fontsize=8)
    return drawn


def _arms(config: Config, sizes: students.Sizes | line_teacher.Sizes, seeds: int) -> int:
    each = sizes.student_steps + len(config.student_fractions) * sizes.steps
    return seeds * len(config.divergences) * each


def steps(config: Config) -> int:
    """Learner steps of all models."""
    found = _arms(config, config.line, config.seeds) + config.arithmetic.teacher_steps
    found += _arms(config, config.arithmetic, config.seeds)
    if config.with_summaries:
        found += config.summaries.teacher_steps + _arms(config, config.summaries, 1)
    return found


def seconds(config: Config) -> float:
    """On two cores: compiling, and steps by their size."""

    def cost(sizes: students.Sizes, seeds: int) -> float:
        tokens = sizes.batch_size * (sizes.max_prompt_length + sizes.max_new_tokens)
        of_students = _arms(config, sizes, seeds)
        return tokens / 768 * (0.022 * sizes.teacher_steps + 0.008 * of_students)

    tokens = config.line.batch_size * (1 + config.line.horizon)
    found = 20 + tokens / 1344 * 0.01 * _arms(config, config.line, config.seeds)
    found += 60 + cost(config.arithmetic, config.seeds)
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

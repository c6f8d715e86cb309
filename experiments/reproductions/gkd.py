"""`kullback reproduce gkd`: whose sequences a student should learn from.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes"
(GKD), ICLR 2024, https://arxiv.org/abs/2306.13649. A student that was fine-tuned first is distilled
with a share lambda of steps on what it writes itself, the others on the data set. The paper's
headline is judged: the student that learnt from what it writes itself, lambda = 1, does the task
better than the one that learnt from the data set, lambda = 0. What the objective promises is
reported: each end of lambda is nearest to the teacher after the sequences that it learnt from.

There is a line of tokens (token_line.py), where the teacher is known exactly and a student of one
layer cannot match it, and sums of two numbers below 100, whose teacher is learnt (the paper: T5
models on XSum, WMT, GSM8K). One seed of summaries of papers, three hundred examples, is reported.
On the line the student starts poor, the paper's start well.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import charts, judging, setups, students, study, token_line
from kullback.lm import distillation

LINE = token_line.Sizes()
ARITHMETIC = setups.Sizes(steps=750)
SUMMARIES = setups.Sizes(
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

# Columns that are reported and drawn, with their titles.
DISTANCES = {
    "after_teachers_prefixes": "distance after the teacher's prefixes",
    "after_own_prefixes": "distance after its own prefixes",
    "entropy": "entropy, nats a token of its own",
}
ON_LINE = {**DISTANCES, "near_the_line": "share of its sequences that ends within 1 of the line"}
ON_SUMS = {
    **DISTANCES,
    "score_greedy": "exact answers, greedy",
    "score_temperature_1": "exact answers at temperature 1",
}
# The worth of sequences that the headline is of, by task, and what it is.
SCORES = {
    "line": ("near_the_line", "sequences that end within 1 of the line (share more)"),
    "arithmetic": ("score_greedy", "exact answers, greedy (share more)"),
}
REPORTED = {
    "line": ON_LINE,
    "arithmetic": {**ON_SUMS, "share_of_teachers_score": "share of the teacher's score, greedy"},
}
OF_SUMMARIES = {"nats_a_token": "nats a held-out token", "rouge_l_greedy": "ROUGE-L, greedy"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, divergences and shares that are varied, and the sizes of the tasks."""

    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.
    divergences: tuple[str, ...] = ("kl",)  # D; the paper: reverse_kl, jsd-0.1, -0.5, -0.9 too.
    student_fractions: tuple[float, ...] = (0.0, 0.5, 1.0)  # lambda.
    # On texts, students are distilled once they answer so much of what the teacher does, greedily.
    start: float = 0.5
    temperature: float = 1.0  # Divides both logits inside D while learning.
    line: token_line.Sizes = LINE
    arithmetic: setups.Sizes = ARITHMETIC
    with_summaries: bool = True  # With one seed.
    summaries: setups.Sizes = SUMMARIES

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds")
        ranges.at_least(0, self, "first_seed")
        fractions = self.student_fractions
        if not {0.0, 1.0} <= set(fractions) or not all(0 <= f <= 1 for f in fractions):
            raise ValueError(
                f"student_fractions must lie in [0, 1], both ends among them, got {fractions}"
            )
        ranges.inside("(0, 1]", self, "start")  # The paper's is good.
        for divergence in self.divergences:
            distillation.named(divergence, self.temperature)


def arms(config: Config) -> list[study.Arm]:
    """Returns all tasks' arms, with all seeds."""
    seeds = study.seeds_of(config)
    sums = students.texts("arithmetic", config.arithmetic, config.start)
    line_arms = distilled(config, "line", token_line.problem(config.line), seeds)
    arms = [*line_arms, *distilled(config, "arithmetic", sums, seeds)]
    if config.with_summaries:
        summaries = students.texts("summaries", config.summaries, config.start)
        arms += distilled(config, "summaries", summaries, seeds[:1])
    return arms


def distilled(
    config: Config, task: str, problem: students.Problem, seeds: range
) -> list[study.Arm]:
    """Returns arms of students as they start, and of each divergence and lambda.

    A seed draws the student, its batches and its sequences; on the line, the data set too.
    """
    # Programs are those of all seeds.
    trainer = functools.cache(
        lambda divergence: students.distiller(problem.setup(0), divergence, config.temperature)
    )
    measure = functools.cache(lambda divergence: students.distance(problem.setup(0), divergence))

    def compute(
        seed: int, divergence: str, fraction: float | None, journal: study.Journal
    ) -> study.Rows:
        setup, params = problem.setup(seed), problem.start(seed, journal)
        teacher = problem.teacher(journal)
        if fraction is not None:
            how = {"start": params, "teacher": teacher, "fraction": fraction, "tick": journal.tick}
            steps = problem.sizes.steps
            params = students.learn(setup, trainer(divergence), steps, seed, **how)
        given = measure(divergence), params, teacher, seed, divergence
        return [
            {
                "divergence": divergence,
                "student_fraction": "start" if fraction is None else fraction,
                "seed": seed,
                **students.measured(setup, *given),
                **problem.quality(params, seed, divergence, journal),
            }
        ]

    arms = list(problem.arms)
    for seed, divergence in itertools.product(seeds, config.divergences):
        for fraction in (None, *config.student_fractions):
            label = "start" if fraction is None else f"{fraction:g}"
            steps = problem.sizes.student_steps if fraction is None else problem.sizes.steps
            part = functools.partial(compute, seed, divergence, fraction)
            arms.append(study.Arm(f"{task}-{divergence}-{label}-{seed}", steps, part, task))
    return arms


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns a table a task."""
    summaries = ["summaries"] if config.with_summaries else []
    return study.split(rows, "line", "arithmetic", *summaries)


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the worth of sequences by lambda; reports the rest."""
    for divergence in config.divergences:
        for task, (column, what) in SCORES.items():
            of = functools.partial(study.column, tables[task], column, divergence=divergence)
            more = of(student_fraction=1.0) - of(student_fraction=0.0)
            claim = f"{task}, {divergence}: lambda 1 beats lambda 0, {what}"
            shared = "the student's start and the data"
            yield judging.headline(judging.above(claim, more, shared=shared))
        yield from nearest(config, tables["line"], divergence)
        for task, columns in REPORTED.items():
            yield from reports(task, tables[task], divergence, columns)
    if config.with_summaries:
        rows = tables["summaries"]
        yield from reports("summaries", rows, config.divergences[0], OF_SUMMARIES)


def nearest(config: Config, rows: study.Rows, divergence: str) -> Iterator[judging.Check]:
    """Reports each end of lambda against the others where it learnt, as the objective promises."""
    of = functools.partial(study.column, rows, divergence=divergence)
    for best, column, whose in (
        (0.0, "after_teachers_prefixes", "the teacher's"),
        (1.0, "after_own_prefixes", "the student's own"),
    ):
        nearer = of(column, student_fraction=best)
        for other in config.student_fractions:
            if other != best:
                yield judging.reported(
                    f"line, {divergence}: after {whose} prefixes lambda {best:g} is nearer to the "
                    f"teacher than {other:g} (difference, nats a token)",
                    judging.mean(of(column, student_fraction=other) - nearer),
                )


def reports(
    task: str, rows: study.Rows, divergence: str, columns: Mapping[str, str]
) -> Iterator[judging.Check]:
    """Reports means over seeds by lambda; `columns` are those of the table, with their titles."""
    of = functools.partial(study.column, rows, divergence=divergence)
    for column, title in columns.items():
        means: list[str] = []
        for fraction in study.distinct(rows, "student_fraction"):
            label = "start" if fraction == "start" else f"lambda {fraction:g}"
            means.append(f"{label} {judging.mean(of(column, student_fraction=fraction))}")
        yield judging.reported(f"{task}, {divergence}: {title}", ", ".join(means))


def panels(config: Config, rows: study.Rows, columns: Mapping[str, str]) -> charts.Grid:
    """Returns columns over lambda; thin lines are seeds, a thick one their mean."""
    fractions = sorted(config.student_fractions)
    dots = {"marker": "o", "markersize": 3, "lw": 0.8, "alpha": 0.5}

    def panel(column: str, title: str) -> charts.Panel:
        before = study.column(rows, column, student_fraction="start").mean()
        marks: list[charts.Seeds] = []
        for number, divergence in enumerate(config.divergences):
            of = functools.partial(study.column, rows, column, divergence=divergence)
            y = np.stack([of(student_fraction=fraction) for fraction in fractions], 1)
            styles = {"color": f"C{number}"}, dots, {"lw": 2}
            marks.append(charts.Seeds(fractions, y, divergence, *styles))
        axes = {"title": f"{title}\n(before: {before:.3g})", "xticks": fractions}
        axes["xlabel"] = "lambda: share of steps on own sequences"
        is_first = column == next(iter(columns))
        return charts.Panel(marks=marks, axes=axes, legend={"fontsize": 8} if is_first else None)

    titled = [panel(*item) for item in columns.items()]
    return charts.Grid(panels=titled, width=3.6, title_size=8)


def seconds(config: Config) -> float:
    """Estimates compiling, and steps by their size."""

    def steps(sizes: setups.Sizes | token_line.Sizes, seeds: int) -> int:
        each = sizes.student_steps + len(config.student_fractions) * sizes.steps
        return seeds * len(config.divergences) * each

    tokens = config.line.batch_size * (1 + config.line.horizon)
    of_line = 20 + tokens / 1344 * 0.01 * steps(config.line, config.seeds)
    sums, summaries = config.arithmetic, config.summaries
    of_sums = 60 + sums.seconds(steps(sums, config.seeds))
    of_summaries = 30 + summaries.seconds(steps(summaries, 1)) if config.with_summaries else 0
    return of_line + of_sums + of_summaries


STUDY = study.Study(
    claim="A student that learns from the sequences that it writes itself does its task better "
    "than one that learns from a data set.",
    source="Agarwal et al. 2024, arXiv:2306.13649",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {
        "gkd": panels(config, tables["line"], ON_LINE),
        "arithmetic": panels(config, tables["arithmetic"], ON_SUMS),
    },
    seconds=seconds,
)

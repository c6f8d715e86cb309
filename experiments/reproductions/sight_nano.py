"""`kullback reproduce sight-nano`: what a narrow student keeps of a teacher that sees.

Gemini Nano was distilled from larger models, then brought to four bits; its table 3 has the scores
of both sizes as shares of Gemini Pro's. Tasks of retrieval keep most (0.8 to 0.9 of it), facts,
reasoning and code a third to a half (Gemini Team 2023, https://arxiv.org/abs/2312.11805). Loss,
data and format are not published, nor whether the table is before or after the four bits. Whether
small decoders show this order is the question.

An encoder of SigLIP's form learns which shape stands where, and is frozen (shape_encoder.py). A
teacher that sees by it learns questions of three kinds behind a picture (nano_questions.py), which
have the same answers. Students of half and a quarter of its width learn its next-token distribution
from nothing (GKD, lambda 0) on the rows that it learnt from: they share the features of pictures,
and each has a projector of its own. A student's matrices are then rounded to four bits, or it
learns on in them toward its teacher. What it keeps is its share of right answers, divided by the
teacher's.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from kullback.core import ranges, types
from kullback.experiments.reproductions import (
    charts,
    few_bits,
    judging,
    nano_questions,
    setups,
    shape_encoder,
    shapes,
    small_models,
    small_senses,
    small_sight,
    students,
    study,
)
from kullback.experiments.reproductions.nano_questions import KINDS
from kullback.lm import data, gkd, quantisation, sft, tuning

CELLS = shapes.CELLS**2
# A patch is a cell.
SIGHT = small_sight.Sizes(side=shapes.SIDE, patch=shapes.CELL, num_soft=CELLS, width=64, layers=3)
ENCODER = shape_encoder.Learning()
LIMITS = 4, 7  # Of a colour and of a shape, in the pictures that the encoder learns from.
QUESTIONS = nano_questions.Sizes()
ENCODES, TEACHER, HALF, QUARTER = "encoder", "teacher", "half", "quarter"
WIDTHS = {TEACHER: 1, HALF: 2, QUARTER: 4}  # By which the teacher's width is divided.
STUDENTS = {HALF: "half the width", QUARTER: "a quarter of it"}
FLOAT, ROUNDED, LEARNT_ON = "float", "rounded", "learnt on"
FORMS = {FLOAT: "float", ROUNDED: "four bits", LEARNT_ON: "four bits, learnt on in them"}
STREAMS = {name: n for n, name in enumerate(("world", "learnt", "held out", "pictures"), 1)}
SHARED = "teacher and questions"  # Of what is compared.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the models, their questions, and how long each learns."""

    sight: small_sight.Sizes = SIGHT  # The teacher's.
    encoder: shape_encoder.Learning = ENCODER
    questions: nano_questions.Sizes = QUESTIONS
    batch_size: int = 64
    learning_rate: float = 2e-3  # The highest; it falls to 0, linearly.
    teacher_steps: int = 3_000
    student_steps: int = 3_000  # Of distillation.
    bits: quantisation.Name = "int4"
    bits_steps: int = 400  # Of learning on in four bits.
    bits_rate: float = 3e-4
    seeds: int = 6
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "teacher_steps", "student_steps", "bits_steps", "seeds")
        ranges.at_least(0, self, "first_seed")
        if self.sight.width % 32:
            raise ValueError(
                f"sight.width must be a multiple of 32, as a quarter of it has one of 8, got "
                f"{self.sight.width}"
            )
        if (self.sight.side, self.sight.num_soft) != (shapes.SIDE, CELLS):
            raise ValueError(
                f"pictures have {shapes.SIDE} pixels of a side and {CELLS} cells, a soft token "
                f"each, got side={self.sight.side} and num_soft={self.sight.num_soft}"
            )

    def learning(
        self,
        prompt: int,
        horizon: int,
        steps: int,
        rate: float,
        quantize: quantisation.Kept = "none",
    ) -> tuning.Config:
        """Returns the settings of so many learner steps on rows of so many tokens."""
        falls = {"schedule": "linear", "decay_steps": steps, "warmup_steps": min(20, steps // 10)}
        sizes = self.batch_size, prompt, horizon
        return small_models.learning(*sizes, rate, quantize=quantize, **falls)


class Rows(NamedTuple):
    """Questions behind pictures, as a decoder reads them."""

    examples: Sequence[data.Example]
    pooled: np.ndarray  # [N, 1, M, E].


class World:
    """The models of a configuration and their programs, of all seeds."""

    def __init__(self, config: Config):
        """Trains a tokenizer, and builds models."""
        self.config = config
        texts = nano_questions.texts()
        length = 4 + CELLS + max(map(len, texts))  # Of bytes, at most.
        sizes = {
            name: dataclasses.replace(config.sight, width=config.sight.width // narrower)
            for name, narrower in WIDTHS.items()
        }
        # Of one tokenizer, as they are trained on the same texts.
        self.seers = {name: small_sight.make(x, texts * 2, length) for name, x in sizes.items()}
        seer = self.seers[TEACHER]
        self.width = max(len(seer.prompt(text)) for text in texts)
        self.horizon = 1 + max(len(seer.tokenizer.encode(x)) for x in nano_questions.COLOURS)
        self.are_right = {
            name: jax.jit(functools.partial(small_senses.is_right, x))
            for name, x in self.seers.items()
        }

    @functools.cached_property
    def tuner(self) -> small_models.Trainer:
        """The trainer of the teacher."""
        config = self.config
        rate, steps = config.learning_rate, config.teacher_steps
        learning = config.learning(self.width, self.horizon, steps, rate)
        tuned = sft.make(self.seers[TEACHER].decoder, sft.Config(learning=learning))
        return small_models.trainer(tuned.learner)

    @functools.cached_property
    def distillers(self) -> dict[tuple[str, str], small_models.Trainer]:
        """The trainers of students, from nothing in float, and on in four bits."""
        config = self.config
        how: dict[str, tuple[int, float, quantisation.Kept]] = {
            FLOAT: (config.student_steps, config.learning_rate, "none"),
            LEARNT_ON: (config.bits_steps, config.bits_rate, config.bits),
        }
        trainers: dict[tuple[str, str], small_models.Trainer] = {}
        for student in STUDENTS:
            models = self.seers[student].decoder, self.seers[TEACHER].decoder
            for form, settings in how.items():
                learning = config.learning(self.width, self.horizon, *settings)
                of_form = gkd.Config(student_fraction=0.0, learning=learning)
                trainers[student, form] = small_models.trainer(gkd.make(*models, of_form).learner)
        return trainers

    def encode(
        self, encoder: types.Params, given: Sequence[shapes.Row], random: np.random.Generator
    ) -> Rows:
        """Draws the pictures of questions, encodes each once, and returns both as rows."""
        seer, kinds = self.seers[TEACHER], np.stack([row.kinds for row in given])
        pixels = shapes.drawn(kinds, random)
        pooled = small_sight.encoded(seer.vision, encoder, pixels)
        return Rows(seer.examples([(row.question, row.answer) for row in given]), pooled)

    def setup(self, given: Rows) -> setups.Setup:
        """Returns the rows that all learn from."""
        config = self.config
        sizes = self.width, self.horizon, config.teacher_steps, config.learning_rate
        return small_sight.setup(self.seers[TEACHER], config.learning(*sizes), *given)

    def right(self, model: str, params: types.Params, given: Rows) -> float:
        """Returns the share of greedy answers that are right."""
        seer, length = self.seers[model], self.width + self.horizon
        rows = small_senses.sequences(seer, given.examples, given.pooled, length)
        return float(np.mean(self.are_right[model](params, rows)))


def compute(config: Config, world: World, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields right answers of the teacher, and of students in all forms, by kind."""
    sizes, done = config.questions, config.encoder.steps

    def random(stream: str) -> np.random.Generator:
        return np.random.default_rng([seed, STREAMS[stream]])

    vision = world.seers[TEACHER].vision
    encoder, cells_right = shape_encoder.learn(
        config.sight, config.encoder, vision, LIMITS, seed, journal.tick
    )
    yield {"model": ENCODES, "form": FLOAT, "questions": "cells", "right": cells_right}
    pictures, colours = random("pictures"), nano_questions.world(sizes, random("world"))
    rows_of = functools.partial(nano_questions.rows, sizes, colours)
    draws, number = random("learnt"), sizes.learnt // len(KINDS)
    questions = [row for kind in KINDS for row in rows_of(kind, number, draws)]
    setup, draws = world.setup(world.encode(encoder, questions, pictures)), random("held out")
    held_out = {
        kind: world.encode(encoder, rows_of(kind, sizes.held_out, draws), pictures)
        for kind in KINDS
    }

    def learn(trainer: small_models.Trainer, steps: int, **others: types.Params) -> types.Params:
        nonlocal done
        before = done
        done += steps
        tick: students.Tick = lambda n, loss: journal.tick(before + n, loss)  # noqa: E731
        return students.learn(setup, trainer, steps, seed, tick=tick, **others)

    def answers(model: str, form: str, params: types.Params) -> Iterator[study.Row]:
        for kind, rows in held_out.items():
            right = world.right(model, params, rows)
            yield {"model": model, "form": form, "questions": kind, "right": right}

    teacher = learn(world.tuner, config.teacher_steps)
    yield from answers(TEACHER, FLOAT, teacher)
    for student in STUDENTS:
        first, later = (world.distillers[student, form] for form in (FLOAT, LEARNT_ON))
        distilled = learn(first, config.student_steps, teacher=teacher)
        yield from answers(student, FLOAT, distilled)
        yield from answers(student, ROUNDED, few_bits.rounded(distilled, config.bits))
        learnt = learn(later, config.bits_steps, start=distilled, teacher=teacher)
        yield from answers(student, LEARNT_ON, few_bits.rounded(learnt, config.bits))


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields an arm a seed."""
    world = functools.cache(lambda: World(config))
    of_student = config.student_steps + config.bits_steps

    def run(seed: int, journal: study.Journal) -> Iterator[study.Row]:
        return compute(config, world(), seed, journal)

    for seed in study.seeds_of(config):
        part = functools.partial(run, seed)
        steps = config.encoder.steps + config.teacher_steps + len(STUDENTS) * of_student
        yield study.Arm(f"seed-{seed}", steps, part, columns={"seed": seed})


def right(rows: study.Rows, model: str, form: str, kind: str) -> np.ndarray:
    """Returns the share of right answers, [seeds]."""
    return study.column(rows, "right", model=model, form=form, questions=kind)


def kept(rows: study.Rows, student: str, form: str, kind: str) -> np.ndarray:
    """Returns a student's share of right answers, divided by its teacher's, [seeds].

    Of a teacher that is right of none nothing is kept, 0.
    """
    taught = right(rows, TEACHER, FLOAT, kind)
    share = right(rows, student, form, kind) / np.where(taught > 0, taught, 1.0)
    return np.where(taught > 0, share, 0.0)


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges whether retrieval keeps more than facts and reasoning, before and after four bits."""
    del config
    rows = tables["answers"]
    above = functools.partial(judging.above, shared=SHARED)
    for form in FORMS:
        look_up, remember, work_out = (kept(rows, HALF, form, kind) for kind in KINDS)
        claim = f"{FORMS[form]}: retrieval keeps more of the teacher than facts and reasoning do"
        least = look_up - np.maximum(remember, work_out)
        check = above(f"{claim} (share more than the better of both)", least)
        yield judging.headline(check) if form != LEARNT_ON else check
        for kind, other in zip(KINDS[1:], (remember, work_out), strict=True):
            claim = f"{FORMS[form]}: retrieval keeps more of the teacher than {kind}"
            yield above(f"{claim} (share more)", look_up - other)
    for kind in KINDS:
        claim = f"{kind}: the teacher is right of more than 0.9 (share)"
        yield judging.above(claim, right(rows, TEACHER, FLOAT, kind), 0.9)
    for form in FORMS:
        wide, narrow = (
            np.mean([right(rows, student, form, kind) for kind in KINDS], 0) for student in STUDENTS
        )
        claim = f"{FORMS[form]}: the wider student is right of more, over all kinds (difference)"
        yield above(claim, wide - narrow)
    for student, label in STUDENTS.items():
        for form in FORMS:
            shares = {kind: kept(rows, student, form, kind) for kind in KINDS}
            said = f"{label}, {FORMS[form]}: share of the teacher's that is kept"
            yield judging.reported(said, judging.means(shares))
    cells = right(rows, ENCODES, FLOAT, "cells")
    yield judging.reported("encoder: cells that it tells right", judging.mean(cells))
    told = {kind: right(rows, TEACHER, FLOAT, kind) for kind in KINDS}
    yield judging.reported("teacher: right answers by kind", judging.means(told))


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns what each student keeps by kind, in all forms; a dot is a seed."""
    del config
    rows, drawn = tables["answers"], list[charts.Panel]()
    whole = charts.Level(1, {"color": "0.3", "lw": 0.8})
    for student, label in STUDENTS.items():
        bars: list[charts.Mark] = [whole]
        for n, (form, said) in enumerate(FORMS.items()):
            samples = [kept(rows, student, form, kind) for kind in KINDS]
            bars.append(charts.beside(n, len(FORMS), samples, said))
        axes = {"title": label, "ylabel": "share of the teacher's right answers"}
        axes |= {"xticks": range(len(KINDS)), "xticklabels": KINDS, "ylim": (0, 1.3)}
        drawn.append(charts.Panel(marks=bars, axes=axes, legend={"fontsize": 8}))
    return charts.Grid(panels=drawn, title_size=10)


def seconds(config: Config) -> float:
    """Estimates compiling, and steps by their rows, on 2 CPU cores."""
    encoder = 0.025 * config.encoder.batch_size / 64 * config.encoder.steps
    teacher = 0.055 * config.teacher_steps
    distilled = len(STUDENTS) * 0.045 * (config.student_steps + config.bits_steps)
    return 120 + config.seeds * (20 + encoder + config.batch_size / 64 * (teacher + distilled))


STUDY = study.Study(
    claim="Of a teacher that sees, a narrower student keeps more of what is read out of the "
    "context than of facts and of reasoning, before and after four bits.",
    source="Gemini Team 2023, arXiv:2312.11805, table 3, in shape",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: {"answers": rows},
    claims=claims,
    figures=lambda config, tables: {"sight_nano": panels(config, tables)},
    seconds=seconds,
)

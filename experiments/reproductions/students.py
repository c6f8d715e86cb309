"""Teachers and students in small, on a task of texts or another, for reproductions of distillation.

B rows, P tokens of a prompt, T of a completion, n learner steps, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, regularizers, types
from kullback.experiments.reproductions import small_models
from kullback.lm import (
    batches,
    completions,
    data,
    distillation,
    evaluation,
    gemma,
    gkd,
    sft,
    tasks,
    tokenizer,
    tuning,
)

STRETCH = 100  # Learner steps of a compiled call, at most.
Tick = Callable[[int, float], None]  # (steps done, loss); see reproduce.Work.


def ignore(steps: int, loss: float) -> None:
    """A `Tick` that nobody sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a task's models and of learning; widths are multiples of 8."""

    task: Literal["tokens/arithmetic", "tokens/summaries"] = "tokens/arithmetic"
    max_prompt_length: int = 8
    max_new_tokens: int = 4
    max_vocab_size: int = 262  # Of the tokenizer that is trained; the least is a byte each.
    batch_size: int = 64
    learning_rate: float = 3e-3  # Of fine-tuning.
    distillation_rate: float = 1e-3
    teacher_width: int = 64
    teacher_layers: int = 3
    teacher_steps: int = 3_000
    student_width: int = 16
    student_layers: int = 1
    student_steps: int = 6_000  # Of fine-tuning before distillation, at most.
    steps: int = 1_500  # Of distillation.
    evaluation: int = 500  # Held-out examples, of which distances and scores are means.

    def __post_init__(self) -> None:
        for name in ("teacher_steps", "student_steps", "steps", "evaluation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("teacher_width", "student_width"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name} must be a multiple of 8, got {getattr(self, name)}")

    def learning(self, rate: float) -> tuning.Config:
        """Settings of a learner."""
        return tuning.Config(
            batch_size=self.batch_size,
            max_prompt_length=self.max_prompt_length,
            max_new_tokens=self.max_new_tokens,
            overlong="truncate-left",
            learning_rate=rate,
            chunk=min(1_024, self.batch_size * (self.max_prompt_length + self.max_new_tokens)),
        )


# (acting params, prompts, key) -> prompts and completions.
Write = Callable[[types.Params, batches.Prompts, types.Key], batches.Sequences]
Writers = Callable[[gemma.Model, str], Write]  # (model, name of its operator's f) -> its own.


class Classroom(NamedTuple):
    """The task, and the two models, for all seeds."""

    fine_tuning: tuning.Config
    distillation: tuning.Config
    steps: int  # Of distillation.
    rows: batches.Sequences  # All training examples, [N, P + T].
    prompts: batches.Prompts  # Of the same, [N, P].
    held_out: batches.Prompts  # [evaluation, P].
    teacher: gemma.Model
    student: gemma.Model
    writes: Writers
    # Of a task of texts: their tokens, and (model, name of its operator's f) -> its evaluator.
    words: tokenizer.Tokenizer | None = None
    evaluator: Callable[[gemma.Model, str], evaluation.Evaluator] | None = None


def writers(horizon: int, stop_tokens: tuple[int, ...]) -> Writers:
    """What writes at most `horizon` tokens at temperature 1, compiled once a model and operator."""

    @functools.cache
    def writes(model: gemma.Model, divergence: str) -> Write:
        f = regularizers.named(divergence)
        sampler = completions.sampler(model, horizon, divergence=f, stop_tokens=stop_tokens)
        return jax.jit(sampler.sequences)

    return writes


def make(sizes: Sizes) -> Classroom:
    """Reads the task, trains its tokenizer and builds the models."""
    task = tasks.make(sizes.task)
    words = tokenizer.train_bpe(task.texts("train"), sizes.max_vocab_size)
    length = sizes.max_prompt_length + sizes.max_new_tokens
    limits = data.Limits(
        max_length=length, max_prompt_length=sizes.max_prompt_length, overlong="truncate-left"
    )
    train, test = (task.examples(split, words, limits)[0] for split in ("train", "test"))

    def model(width: int, layers: int) -> gemma.Model:
        config = small_models.decoder(words.vocab_size, width, layers, length)
        special = {"bos_id": words.bos_id, "eos_ids": words.eos_ids, "pad_id": words.pad_id}
        return gemma.make(dataclasses.replace(config, **special))

    def prompts(examples: Sequence[data.Example]) -> batches.Prompts:
        ids = [example.prompt for example in examples]
        return batches.pad_prompts(ids, sizes.max_prompt_length, words.pad_id)

    learning = sizes.learning(sizes.learning_rate)

    @functools.cache  # An evaluator keeps its compiled programs.
    def evaluator(model: gemma.Model, divergence: str) -> evaluation.Evaluator:
        return evaluation.Evaluator(model, words, task, test, learning, divergence)

    return Classroom(
        fine_tuning=learning,
        distillation=sizes.learning(sizes.distillation_rate),
        steps=sizes.steps,
        rows=batches.pad(train, length, words.pad_id),
        prompts=prompts(train),
        held_out=prompts([test[i % len(test)] for i in range(sizes.evaluation)]),
        teacher=model(sizes.teacher_width, sizes.teacher_layers),
        student=model(sizes.student_width, sizes.student_layers),
        writes=writers(sizes.max_new_tokens, words.eos_ids),
        words=words,
        evaluator=evaluator,
    )


class Lesson(NamedTuple):
    """What students of all seeds are distilled on, and what they are before."""

    name: str
    steps: int  # Of a student before it is distilled.
    room: Callable[[int], Classroom]  # Of a seed.
    teacher: Callable[[], types.Params]
    start: Callable[[int], types.Params]  # A seed's student before it is distilled.
    # (student's parameters, seed, name of its operator's f) -> what its sequences are worth.
    quality: Callable[[types.Params, int, str], dict[str, float]]


class Program(NamedTuple):
    """A learner, and many of its steps as one compiled program; for all seeds."""

    learner: types.Learner
    run: Callable[..., Any]  # See `learners.scan`.


def tuner(room: Classroom, model: gemma.Model, divergence: str = "kl") -> Program:
    """SFT with the loss that a divergence generates."""
    config = sft.Config(divergence=divergence, learning=room.fine_tuning)
    learner = sft.make(model, config).learner
    return Program(learner, jax.jit(learners.scan(learner, learners.stored)))


def supervised_distiller(room: Classroom, divergence: str) -> Program:
    """Distillation on the data set alone, at the rate of fine-tuning, for students that begin."""
    config = gkd.Config(divergence=divergence, learning=room.fine_tuning)
    learner = gkd.make(room.student, room.teacher, config).learner
    return Program(learner, jax.jit(learners.scan(learner, learners.stored)))


def from_data(
    room: Classroom,
    program: Program,
    steps: int,
    seed: int,
    teacher: types.Params = None,
    tick: Tick = ignore,
    is_enough: Callable[[types.Params], bool] = lambda params: False,
) -> types.Params:
    """Parameters that were drawn, and have learnt from the data set.

    Args:
      room: the task.
      program: the learner's.
      steps: learner steps, at most.
      seed: of the draw and of the batches.
      teacher: its parameters, where the learner has one.
      tick: told how far it is.
      is_enough: asked after every stretch whether to stop there.
    """

    def items(first: int, count: int) -> Any:
        return small_models.take(room.rows, count, room.fine_tuning.batch_size, seed, first)

    key = jax.random.key(seed)
    state = program.learner.init(key)
    constants = types.Constants(teacher=teacher)
    return _advance(program.run, state, constants, items, steps, key, tick, is_enough)


class Item(NamedTuple):
    """What a step of distillation may learn from."""

    is_sampled: jax.Array  # bool, []: whether the student writes the completions.
    rows: batches.Sequences
    prompts: batches.Prompts


def distiller(room: Classroom, divergence: str, temperature: float = 1.0) -> Program:
    """GKD by a loss of `lm.distillation.LOSSES`, with one coin a step as the paper has it."""
    config = gkd.Config(divergence=divergence, temperature=temperature, learning=room.distillation)
    learner = gkd.make(room.student, room.teacher, config).learner
    sample = room.writes(room.student, link_of(divergence))

    def rows(
        state: types.LearnerState, constants: types.Constants, item: Item, key: types.Key
    ) -> batches.Sequences:
        del constants
        acting = {"params": state.params}
        return jax.lax.cond(
            item.is_sampled, lambda: sample(acting, item.prompts, key), lambda: item.rows
        )

    return Program(learner, jax.jit(learners.scan(learner, rows)))


def link_of(divergence: str) -> str:
    """Name of the operator's f, by which a student samples that learnt by the loss of that name."""
    kind, _, name = divergence.partition("-")
    return name if kind == "fenchel_young" else "kl"


def distil(
    room: Classroom,
    program: Program,
    student: types.Params,
    teacher: types.Params,
    student_fraction: float,
    seed: int,
    tick: Tick = ignore,
) -> types.Params:
    """The student's parameters after distillation with lambda = `student_fraction`."""

    def items(first: int, count: int) -> Item:
        rows, prompts = small_models.take(
            (room.rows, room.prompts), count, room.distillation.batch_size, seed, first
        )
        steps = range(first, first + count)
        coins = [np.random.default_rng([seed, step]).random() for step in steps]
        return Item(jnp.asarray(np.array(coins) < student_fraction), rows, prompts)

    state = learners.with_params(program.learner.init(jax.random.key(seed)), student)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    constants = types.Constants(teacher=teacher)
    return _advance(program.run, state, constants, items, room.steps, key, tick)


def _advance(
    run: Callable[..., Any],
    state: types.LearnerState,
    constants: types.Constants,
    items: Callable[[int, int], Any],
    steps: int,
    key: types.Key,
    tick: Tick,
    is_enough: Callable[[types.Params], bool] = lambda params: False,
) -> types.Params:
    """Learns for `steps` in equal stretches, the last one shorter; returns the parameters."""
    for first in range(0, steps, STRETCH):
        count = min(STRETCH, steps - first)
        state, losses = run(state, constants, items(first, count), key)
        tick(first + count, float(jnp.mean(losses)))
        if is_enough(state.params):
            break
    return state.params


def prefixes(
    room: Classroom, model: gemma.Model, params: types.Params, seed: int, divergence: str = "kl"
) -> batches.Sequences:
    """What a model writes after the held-out prompts, at temperature 1, by its operator."""
    key = jax.random.fold_in(jax.random.key(seed), 2)
    return room.writes(model, divergence)({"params": params}, room.held_out, key)


def distance(room: Classroom, divergence: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Compiled (student, teacher, rows) -> divergence and the student's entropy, a token, [].

    Means over held-out rows of the mean over each one's tokens, GKD's equation 2.
    """
    loss = distillation.named(divergence)
    link = regularizers.named(link_of(divergence))

    @jax.jit
    def mean(
        student: types.Params, teacher: types.Params, rows: batches.Sequences
    ) -> tuple[jax.Array, jax.Array]:
        inputs = rows.tokens, rows.positions, rows.segments
        logits = room.student.apply(student, *inputs), room.teacher.apply(teacher, *inputs)
        (of_student, of_teacher), _, is_answer = distillation.align(
            logits, jnp.asarray(rows.tokens), jnp.asarray(rows.is_answer)
        )
        p = regularizers.softargmax(of_student, link)
        entropy = -jnp.sum(jax.scipy.special.xlogy(p, p), -1)
        weights = jnp.ones(len(is_answer))
        per_token = loss(of_student, of_teacher), entropy
        value, of_student = (
            distillation.sequence_loss(x, is_answer, weights)[0] for x in per_token
        )
        return value, of_student

    return mean


def measured(
    room: Classroom,
    measure: Callable[..., tuple[jax.Array, jax.Array]],
    student: types.Params,
    teacher: types.Params,
    seed: int,
    divergence: str,
) -> dict[str, float]:
    """What `measure`, of `distance`, says after the teacher's prefixes and the student's own."""
    link = link_of(divergence)
    theirs = prefixes(room, room.teacher, teacher, seed)
    own = prefixes(room, room.student, student, seed, link)
    after_teacher, _ = measure(student, teacher, theirs)
    after_student, entropy = measure(student, teacher, own)
    return {
        "after_teachers_prefixes": float(after_teacher),
        "after_own_prefixes": float(after_student),
        "entropy": float(entropy),
    }


def quality(
    room: Classroom, model: gemma.Model, params: types.Params, seed: int, divergence: str = "kl"
) -> dict[str, float]:
    """Means over held-out examples: scores of what is written, greedily and drawn, and nats.

    Raises:
      ValueError: for a room without an evaluator.
    """
    if room.evaluator is None:
        raise ValueError(
            "quality needs texts and their evaluator, which a room of `make` has; got None"
        )
    evaluator, acting = room.evaluator(model, divergence), {"params": params}
    count = len(room.held_out.lengths)
    found: dict[str, float] = {}
    for way, program in (("greedy", evaluator.greedy), ("temperature_1", evaluator.sampled)):
        answers = evaluator.answers(acting, count, jax.random.key(seed), program)
        found |= {f"{name}_{way}": float(x.mean()) for name, x in answers.measures.items()}
    likelihoods = evaluator.likelihoods(acting, count)
    tokens = likelihoods.tokens.sum()
    return {
        **found,
        "accuracy": float(likelihoods.right.sum() / tokens),
        "nats_a_token": float(likelihoods.nats.sum() / tokens),
    }

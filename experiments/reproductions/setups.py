"""Set-ups of distillation in small: the data, the settings and two models, on a task of texts.

B rows, P tokens of a prompt, T of a completion.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from kullback.core import ranges, regularizers, types
from kullback.experiments.reproductions import small_models
from kullback.lm import batches, completions, data, evaluation, gemma, tasks, tokenizer, tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a task's models and of learning; widths are multiples of 8."""

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
        ranges.at_least(1, self, "teacher_steps", "student_steps", "steps", "evaluation")
        ranges.multiples(8, self, "teacher_width", "student_width")

    @property
    def length(self) -> int:
        """Tokens of a row, P + T."""
        return self.max_prompt_length + self.max_new_tokens

    def learning(self, rate: float) -> tuning.Config:
        """Returns the settings of a learner."""
        sizes = self.batch_size, self.max_prompt_length, self.max_new_tokens
        chunk = min(1_024, self.batch_size * self.length)
        return small_models.learning(*sizes, rate, overlong="truncate-left", chunk=chunk)

    def seconds(self, students: int) -> float:
        """Estimates the teacher's steps, and so many of students, on 2 CPU cores."""
        cost = 0.022 * self.teacher_steps + 0.008 * students
        return self.batch_size * self.length / 768 * cost


# (acting params, prompts, key) -> prompts and completions.
Write = Callable[[types.Params, batches.Prompts, types.Key], batches.Sequences]
Writers = Callable[[gemma.Model, str], Write]  # (model, name of f of its output) -> its own.


def no_texts(model: gemma.Model, divergence: str) -> NoReturn:
    """Raises ValueError: a set-up without texts has no evaluator."""
    raise ValueError("quality needs texts and their evaluator, which a set-up of `make` has")


class Setup(NamedTuple):
    """The data, the settings and the two models of a distillation."""

    fine_tuning: tuning.Config
    distillation: tuning.Config
    rows: batches.Sequences  # All training examples, [N, P + T].
    prompts: batches.Prompts  # Of the same, [N, P].
    held_out: batches.Prompts  # [evaluation, P].
    teacher: gemma.Model
    student: gemma.Model
    writers: Writers
    # (model, name of f of its output) -> its evaluator.
    evaluator: Callable[[gemma.Model, str], evaluation.Evaluator] = no_texts


def writers(horizon: int, stop_tokens: tuple[int, ...]) -> Writers:
    """Returns what writes at most `horizon` tokens at temperature 1, compiled once each."""

    @functools.cache
    def of_model(model: gemma.Model, divergence: str) -> Write:
        f = regularizers.named(divergence)
        sampler = completions.sampler(model, horizon, divergence=f, stop_tokens=stop_tokens)
        return jax.jit(sampler.sequences)

    return of_model


def alone(
    model: gemma.Model,
    learning: tuning.Config,
    rows: batches.Sequences,
    prompts: batches.Prompts,
) -> Setup:
    """Returns the set-up of a model that learns rows, and of which nothing is distilled."""
    return Setup(
        fine_tuning=learning,
        distillation=learning,
        rows=rows,
        prompts=prompts,
        held_out=prompts,
        teacher=model,
        student=model,
        writers=writers(learning.max_new_tokens, model.config.eos_ids),
    )


def uniform_prompts(key: types.Key, count: int, length: int, vocab_size: int) -> batches.Prompts:
    """Draws prompts of tokens, each as probable as the others, [count, length]."""
    tokens = jax.random.randint(key, (count, length), 0, vocab_size, jnp.int32)
    return batches.Prompts(tokens, jnp.full(count, length, jnp.int32))


def make(sizes: Sizes) -> Setup:
    """Reads a task of texts, trains its tokenizer and builds the models."""
    task = tasks.make(sizes.task)
    of_task = tokenizer.train_bpe(task.texts("train"), sizes.max_vocab_size)
    prompt, overlong = sizes.max_prompt_length, "truncate-left"
    limits = data.Limits(max_length=sizes.length, max_prompt_length=prompt, overlong=overlong)
    train, test = (task.examples(split, of_task, limits)[0] for split in ("train", "test"))

    def model(width: int, layers: int) -> gemma.Model:
        config = small_models.decoder(of_task.vocab_size, width, layers, sizes.length)
        return gemma.make(small_models.speaking(config, of_task))

    def prompts(examples: Sequence[data.Example]) -> batches.Prompts:
        ids = [example.prompt for example in examples]
        return batches.pad_prompts(ids, prompt, of_task.pad_id)

    learning = sizes.learning(sizes.learning_rate)

    @functools.cache  # An evaluator keeps its compiled programs.
    def evaluator(model: gemma.Model, divergence: str) -> evaluation.Evaluator:
        return evaluation.Evaluator(model, of_task, task, test, learning, divergence)

    return Setup(
        fine_tuning=learning,
        distillation=sizes.learning(sizes.distillation_rate),
        rows=batches.pad(train, sizes.length, of_task.pad_id),
        prompts=prompts(train),
        held_out=prompts([test[i % len(test)] for i in range(sizes.evaluation)]),
        teacher=model(sizes.teacher_width, sizes.teacher_layers),
        student=model(sizes.student_width, sizes.student_layers),
        writers=writers(sizes.max_new_tokens, of_task.eos_ids),
        evaluator=evaluator,
    )

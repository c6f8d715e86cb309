"""Sums for a real model: the task, a start that has learnt some, and what answers are worth.

The model reads "123+456=" and writes digits, one token each. Its adapters learn in stages until it
answers as many as a study asks for.
"""

import functools
import re
from typing import Any, Protocol

import jax
import numpy as np

from kullback.experiments.evaluate import evaluation as evaluations
from kullback.experiments.reproductions import real_models, study
from kullback.lm import evaluation, tasks

REWARD = "python:kullback.experiments.reproductions.real_sums:closeness"
EXACT = "math"  # Whether an answer's number equals the reference's.
_NUMBER = re.compile(r"\s*(\d{1,15})\s*")


class Sums(study.Seeded, Protocol):
    """Configuration of a study of sums."""

    @property
    def digits(self) -> int:
        """Digits of a summand."""
        ...

    @property
    def batch_size(self) -> int:
        """Sums of a step."""
        ...

    @property
    def prompts(self) -> int:
        """Held-out sums of a measure."""
        ...

    @property
    def most_stages(self) -> int:
        """Stages after which a model that has not learnt enough is given up."""
        ...


def task(digits: int, journal: study.Journal) -> str:
    """Returns the task of sums, which is written into the journal's folder first."""
    sums = tasks.arithmetic(tasks.Arithmetic(digits=digits))

    def rows(split: tasks.Split) -> list[study.Row]:
        parts = [text.partition("=") for text in sums.texts(split)]
        return [{"prompt": question + sign, "completion": said} for question, sign, said in parts]

    splits: tuple[tasks.Split, ...] = ("train", "test")
    by_split = {split: rows(split) for split in splits}
    return real_models.write_rows(journal.path(f"sums-{digits}"), by_split)


def lengths(digits: int) -> dict[str, int]:
    """Returns lengths of prompts and answers, if a digit is a token: with their BOS and end."""
    return {"max_prompt_length": 2 * digits + 3, "max_new_tokens": digits + 2}


def closeness(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Returns a continuous reward of answers: 1 / (1 + |answer - sum|), 0 for what is no number.

    Args:
      prompts: not used.
      texts: answers.
      references: sums.
    """
    del prompts
    return [_closeness(*pair) for pair in zip(texts, references, strict=True)]


def _closeness(text: str, reference: str) -> float:
    match = _NUMBER.fullmatch(text)
    return 1 / (1 + abs(int(match[1]) - int(reference))) if match else 0.0


def evaluator(path: Any, of_task: str, digits: int) -> tuple[evaluation.Evaluator, Any]:
    """Returns the evaluator of a model on sums, and its parameters."""
    subject = real_models.subject(path, of_task, **lengths(digits))
    return evaluations.evaluator_of(subject), subject.checkpoint.params


def right(of: evaluation.Evaluator, params: Any, count: int, *, greedy: bool) -> np.ndarray:
    """Returns whether answers to the first `count` held-out sums are right, float [n]."""
    program = of.greedy if greedy else of.sampled
    written = of.answers({"params": params}, count, jax.random.key(0), program)
    targets = map(of.target, of.test)
    pairs = zip(written.texts, targets, strict=False)
    return np.array([tasks.exact_match(*pair) for pair in pairs])


def score(path: Any, of_task: str, digits: int, count: int, *, greedy: bool = True) -> float:
    """Returns the share of held-out sums that a model answers rightly."""
    of, params = evaluator(path, of_task, digits)
    return float(right(of, params, count, greedy=greedy).mean())


def tokens(config: Sums) -> int:
    """Returns the tokens of a step of a study."""
    return config.batch_size * sum(lengths(config.digits).values())


def chain(
    config: Sums,
    of_task: str,
    name: str,
    journal: study.Journal,
    model: str,
    steps: int,
    rate: float,
    **settings: Any,
) -> real_models.Chain:
    """Returns the stages by which a model learns sums.

    Args:
      config: of a study.
      of_task: see `task`.
      name: of the stages' folder.
      journal: of the study.
      model: that learns.
      steps: of each stage.
      rate: of learning.
      **settings: further ones of a stage.
    """
    given = {
        **lengths(config.digits),
        "batch_size": config.batch_size,
        "learning_rate": rate,
        "warmup_steps": real_models.warmup(steps),
    }

    def stage(model: str, number: int) -> dict[str, Any]:
        begin = "sft", of_task, model, steps, config.first_seed + 1_000 * number
        return real_models.train(*begin, settings={**given, **settings})

    return real_models.Chain(stage, model, name, journal)


def until(
    chain: real_models.Chain, config: Sums, of_task: str, least: float, *, greedy: bool = True
) -> tuple[int, float]:
    """Does stages as `Chain.until` until a share of a study's held-out sums is right."""
    given = {"digits": config.digits, "count": config.prompts, "greedy": greedy}
    share = functools.partial(score, of_task=of_task, **given)
    return chain.until(share, least=least, most_stages=config.most_stages)

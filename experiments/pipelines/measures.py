"""Measures of a stage's model: rewards, distance, length and texts on the same held-out prompts.

All models answer the same prompts with the same random numbers, so that stages are compared prompt
by prompt. The arrays are kept beside the stage's record, and measured once.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import files, json_files, ranges, typed
from kullback.experiments.evaluate import evaluation
from kullback.experiments.evaluate.subjects import Subject
from kullback.experiments.runs import episodes, model_files, models, opened, rewards
from kullback.lm import answers, data, rollouts

SHOWN = 8  # Prompts whose answers are shown side by side.
COLUMNS = ("reward", "gold", "kl_start", "tokens", "diversity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a pipeline's report, its table [report]."""

    task: str  # "tokens/...", on whose held-out examples models are measured.
    reward: str = ""  # As for kullback train; "" is the task's own rule.
    gold: str = ""  # A reward that nothing was trained on; "" measures none.
    start: str = ""  # Model that distances are to; "" is that of the first stage with a model.
    episodes: int = 64  # Held-out prompts, at most.
    samples: int = 4  # Answers at temperature 1 to each, at least 2.
    seed: int = 0
    max_prompt_length: int = 0  # Tokens; 0 is the run's, or the task's default.
    max_new_tokens: int = 0  # Likewise.

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(
                self, field.name, typed.check(field.name, field.type, getattr(self, field.name))
            )
        ranges.at_least(1, self, "episodes")
        ranges.at_least(2, self, "samples")
        ranges.at_least(0, self, "seed", "max_prompt_length", "max_new_tokens")

    @property
    def lengths(self) -> dict[str, int]:
        """Lengths that are given."""
        names = ("max_prompt_length", "max_new_tokens")
        return {name: value for name in names if (value := getattr(self, name))}


class Measured(NamedTuple):
    """Measures of a model."""

    columns: Mapping[str, np.ndarray]  # Of `COLUMNS`, means over the texts of a prompt, [n].
    texts: list[dict[str, str]]  # Prompt, target and greedy answer of the first few prompts.


def subject(path: pathlib.Path, settings: Settings) -> Subject | None:
    """Returns the language model at a path with the task; None if there is none."""
    place = models.find(path)
    if place is None or (place.run is not None and place.run.kind != "language"):
        return None
    run = opened.find(path) if place.form == "run" else None
    return Subject(path=path, run=run, task_name=settings.task, lengths=settings.lengths)


def measure(subject: Subject, start: model_files.Checkpoint | None, settings: Settings) -> Measured:
    """Measures a model.

    Args:
      subject: the model and the task.
      start: model that the distance is to; NaN where its tokens are not the model's, or None.
      settings: of the report.
    """
    evaluator, params = evaluation.evaluator_of(subject), subject.checkpoint.params
    acting, key = {"params": params}, jax.random.key(settings.seed)
    count = evaluator.kept(settings.episodes)

    def actor(name: str) -> episodes.Actor:
        num_ids = evaluator.model.num_ids
        return episodes.Actor(
            sampler=evaluator.sampler(samples_per_prompt=settings.samples),
            evaluator=evaluator,
            reward=rewards.parse(name, evaluator.task, evaluator.tokenizer, num_ids),
        )

    scored = actor(settings.reward)
    is_comparable = (
        start is not None
        and start.tokenizer.fingerprint == evaluator.tokenizer.fingerprint
        and start.model.num_ids == evaluator.model.num_ids
    )

    @jax.jit
    def start_log_probabilities(start_params: Any, sequences: Any) -> jax.Array:
        assert start is not None
        return answers.log_probabilities(
            start.model, start_params, sequences, temperature=1.0, chunk=subject.learning.chunk
        )

    def columns(written: rollouts.Episodes, examples: list[data.Example]) -> dict[str, np.ndarray]:
        s = written.sequences
        kl = np.full(len(np.asarray(written.rewards)), math.nan)
        if start is not None and is_comparable:
            kl = rollouts.log_ratios(written, start_log_probabilities(start.params, s))
        of_texts = rollouts.text_metrics(s, evaluator.model.config.eos_ids, settings.samples)
        return {
            "reward": scored.prompt_means(written.rewards),
            "kl_start": scored.prompt_means(kl),
            "tokens": scored.prompt_means(of_texts["answer_tokens"]),
            "diversity": np.asarray(of_texts["diversity"], np.float64),
        }

    measured = scored.measured(acting, count, key, columns)
    # The same key: the same texts.
    gold = (
        actor(settings.gold).scores(acting, count, key)
        if settings.gold
        else np.full(count, math.nan)
    )
    greedy = evaluator.answers(acting, min(count, SHOWN), key, evaluator.greedy)
    texts = [
        {**evaluator.example_texts(example), "answer": text}
        for example, text in zip(evaluator.test, greedy.texts, strict=False)
    ]
    return Measured({**measured, "gold": gold}, texts)


def write(file: pathlib.Path, measured: Measured) -> None:
    """Writes measures as JSON, in which NaN is null."""
    columns = {
        name: [None if math.isnan(x) else x for x in values.tolist()]
        for name, values in measured.columns.items()
    }
    content = {"columns": columns, "texts": measured.texts}
    files.atomic_write_text(file, json.dumps(content, ensure_ascii=False) + "\n")


def read(file: pathlib.Path) -> Measured:
    """Reads what `write` has written.

    Raises:
      ValueError: if it is damaged.
    """
    saved = json_files.read(file)
    columns = saved.record("columns")
    return Measured(
        {
            name: np.array([math.nan if x is None else x for x in columns.get(name, list)], float)
            for name in COLUMNS
        },
        [dict(text.items()) for text in saved.records("texts")],
    )

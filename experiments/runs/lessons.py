"""Data of a run of a language model, as lessons: stored examples, prompts, or pairs.

They give batches to learn from, and held-out ones to be judged by; `language.py` asks nothing else
of them. `pairs.py` has the third kind.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from kullback.core import sampling_ahead, sequences, types
from kullback.experiments.runs import episodes
from kullback.lm import batches, completions, data, epochs, evaluation, tuning


class Lessons(Protocol):
    """The data of a run of a language model; methods with a body may be left out."""

    per_row: int = 1  # Sequences of an item of a batch.
    shares_prompts: bool = False  # Whether these are one row of a gradient, see shared_prompts.py.

    def source(self, seed: int) -> sequences.Source:
        """Returns the batches of a seed."""
        ...

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Returns scores of the first `count` held-out items, at most, [n]."""
        ...

    def lines(self, sampled: Any, examples: Any, scores: np.ndarray) -> list[dict[str, Any]]:
        """Returns the first few texts of a batch that the policy wrote, JSON-able."""
        return []

    def details(self) -> Mapping[str, Any]:
        """Returns further facts for config.json."""
        return {}

    def save(self, folder: pathlib.Path) -> None:
        """Writes what stands beside config.json from the beginning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples(Lessons):
    """Stored examples, and sequences that the policy writes to their prompts."""

    agent: types.Agent[tuning.Mixture]
    evaluator: evaluation.Evaluator
    train: list[data.Example]

    def source(self, seed: int) -> sequences.Source:
        """Returns batches of the data set, and of sequences that the policy samples."""
        evaluator, c, mixture = self.evaluator, self.evaluator.learning, self.agent.experience
        stored = stored_batches(self.train, mixture, evaluator, seed)
        sampler = completions.of_policy(self.agent.policy, evaluator.model, c.max_new_tokens)
        program = completions.compiled(sampler.sequences)

        def num_sampled(step: int) -> int:
            return mixture.num_sampled(c.batch_size, np.random.default_rng([seed, step]).random())

        mixed = _mixed(self.train, evaluator, seed)

        def prompts(step: int, rows: int) -> list[data.Example]:
            if mixed is not None:
                drawn = mixed(step)
            else:
                drawn = epochs.indices(
                    step, num_items=stored.num_items, batch_size=c.batch_size, seed=seed
                )
            return [self.train[i] for i in drawn[-rows:].tolist()]

        def sample(acting: Any, examples: list[data.Example], key: types.Key) -> batches.Sequences:
            return program(acting, evaluator.spread(evaluator.prompts(examples)), key)

        return sequences.Source(
            num_rows=c.batch_size,
            example=episodes.sequence_shapes(c.batch_size, c.width, evaluator.sensed_shapes),
            stored=lambda step, rows: jax.tree.map(lambda x: x[:rows], stored.sequences(step).data),
            sampling=sequences.Sampling(
                num_rows=num_sampled,
                prompts=prompts,
                sample=sample,
                score=evaluator.task_scores,
                max_age=mixture.max_age,
                ahead=mixture.ahead,
                parts=sampling_ahead.Parts(
                    arrays=lambda examples: evaluator.prompts([*examples]),
                    write=completions.compiled(sampler.completions),
                    rows=jax.jit(sampler.rows),
                ),
            ),
        )

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Returns scores of held-out examples, see `Evaluator.scores`."""
        return self.evaluator.scores(acting, count, key)

    def lines(self, sampled: Any, examples: Any, scores: np.ndarray) -> list[dict[str, Any]]:
        """Returns the first few texts of a batch, see `Evaluator.lines`."""
        return self.evaluator.lines(sampled, examples, scores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts(Lessons):
    """Prompts of examples, to which an actor writes texts that have a reward."""

    actor: episodes.Actor
    train: list[data.Example]

    def source(self, seed: int) -> sequences.Source:
        """Returns batches of texts of the actor."""
        return self.actor.source(self.train, seed)

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Returns rewards of texts to held-out prompts, see `Actor.scores`."""
        return self.actor.scores(acting, count, key)

    def lines(self, sampled: Any, examples: Any, scores: np.ndarray) -> list[dict[str, Any]]:
        """Returns the first few texts of a batch, see `Actor.lines`."""
        return self.actor.lines(sampled, examples, scores)


def stored_batches(
    train: Sequence[data.Example],
    mixture: tuning.Mixture,
    evaluator: evaluation.Evaluator,
    seed: int,
) -> batches.Sampler:
    """Returns batches of the data set, which are learnt from as the evaluator is told."""
    c = evaluator.learning
    is_mixed = 0 < mixture.student_fraction < 1 and mixture.mixing == "row"
    config = batches.Config(
        batch_size=c.batch_size,
        # A mixed batch has one width; else several widths need less padding.
        lengths=(c.width,) if is_mixed or c.pack else None,
        widths=c.widths,
        pack=c.pack,
        batches_per_sort=c.batches_per_sort,
        least_media=evaluator.most_media,  # One shape, as a program is compiled for each.
        seed=seed,
    )
    pad_id, features = evaluator.tokenizer.pad_id, evaluator.features
    mixed = _mixed(train, evaluator, seed)
    return batches.make(train, config, pad_id, mixed, features)


def _mixed(
    train: Sequence[data.Example], evaluator: evaluation.Evaluator, seed: int
) -> Callable[[int], np.ndarray] | None:
    """Returns (step) -> examples of its batch, if the task is a mixture; else None."""
    if (mixed := evaluator.task.mixed) is None:
        return None
    sources = [example.source for example in train]
    return mixed.over(sources, evaluator.learning.batch_size, seed).rows

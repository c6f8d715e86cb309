"""What a language model is worth on examples that it has not seen."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kullback.core import rollout, types
from kullback.core import sampling as samplings
from kullback.environments import tokens
from kullback.lm import batches, data, distillation, gemma, policy, tasks, tokenizer, tuning

ROWS = 32  # Sequences at once.


@dataclasses.dataclass(frozen=True)
class Judge:
    """Held-out examples of a task, and how the answers of a model are judged."""

    model: gemma.Model
    words: tokenizer.Tokenizer
    task: tasks.Task
    test: list[data.Example]
    learning: tuning.Config  # Lengths of prompts and answers.

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Scores of the first `count` examples, completed greedily, [count].

        Where the task has no rule to judge an answer by, minus the mean nats of the held-out
        completion's tokens takes its place.
        """
        if self.task.score is None:
            return -self.likelihoods(acting, count)[0]
        return self.answers(acting, count, key, self._greedy)[0]

    def report(self, acting: Any, count: int, key: types.Key) -> dict[str, float]:
        """Means over the first `count` examples, greedily and at temperature 1."""
        nats, accuracy = self.likelihoods(acting, count)
        found = {"nats_per_token": nats.mean(), "accuracy": accuracy.mean()}
        plain = self.program(policy.language_model(self.model))
        for name, program in (("greedy", self._greedy), ("temperature_1", plain)):
            scores, made = self.answers(acting, count, key, program)
            if self.task.score is not None:
                found[f"score_{name}"] = scores.mean()
            found[f"answer_tokens_{name}"] = made.mean()
        return {name: float(value) for name, value in found.items()}

    def answers(
        self, acting: Any, count: int, key: types.Key, program: Callable[..., Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and lengths in tokens of what a `program` answers, [count] each."""
        scores, lengths = [], []
        for number, part in enumerate(self._parts(count)):
            made = program(acting, self.prompts(part), jax.random.fold_in(key, number))
            scores.append(self.judged(made, part))
            lengths.append(np.asarray(made.is_answer).sum(1))
        return np.concatenate(scores)[:count], np.concatenate(lengths)[:count]

    def likelihoods(self, acting: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean nats, and share of right guesses, of each held-out completion's tokens, [count]."""
        width = self.learning.max_prompt_length + self.learning.max_new_tokens
        found = [
            self._measure(acting["params"], batches.pad(part, width, self.words.pad_id))
            for part in self._parts(count)
        ]
        nats, accuracy = (np.concatenate(column)[:count] for column in zip(*found, strict=True))
        return nats, accuracy

    # Compiled once, however often a run is evaluated.

    @functools.cached_property
    def _greedy(self) -> Callable[..., Any]:
        return self.program(policy.language_model(self.model, samplings.Sampling(temperature=0)))

    @functools.cached_property
    def _measure(self) -> Callable[..., Any]:
        @jax.jit
        def measure(params: types.Params, rows: batches.Sequences) -> tuple[jax.Array, jax.Array]:
            logits = self.model.apply(params, rows.tokens, rows.positions, rows.segments)
            answers = rows.tokens, rows.is_answer
            logits, labels, is_answer = distillation.align(logits, *answers)  # pyright: ignore[reportArgumentType]  # Traced.
            nats = -samplings.log_probability(logits, labels)
            is_right = logits.argmax(-1) == labels
            weights = jax.numpy.ones(len(labels))
            means = [distillation.sequence_loss(x, is_answer, weights)[1] for x in (nats, is_right)]
            return means[0], means[1]

        return measure

    def program(self, acts: types.Policy) -> Callable[..., Any]:
        """The compiled (acting params, prompts, key) -> prompts and answers, `Sequences`."""
        config, horizon = self.model.config, self.learning.max_new_tokens

        @jax.jit
        def program(acting: Any, prompts: batches.Prompts, key: types.Key) -> batches.Sequences:
            width = prompts.tokens.shape[1]
            environment = tokens.make_batch(
                prompts.tokens,
                prompts.lengths,
                horizon=horizon,
                vocab_size=config.vocab_size,
                stop_tokens=config.eos_ids,
            )
            state = rollout.start(acts, environment, acting, key, prompts, width + horizon)
            trajectory, _ = rollout.rollout(acts, environment, acting, state, key, horizon)
            made = tokens.completions(trajectory, config.eos_ids)
            return batches.join(prompts, made.tokens, made.is_answer)

        return program

    def judged(self, made: batches.Sequences, examples: list[data.Example]) -> np.ndarray:
        """Score of each answer, float32 [B]; NaN where no rule judges it."""
        if self.task.score is None:
            return np.full(len(examples), np.nan, np.float32)
        ids, answers = np.asarray(made.tokens), np.asarray(made.is_answer)
        texts = [
            self.words.decode(i for i in row[mask].tolist() if i < self.words.vocab_size)
            for row, mask in zip(ids, answers, strict=True)
        ]
        targets = [self.words.decode(example.completion) for example in examples]
        scores = [self.task.score(*pair) for pair in zip(texts, targets, strict=True)]
        return np.array(scores, np.float32)

    def prompts(self, examples: list[data.Example]) -> batches.Prompts:
        """Those of examples, of one width."""
        prompts = [example.prompt for example in examples]
        return batches.pad_prompts(prompts, self.learning.max_prompt_length, self.words.pad_id)

    def _parts(self, count: int) -> list[list[data.Example]]:
        """Examples in parts of one size, compiled once: the last one is filled up."""
        chosen = [self.test[i % len(self.test)] for i in range(-(-count // ROWS) * ROWS)]
        return [chosen[i : i + ROWS] for i in range(0, len(chosen), ROWS)]

"""Texts for reinforcement learning: several samples of each prompt, scored, as batches of a run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import sequences, types
from kullback.experiments.runs import rewards
from kullback.lm import answers, batches, completions, data, evaluation, policy_gradient, rollouts

# (acting params, prompts, key, params of scorers) -> Episodes, by what JAX scores.
Program = Callable[..., rollouts.Episodes]


class Held(NamedTuple):
    """Of texts that a policy wrote to held-out prompts, [n]."""

    rewards: np.ndarray
    # To the supervised start, nats of a text: k1. With k3, whose mean hangs on rare texts, a policy
    # that is sure of itself looks nearer than it is.
    kl_start: np.ndarray
    lengths: np.ndarray  # Tokens.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actor:
    """A policy's sampler, its evaluator, and what its texts are worth."""

    sampler: completions.Sampler
    evaluator: evaluation.Evaluator
    reward: rewards.Reward
    temperature: float = 1.0  # Of the policy, and of the start with which it is compared.

    @property
    def samples(self) -> int:
        """Texts of each prompt, G."""
        return self.sampler.samples_per_prompt

    @functools.cached_property
    def program(self) -> Program:
        """The program that writes G texts of each prompt, and scores them in JAX."""
        return jax.jit(functools.partial(rollouts.sample, self.sampler, self.reward.in_program))

    def episodes(
        self, acting: Any, examples: list[data.Example], key: types.Key
    ) -> rollouts.Episodes:
        """Returns G texts of each example's prompt, with all of their reward.

        Raises:
          ValueError: for a reward that is not finite.
        """
        prompts = self.evaluator.prompts(examples)
        made = self.program(acting, prompts, key, self.reward.params)
        if not self.reward.of_texts:
            self.reward.checked(made.rewards)
            return made
        rows = self.repeated(examples)
        examples_of_rows = [self.evaluator.example_texts(example) for example in rows]
        prompts_of_rows = [one["prompt"] for one in examples_of_rows]
        found = self.reward.between_programs(
            prompts_of_rows,
            self.evaluator.answer_texts(made.sequences),
            [one["target"] for one in examples_of_rows],
            [*map(self.evaluator.task.document, rows, prompts_of_rows)],
        )
        return made._replace(rewards=self.reward.checked(made.rewards + found))

    def repeated(self, examples: list[data.Example]) -> list[data.Example]:
        """The example of each row."""
        return [example for example in examples for _ in range(self.samples)]

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Returns the mean reward of G texts of each of the first `count` held-out prompts, [n].

        There may be fewer than `count`, see `Evaluator.kept`.
        """
        return self._held(acting, count, key, lambda made: {})["rewards"]

    def held(self, acting: Any, start: types.Params, count: int, key: types.Key) -> Held:
        """Returns rewards, distances to the supervised start and lengths, by held-out prompt."""

        def more(made: rollouts.Episodes) -> dict[str, Any]:
            drawn = jnp.asarray(made.log_probability)[:, 1:]
            ratio = drawn - self._of_start(start, made.sequences)
            return {
                "kl_start": jnp.sum(policy_gradient.kl_estimate(ratio, "k1"), 1),
                "lengths": jnp.sum(made.sequences.is_answer, 1),
            }

        return Held(**self._held(acting, count, key, more))

    @functools.cached_property
    def _of_start(self) -> Callable[..., jax.Array]:
        return jax.jit(
            functools.partial(
                answers.log_probabilities,
                self.evaluator.model,
                temperature=self.temperature,
                chunk=self.evaluator.learning.chunk,
            )
        )

    def _held(
        self, acting: Any, count: int, key: types.Key, more: Callable[[rollouts.Episodes], Any]
    ) -> dict[str, np.ndarray]:
        """What is measured of held-out prompts; means over the samples of each."""
        found: dict[str, list[np.ndarray]] = {}
        for number, part in enumerate(self.evaluator.parts(count)):
            made = self.episodes(acting, part, jax.random.fold_in(key, number))
            for name, x in {"rewards": made.rewards, **more(made)}.items():
                means = np.asarray(x, np.float64).reshape(-1, self.samples).mean(1)
                found.setdefault(name, []).append(means)
        kept = self.evaluator.kept(count)
        return {name: np.concatenate(x)[:kept] for name, x in found.items()}

    def source(self, train: list[data.Example], seed: int) -> sequences.Source:
        """Returns batches of texts, all of the policy.

        Args:
          train: whose prompts are drawn, an epoch after another.
          seed: of their order.
        """
        c = self.evaluator.learning
        num_prompts = c.batch_size // self.samples

        def prompts(step: int, rows: int) -> list[data.Example]:
            del rows
            drawn = batches.indices(step, num_items=len(train), batch_size=num_prompts, seed=seed)
            return [train[i] for i in drawn.tolist()]

        shape = (c.batch_size, c.max_prompt_length + c.max_new_tokens)
        int_, bool_, float_ = (jax.ShapeDtypeStruct(shape, d) for d in (np.int32, bool, np.float32))
        of_rows = [jax.ShapeDtypeStruct(shape[:1], d) for d in (np.int32, np.float32)]
        rows = batches.Sequences(int_, bool_, int_, int_, of_rows[0])  # pyright: ignore[reportArgumentType]
        return sequences.Source(
            num_rows=c.batch_size,
            example=rollouts.Episodes(rows, of_rows[1], float_),  # pyright: ignore[reportArgumentType]
            sampling=sequences.Sampling(
                num_rows=lambda step: c.batch_size,
                prompts=prompts,
                sample=self.episodes,
                score=lambda episodes, examples: np.asarray(episodes.rewards),
            ),
        )

    def lines(
        self, made: rollouts.Episodes, examples: list[data.Example], scores: np.ndarray
    ) -> list[dict[str, Any]]:
        """Returns the first few texts of a batch for a reader, JSON-able."""
        return self.evaluator.lines(made.sequences, self.repeated(examples), scores)

"""Texts for reinforcement learning: several samples of each prompt, scored, as batches of a run."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import processes, sampling_ahead, sequences, types
from kullback.experiments import interrupts
from kullback.experiments.runs import rewards
from kullback.lm import (
    answers,
    batches,
    completions,
    data,
    epochs,
    evaluation,
    interleaved,
    policy,
    policy_gradient,
    rollouts,
    value_network,
)

# (acting params, prompts, key, params of scorers) -> Episodes, by what JAX scores.
Program = Callable[..., rollouts.Episodes]


class HeldOut(NamedTuple):
    """Means over the texts that a policy writes to each of n held-out prompts, [n]."""

    rewards: np.ndarray
    # KL to the supervised start, nats of a text, by the estimator k1. That of k3 depends on rare
    # texts, so that a policy of low entropy would look nearer than it is.
    kl_start: np.ndarray
    lengths: np.ndarray  # Tokens.


def sequence_shapes(num_rows: int, width: int, sensed: Any = None) -> batches.Sequences:
    """Returns shapes and types of sequences of one width.

    Args:
      num_rows: B.
      width: T.
      sensed: shapes of the features of a row's media, [I, ...]; None of rows of text.
    """
    ids, is_answer = (jax.ShapeDtypeStruct((num_rows, width), t) for t in (np.int32, np.bool_))
    lengths = jax.ShapeDtypeStruct((num_rows,), np.int32)
    of_rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_rows, *x.shape), x.dtype), sensed)
    return batches.Sequences(ids, is_answer, ids, ids, lengths, of_rows)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actor:
    """A policy's sampler, its evaluator, and the reward of its texts."""

    sampler: completions.Sampler
    evaluator: evaluation.Evaluator
    reward: rewards.Reward
    temperature: float = 1.0  # The policy's, and that of the start it is compared with.
    # Texts of each prompt by who writes them, the policy's first; None: they are all its own.
    draws: tuple[policy.Draws, ...] | None = None
    ahead: sampling_ahead.Ahead = sampling_ahead.NONE  # How far ahead of learning it writes.

    @property
    def samples(self) -> int:
        """Texts of each prompt, G."""
        return self.sampler.samples_per_prompt

    @property
    def writers(self) -> list[str]:
        """Names of the acting parameters that write the texts of a prompt, [G]."""
        draws = self.draws or (policy.Draws(self.samples),)
        return [x.params for x in draws for _ in range(x.texts)]

    @functools.cached_property
    def program(self) -> Program:
        """The program that writes G texts of each prompt, and scores them in JAX."""
        sample = functools.partial(rollouts.sample, self.sampler, self.reward.jax_score)
        return completions.compiled(sample)

    @functools.cached_property
    def parts(self) -> sampling_ahead.Parts:
        """The same in parts, which give the same texts: whoever writes has no reward."""
        scored = jax.jit(functools.partial(rollouts.scored, self.sampler, self.reward.jax_score))
        return sampling_ahead.Parts(
            arrays=lambda examples: self.evaluator.prompts([*examples]),
            write=completions.compiled(self.sampler.completions),
            rows=lambda prompts, written: scored(prompts, written, self.reward.params),
            reads=lambda acting: {name: value_network.without(x) for name, x in acting.items()},
        )

    def episodes(
        self, acting: Any, examples: list[data.Example], key: types.Key
    ) -> rollouts.Episodes:
        """Returns G texts of each example's prompt, with all of their reward.

        Raises:
          ValueError: for a reward that is not finite.
        """
        return self.rewarded(self.written(acting, examples, key), examples)

    def written(
        self, acting: Any, examples: Sequence[data.Example], key: types.Key
    ) -> rollouts.Episodes:
        """Returns G texts of each example's prompt, with the reward of its terms in JAX."""
        prompts = self.evaluator.spread(self.evaluator.prompts([*examples]))
        return self.program(acting, prompts, key, self.reward.params)

    def rewarded(
        self, written: rollouts.Episodes, examples: list[data.Example]
    ) -> rollouts.Episodes:
        """Returns texts with all of their reward.

        Where a server gave no reward for one of a prompt, all have the weight and the reward 0.

        Raises:
          ValueError: for a reward that is not finite.
        """
        if not self.reward.reads_texts:
            self.reward.checked(written.rewards)
            return written
        repeated = self.repeated(examples)
        texts = [self.evaluator.example_texts(example) for example in repeated]
        prompt_texts = [text["prompt"] for text in texts]
        columns = (
            prompt_texts,
            self.evaluator.answer_texts(written.sequences),
            [text["target"] for text in texts],
            [*map(self.evaluator.task.document, repeated, prompt_texts)],
            [interleaved.files(example.media) for example in repeated],
        )
        # One process asks: another might be told something else.
        python_score = np.asarray(
            processes.told(lambda: self.reward.python_score(*columns).tolist(), interrupts.Failure),
            np.float32,
        )
        if not self.reward.servers:
            return written._replace(rewards=self.reward.checked(written.rewards + python_score))
        is_missing = np.isnan(python_score).reshape(-1, self.samples)
        is_whole = np.repeat(~np.any(is_missing, axis=1), self.samples)
        total = np.where(is_whole, np.asarray(written.rewards) + python_score, 0)
        return written._replace(
            rewards=self.reward.checked(total), weights=is_whole.astype(np.float32)
        )

    def repeated(self, examples: list[data.Example]) -> list[data.Example]:
        """Returns the example of each text: G times each."""
        return [example for example in examples for _ in range(self.samples)]

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Returns the mean reward of G texts of each of the first `count` held-out prompts, [n].

        All are the policy's. There may be fewer than `count`, see `Evaluator.kept`.
        """

        def columns(written: rollouts.Episodes, examples: Any) -> dict[str, np.ndarray]:
            return {"rewards": self.prompt_means(written.rewards)}

        return self.measured(acting, count, key, columns)["rewards"]

    def held_out(self, acting: Any, start: types.Params, count: int, key: types.Key) -> HeldOut:
        """Returns rewards, distances to the supervised start and lengths, by held-out prompt."""

        def columns(written: rollouts.Episodes, examples: Any) -> dict[str, np.ndarray]:
            drawn = jnp.asarray(written.log_probability)[:, 1:]
            ratio = drawn - self._start_log_probabilities(start, written.sequences)
            kl_start = jnp.sum(policy_gradient.kl_estimate(ratio, "k1"), 1)
            lengths = jnp.sum(written.sequences.is_answer, 1)
            return {
                "rewards": self.prompt_means(written.rewards),
                "kl_start": self.prompt_means(kl_start),
                "lengths": self.prompt_means(lengths),
            }

        return HeldOut(**self.measured(acting, count, key, columns))

    @functools.cached_property
    def _start_log_probabilities(self) -> Callable[..., jax.Array]:
        return jax.jit(
            functools.partial(
                answers.log_probabilities,
                self.evaluator.model,
                temperature=self.temperature,
                chunk=self.evaluator.learning.chunk,
            )
        )

    def of_policy(self, values: types.Array) -> np.ndarray:
        """Returns the values of the texts that the policy wrote, of those of all, [P G]."""
        by_prompt = np.asarray(values).reshape(-1, self.samples)
        return by_prompt[:, [name == policy.POLICY for name in self.writers]].reshape(-1)

    def prompt_means(self, values: types.Array) -> np.ndarray:
        """Returns the mean over the texts of each prompt, float64 [P], of their values, [P G]."""
        return np.asarray(values, np.float64).reshape(-1, self.samples).mean(1)

    def measured(
        self,
        acting: Any,
        count: int,
        key: types.Key,
        columns: Callable[[rollouts.Episodes, list[data.Example]], dict[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """Returns measures of the first `count` held-out prompts by name, [n, ...] each.

        Args:
          acting: parameters of the policy, which writes all of the texts.
          count: prompts, at most, see `Evaluator.kept`.
          key: of the texts.
          columns: (G texts of each of P examples, the examples) -> measures by name, [P, ...] each.

        Returns:
          Those of prompts whose texts all have a reward; a server may give none.
        """
        acting = dict.fromkeys(self.writers, acting[policy.POLICY])
        measured: dict[str, list[np.ndarray]] = {}
        weights: list[np.ndarray] = []
        for number, examples in enumerate(self.evaluator.parts(count)):
            written = self.episodes(acting, examples, jax.random.fold_in(key, number))
            for name, values in columns(written, examples).items():
                measured.setdefault(name, []).append(values)
            weights.append(self.prompt_means(_weights(written)))
        kept = self.evaluator.kept(count)
        counts = np.concatenate(weights)[:kept] > 0
        return {name: np.concatenate(values)[:kept][counts] for name, values in measured.items()}

    def source(self, train: list[data.Example], seed: int) -> sequences.Source:
        """Returns batches of texts that the policy writes.

        Args:
          train: examples whose prompts are drawn, one epoch after another.
          seed: of their order.
        """
        c = self.evaluator.learning
        num_prompts = c.batch_size // self.samples

        def prompts(step: int, rows: int) -> list[data.Example]:
            del rows
            drawn = epochs.indices(step, num_items=len(train), batch_size=num_prompts, seed=seed)
            return [train[i] for i in drawn.tolist()]

        shape = (c.batch_size, c.width)
        by_text, by_token = (jax.ShapeDtypeStruct(x, np.float32) for x in (shape[:1], shape))
        has_weights = bool(self.reward.servers)
        return sequences.Source(
            num_rows=c.batch_size,
            example=rollouts.Episodes(
                sequence_shapes(*shape, self.evaluator.sensed_shapes),
                by_text,  # pyright: ignore[reportArgumentType]
                by_token,  # pyright: ignore[reportArgumentType]
                by_text if has_weights else None,  # pyright: ignore[reportArgumentType]
            ),
            sampling=sequences.Sampling(
                num_rows=lambda step: c.batch_size,
                prompts=prompts,
                sample=self.written,
                complete=self.rewarded,
                ahead=self.ahead,
                parts=self.parts if self.ahead.lag else None,
                score=lambda episodes, examples: self.of_policy(episodes.rewards)[
                    self.of_policy(_weights(episodes)) > 0
                ],
            ),
            weights=_weights if has_weights else None,
        )

    def lines(
        self, written: rollouts.Episodes, examples: list[data.Example], scores: np.ndarray
    ) -> list[dict[str, Any]]:
        """Returns the first few texts of a batch for a reader, JSON-able.

        Where several models write, each line says who.
        """
        del scores  # They are of the policy's texts.
        lines = self.evaluator.lines(written.sequences, self.repeated(examples), written.rewards)
        if len(set(self.writers)) == 1:
            return lines
        return [{"writer": self.writers[n % self.samples], **x} for n, x in enumerate(lines)]


def _weights(written: rollouts.Episodes) -> np.ndarray:
    """Returns the weight of each text, float32 [B]."""
    if written.weights is None:
        return np.ones(len(written.rewards), np.float32)
    return np.asarray(written.weights)

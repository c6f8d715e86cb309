"""Completions of prompts: the one sampler of training, generation and evaluation.

B prompts, G samples of each, P tokens of the prompts' padded width, T of a completion.
"""

import dataclasses
from typing import Any

import jax

from kullback.core import regularizers, rollout, types
from kullback.core import sampling as samplings
from kullback.environments import tokens
from kullback.lm import batches, gemma, policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A policy that completes prompts; its methods are pure functions, to be compiled."""

    policy: types.Policy  # Goes on `samples_per_prompt` times from each prompt.
    horizon: int  # T.
    vocab_size: int
    stop_tokens: tuple[int, ...]  # Ids that end a completion; none is for T tokens, always.
    samples_per_prompt: int = 1  # G.

    def repeated(self, prompts: batches.Prompts) -> batches.Prompts:
        """Returns the prompt of each completion, [B G, P]: samples of one stand together."""
        return policy.repeat_prompts(prompts, self.samples_per_prompt)

    def environment(self, prompts: batches.Prompts) -> types.Environment:
        """Returns the completions in the making; prompts that are not traced are checked."""
        rows = self.repeated(prompts)
        return tokens.make_batch(
            rows.tokens,
            rows.lengths,
            horizon=self.horizon,
            vocab_size=self.vocab_size,
            stop_tokens=self.stop_tokens,
        )

    def start(
        self, acting: Any, prompts: batches.Prompts, key: types.Key, spare: int = 0
    ) -> rollout.ActorState:
        """Returns where sampling begins.

        Args:
          acting: parameters of the policy.
          prompts: [B, P].
          key: of the environment, which is not random.
          spare: tokens beyond the horizon for which the policy's memory has room.
        """
        length = prompts.tokens.shape[1] + self.horizon + spare
        environment = self.environment(prompts)
        return rollout.start(self.policy, environment, acting, key, prompts, length)

    def proceed(
        self,
        acting: Any,
        prompts: batches.Prompts,
        state: rollout.ActorState,
        key: types.Key,
        length: int,
        start_tick: jax.Array | int = 0,
    ) -> tuple[rollout.Trajectory, rollout.ActorState]:
        """Returns the next `length` tokens, [length, B G], and the state after them.

        Pieces with one key and their place in the whole are the whole, see `rollout.rollout`.
        """
        environment = self.environment(prompts)
        return rollout.rollout(self.policy, environment, acting, state, key, length, start_tick)

    def completions(
        self, acting: Any, prompts: batches.Prompts, key: types.Key
    ) -> tokens.Completion:
        """Returns what the policy writes after each prompt, [B G, T]."""
        state = self.start(acting, prompts, key)
        trajectory, _ = self.proceed(acting, prompts, state, key, self.horizon)
        return tokens.completions(trajectory, self.stop_tokens)

    def sequences(self, acting: Any, prompts: batches.Prompts, key: types.Key) -> batches.Sequences:
        """Returns prompts and completions as rows to learn from, [B G, P + T]."""
        return joined(self.repeated(prompts), self.completions(acting, prompts, key))


def of_policy(
    acts: types.Policy, model: gemma.Model, horizon: int, samples_per_prompt: int = 1
) -> Sampler:
    """Returns what completes prompts by an agent's policy, over the ids and ends of `model`."""
    return Sampler(
        policy=acts,
        horizon=horizon,
        vocab_size=model.config.vocab_size,
        stop_tokens=model.config.eos_ids,
        samples_per_prompt=samples_per_prompt,
    )


def sampler(
    model: gemma.Model,
    horizon: int,
    *,
    sampling: samplings.Sampling | None = None,
    divergence: regularizers.Divergence = regularizers.kl,
    stop_tokens: tuple[int, ...] | None = None,
    samples_per_prompt: int = 1,
) -> Sampler:
    """Returns what completes prompts by a language model; `acting` is {"params": of the model}.

    Args:
      model: of the next token.
      horizon: T.
      sampling: how tokens are drawn; None is from the model's own distribution.
      divergence: f of the operator that the model was trained with.
      stop_tokens: ids that end a completion; None is the model's.
      samples_per_prompt: G.
    """
    acts = policy.language_model(model, sampling, divergence, samples_per_prompt=samples_per_prompt)
    found = of_policy(acts, model, horizon, samples_per_prompt)
    return found if stop_tokens is None else dataclasses.replace(found, stop_tokens=stop_tokens)


def joined(prompts: batches.Prompts, completion: tokens.Completion) -> batches.Sequences:
    """Returns prompts [B, P] and what was written after them as rows, [B, P + T]."""
    return batches.join(prompts, completion.tokens, completion.is_answer)

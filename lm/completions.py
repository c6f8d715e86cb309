"""Completions of prompts: the one sampler of training, generation and evaluation.

Shape letters: B prompts, G samples of each, P tokens of a padded prompt, T tokens of a completion.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import processes, regularizers, rollout, sampling, types
from kullback.environments import tokens
from kullback.lm import batches, gemma, policy
from kullback.lm.policy import Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A policy that completes prompts; its methods are pure functions, to be compiled."""

    policy: types.Policy  # Its context is the prompts; it samples G completions of each.
    horizon: int  # T.
    vocab_size: int
    stop_tokens: tuple[int, ...]  # Ids that end a completion; with none it always has T tokens.
    samples_per_prompt: int = 1  # G.

    def repeated(self, prompts: batches.Prompts) -> batches.Prompts:
        """Returns the prompt of each completion, [B G, P]; those of one prompt are adjacent."""
        return policy.repeat_prompts(prompts, self.samples_per_prompt)

    def environment(self, prompts: batches.Prompts) -> types.Environment:
        """Returns the environment of B G completions; prompts are checked unless traced."""
        repeated = self.repeated(prompts)
        return tokens.make_batch(
            repeated.tokens,
            repeated.lengths,
            horizon=self.horizon,
            vocab_size=self.vocab_size,
            stop_tokens=self.stop_tokens,
        )

    def start(self, acting: Any, prompts: batches.Prompts, key: types.Key) -> rollout.ActorState:
        """Returns the state before the first token.

        Args:
          acting: parameters of the policy.
          prompts: [B, P].
          key: of the environment, which is not random.
        """
        length = prompts.tokens.shape[1] + self.horizon
        environment = self.environment(prompts)
        return rollout.start(self.policy, environment, acting, key, prompts, length)

    def resume(self, prompts: batches.Prompts, memory: Memory) -> rollout.ActorState:
        """Returns the state before the first token, of texts that the policy has read already.

        Args:
          prompts: the last token of each, [B, 1], which the memory has not.
          memory: of the tokens before; it needs room for one more and the horizon.
        """
        environment = self.environment(prompts)
        state, timestep = environment.reset(jax.random.key(0))  # Nothing in it is random.
        done = jnp.zeros(environment.num_envs, bool)
        return rollout.ActorState(state, jnp.asarray(timestep.observation), memory, done)

    def proceed(
        self,
        acting: Any,
        prompts: batches.Prompts,
        state: rollout.ActorState,
        key: types.Key,
        length: int,
        start_tick: jax.Array | int = 0,
        limit: jax.Array | int | None = None,
    ) -> tuple[rollout.Trajectory, rollout.ActorState]:
        """Returns the next `length` tokens, [length, B G], and the state after them.

        Calls with one key, whose `start_tick` counts the tokens before, give the same tokens as a
        single call; of all tokens the first `limit` are sampled. See `rollout.rollout`.
        """
        environment = self.environment(prompts)
        return rollout.rollout(
            self.policy, environment, acting, state, key, length, start_tick, limit
        )

    def completions(
        self, acting: Any, prompts: batches.Prompts, key: types.Key
    ) -> tokens.Completion:
        """Samples the completions of each prompt, [B G, T]."""
        state = self.start(acting, prompts, key)
        trajectory, _ = self.proceed(acting, prompts, state, key, self.horizon)
        return tokens.completions(trajectory, self.stop_tokens)

    def sequences(self, acting: Any, prompts: batches.Prompts, key: types.Key) -> batches.Sequences:
        """Samples completions, and returns them after their prompts as rows, [B G, P + T]."""
        return self.rows(prompts, self.completions(acting, prompts, key))

    def rows(self, prompts: batches.Prompts, completion: tokens.Completion) -> batches.Sequences:
        """Returns completions, [B G, T], after their prompts, [B, P], as rows, [B G, P + T]."""
        return joined(self.repeated(prompts), completion)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of a language model's acting parameters, which samples, and of others.

    It is handed the parameters as they are decoded with fastest, see `gemma.apart`.
    """
    program = jax.jit(function)

    def call(acting: Any, *arguments: Any) -> Any:
        apart = {name: gemma.apart(x) for name, x in acting.items()}
        return processes.fetch(program(apart, *arguments))

    return call


def of_policy(
    acts: types.Policy, model: gemma.Model, horizon: int, samples_per_prompt: int = 1
) -> Sampler:
    """Returns the sampler of an agent's policy, with the ids and stop tokens of `model`."""
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
    sampling: sampling.Sampling | None = None,
    divergence: regularizers.Divergence = regularizers.kl,
    stop_tokens: tuple[int, ...] | None = None,
    samples_per_prompt: int = 1,
) -> Sampler:
    """Returns the sampler of a language model; `acting` is {"params": of the model}.

    Args:
      model: predicts the next token.
      horizon: T.
      sampling: how tokens are drawn; None is from the model's own distribution.
      divergence: f of the softargmax_f that the model was trained with.
      stop_tokens: ids that end a completion; None takes the model's.
      samples_per_prompt: G.
    """
    acts = policy.language_model(model, sampling, divergence, samples_per_prompt=samples_per_prompt)
    default = of_policy(acts, model, horizon, samples_per_prompt)
    return default if stop_tokens is None else dataclasses.replace(default, stop_tokens=stop_tokens)


def joined(prompts: batches.Prompts, completion: tokens.Completion) -> batches.Sequences:
    """Joins prompts [B, P] and their completions [B, T] to rows, [B, P + T]."""
    return batches.join(prompts, completion.tokens, completion.is_answer)

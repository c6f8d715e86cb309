"""Rollouts of a language model for reinforcement learning: sampled texts and their rewards.

Shape letters: B texts, those of a prompt adjacent; G texts of a prompt; P tokens of a prompt, T
tokens of a row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import sampling_ahead, types
from kullback.environments import tokens
from kullback.lm import batches, completions, policy, policy_gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Texts that models of the run write: the `Agent.experience` of reinforcement learning."""

    draws: tuple[policy.Draws, ...]  # Of each prompt, by who writes them; the policy's come first.
    temperature: float = 1.0  # Temperature of policy and reference.
    has_value: bool = False  # Whether parameters are those of `value_network.with_value`.
    # Texts of a prompt that a gradient is taken of, where micro-batches are of whole prompts; 0:
    # they are of texts, and all are learnt from.
    learnt_per_prompt: int = 0
    shares_prompts: bool = False  # Whether these are one row of a gradient, see shared_prompts.py.
    ahead: sampling_ahead.Ahead = sampling_ahead.NONE  # How far ahead of learning.

    @property
    def samples_per_prompt(self) -> int:
        """Texts of a prompt, whoever writes them, G."""
        return sum(draws.texts for draws in self.draws)


class Episodes(NamedTuple):
    """Texts that a policy's parameters wrote, and their rewards; those of a prompt are adjacent."""

    sequences: batches.Sequences  # [B, T].
    rewards: types.Array  # float32, [B]: rewards of whole texts, as the scorer gave them.
    # float32, [B, T]: log-probability of each answer token as it was drawn, 0 elsewhere.
    log_probability: types.Array
    # float32, [B]: 0 for texts that are not learnt from, as the reward of one of their prompt is
    # missing; None: all count.
    weights: types.Array | None = None


# (params, completions, the prompt of each) -> rewards, float32 [B]; in JAX.
Score = Callable[[Any, tokens.Completion, batches.Prompts], types.Array]


def text_metrics(
    sequences: batches.Sequences, eos_ids: tuple[int, ...], group_size: int
) -> dict[str, jax.Array]:
    """Measures texts: answer_tokens and truncated, [B] each, and diversity, [B / G].

    Truncated is 1 of a text that no stop token ended, else 0; diversity is the share of distinct
    bigrams among the texts of a prompt.

    Args:
      sequences: [B, T]; the texts of a prompt are adjacent.
      eos_ids: of the model.
      group_size: G.
    """
    ids, is_answer = (jnp.asarray(x)[:, 1:] for x in (sequences.tokens, sequences.is_answer))
    return {
        "answer_tokens": jnp.sum(is_answer, 1).astype(jnp.float32),
        "truncated": 1.0 - jnp.any(tokens.is_stop(ids, eos_ids) & is_answer, 1),
        "diversity": policy_gradient.distinct_bigrams(ids, is_answer, group_size),
    }


def log_ratios(episodes: Episodes, log_probabilities: types.Array) -> jax.Array:
    """Returns ln pi(y | x) / rho(y | x) of texts y that pi wrote, in nats, [B].

    Its mean is KL(pi || rho) of whole texts, by the estimator k1.

    Args:
      episodes: texts, [B, T].
      log_probabilities: of rho, of each token but the first, [B, T - 1].
    """
    ratios = jnp.asarray(episodes.log_probability)[:, 1:] - log_probabilities
    return jnp.sum(jnp.where(jnp.asarray(episodes.sequences.is_answer)[:, 1:], ratios, 0), 1)


def sample(
    sampler: completions.Sampler,
    score: Score,
    acting: Any,
    prompts: batches.Prompts,
    key: types.Key,
    score_params: Any,
) -> Episodes:
    """Samples texts of each prompt, and scores them; pure.

    Args:
      sampler: of G texts of each prompt; prompts are prefilled once.
      score: gives the rewards.
      acting: parameters of the policy.
      prompts: [B / G, P].
      key: of the texts.
      score_params: parameters of `score`.
    """
    return scored(sampler, score, prompts, sampler.completions(acting, prompts, key), score_params)


def scored(
    sampler: completions.Sampler,
    score: Score,
    prompts: batches.Prompts,
    completion: tokens.Completion,
    score_params: Any,
) -> Episodes:
    """Returns texts that were sampled, with their scores; pure.

    Args:
      sampler: that sampled them, G of each prompt.
      score: gives the rewards.
      prompts: [B / G, P].
      completion: the texts, [B, T].
      score_params: parameters of `score`.
    """
    repeated = sampler.repeated(prompts)
    joined = completions.joined(repeated, completion)
    # Column c of a row is token c - (length of the prompt) of its answer.
    place = jnp.arange(joined.tokens.shape[1])[None] - jnp.asarray(repeated.lengths)[:, None]
    place = jnp.clip(place, 0, completion.tokens.shape[1] - 1)
    log_probability = jnp.take_along_axis(completion.log_probability, place, 1)
    scores = jnp.asarray(score(score_params, completion, repeated), jnp.float32)
    return Episodes(joined, scores, jnp.where(joined.is_answer, log_probability, 0))

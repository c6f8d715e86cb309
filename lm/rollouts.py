"""Rollouts of a policy of texts, for reinforcement learning: what it wrote, and what that is worth.

B texts, those of a prompt one after another; G texts of a prompt; P tokens of a prompt, T of a row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from kullback.core import types
from kullback.environments import tokens
from kullback.lm import batches, completions


class Episodes(NamedTuple):
    """Texts that the policy made and what they are worth; those of a prompt stand together."""

    sequences: batches.Sequences  # [B, T].
    rewards: types.Array  # float32, [B]: of whole texts, as the scorer gave them.
    log_probability: types.Array  # float32, [B, T]: of each answer's token as drawn, else 0.


# (params, completions, the prompt of each) -> float32 [B]; in JAX.
Score = Callable[[Any, tokens.Completion, batches.Prompts], types.Array]


def sample(
    sampler: completions.Sampler,
    score: Score,
    acting: Any,
    prompts: batches.Prompts,
    key: types.Key,
    score_params: Any,
) -> Episodes:
    """Returns texts of each prompt, as they were drawn and what they are worth; pure.

    Args:
      sampler: of G texts of each prompt, which is prefilled once.
      score: of texts.
      acting: parameters of the policy.
      prompts: [B / G, P].
      key: of the texts.
      score_params: of `score`.
    """
    completion, rows = sampler.completions(acting, prompts, key), sampler.repeated(prompts)
    joined = completions.joined(rows, completion)
    # Column c of a row is token c - length of its answer.
    place = jnp.arange(joined.tokens.shape[1])[None] - jnp.asarray(rows.lengths)[:, None]
    place = jnp.clip(place, 0, completion.tokens.shape[1] - 1)
    drawn = jnp.take_along_axis(completion.log_probability, place, 1)
    scores = jnp.asarray(score(score_params, completion, rows), jnp.float32)
    return Episodes(joined, scores, jnp.where(joined.is_answer, drawn, 0))

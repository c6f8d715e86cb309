"""Per-token measures of answers under frozen models, with a chunk of logits in memory at a time.

Shape letters: B sequences, T tokens, n tokens of a chunk, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import regularizers, sampling, types
from kullback.lm import batches, chunked, distillation, gemma, shared_ids


def per_token(
    measure: Callable[..., Any],
    sequences: batches.Sequences,
    *models: tuple[gemma.Model, types.Params],
    chunk: int,
) -> tuple[Any, jax.Array]:
    """Returns a measure of each token of the answers, and the mask of these tokens.

    Args:
      measure: (logits [n, V] of each model, token ids [n]) -> [n], or a tree of [n, ...].
      sequences: [B, T].
      *models: models with their parameters, one or more; V is the number of ids that all share.
      chunk: n; as for `chunked.token_losses`.

    Returns:
      The measures, [B, T - 1, ...], 0 outside of answers; the mask, bool, [B, T - 1]. Column t is
      token t + 1, which the model predicts at column t.
    """
    shared = shared_ids.shared([model for model, _ in models])
    inputs = sequences.tokens, sequences.positions, sequences.segments
    features, labels, is_answer = distillation.align(
        [model.features(params, *inputs, **sequences.senses) for model, params in models],
        jnp.asarray(sequences.tokens),
        jnp.asarray(sequences.is_answer),
    )
    first, *other_heads = [
        chunked.Head(model.unembed, params, x.reshape(-1, x.shape[-1]))
        for model, (_, params), x in zip(shared, models, features, strict=True)
    ]
    measures = chunked.token_losses(
        measure,
        first,
        *other_heads,
        labels.reshape(-1),
        chunk=chunk,
        is_answer=is_answer.reshape(-1),
    )
    return jax.tree.map(lambda x: x.reshape(*labels.shape, *x.shape[1:]), measures), is_answer


def log_probability(logits: jax.Array, labels: jax.Array, temperature: float) -> jax.Array:
    """Returns log-probabilities of tokens under a softmax, at least float32, [n].

    Args:
      logits: [n, V].
      labels: token ids, int, [n].
      temperature: > 0, divides the logits.
    """
    return sampling.log_probability(regularizers.promote(logits) / temperature, labels)


def log_probabilities(
    model: gemma.Model,
    params: types.Params,
    sequences: batches.Sequences,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
) -> jax.Array:
    """Returns log-probabilities of answer tokens under a softmax, float32 [B, T - 1], else 0.

    No gradient flows through them, so that there is no need of micro-batches.

    Args:
      model: the language model.
      params: of the model.
      sequences: [B, T].
      temperature: > 0, divides the logits.
      chunk: tokens whose logits are in memory at a time.
    """
    measure = functools.partial(log_probability, temperature=temperature)
    measured, _ = per_token(measure, sequences, (model, params), chunk=chunk)
    return jax.lax.stop_gradient(measured)

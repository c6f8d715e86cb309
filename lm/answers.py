"""What frozen models say of answers, token by token, a chunk of logits in memory at a time.

Shape letters: B sequences, T tokens, n tokens of a chunk, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import batches, chunked, distillation, gemma, shared_ids


def per_token(
    measure: Callable[..., Any],
    sequences: batches.Sequences,
    *models: tuple[gemma.Model, types.Params],
    chunk: int,
) -> tuple[Any, jax.Array]:
    """A measure of each token of the answers, and which tokens those are.

    Args:
      measure: (logits [n, V] of each model, token ids [n]) -> [n], or a tree of [n, ...].
      sequences: [B, T].
      *models: with their parameters, one or more; V is of the ids that all of them have.
      chunk: n; as for `chunked.token_losses`.

    Returns:
      What `measure` returns, [B, T - 1, ...], 0 outside of answers; bool, [B, T - 1]. Column t is
      of token t + 1, which column t of the model predicts.
    """
    shared = shared_ids.shared([model for model, _ in models])
    inputs = sequences.tokens, sequences.positions, sequences.segments
    features, labels, is_answer = distillation.align(
        [model.features(params, *inputs) for model, params in models],
        jnp.asarray(sequences.tokens),
        jnp.asarray(sequences.is_answer),
    )
    first, *others = [
        chunked.Head(model.unembed, params, x.reshape(-1, x.shape[-1]))
        for model, (_, params), x in zip(shared, models, features, strict=True)
    ]
    found = chunked.token_losses(
        measure,
        first,
        *others,
        labels.reshape(-1),
        chunk=chunk,
        is_answer=is_answer.reshape(-1),
    )
    return jax.tree.map(lambda x: x.reshape(*labels.shape, *x.shape[1:]), found), is_answer

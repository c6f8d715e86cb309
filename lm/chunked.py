"""Losses of tokens without their logits in memory: unembedded and compared a chunk at a time.

The logits of N tokens, [N, V], are the largest array of a training step: 2 GB in float32 for 2,000
tokens and Gemma's vocabulary of 262,144, and again for a teacher and for each gradient. Here a
chunk of tokens is unembedded, compared and forgotten; the backward pass computes it again (Chen et
al., "Training deep nets with sublinear memory cost", 2016, https://arxiv.org/abs/1604.06174). The
gradient of the embedding is summed up over the chunks, in place.

Shape letters: N tokens, n tokens of a chunk, D features, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import types


class Head(NamedTuple):
    """Features, and what turns a chunk of them into logits."""

    unembed: Callable[[types.Params, jax.Array], jax.Array]  # (params, [n, D]) -> [n, V].
    params: types.Params
    features: jax.Array  # [N, D].


def token_losses(
    loss: Callable[..., Any],
    student: Head,
    *targets: Any,
    chunk: int,
    is_answer: jax.Array | None = None,
) -> Any:
    """The losses of N tokens, [N]; differentiable in the student's parameters and features.

    Args:
      loss: (logits [n, V], *targets) -> [n], or a tree of [n, ...] (metrics beside the loss). The
        losses of `distillation` fit, and of a token's targets each looks at its own row only.
      student: whose logits come first.
      *targets: trees of arrays [N, ...] (labels, sparse targets, keys), handed over as [n, ...]; or
        a `Head`, the teacher's say, handed over as logits [n, V]. All are constants.
      chunk: n, tokens at a time: the logits of so many are in memory, one array for each head.
      is_answer: bool, [N]. Other tokens get 0, and hardly cost any time: they are sorted to the
        end, and chunks without an answer are not computed. None is all.

    Returns:
      What `loss` returns, for all N.

    Raises:
      ValueError: for chunk < 1, no tokens, or targets of another number of tokens.
    """
    num_tokens = student.features.shape[0]
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1 token, got {chunk}; 128 to 1024 suit most machines")
    if num_tokens == 0:
        raise ValueError("there are no tokens: features are [0, D]")
    arguments = (student, *map(_constant, targets))
    functions = [x.unembed if isinstance(x, Head) else None for x in arguments]
    # Of a head the features go chunk by chunk, and the parameters whole.
    params = [x.params if isinstance(x, Head) else None for x in arguments]
    rows = [x.features if isinstance(x, Head) else x for x in arguments]
    for leaf in jax.tree.leaves((rows, is_answer)):
        if leaf.shape[:1] != (num_tokens,):
            raise ValueError(
                f"the student has features of {num_tokens} tokens, but a target or is_answer has "
                f"shape {leaf.shape}; all must lead with the same number of tokens"
            )
    order = None if is_answer is None else jnp.argsort(~is_answer, stable=True)
    if order is not None:
        rows = jax.tree.map(lambda x: x[order], rows)

    def compute(params: list[Any], rows: list[Any]) -> Any:
        logits = [
            row if unembed is None else unembed(tree, row)
            for unembed, tree, row in zip(functions, params, rows, strict=True)
        ]
        return loss(*logits)

    size = min(chunk, num_tokens)
    num_chunks = -(-num_tokens // size)
    padding = num_chunks * size - num_tokens

    def split(x: jax.Array) -> jax.Array:
        if padding:
            # The last token again: any loss is finite where it is finite on the tokens.
            x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (padding, *x.shape[1:]))])
        return x.reshape(num_chunks, size, *x.shape[1:])

    # The checkpoint is around the branch: inside, the loop would keep the parameters once a chunk.
    # In a loop nothing merges the two passes, so that no barrier against it is needed.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def compute_or_skip(params: list[Any], has_answer: jax.Array, rows: list[Any]) -> Any:
        if is_answer is None:
            return compute(params, rows)
        shapes = jax.eval_shape(compute, params, rows)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.cond(has_answer, compute, lambda *_: zeros, params, rows)

    num_answers = num_tokens if is_answer is None else jnp.sum(is_answer)
    has_answer = jnp.arange(num_chunks) * size < num_answers
    losses = jax.lax.map(
        lambda item: compute_or_skip(params, *item), (has_answer, jax.tree.map(split, rows))
    )
    losses = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_tokens], losses)
    if is_answer is None or order is None:
        return losses
    place = jnp.argsort(order)

    def restore(x: jax.Array) -> jax.Array:
        mask = is_answer.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(mask, x[place], jnp.zeros((), x.dtype))

    return jax.tree.map(restore, losses)


def _constant(target: Any) -> Any:
    """The target without a gradient."""
    if isinstance(target, Head):
        params, features = jax.lax.stop_gradient((target.params, target.features))
        return Head(target.unembed, params, features)
    return jax.lax.stop_gradient(target)

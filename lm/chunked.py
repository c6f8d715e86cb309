"""Losses of tokens without their logits in memory: unembedded and compared a chunk at a time.

The logits of N tokens, [N, V], are the largest array of a training step: 2 GB in float32 for 2,000
tokens and Gemma's vocabulary of 262,144, and again for a teacher and for each gradient. Here a
chunk of tokens is unembedded, compared and forgotten. What a token's loss will count is known
before, so its gradient is taken while its logits are there, and nothing is computed twice; that of
the embedding is summed up over the chunks, in place.

Shape letters: N tokens, n tokens of a chunk, D features, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import sharding, types


class Head(NamedTuple):
    """Features, and what turns a chunk of them into logits."""

    unembed: Callable[[types.Params, jax.Array], jax.Array]  # (params, [n, D]) -> [n, V].
    params: types.Params  # What `unembed` reads, and no more: gradients are as large.
    features: jax.Array  # [N, D].


class _Fixed(NamedTuple):
    """What has no gradient."""

    params: list[Any]  # Of the other heads.
    rows: list[Any]  # Weights and targets, [N, ...] each.
    is_answer: jax.Array | None  # bool, [N].


class _Chunks(NamedTuple):
    """Rows of tokens, cut; those with an answer come first."""

    rows: Any  # [C, n, ...] each.
    counts: jax.Array  # bool, [C, n]: it is an answer, and no padding.
    has_answer: jax.Array  # bool, [C].
    restore: Callable[[jax.Array], jax.Array]  # [C, n, ...] -> [N, ...], 0 but for answers.


def token_losses(
    loss: Callable[..., Any],
    student: Head,
    *targets: Any,
    chunk: int,
    is_answer: jax.Array | None = None,
) -> Any:
    """The losses of N tokens, [N]; for their gradient see `weighted_loss`.

    Args:
      loss: (logits [n, V], *targets) -> [n], or a tree of [n, ...]. The losses of `distillation`
        fit, and of a token's targets each looks at its own row only.
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
    heads, params, rows = _split(student, targets)
    chunks = _cut(rows, chunk, is_answer)

    def compute(rows: list[Any]) -> Any:
        return loss(*_logits(heads, params, rows))

    found = jax.lax.map(lambda item: _or_zeros(compute, *item), (chunks.has_answer, chunks.rows))
    return jax.tree.map(chunks.restore, found)


def weighted_loss(
    measure: Callable[..., tuple[jax.Array, Any]],
    weights: jax.Array,
    student: Head,
    *targets: Any,
    chunk: int,
    is_answer: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """sum_i weights_i loss_i, [], and metrics; differentiable in the student, once.

    Args:
      measure: (logits [n, V], *targets) -> losses [n], and a tree of metrics [n, ...] that have no
        gradient; as `loss` of `token_losses`.
      weights: float, [N], constants.
      student, *targets, chunk, is_answer: as for `token_losses`.

    Returns:
      The sum, and the metrics of all N.

    Raises:
      ValueError: as `token_losses` does.
    """
    heads, params, rows = _split(student, targets)
    fixed = _Fixed(params[1:], [jax.lax.stop_gradient(weights), *rows[1:]], is_answer)

    def compute(
        own: types.Params, features: jax.Array, fixed: _Fixed, item: tuple[jax.Array, list[Any]]
    ) -> tuple[jax.Array, Any]:
        counts, (weights, *rest) = item
        logits = _logits(heads, [own, *fixed.params], [features, *rest])
        losses, metrics = measure(*logits)
        return jnp.sum(jnp.where(counts, weights * losses, 0)), metrics

    # A step that learns runs `forward`; this is for the value alone. All that is traced is an
    # argument: a rematerialised part of a program may hold them.

    @jax.custom_vjp
    def run(own: types.Params, features: jax.Array, fixed: _Fixed) -> tuple[jax.Array, Any]:
        chunks = _cut([features, *fixed.rows], chunk, fixed.is_answer)

        def one(item: tuple[jax.Array, list[Any]]) -> Any:
            counts, (features, *rest) = item
            return compute(own, features, fixed, (counts, rest))

        items = chunks.has_answer, (chunks.counts, chunks.rows)
        values, metrics = jax.lax.map(lambda item: _or_zeros(one, *item), items)
        return jnp.sum(values), jax.tree.map(chunks.restore, metrics)

    def forward(own: types.Params, features: jax.Array, fixed: _Fixed) -> tuple[Any, Any]:
        chunks = _cut([features, *fixed.rows], chunk, fixed.is_answer)
        gradient = jax.value_and_grad(compute, argnums=(0, 1), has_aux=True)

        def one(carry: tuple[jax.Array, types.Params], item: Any) -> Any:
            has_answer, counts, (features, *rest) = item

            def learn(carry: Any) -> Any:
                value, total = carry
                (more, metrics), (of_params, of_features) = gradient(
                    own, features, fixed, (counts, rest)
                )
                total = jax.tree.map(jnp.add, total, of_params)
                return (value + more, total), (metrics, of_features)

            def skip(carry: Any) -> Any:
                empty = jax.eval_shape(learn, carry)[1]
                return carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)

            if fixed.is_answer is None:
                return learn(carry)
            return jax.lax.cond(has_answer, learn, skip, carry)

        start = jnp.zeros((), weights.dtype), jax.tree.map(jnp.zeros_like, own)
        items = chunks.has_answer, chunks.counts, chunks.rows
        (value, total), (metrics, of_features) = jax.lax.scan(one, start, items)
        kept = total, chunks.restore(of_features)
        return (value, jax.tree.map(chunks.restore, metrics)), kept

    def backward(kept: Any, cotangents: tuple[jax.Array, Any]) -> Any:
        own, features = jax.tree.map(lambda x: (cotangents[0] * x).astype(x.dtype), kept)
        return own, features, None

    run.defvjp(forward, backward)
    return run(params[0], rows[0], fixed)


def _split(student: Head, targets: tuple[Any, ...]) -> tuple[list[Any], list[Any], list[Any]]:
    """Of student and targets: unembeddings or None, parameters or None, and what has N rows."""
    arguments = [student, *map(_constant, targets)]
    return (
        [x.unembed if isinstance(x, Head) else None for x in arguments],
        [x.params if isinstance(x, Head) else None for x in arguments],
        [x.features if isinstance(x, Head) else x for x in arguments],
    )


def _constant(target: Any) -> Any:
    """The target without a gradient."""
    if isinstance(target, Head):
        params, features = jax.lax.stop_gradient((target.params, target.features))
        return Head(target.unembed, params, features)
    return jax.lax.stop_gradient(target)


def _logits(heads: list[Any], params: list[Any], rows: list[Any]) -> list[Any]:
    """Rows of a chunk, of a head as logits."""
    return [
        row if unembed is None else unembed(tree, row)
        for unembed, tree, row in zip(heads, params, rows, strict=True)
    ]


def _or_zeros(compute: Callable[[Any], Any], has_answer: jax.Array, rows: Any) -> Any:
    shapes = jax.eval_shape(compute, rows)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.cond(has_answer, compute, lambda _: zeros, rows)


def _cut(rows: list[Any], chunk: int, is_answer: jax.Array | None) -> _Chunks:
    num_tokens = rows[0].shape[0]
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1 token, got {chunk}; 128 to 1024 suit most machines")
    if num_tokens == 0:
        raise ValueError("there are no tokens: features are [0, D]")
    for leaf in jax.tree.leaves((rows, is_answer)):
        if leaf.shape[:1] != (num_tokens,):
            raise ValueError(
                f"the student has features of {num_tokens} tokens, but a target or is_answer has "
                f"shape {leaf.shape}; all must lead with the same number of tokens"
            )
    order = None if is_answer is None else jnp.argsort(~is_answer, stable=True)
    if order is not None:
        rows = jax.tree.map(lambda x: x[order], rows)
    size = min(chunk, num_tokens)
    num_chunks = -(-num_tokens // size)
    padding = num_chunks * size - num_tokens

    def split(x: jax.Array) -> jax.Array:
        if padding:
            # The last token again: any loss is finite where it is finite on the tokens.
            x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (padding, *x.shape[1:]))])
        return x.reshape(num_chunks, size, *x.shape[1:])

    def restore(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, *x.shape[2:])[:num_tokens]
        if is_answer is None or order is None:
            return x
        mask = is_answer.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(mask, x[jnp.argsort(order)], jnp.zeros((), x.dtype))

    num_answers = num_tokens if is_answer is None else jnp.sum(is_answer)
    counts = jnp.arange(num_chunks * size).reshape(num_chunks, size) < num_answers
    # The sort loses how rows were cut over a mesh; of each chunk every device takes its share.
    rows = sharding.spread(jax.tree.map(split, rows), 1)
    return _Chunks(rows, counts, counts[:, 0], restore)

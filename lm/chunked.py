"""Token-level losses without all logits in memory: logits are computed a chunk at a time.

The logits of N tokens, [N, V], are the largest array of a training step: 2 GB in float32 for 2,000
tokens and Gemma's vocabulary of 262,144, and again for a teacher and for each gradient. Here a
chunk of tokens is unembedded, compared and freed. The weight of a token's loss is known in advance,
so its gradient is computed while its logits are in memory, and nothing is computed twice; the
embedding's gradient is summed over the chunks, in place, a block of rows at a time.

Shape letters: N tokens, n tokens of a chunk, D features, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import sharding, types

LOGIT_BYTES = 2**27  # Most bytes of a chunk's logits.
BLOCK_BYTES = 2**24  # Size of a block of rows of a head's gradient, which stays in the cache.


class Head(NamedTuple):
    """Features, and the unembedding that turns a chunk of them into logits."""

    # (params, [n, D]) -> [n, V]. Logit v depends on row v of each parameter alone.
    unembed: Callable[[types.Params, jax.Array], jax.Array]
    # Parameters of `unembed`, [V or more, ...], and no more: gradients have the same size.
    params: types.Params
    features: jax.Array  # [N, D].
    is_frozen: bool = False  # Whether the parameters get no gradient, nor memory for it.


class _Fixed(NamedTuple):
    """The inputs without a gradient."""

    student: Any  # Parameters of the student's head if it is frozen, else None.
    params: list[Any]  # Parameters of the other heads.
    inputs: list[Any]  # Weights and targets, [N, ...] each.
    is_answer: jax.Array | None  # bool, [N].


class _Chunks(NamedTuple):
    """Tokens, cut into C chunks; answer tokens come first."""

    inputs: Any  # [C, n, ...] each.
    is_answer: jax.Array  # bool, [C, n]: whether it is an answer token, and no padding.
    has_answer: jax.Array  # bool, [C].
    restore: Callable[[jax.Array], jax.Array]  # [C, n, ...] -> [N, ...], 0 but for answers.


def token_losses(
    loss: Callable[..., Any],
    student: Head,
    *targets: Any,
    chunk: int,
    is_answer: jax.Array | None = None,
) -> Any:
    """Returns the losses of N tokens, [N]; for their gradient see `weighted_loss`.

    Args:
      loss: (logits [n, V], *targets) -> [n], or a tree of [n, ...], such as the losses of
        `distillation`. The loss of a token depends on its head_params targets only.
      student: gives the first logits.
      *targets: trees of arrays [N, ...] (labels, sparse targets, keys), passed as [n, ...]; or a
        `Head`, such as a teacher's, passed as logits [n, V]. They get no gradient.
      chunk: most tokens whose logits are in memory at a time, one array for each head; n is fewer
        where these would be of more than `LOGIT_BYTES`.
      is_answer: bool, [N]; None is all. Other tokens get 0 at hardly any cost: they are sorted to
        the end, and chunks without an answer are not computed.

    Returns:
      The result of `loss`, for all N.

    Raises:
      ValueError: for chunk < 1, no tokens, or targets of another number of tokens.
    """
    heads, params, inputs = _split(student, targets)
    chunks = _cut(inputs, _num_tokens(student, chunk), is_answer)

    def compute(inputs: list[Any]) -> Any:
        return loss(*_logits(heads, params, inputs))

    losses = jax.lax.map(lambda item: _or_zeros(compute, *item), (chunks.has_answer, chunks.inputs))
    return jax.tree.map(chunks.restore, losses)


def weighted_loss(
    measure: Callable[..., tuple[jax.Array, Any]],
    weights: jax.Array,
    student: Head,
    *targets: Any,
    chunk: int,
    is_answer: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Returns sum_i weights_i loss_i, [], and metrics; differentiable once, in the student.

    Args:
      measure: (logits [n, V], *targets) -> losses [n], and a tree of metrics [n, ...] without a
        gradient; otherwise as `loss` of `token_losses`.
      weights: float, [N]; they get no gradient.
      student, *targets, chunk, is_answer: as for `token_losses`.

    Returns:
      The sum, and the metrics of all N.

    Raises:
      ValueError: as `token_losses` does.
    """
    heads, params, inputs = _split(student, targets)
    weights = jax.lax.stop_gradient(weights)
    unembed, frozen = student.unembed, params[0] if student.is_frozen else None
    chunk = _num_tokens(student, chunk, sum(unembed is not None for unembed in heads))
    fixed = _Fixed(frozen, params[1:], [weights, *inputs[1:]], is_answer)

    def compute(
        logits: jax.Array, fixed: _Fixed, item: tuple[jax.Array, list[Any]]
    ) -> tuple[jax.Array, Any]:
        is_answer, (weights, *rest) = item
        losses, metrics = measure(logits, *_logits(heads[1:], fixed.params, rest))
        return jnp.sum(jnp.where(is_answer, weights * losses, 0)), metrics

    # A learner step runs `forward`; `run` is for the value alone. All traced values are arguments,
    # as a rematerialised part of a program may hold them.

    @jax.custom_vjp
    def run(params: types.Params, features: jax.Array, fixed: _Fixed) -> tuple[jax.Array, Any]:
        chunks = _cut([features, *fixed.inputs], chunk, fixed.is_answer)
        head_params = params if fixed.student is None else fixed.student

        def compute_chunk(item: tuple[jax.Array, list[Any]]) -> Any:
            is_answer, (features, *rest) = item
            return compute(unembed(head_params, features), fixed, (is_answer, rest))

        items = chunks.has_answer, (chunks.is_answer, chunks.inputs)
        values, metrics = jax.lax.map(lambda item: _or_zeros(compute_chunk, *item), items)
        return jnp.sum(values), jax.tree.map(chunks.restore, metrics)

    def forward(params: types.Params, features: jax.Array, fixed: _Fixed) -> tuple[Any, Any]:
        chunks = _cut([features, *fixed.inputs], chunk, fixed.is_answer)
        head_params = params if fixed.student is None else fixed.student

        def add_chunk(carry: tuple[jax.Array, types.Params], item: Any) -> Any:
            has_answer, is_answer, (features, *rest) = item

            def learn(carry: Any) -> Any:
                value, total = carry
                logits, pull = jax.vjp(functools.partial(unembed, head_params), features)
                (summand, metrics), gradient = jax.value_and_grad(compute, has_aux=True)(
                    logits, fixed, (is_answer, rest)
                )
                total = _add_gradient(total, unembed, params, features, gradient)
                return (value + summand, total), (metrics, pull(gradient)[0])

            def skip(carry: Any) -> Any:
                empty = jax.eval_shape(learn, carry)[1]
                return carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)

            if fixed.is_answer is None:
                return learn(carry)
            return jax.lax.cond(has_answer, learn, skip, carry)

        start = jnp.zeros((), weights.dtype), jax.tree.map(jnp.zeros_like, params)
        items = chunks.has_answer, chunks.is_answer, chunks.inputs
        (value, total), (metrics, features_gradient) = jax.lax.scan(add_chunk, start, items)
        gradients = total, chunks.restore(features_gradient)
        return (value, jax.tree.map(chunks.restore, metrics)), gradients

    def backward(gradients: Any, cotangents: tuple[jax.Array, Any]) -> Any:
        scaled = jax.tree.map(lambda x: (cotangents[0] * x).astype(x.dtype), gradients)
        return *scaled, None

    run.defvjp(forward, backward)
    return run(() if student.is_frozen else params[0], inputs[0], fixed)


def _add_gradient(
    total: types.Params,
    unembed: Callable[[types.Params, jax.Array], jax.Array],
    params: types.Params,
    features: jax.Array,
    gradient: jax.Array,
) -> types.Params:
    """Adds a chunk's gradient with respect to the parameters of a head, in place.

    XLA has no product that is added to a matrix, and would store one as large as the parameters.

    Args:
      total: the sum so far, as `params`.
      unembed: of the head.
      params: of the head; empty if it is frozen.
      features: [n, D].
      gradient: with respect to the logits, [n, V].
    """
    num_ids = gradient.shape[1]
    sizes = [x.size // len(x) * x.dtype.itemsize for x in jax.tree.leaves(params)]
    if not sizes:
        return total
    num_rows = min(num_ids, max(1, BLOCK_BYTES // sum(sizes)))
    if not jax.sharding.get_abstract_mesh().empty:  # Rows of a parameter lie on many devices.
        num_rows = num_ids

    def add(start: Any, total: types.Params, num_rows: int) -> types.Params:
        def cut(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, num_rows)

        def place(x: jax.Array, summand: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(x, cut(x) + summand, start, 0)

        _, pull = jax.vjp(lambda block: unembed(block, features), jax.tree.map(cut, params))
        (summands,) = pull(jax.lax.dynamic_slice_in_dim(gradient, start, num_rows, 1))
        return jax.tree.map(place, total, summands)

    num_blocks, rest = divmod(num_ids, num_rows)
    total = jax.lax.fori_loop(0, num_blocks, lambda i, x: add(i * num_rows, x, num_rows), total)
    return add(num_blocks * num_rows, total, rest) if rest else total


def _split(student: Head, targets: tuple[Any, ...]) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns unembeddings and parameters, None but for heads, and inputs [N, ...] of all."""
    arguments = [student, *map(_constant, targets)]
    return (
        [x.unembed if isinstance(x, Head) else None for x in arguments],
        [x.params if isinstance(x, Head) else None for x in arguments],
        [x.features if isinstance(x, Head) else x for x in arguments],
    )


def _num_tokens(head: Head, chunk: int, num_heads: int = 1) -> int:
    """Returns n, the tokens of a chunk.

    Where the head is frozen, the logits of all heads have LOGIT_BYTES together: small chunks cost
    nothing then. Otherwise each adds to a gradient that is as large as the head.
    """
    logits = jax.eval_shape(head.unembed, head.params, head.features[:1])
    num_bytes = logits.size * logits.dtype.itemsize * (num_heads if head.is_frozen else 1)
    return min(chunk, max(1, LOGIT_BYTES // max(1, num_bytes)))


def _constant(target: Any) -> Any:
    """Stops the gradient of a target."""
    if isinstance(target, Head):
        params, features = jax.lax.stop_gradient((target.params, target.features))
        return target._replace(params=params, features=features)
    return jax.lax.stop_gradient(target)


def _logits(heads: list[Any], params: list[Any], inputs: list[Any]) -> list[Any]:
    """Returns the inputs of a chunk, with features of heads turned into logits."""
    return [
        x if unembed is None else unembed(tree, x)
        for unembed, tree, x in zip(heads, params, inputs, strict=True)
    ]


def _or_zeros(compute: Callable[[Any], Any], has_answer: jax.Array, inputs: Any) -> Any:
    shapes = jax.eval_shape(compute, inputs)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.cond(has_answer, compute, lambda _: zeros, inputs)


def _cut(inputs: list[Any], chunk: int, is_answer: jax.Array | None) -> _Chunks:
    num_tokens = inputs[0].shape[0]
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1 token, got {chunk}; 128 to 1024 suit most machines")
    if num_tokens == 0:
        raise ValueError("there are no tokens: features are [0, D]")
    for leaf in jax.tree.leaves((inputs, is_answer)):
        if leaf.shape[:1] != (num_tokens,):
            raise ValueError(
                f"the student has features of {num_tokens} tokens, but a target or is_answer has "
                f"shape {leaf.shape}; all must lead with the same number of tokens"
            )
    order = None if is_answer is None else jnp.argsort(~is_answer, stable=True)
    if order is not None:
        inputs = jax.tree.map(lambda x: x[order], inputs)
    size = min(chunk, num_tokens)
    num_chunks = -(-num_tokens // size)
    padding = num_chunks * size - num_tokens

    def split(x: jax.Array) -> jax.Array:
        if padding:
            # The last token is repeated, so that losses of the padding are finite.
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
    # The sort loses the sharding over a mesh: each chunk is spread over all devices anew.
    inputs = sharding.spread(jax.tree.map(split, inputs), 1)
    return _Chunks(inputs, counts, counts[:, 0], restore)

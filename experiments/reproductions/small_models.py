"""Small language models for reproductions: how they are made and taught, data, distances.

An arm learns in one compiled program a stretch: `learners.scan` takes learner steps whose sequences
are stored, or sampled within the scan. B rows, P tokens of a prompt, T of a completion, n steps.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, regularizers, types
from kullback.lm import batches, distillation, epochs, gemma, tokenizer, tuning


def learning(
    batch_size: int, prompt_length: int, horizon: int, rate: float, **others: Any
) -> tuning.Config:
    """Returns a learner's settings; logits of a whole batch fit in memory.

    Args:
      batch_size: B.
      prompt_length: P, at most.
      horizon: T, at most.
      rate: of Adam.
      **others: further fields of `tuning.Config`.
    """
    return tuning.Config(
        batch_size=batch_size,
        max_prompt_length=prompt_length,
        max_new_tokens=horizon,
        learning_rate=rate,
        **{"chunk": batch_size * (prompt_length + horizon), **others},
    )


def decoder(vocab_size: int, width: int, num_layers: int, context: int) -> gemma.Config:
    """Returns a small Gemma whose layers all see the whole context."""
    return gemma.Config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        embed_dim=width,
        num_heads=4,
        num_kv_heads=4,
        head_dim=max(2, width // 8 * 2),
        hidden_dim=2 * width,
        window=context,
        query_scale=float(max(2, width // 8 * 2)),
        pattern=num_layers,  # One period, so that no layer's weights are copied out of a stack.
        context_length=context,
    )


def speaking(config: gemma.Config, its_tokenizer: tokenizer.Tokenizer) -> gemma.Config:
    """Returns the configuration of a model with a tokenizer's special ids."""
    x = its_tokenizer
    return dataclasses.replace(config, bos_id=x.bos_id, eos_ids=x.eos_ids, pad_id=x.pad_id)


def untied(model: gemma.Model, scale: float, branch: float = 1.0) -> gemma.Model:
    """Returns the model with a random head; its logits have a standard deviation of `scale`.

    The logits of a random model whose head is its embedding say above all: the same token again.

    Args:
      model: whose layers stay.
      scale: of the head.
      branch: of what a layer's attention and feed-forward net each add, where the embedding of the
        last token is 1: the less, the simpler is the model's language.
    """
    shape = model.config.vocab_size, model.config.embed_dim

    def init(key: types.Key) -> types.Params:
        key, head_key = jax.random.split(key)
        head = scale / math.sqrt(shape[1]) * jax.random.normal(head_key, shape)
        params = jax.tree_util.tree_map_with_path(set_branch, model.init(key))
        return {**params, "head": head}

    def set_branch(path: Any, leaf: jax.Array) -> jax.Array:
        is_scale = "post_" in jax.tree_util.keystr(path)  # Of a norm, as 1 + w.
        return leaf + branch - 1 if is_scale else leaf

    def unembed(params: types.Params, features: jax.Array) -> jax.Array:
        return jnp.einsum("...d,vd->...v", features, params["head"])

    def apply(params: types.Params, *inputs: Any) -> jax.Array:
        return unembed(params, model.features(params, *inputs))

    return model._replace(init=init, unembed=unembed, apply=apply)


class Trainer(NamedTuple):
    """A learner, and many of its steps as one compiled program; for all seeds."""

    learner: types.Learner
    run: Callable[..., tuple[types.LearnerState, Any]]  # See `learners.scan`.


def trainer(learner: types.Learner, rows: Callable[..., Any] = learners.stored) -> Trainer:
    """Returns the trainer of a learner; for `rows` see `learners.scan`."""
    return Trainer(learner, jax.jit(learners.scan(learner, rows)))


def trained(
    trainer: Trainer, rows: Any, steps: int, batch_size: int, seed: int, key: types.Key
) -> types.Params:
    """Returns parameters that were drawn by a key, and have learnt stored rows, [N, ...]."""
    items = take(rows, steps, batch_size, seed)
    return trainer.run(trainer.learner.init(key), types.NO_CONSTANTS, items, key)[0].params


def take(data: Any, steps: int, batch_size: int, seed: int, first: int = 0) -> Any:
    """Returns items of steps from `first` on, each row once an epoch, [steps, B, ...]."""
    num = len(jax.tree.leaves(data)[0])
    indices = np.stack(
        [
            epochs.indices(step, num_items=num, batch_size=batch_size, seed=seed)
            for step in range(first, first + steps)
        ]
    )
    return jax.tree.map(lambda x: jnp.asarray(x)[indices], data)


def sequence_distance(
    logits: jax.Array,
    reference: jax.Array,
    rows: batches.Sequences,
    divergence: distillation.TokenDivergence = regularizers.kl,
) -> jax.Array:
    """Returns divergences of next tokens, summed over each answer, in nats, [B].

    With KL and answers that the reference model wrote, its mean is KL(reference || model) of
    whole sequences, by the chain rule, and no draw but that of the prefixes is in it:

        E_{y ~ p} [ln p(y) - ln q(y)] = E_{y ~ p} sum_n KL(p(. | y_<n) || q(. | y_<n))

    Args:
      logits: of the model on the rows, [B, P + T, V].
      reference: of the reference model, the same shape.
      rows: tokens and what of them is the answer.
      divergence: of log-distributions (reference, model), [..., V] -> [...].
    """
    both = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    aligned = distillation.align(both, jnp.asarray(rows.tokens), jnp.asarray(rows.is_answer))
    (log_p, log_q), _, is_answer = aligned
    return jnp.sum(jnp.where(is_answer, divergence(log_p, log_q), 0), 1)

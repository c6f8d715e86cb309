"""What the learners of language models share: settings, and an agent made from a loss of tokens.

An algorithm of the family brings one function, the loss of a token's logits; see sft.py and gkd.py.
Shape letters: B sequences, T tokens, n tokens of a chunk, D features, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from kullback.core import learners, regularizers, types
from kullback.environments import tokens
from kullback.lm import batches, chunked, data, distillation, gemma, policy

__all__ = ["Config", "TokenLoss", "make", "optimizer"]

# (logits of the student [n, V], token ids [n], keys [n], logits of the teacher [n, V] or nothing)
# -> [n].
TokenLoss = Callable[..., jax.Array]

TOP_K = 16  # Of the teacher's tokens: how much of its mass they hold is a metric.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings that do not depend on the loss."""

    batch_size: int = 16  # Sequences of a learner step.
    max_prompt_length: int = 64  # Tokens, the beginning of the text among them.
    max_new_tokens: int = 64  # Tokens of a completion, stored or sampled; the horizon.
    overlong: data.Overlong = "error"  # What becomes of an example that is longer.
    # Several stored examples in a row, as many as fit; each attends to itself alone. It learns what
    # unpacked rows do where a mean over tokens is taken; not for on-policy learning.
    pack: bool = False
    batches_per_sort: int = 1  # Batches whose examples are sorted by length; 1 does not sort.
    learning_rate: float = 3e-4  # Of Adam.
    warmup_steps: int = 20  # Learner steps over which it rises from 0, linearly.
    max_grad_norm: float = 1.0  # > 0; gradients of a larger norm are scaled down to it.
    # "sequence": the mean over sequences of the mean over each one's tokens (the GKD paper).
    # "token": over all tokens of the batch (TRL).
    reduction: distillation.Reduction = "sequence"
    micro_batches: int = 1  # In which a batch is learnt from, one after another; the sum is exact.
    chunk: int = 512  # Tokens whose logits are in memory at a time.

    def __post_init__(self) -> None:
        names = "batch_size max_prompt_length max_new_tokens micro_batches chunk batches_per_sort"
        for name in names.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches={self.micro_batches} must divide batch_size={self.batch_size}"
            )
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.pack and self.reduction != "token":
            raise ValueError(
                f"pack=True needs reduction=token, got {self.reduction}: a row is no sequence"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {self.warmup_steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of stored sequences and the student's own: `Agent.experience` of tuning."""

    student_fraction: float = 0.0  # In [0, 1]: of sequences that the student samples.
    # "batch": one coin a step decides on all rows, as the GKD paper does; "row": each batch has
    # the same share of them.
    mixing: Literal["batch", "row"] = "batch"
    # Learner steps for which what the student made is learnt from again; 0 is once, on-policy.
    max_age: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.student_fraction <= 1:
            raise ValueError(f"student_fraction must lie in [0, 1], got {self.student_fraction}")
        if self.max_age < 0:
            raise ValueError(f"max_age must be >= 0 learner steps, got {self.max_age}")
        if self.mixing not in ("batch", "row"):
            raise ValueError(f"mixing must be batch or row, got {self.mixing!r}")


def make(
    token_loss: TokenLoss,
    model: gemma.Model,
    config: Config,
    *,
    algorithm: Any,
    teacher: gemma.Model | None = None,
    mixture: Mixture | None = None,
    divergence: regularizers.Divergence = regularizers.kl,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
) -> types.Agent[Mixture]:
    """Returns the agent that learns by the mean of `token_loss` over answers.

    Args:
      token_loss: of a chunk of tokens, see `TokenLoss`.
      model: the student.
      config: settings.
      algorithm: the algorithm's own configuration, saved beside the results.
      teacher: a frozen model, whose parameters are among the learner's constants; None if the
        loss needs none.
      mixture: whose sequences are learnt from; None is the data set's alone.
      divergence: f of the student's operator, with which it samples.
      teacher_divergence: f of the teacher's.
    """
    objective = _Objective(
        token_loss=token_loss,
        model=model,
        config=config,
        teacher=teacher,
        divergence=divergence,
        teacher_divergence=teacher_divergence,
    )
    learner = learners.sgd(
        init_params=model.init,
        loss=functools.partial(_loss, objective),
        optimizer=optimizer(config),
    )
    return types.Agent(
        policy=policy.language_model(model, divergence=divergence),
        learner=learner,
        actor_params=lambda state, steps, evaluate, constants: {"params": state.params},
        experience=mixture or Mixture(),
        config=algorithm,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Objective:
    """A loss's fixed parts, which its functions share; fields are arguments of `make`."""

    token_loss: TokenLoss
    model: gemma.Model
    config: Config
    teacher: gemma.Model | None
    divergence: regularizers.Divergence
    teacher_divergence: regularizers.Divergence


def _measured(
    objective: _Objective,
    logits: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    *teacher_logits: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the losses of a chunk of tokens, [n], and its metrics, [n] each."""
    frozen = jax.lax.stop_gradient(logits.astype(jnp.float32))
    # No argmax, which XLA computes with one thread: a tie counts as right.
    of_label = jnp.take_along_axis(frozen, labels[:, None], -1)[:, 0]
    metrics = {
        "accuracy": (of_label >= jnp.max(frozen, -1)).astype(jnp.float32),
        "entropy": regularizers.entropy(frozen, objective.divergence),
    }
    for frozen_teacher in teacher_logits:
        p = regularizers.softargmax(frozen_teacher, objective.teacher_divergence)
        metrics[f"teacher_top_{TOP_K}"] = jnp.sum(top_k(p, min(TOP_K, p.shape[-1])), -1)
    return objective.token_loss(logits, labels, keys, *teacher_logits), metrics


def _part_loss(
    objective: _Objective,
    params: types.Params,
    part: tuple[batches.Sequences, jax.Array, jax.Array],
    constants: types.Constants,
    total: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns what a micro-batch adds to the loss, [], and the metrics of its sequences."""
    model, teacher, config = objective.model, objective.teacher, objective.config
    rows, weights, keys = part
    sequences, answers = jnp.asarray(rows.tokens), jnp.asarray(rows.is_answer)
    inputs = rows.tokens, rows.positions, rows.segments
    features = [model.features(params, *inputs)]  # [B, T, D]
    if teacher is not None:
        features.append(jax.lax.stop_gradient(teacher.features(constants.teacher, *inputs)))
    features, labels, is_answer = distillation.align(features, sequences, answers)
    flat = [x.reshape(-1, x.shape[-1]) for x in features]
    # Gradients are of all that a head is given: not of every layer.
    embedding = {"embedding": params["embedding"]}
    heads = [chunked.Head(model.unembed, embedding, flat[0])]
    if teacher is not None:
        heads.append(chunked.Head(teacher.unembed, constants.teacher, flat[1]))
    shares = distillation.token_weights(is_answer, weights, config.reduction, total)
    value, per_token = chunked.weighted_loss(
        functools.partial(_measured, objective),
        shares.reshape(-1),
        heads[0],
        labels.reshape(-1),
        keys.reshape(-1),
        *heads[1:],
        chunk=config.chunk,
        is_answer=is_answer.reshape(-1),
    )
    count = jnp.maximum(jnp.sum(is_answer, 1), 1)
    metrics = {n: jnp.sum(x.reshape(labels.shape), 1) / count for n, x in per_token.items()}
    stops = tokens.is_stop(labels, model.config.eos_ids) & is_answer
    metrics["answer_tokens"] = jnp.sum(is_answer, 1).astype(jnp.float32)
    metrics["truncated"] = 1.0 - jnp.any(stops, 1).astype(jnp.float32)
    return value, metrics


def _loss(
    objective: _Objective,
    params: types.Params,
    targets: dict[str, types.Params],
    aux: None,
    batch: types.Batch,
    key: types.Key,
    constants: types.Constants,
) -> tuple[jax.Array, tuple[None, types.Feedback]]:
    del targets  # There is no target tree.
    keys = jax.random.split(key, batch.data.is_answer[:, 1:].shape)  # A token's.
    total = distillation.loss_total(batch.data.is_answer[:, 1:], objective.config.reduction)
    value, metrics = in_parts(
        functools.partial(_part_loss, objective, constants=constants, total=total),
        params,
        (batch.data, batch.weights, keys),
        objective.config.micro_batches,
    )
    return value, (aux, types.Feedback(metrics))


def top_k(x: jax.Array, k: int) -> jax.Array:
    """The k largest of each row of [n, V], in order, [n, k].

    On CPUs `jax.lax.top_k` of a vocabulary takes as long as a small teacher's layer. No more than k
    groups of neighbours hold them, those with the largest maxima: only these are sorted.
    """
    n, num_classes = x.shape
    size = math.gcd(num_classes, 32)
    if size < 8 or num_classes <= 4 * k * size:  # Nothing to win.
        return jax.lax.top_k(x, k)[0]
    groups = x.reshape(n, -1, size)
    best = jax.lax.top_k(jnp.max(groups, -1), k)[1]
    found = jnp.take_along_axis(groups, best[..., None], 1)
    return jax.lax.top_k(found.reshape(n, -1), k)[0]


def in_parts(
    part_loss: Callable[[types.Params, Any], tuple[jax.Array, dict[str, jax.Array]]],
    params: types.Params,
    rows: Any,
    micro_batches: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A loss that is a sum over micro-batches, one after another, [], and its metrics.

    Args:
      part_loss: (params, rows of a part) -> what it adds to the loss [], and metrics of its rows.
      params: what the loss is differentiated by.
      rows: tree of arrays [B, ...].
      micro_batches: how many, divides B.
    """
    if micro_batches == 1:
        return part_loss(params, rows)
    # Every m-th row: of rows that lie over devices, each has its share of each part.
    parts = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), rows)
    # Its backward pass makes one micro-batch's features again, and adds gradients in place.
    add = jax.checkpoint(part_loss)

    def body(value: jax.Array, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        more, metrics = add(params, part)
        return value + more, metrics

    value, metrics = jax.lax.scan(body, jnp.zeros(()), parts)
    return value, {name: x.swapaxes(0, 1).reshape(-1) for name, x in metrics.items()}


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam after a warm-up, of gradients that are clipped by their norm."""
    schedule = optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_steps, 1))
    if config.warmup_steps == 0:
        schedule = optax.constant_schedule(config.learning_rate)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(schedule))

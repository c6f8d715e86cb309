"""Tuning of language models: shared settings, and an agent made from a token-level loss.

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

from kullback.core import learners, ranges, regularizers, sampling_ahead, types
from kullback.environments import tokens
from kullback.lm import (
    adapters,
    batches,
    chunked,
    data,
    distillation,
    gemma,
    optimizers,
    policy,
    quantisation,
)
from kullback.lm.lora import Config as Lora

__all__ = ["Config", "TokenLoss", "make", "optimizer"]

# (logits of the student [n, V], token ids [n], keys [n], logits of the teacher [n, V] if there is
# one) -> losses [n].
TokenLoss = Callable[..., jax.Array]

TOP_K = 16  # Most probable tokens of the teacher whose mass is a metric.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings that are independent of the loss."""

    batch_size: int = 16  # Sequences of a learner step.
    max_prompt_length: int = 64  # Tokens of a prompt, including the beginning of sequence.
    max_new_tokens: int = 64  # Tokens of a completion, stored or sampled; the horizon.
    overlong: data.Overlong = "error"  # Treatment of a longer example.
    # Treatment of a row of which nothing can be learnt, such as a pair of equal answers; "drop"
    # leaves them out, and their number is said.
    unusable: data.Unusable = "error"
    # Whether a row packs several stored examples, each of which attends to itself alone. The loss
    # is that of unpacked rows if it is a mean over tokens; not for on-policy learning.
    pack: bool = False
    batches_per_sort: int = 1  # Batches whose examples are sorted by length; 1 does not sort.
    # Highest step size of the optimiser; another default for a trained model of 100 million
    # parameters or more.
    learning_rate: float = 3e-4
    warmup_steps: int = 20  # Learner steps of linear warm-up from a learning rate of 0.
    # Course of the learning rate after the warm-up: "constant", or falling until `decay_steps`,
    # "linear" or as half a "cosine".
    schedule: optimizers.Schedule = "constant"
    # Learner steps, with the warm-up, until the learning rate is lowest, where it stays; 0 is the
    # run's number of steps when it begins, or that of each of WARP's members.
    decay_steps: int = 0
    final_fraction: float = 0.0  # The lowest learning rate in [0, 1], as a share of the highest.
    # "adamw" is Adam with `weight_decay`; "adafactor" factors second moments and keeps no first
    # ones; "lion" takes a third to a tenth of Adam's learning rate; "sgd" has no memory.
    optimizer: optimizers.Name = "adam"
    # Decoupled decay >= 0 of matrices, per step and unit of learning rate; norms and biases are
    # left out. Not for "adam".
    weight_decay: float = 0.0
    first_moment_dtype: optimizers.Dtype = "float32"  # Half the memory of moments in bfloat16.
    max_grad_norm: float = 1.0  # Largest norm > 0 of a gradient; larger ones are scaled to it.
    # Reduction of token-level losses. "sequence": the mean over sequences of the mean over each
    # one's tokens (the GKD paper). "token": the mean over all tokens of the batch (TRL).
    reduction: distillation.Reduction = "sequence"
    # Static lengths that stored rows and prompts are padded to: "powers" of two, or "steps" that
    # leave less padding where rows are long (ours), see batches.py. A program is compiled for each.
    widths: batches.Widths = "steps"
    micro_batches: int = 1  # Parts of a batch whose gradients are accumulated; the sum is exact.
    chunk: int = 512  # Most tokens whose logits are in memory at a time; fewer above 128 MB.
    # Adapters, which are learnt in place of the weights of a frozen base, see lora.py.
    lora: Lora = Lora()
    # Format of the layers' matrices that a model computes with, as it learns and as it acts, see
    # quantisation.py; of adapters, that of the base. "none" is float32.
    quantize: quantisation.Kept = "none"
    quantize_table: quantisation.Kept = "none"  # Format of the table of tokens, likewise.
    # Whether the projector of a model that sees learns with its decoder, as Gemma 3's did; if not
    # it is frozen, as the encoder always is, and as adapters' is.
    learns_projector: bool = False

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "batch_size", "max_prompt_length", "max_new_tokens")
        ranges.at_least(1, self, "micro_batches", "chunk", "batches_per_sort")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches={self.micro_batches} must divide batch_size={self.batch_size}"
            )
        distillation.check_choice("widths", self.widths, batches.Widths)
        ranges.inside("(0, inf]", self, "learning_rate", "max_grad_norm")
        if self.pack and self.reduction != "token":
            raise ValueError(
                f"pack=True needs reduction=token, got {self.reduction}: a row is no sequence"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {self.warmup_steps}")
        if self.learns_projector and self.lora:
            raise ValueError(
                "learns_projector=True does not go with adapters, whose base keeps its projector: "
                "leave one out"
            )
        self.rate.check()
        optimizers.check(self.optimizer, self.weight_decay, self.first_moment_dtype)

    @property
    def width(self) -> int:
        """Tokens of a sequence: of the longest prompt with the longest completion."""
        return self.max_prompt_length + self.max_new_tokens

    @property
    def scheme(self) -> quantisation.Scheme:
        """The settings of formats."""
        return quantisation.Scheme(self.quantize, self.quantize_table)

    @property
    def rate(self) -> optimizers.Rate:
        """The settings of the learning rate."""
        return optimizers.Rate(
            peak=self.learning_rate,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
            decay_steps=self.decay_steps,
            final_fraction=self.final_fraction,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of stored sequences and the student's own: `Agent.experience` of tuning."""

    student_fraction: float = 0.0  # Fraction in [0, 1] of sequences that the student samples.
    # Mixing of the two: "batch" throws one coin for a whole batch, as the GKD paper does; "row"
    # takes the same share of each batch.
    mixing: Literal["batch", "row"] = "batch"
    max_age: int = 0  # Further learner steps that reuse the student's samples; 0 is on-policy.
    ahead: sampling_ahead.Ahead = sampling_ahead.NONE  # How far ahead of learning it samples.

    def __post_init__(self) -> None:
        if not 0 <= self.student_fraction <= 1:
            raise ValueError(f"student_fraction must lie in [0, 1], got {self.student_fraction}")
        if self.max_age < 0:
            raise ValueError(f"max_age must be >= 0 learner steps, got {self.max_age}")
        if self.mixing not in ("batch", "row"):
            raise ValueError(f"mixing must be batch or row, got {self.mixing!r}")

    def num_sampled(self, batch_size: int, coin: float) -> int:
        """Returns the sequences of a batch that the student samples.

        Args:
          batch_size: B.
          coin: of the batch, in [0, 1).
        """
        if self.mixing == "row":
            return round(self.student_fraction * batch_size)
        return batch_size if coin < self.student_fraction else 0


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
    """Returns the agent that minimises the mean of `token_loss` over answers.

    Args:
      token_loss: of a chunk of tokens, see `TokenLoss`.
      model: the student; with adapters their base, whose parameters are the constants' `base`.
      config: settings.
      algorithm: the algorithm's own configuration, saved beside the results.
      teacher: a frozen model, whose parameters are among the learner's constants; None if the
        loss needs none.
      mixture: of stored and sampled sequences; None is stored ones alone.
      divergence: f of the student's softargmax_f, from which it samples.
      teacher_divergence: f of the teacher's softargmax_f.
    """
    learnt = adapters.Learnt(settings=config.lora, scheme=config.scheme)
    model = adapters.adapted(model, config.lora)
    if mixture is not None and mixture.student_fraction > 0:
        config.lora.check_sampling()
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
        loss=learnt.loss(functools.partial(_loss, objective)),
        optimizer=optimizer(config),
    )
    return types.Agent(
        policy=policy.language_model(model, divergence=divergence),
        learner=learner,
        actor_params=learnt.actor_params,
        experience=mixture or Mixture(),
        config=algorithm,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Objective:
    """The constants of a loss, which its functions share; fields are arguments of `make`."""

    token_loss: TokenLoss
    model: gemma.Model
    config: Config
    teacher: gemma.Model | None
    divergence: regularizers.Divergence
    teacher_divergence: regularizers.Divergence


def _measure(
    objective: _Objective,
    logits: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    *teacher_logits: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the losses of a chunk of tokens, [n], and its metrics, [n] each."""
    frozen = jax.lax.stop_gradient(logits.astype(jnp.float32))
    # No argmax, which XLA computes with one thread; a tie counts as right.
    label_logits = jnp.take_along_axis(frozen, labels[:, None], -1)[:, 0]
    metrics = {
        "accuracy": (label_logits >= jnp.max(frozen, -1)).astype(jnp.float32),
        "entropy": regularizers.entropy(frozen, objective.divergence),
    }
    for teacher in teacher_logits:  # One or none.
        p = regularizers.softargmax(teacher, objective.teacher_divergence)
        metrics[f"teacher_top_{TOP_K}"] = jnp.sum(top_k(p, min(TOP_K, p.shape[-1])), -1)
    return objective.token_loss(logits, labels, keys, *teacher_logits), metrics


def _micro_batch_loss(
    objective: _Objective,
    params: types.Params,
    data: tuple[batches.Sequences, jax.Array, jax.Array],
    constants: types.Constants,
    total: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a micro-batch's summand of the loss, [], and metrics of its sequences, [B]."""
    model, teacher, config = objective.model, objective.teacher, objective.config
    rows, weights, keys = data
    sequences, answers = jnp.asarray(rows.tokens), jnp.asarray(rows.is_answer)
    inputs = rows.tokens, rows.positions, rows.segments
    row_keys = None
    if config.lora.dropout:  # Apart from the keys of tokens.
        row_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys[:, 0])
    student_features, head = model.with_head(params, *inputs, row_keys, **rows.senses)
    features = [student_features]  # [B, T, D] each.
    if teacher is not None:
        of_teacher = teacher.features(constants.teacher, *inputs, **rows.senses)
        features.append(jax.lax.stop_gradient(of_teacher))
    features, labels, is_answer = distillation.align(features, sequences, answers)
    flat = [x.reshape(-1, x.shape[-1]) for x in features]
    heads = [chunked.Head(model.unembed, head, flat[0], is_frozen=bool(config.lora))]
    if teacher is not None:
        heads.append(chunked.Head(teacher.unembed, constants.teacher, flat[1]))
    shares = distillation.token_weights(is_answer, weights, config.reduction, total)
    value, per_token = chunked.weighted_loss(
        functools.partial(_measure, objective),
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
    keys = jax.random.split(key, batch.data.is_answer[:, 1:].shape)  # One a token.
    total = distillation.loss_total(batch.data.is_answer[:, 1:], objective.config.reduction)
    value, metrics = over_micro_batches(
        functools.partial(_micro_batch_loss, objective, constants=constants, total=total),
        params,
        (batch.data, batch.weights, keys),
        objective.config.micro_batches,
    )
    return value, (aux, types.Feedback(metrics))


def top_k(x: jax.Array, k: int) -> jax.Array:
    """Returns the k largest values of each row of [n, V], sorted, [n, k].

    On CPUs `jax.lax.top_k` of a vocabulary takes as long as a small teacher's layer. The k largest
    lie in the k groups of adjacent values with the largest maxima, and only these are sorted.
    """
    n, num_classes = x.shape
    size = math.gcd(num_classes, 32)
    if size < 8 or num_classes <= 4 * k * size:  # It would not be faster.
        return jax.lax.top_k(x, k)[0]
    groups = x.reshape(n, -1, size)
    best = jax.lax.top_k(jnp.max(groups, -1), k)[1]
    candidates = jnp.take_along_axis(groups, best[..., None], 1)
    return jax.lax.top_k(candidates.reshape(n, -1), k)[0]


def over_micro_batches(
    loss: Callable[[types.Params, Any], tuple[jax.Array, dict[str, jax.Array]]],
    params: types.Params,
    data: Any,
    micro_batches: int,
    *,
    together: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums a loss over micro-batches, one after another, [], and concatenates its metrics, [B].

    Args:
      loss: (params, micro-batch) -> its summand of the loss, [], and metrics of its rows.
      params: parameters with respect to which the loss is differentiated.
      data: of the batch, a tree of arrays [B, ...].
      micro_batches: their number, which divides B / together.
      together: adjacent rows that stay in one micro-batch.
    """
    if micro_batches == 1:
        return loss(params, data)

    def cut(x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, micro_batches, together, *x.shape[1:]).swapaxes(0, 1)
        return rows.reshape(micro_batches, -1, *x.shape[1:])

    # Every m-th row, so that rows that are cut over devices stay spread in each micro-batch.
    stacked = jax.tree.map(cut, data)
    # The backward pass recomputes one micro-batch's features, and adds gradients in place.
    recomputed = jax.checkpoint(loss)

    def body(value: jax.Array, data: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        summand, metrics = recomputed(params, data)
        return value + summand, metrics

    value, metrics = jax.lax.scan(body, jnp.zeros(()), stacked)

    def restored(x: jax.Array) -> jax.Array:
        return x.reshape(micro_batches, -1, together).swapaxes(0, 1).reshape(-1)

    return value, jax.tree.map(restored, metrics)


def optimizer(config: Config, updates: int = 1) -> optax.GradientTransformation:
    """Returns the optimiser that the settings name; raises as `optimizers.schedule` does.

    Args:
      config: settings; its learning rate is one by learner steps.
      updates: optimiser steps of a learner step, which all take its learning rate.
    """
    of_learner_step = optimizers.schedule(config.rate)

    def rate(count: Any) -> Any:
        return of_learner_step(count // updates)

    return optimizers.make(
        config.optimizer,
        of_learner_step if updates == 1 else rate,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        first_moment_dtype=config.first_moment_dtype,
    )

"""The loss of texts that a policy wrote: a surrogate, a KL penalty, a teacher and a value network.

    L = sum over tokens of w_n [(1 - w) (L_n + beta KL estimate) + w D(p_T || pi)]

with L_n of surrogate.py, the weights w_n of texts and lengths, beta of a penalty in the loss, and w
of a teacher's divergence. A value network gives advantages, and learns beside the policy:

    A_n = G_n - V_old(y_<n, x),  L_V = sum over tokens of w_n max((V - T_n)^2, (V' - T_n)^2)
    V' = clip(V, V_old - e, V_old + e)

G and T are lambda-returns of V_old, so that A is the generalised advantage estimate of
Schulman et al., ICLR 2016, https://arxiv.org/abs/1506.02438, with gamma 1. The clipped value is
that of PPO's code: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593.

Shape letters: B texts, T tokens of a row, n tokens of a chunk, V vocabulary.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import regularizers, types
from kullback.lm import (
    answers,
    batches,
    chunked,
    distillation,
    gemma,
    policy_gradient,
    surrogate,
    value_network,
)


class Rows(NamedTuple):
    """Texts as the loss reads them; columns are target tokens, T - 1."""

    sequences: batches.Sequences
    weights: jax.Array  # [B, T - 1]: weight of each token in the loss.
    rewards: jax.Array  # [B, T - 1]: rewards of tokens, minus the KL penalty if placed there.
    advantages: jax.Array  # [B, T - 1]; zeros where a value network gives them.
    reference_log_pi: jax.Array  # [B, T - 1]: log-probabilities under the reference.
    # [B, T - 1]: log-probabilities under the policy before the batch, and its values; None where
    # texts are learnt from once, as they are then those that the loss computes.
    old_log_pi: jax.Array | None = None
    old_values: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The models and settings of the loss; see `rlhf.Config` for the settings."""

    model: gemma.Model  # With adapters, if any.
    teacher: gemma.Model | None
    divergence: distillation.TokenLoss  # D of policy and teacher.
    distillation_weight: float  # w.
    rule: surrogate.Rule
    temperature: float
    kl_coefficient: float  # beta of a penalty in the loss; 0 is none.
    kl_estimator: policy_gradient.KlEstimator
    has_value: bool  # Whether a value network is the baseline.
    return_lambda: float
    value_lambda: float
    value_clip: float  # e of the value's clipped error; 0 is none.
    is_frozen: bool  # Whether the policy's head is that of a frozen base.
    chunk: int  # Tokens whose logits are in memory at a time.

    @property
    def has_ratios(self) -> bool:
        """Whether the surrogate has ratios, of which there are metrics."""
        return self.rule.ratio != "none"


def of_rows(
    objective: Objective, constants: types.Constants, params: types.Params, rows: Rows
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a micro-batch's summand of the loss, [], and metrics of its texts, [B] each."""
    s, inputs = rows.sequences, _inputs(rows.sequences)
    features, head = objective.model.with_head(params, *inputs, **s.senses)
    features, labels, is_answer = distillation.align(
        features, jnp.asarray(s.tokens), jnp.asarray(s.is_answer)
    )
    advantages, value_loss, metrics = rows.advantages, 0.0, {}
    if objective.has_value:
        advantages, value_loss, errors = _value_loss(objective, params, rows)
        metrics["value_error"] = text_mean(errors, is_answer)
    policy = chunked.Head(objective.model.unembed, head, _flat(features), objective.is_frozen)
    heads = [policy]
    if objective.teacher is not None:
        teacher = objective.teacher
        of_teacher = teacher.features(constants.teacher, *inputs, **s.senses)[:, :-1]
        heads.append(chunked.Head(teacher.unembed, constants.teacher, _flat(of_teacher)))
    value, per_token = chunked.weighted_loss(
        functools.partial(_token_losses, objective),
        rows.weights.reshape(-1),
        policy,
        labels.reshape(-1),
        advantages.reshape(-1),
        rows.reference_log_pi.reshape(-1),
        _old(objective, policy, labels, is_answer, rows),
        *heads[1:],
        chunk=objective.chunk,
        is_answer=is_answer.reshape(-1),
    )
    for name, x in per_token.items():
        x = x.reshape(labels.shape)
        # A largest ratio is one of all texts, which the learner takes.
        metrics[name] = jnp.max(x, 1) if name in LARGEST else text_mean(x, is_answer)
    return value + value_loss, metrics


LARGEST = ("ratio_max", "ratio_error")  # Metrics that are the largest of a text's tokens.


class _Old(NamedTuple):
    """The policy before the batch, by token."""

    log_pi: jax.Array  # [n].
    # log rho of texts, [n]; None where ratios are of tokens, whose head is then read once.
    log_ratio: jax.Array | None


def _old(
    objective: Objective,
    head: chunked.Head,
    labels: jax.Array,
    is_answer: jax.Array,
    rows: Rows,
) -> _Old | None:
    """Returns the policy before the batch; None where it is that of now."""
    if rows.old_log_pi is None:
        return None
    if objective.rule.ratio not in ("sequence", "product"):
        return _Old(rows.old_log_pi.reshape(-1), None)
    log_pi = chunked.token_losses(
        functools.partial(answers.log_probability, temperature=objective.temperature),
        chunked.Head(head.unembed, *jax.lax.stop_gradient((head.params, head.features))),
        labels.reshape(-1),
        chunk=objective.chunk,
        is_answer=is_answer.reshape(-1),
    )
    log_ratio = surrogate.log_ratios(
        log_pi.reshape(labels.shape), rows.old_log_pi, is_answer, objective.rule.ratio
    )
    return _Old(rows.old_log_pi.reshape(-1), log_ratio.reshape(-1))


def _token_losses(
    objective: Objective,
    logits: jax.Array,
    labels: jax.Array,
    advantages: jax.Array,
    reference_log_pi: jax.Array,
    old: _Old | None,
    *teacher_logits: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns losses of tokens, [n], whose gradient is the policy gradient, and metrics, [n]."""
    log_pi = answers.log_probability(logits, labels, objective.temperature)
    frozen = jax.lax.stop_gradient(log_pi)
    token_ratio = jnp.zeros_like(frozen) if old is None else frozen - old.log_pi
    log_ratio = token_ratio if old is None or old.log_ratio is None else old.log_ratio
    losses, is_clipped = surrogate.surrogate(log_pi, log_ratio, advantages, objective.rule)
    if objective.kl_coefficient:
        estimate = policy_gradient.kl_estimate(log_pi - reference_log_pi, objective.kl_estimator)
        losses = losses + objective.kl_coefficient * estimate
    scaled = jax.lax.stop_gradient(logits) / objective.temperature
    metrics = {"entropy": regularizers.entropy(scaled)}
    if objective.has_ratios:
        rho = jnp.exp(log_ratio)
        metrics |= {
            "clip_fraction": is_clipped.astype(jnp.float32),
            "kl_old": policy_gradient.kl_estimate(-token_ratio, "k3"),
            "ratio_max": rho,
            "ratio_error": jnp.abs(rho - 1),
        }
    for teacher in teacher_logits:  # One or none.
        distances = objective.divergence(logits, teacher)
        w = objective.distillation_weight
        losses = (1 - w) * losses + w * distances
        metrics["distance"] = jax.lax.stop_gradient(distances)
    return losses, metrics


def _value_loss(
    objective: Objective, params: types.Params, rows: Rows
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns advantages, [B, T - 1], the value's loss, [], and its squared errors, [B, T - 1]."""
    is_answer = jnp.asarray(rows.sequences.is_answer)[:, 1:]
    values = value_network.predict(objective.model, params, rows.sequences)
    old = jax.lax.stop_gradient(values) if rows.old_values is None else rows.old_values
    returns = policy_gradient.lambda_returns(rows.rewards, old, is_answer, objective.return_lambda)
    targets = policy_gradient.lambda_returns(rows.rewards, old, is_answer, objective.value_lambda)
    errors = jnp.where(is_answer, values - targets, 0) ** 2
    if objective.value_clip:
        near = jnp.clip(values, old - objective.value_clip, old + objective.value_clip)
        errors = jnp.maximum(errors, jnp.where(is_answer, near - targets, 0) ** 2)
    return returns - old, jnp.sum(rows.weights * errors), jax.lax.stop_gradient(errors)


def text_mean(x: jax.Array, is_answer: jax.Array) -> jax.Array:
    """Returns the mean over each answer's tokens, [B]."""
    total = jnp.sum(jnp.where(is_answer, x, 0), 1)
    return total / jnp.maximum(jnp.sum(is_answer, 1), 1)


def _inputs(s: batches.Sequences) -> tuple[types.Array, ...]:
    return s.tokens, s.positions, s.segments


def _flat(features: jax.Array) -> jax.Array:
    return features.reshape(-1, features.shape[-1])

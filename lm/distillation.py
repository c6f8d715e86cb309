"""Distillation: divergences of a student's next-token distribution from a teacher's.

Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024,
https://arxiv.org/abs/2306.13649; f-divergences as links by Roulet et al., 2025,
https://arxiv.org/abs/2501.18537. Targets on a few of the teacher's tokens are in
distillation_targets.py.

Shape letters: B sequences, T tokens, V vocabulary; "..." are any leading axes. Values are in nats,
float64 for float64 inputs and float32 for others. There are three temperatures: the one here
divides both logits inside the divergence (the paper: 1); those of sampling in training (the paper:
1) and in evaluation belong to the policy.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from kullback.core import names, regularizers

__all__ = [
    "LOSSES",
    "TokenDivergence",
    "TokenLoss",
    "divergence_loss",
    "fenchel_young_loss",
    "generalised_jsd",
    "named",
    "total_variation",
]

# (log_p of the teacher, log_q of the student), [..., V] each -> D(teacher, student), [...].
TokenDivergence = Callable[[jax.Array, jax.Array], jax.Array]
# (logits of the student, logits of the teacher or other targets) -> token-level loss, [...].
TokenLoss = Callable[[jax.Array, Any], jax.Array]
Reduction = Literal["sequence", "token"]


class TokenizerInfo(NamedTuple):
    """The properties that two models must share for their next-token distributions to compare."""

    vocab_size: int  # Tokens of the tokenizer, not rows of a padded embedding.
    fingerprint: str  # Hash of the map from tokens to ids.
    eos_ids: tuple[int, ...]  # Ids that end a sequence, in any order.
    template_hash: str  # Hash of the chat template; "" without one.


@functools.cache
def generalised_jsd(beta: float) -> TokenDivergence:
    """Returns GKD's generalised Jensen-Shannon divergence (equation 1); beta weights the teacher.

        M = beta P + (1 - beta) Q,  beta KL(P || M) + (1 - beta) KL(Q || M)

    It lies in [0, H(beta)], H the binary entropy; at beta = 0.1 it is about a tenth of KL.

    Raises:
      ValueError: unless 0 < beta < 1. The equation is 0 at both ends, and the limits of
        JSD_beta / beta and JSD_beta / (1 - beta) are `kl` and `reverse_kl`.
    """
    if not 0 < beta < 1:
        limits = "kl is the limit of JSD_beta / beta at 0, reverse_kl of JSD_beta / (1 - beta) at 1"
        raise ValueError(f"beta of the generalised JSD must lie in (0, 1), got {beta}; {limits}")

    def terms(log_p: jax.Array, log_q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the terms beta p ln(p / m) and (1 - beta) q ln(q / m), with one logarithm."""
        least = jnp.finfo(log_p.dtype).min / 4  # The ratio of two probabilities of 0 is 1.
        log_ratio = jnp.maximum(log_p, least) - jnp.maximum(log_q, least)
        log_ratio = jnp.clip(log_ratio, -80, 80)  # Beyond it one of them counts as 0.
        log_m_p = jnp.log(beta + (1 - beta) * jnp.exp(-log_ratio))
        p_term = -beta * jnp.exp(log_p) * log_m_p
        return p_term, -(1 - beta) * jnp.exp(log_q) * (log_m_p + log_ratio)

    @jax.custom_jvp
    def summand(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        p_term, q_term = terms(log_p, log_q)
        return p_term + q_term

    def derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        # The derivatives through m cancel: each term is its own derivative by its logarithm.
        p_term, q_term = terms(*primals)
        changes = (
            term * tangent
            for term, tangent in zip((p_term, q_term), tangents, strict=True)
            if not isinstance(tangent, jax.custom_derivatives.SymbolicZero)  # As for a teacher.
        )
        return p_term + q_term, functools.reduce(jnp.add, changes)

    summand.defjvp(derivative, symbolic_zeros=True)

    def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return jnp.sum(summand(regularizers.promote(log_p), regularizers.promote(log_q)), -1)

    return divergence


def total_variation(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Returns half the sum of |p - q|, in [0, 1], [...], for log-distributions [..., V]."""
    return (
        jnp.sum(
            jnp.abs(jnp.exp(regularizers.promote(log_p)) - jnp.exp(regularizers.promote(log_q))), -1
        )
        / 2
    )


def divergence_loss(
    divergence: TokenDivergence,
    temperature: float = 1.0,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
) -> TokenLoss:
    """Returns the loss D(teacher, student), [...], of student and teacher logits, [..., V] each.

    The teacher's gradient is stopped. The result has no factor temperature^2 (Hinton's).

    Args:
      divergence: `regularizers.kl` is forward KL, `regularizers.reverse_kl` KL(student || teacher).
      temperature: > 0, divides both logits.
      teacher_divergence: f of the softargmax_f that makes the teacher's probabilities.

    Raises:
      ValueError: for the reverse KL to a sparse teacher, as any mass of the student on tokens that
        the teacher excludes makes it infinite.
    """
    check_temperature(temperature)
    if divergence is regularizers.reverse_kl and teacher_divergence.is_sparse:
        raise ValueError(
            f"reverse_kl is infinite where the teacher, whose operator is of "
            f"{teacher_divergence.name}, gives a token probability 0; take kl, jsd-BETA or "
            f"fenchel_young-{teacher_divergence.name}"
        )

    def loss(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
        log_q = jax.nn.log_softmax(regularizers.promote(student_logits) / temperature)
        log_p = regularizers.log_softargmax(
            regularizers.promote(teacher_logits) / temperature, teacher_divergence
        )
        return divergence(jax.lax.stop_gradient(log_p), log_q)

    return loss


def fenchel_young_loss(
    divergence: regularizers.Divergence,
    temperature: float = 1.0,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
) -> TokenLoss:
    """Returns the loss generated by f, [...], of student and teacher logits, [..., V] each.

        loss_f(theta, p) = softmax_f(theta) + D_f(p, 1) - <theta, p>

    p is the teacher's distribution, theta the student's logits, and softargmax_f(theta) - p the
    gradient. The loss is convex in theta, 0 where softargmax_f(theta) is p, and forward KL where f
    is KL's. It is not D_f(teacher, student). The constant D_f(p, 1) is left out where it may be
    infinite (`Divergence.loss_name`).

    Args:
      divergence: f.
      temperature: > 0, divides both logits.
      teacher_divergence: f of the softargmax_f with which the teacher was trained.

    Raises:
      ValueError: unless temperature > 0.
    """
    check_temperature(temperature)

    def loss(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
        target = regularizers.softargmax(
            regularizers.promote(teacher_logits) / temperature, teacher_divergence
        )
        theta = regularizers.promote(student_logits) / temperature
        return regularizers.loss(theta, jax.lax.stop_gradient(target), divergence)

    return loss


# Names of losses, as `named` takes them.
LOSSES = ("kl", "reverse_kl", "total_variation", "jsd-BETA", "fenchel_young-NAME")


def named(
    name: str,
    temperature: float = 1.0,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
) -> TokenLoss:
    """Returns the loss of student and teacher logits that has a name of LOSSES.

    "kl" is forward KL, "jsd-0.1" the generalised JSD, "fenchel_young-alpha-1.5" the loss generated
    by a divergence of `regularizers.named`. The teacher's probabilities are softargmax_f of its
    logits, with f `teacher_divergence`.

    Raises:
      ValueError: for an unknown name, and for a loss that is infinite for that teacher.
    """
    kind, _, rest = name.partition("-")
    if kind == "fenchel_young":
        return fenchel_young_loss(regularizers.named(rest), temperature, teacher_divergence)
    return divergence_loss(token_divergence(name), temperature, teacher_divergence)


def token_divergence(name: str) -> TokenDivergence:
    """Returns D of two log-distributions that has a name of LOSSES, Fenchel-Young ones excepted.

    Raises:
      ValueError: for an unknown name.
    """
    kind, _, rest = name.partition("-")
    if kind == "jsd":
        try:
            beta = float(rest)
        except ValueError:
            raise ValueError(f"BETA of jsd-BETA must be a number in (0, 1), got {name!r}") from None
        return generalised_jsd(beta)
    plain = {
        "kl": regularizers.kl,
        "reverse_kl": regularizers.reverse_kl,
        "total_variation": total_variation,
    }
    if name not in plain:
        raise ValueError(names.unknown("distillation loss", name, LOSSES, show_all=True))
    return plain[name]


def align(outputs: Any, tokens: jax.Array, is_answer: jax.Array) -> Any:
    """Aligns each target token with the output that predicts it: output t-1 predicts token t.

    Args:
      outputs: tree of features or logits of one or several models on all tokens, [B, T, ...].
      tokens: int, [B, T].
      is_answer: bool, [B, T]: the tokens to learn, including the end of a sequence, without prompt
        and padding. It follows from lengths, not ids: padding may share an id with the end.

    Returns:
      outputs [B, T-1, ...], targets [B, T-1], is_answer [B, T-1].
    """
    chex.assert_rank([tokens, is_answer], 2)
    chex.assert_tree_shape_prefix((outputs, is_answer), tokens.shape)
    return jax.tree.map(lambda x: x[:, :-1], outputs), tokens[:, 1:], is_answer[:, 1:]


def sequence_loss(
    per_token: jax.Array,
    is_answer: jax.Array,
    weights: jax.Array,
    reduction: Reduction = "sequence",
    total: jax.Array | float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Reduces token-level losses to the loss of a batch, and to a mean for each sequence.

    Args:
      per_token: losses, [B, T]; those outside of the answers are ignored.
      is_answer: bool, [B, T]. A sequence without an answer counts as 0.
      weights: of the sequences, [B].
      reduction: "sequence" is the mean over sequences of the mean over each one's tokens (GKD's
        equation 2); "token" the mean over all tokens of the batch (TRL's).
      total: the divisor, `loss_total` of the batch unless given. Losses of micro-batches add up to
        the batch's if each is given the batch's divisor.

    Returns:
      The loss, [], and the mean over each sequence's tokens, unweighted, [B].

    Raises:
      ValueError: for another reduction.
    """
    chex.assert_rank(weights, 1)
    chex.assert_equal_shape([per_token, is_answer])
    shares = token_weights(is_answer, weights, reduction, total)
    losses = jnp.where(is_answer, regularizers.promote(per_token), 0)
    means = jnp.sum(losses, 1) / jnp.maximum(jnp.sum(is_answer, 1), 1)
    return jnp.sum(shares * losses), means


def token_weights(
    is_answer: jax.Array,
    weights: jax.Array,
    reduction: Reduction = "sequence",
    total: jax.Array | float | None = None,
) -> jax.Array:
    """Returns the weight of each token in `sequence_loss`, [B, T], 0 outside of the answers."""
    check_choice("reduction", reduction, Reduction)
    total = loss_total(is_answer, reduction) if total is None else total
    counts = jnp.maximum(jnp.sum(is_answer, 1, keepdims=True), 1) if reduction == "sequence" else 1
    return jnp.where(is_answer, weights[:, None] / counts / total, 0)


def loss_total(is_answer: jax.Array, reduction: Reduction) -> jax.Array:
    """Returns the divisor of `sequence_loss`, []: number of sequences or answer tokens (>= 1)."""
    check_choice("reduction", reduction, Reduction)
    if reduction == "sequence":
        return jnp.asarray(is_answer.shape[0])
    return jnp.maximum(jnp.sum(is_answer), 1)


def check_compatible(student: TokenizerInfo, teacher: TokenizerInfo) -> None:
    """Checks that a teacher has the student's tokens.

    Raises:
      ValueError: naming all differences: size of the vocabulary, an id, stop tokens, chat template.
    """
    meanings = {
        "vocab_size": "the number of tokens",
        "fingerprint": "the id of at least one token",
        "eos_ids": "what ends a sequence",
        "template_hash": "the chat template",
    }
    differences = [
        f"{field} ({meaning}): {mine!r} of the student, {other!r} of the teacher"
        for (field, meaning), mine, other in zip(meanings.items(), student, teacher, strict=True)
        if (set(mine) != set(other) if field == "eos_ids" else mine != other)  # pyright: ignore[reportArgumentType]
    ]
    if differences:
        raise ValueError(
            "teacher and student differ in " + "; ".join(differences) + ". Their next-token "
            "distributions are not comparable: give both the teacher's tokenizer and generation "
            "settings, or choose another teacher"
        )


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless it is > 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; the paper uses 1")


def check_choice(what: str, value: str, choices: Any) -> None:
    """Raises ValueError unless the value is one of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(names.unknown(what, value, get_args(choices), show_all=True))

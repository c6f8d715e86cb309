"""Generalised knowledge distillation (GKD): a student learns its teacher's next-token distribution.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
ICLR 2024, https://arxiv.org/abs/2306.13649.

    L = (1 - lambda) E_{(x, y) ~ data} D(p_T || p_S)(y | x)
        + lambda E_x E_{y ~ p_S(. | x)} D(p_T || p_S)(y | x)

No gradient flows through the sampling of y. lambda = 0 is distillation on fixed sequences.
"""

import dataclasses
from typing import Literal

import jax

from kullback.core import regularizers, types
from kullback.lm import distillation, distillation_targets, gemma, shared_ids, tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of GKD."""

    divergence: str = "kl"  # D: kl, reverse_kl, jsd-0.1, total_variation, fenchel_young-alpha-1.5.
    student_fraction: float = 0.5  # lambda in [0, 1].
    mixing: Literal["batch", "row"] = "batch"  # One coin a step (the paper), or a share of rows.
    # Learner steps for which the student's sequences are learnt from again, which the paper does
    # not do: sampling is most of a step's time. What is logged as sample_age is their age.
    max_age: int = 0
    temperature: float = 1.0  # Divides both logits inside D; sampling has its own, which is 1.
    # What D sees of the teacher: "full"; num_targets tokens that are drawn from it, by either
    # reading of Gemma 3 ("set", "counts"); its num_targets most probable ones and a tail ("top-k").
    targets: distillation_targets.Choice = "full"
    num_targets: int = 256  # Gemma 3's.
    learning: tuning.Config = tuning.Config()

    def __post_init__(self) -> None:
        self.token_loss()
        if self.mixture().student_fraction > 0 and self.learning.pack:
            raise ValueError(
                f"pack=True needs student_fraction=0, got {self.student_fraction}: a packed row "
                "holds several prompts, and the student samples from one"
            )

    @property
    def operator(self) -> str:
        """Name of f of the student's operator, with which it samples.

        A divergence is one between two softmaxes; the loss that f generates is of softargmax_f.
        """
        kind, _, f = self.divergence.partition("-")
        return f if kind == "fenchel_young" else "kl"

    def token_divergence(
        self, teacher_divergence: regularizers.Divergence = regularizers.kl
    ) -> distillation.TokenLoss:
        """D of all the vocabulary, of logits of the student and of the teacher, [n, V] -> [n]."""
        return distillation.named(self.divergence, self.temperature, teacher_divergence)

    def token_loss(
        self, teacher_divergence: regularizers.Divergence = regularizers.kl
    ) -> distillation_targets.RandomLoss:
        """What is learnt by, of logits of the student and of the teacher and keys."""
        return distillation_targets.loss(
            self.targets, self.num_targets, self.divergence, self.temperature, teacher_divergence
        )

    def mixture(self) -> tuning.Mixture:
        """Whose sequences are learnt from."""
        return tuning.Mixture(
            student_fraction=self.student_fraction, mixing=self.mixing, max_age=self.max_age
        )


def presets(family: str) -> Config:
    """Settings for "tokens": half of the steps learn from the student's own sequences."""
    del family
    return Config()


def offline_presets(family: str) -> Config:
    """Settings for "tokens" of distillation on fixed sequences, lambda = 0."""
    del family
    return Config(student_fraction=0.0)


def make(
    model: gemma.Model,
    teacher: gemma.Model,
    config: Config | None = None,
    *,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
) -> types.Agent:
    """GKD of `model`; the learner's `constants` are the teacher's parameters.

    Args:
      model: the student.
      teacher: of the same tokens; its table may have other rows beyond them, which are not read.
      config: hyper-parameters.
      teacher_divergence: f of the operator that the teacher was trained with.

    Raises:
      ValueError: for a divergence that the teacher's operator makes infinite, or more targets than
        there are tokens.
    """
    config = config or Config()
    model, teacher = shared_ids.shared([model, teacher])
    vocab_size = model.num_ids
    if config.targets == "top-k" and config.num_targets >= vocab_size:
        raise ValueError(
            f"num_targets must be < {vocab_size}, the vocabulary, got {config.num_targets}; "
            "targets=full compares all"
        )
    divergence = config.token_loss(teacher_divergence)

    def token_loss(
        logits: jax.Array, labels: jax.Array, keys: jax.Array, teacher_logits: jax.Array
    ) -> jax.Array:
        del labels  # The teacher says what should follow.
        return divergence(logits, teacher_logits, keys)

    return tuning.make(
        token_loss,
        model,
        config.learning,
        algorithm=config,
        teacher=teacher,
        mixture=config.mixture(),
        divergence=regularizers.named(config.operator),
        teacher_divergence=teacher_divergence,
    )

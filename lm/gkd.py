"""Generalised knowledge distillation (GKD): a student learns its teacher's next-token distribution.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
ICLR 2024, https://arxiv.org/abs/2306.13649.

    L = (1 - lambda) E_{(x, y) ~ data} D(p_T || p_S)(y | x)
        + lambda E_x E_{y ~ p_S(. | x)} D(p_T || p_S)(y | x)

No gradient flows through the sampling of y. lambda = 0 is distillation on fixed sequences.
"""

import dataclasses
import functools
from typing import Literal

import jax

from kullback.core import regularizers, types
from kullback.lm import distillation, distillation_targets, gemma, shared_ids, tuning

Targets = Literal["full", "set", "counts", "top-k"]


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
    targets: Targets = "full"
    num_targets: int = 256  # Gemma 3's.
    learning: tuning.Config = tuning.Config()

    def __post_init__(self) -> None:
        self._check_targets()
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

    def _check_targets(self) -> None:
        distillation.check_choice("targets", self.targets, Targets)
        if self.num_targets < 1:
            raise ValueError(f"num_targets must be >= 1, got {self.num_targets}; Gemma 3 takes 256")
        if self.targets == "full":
            self.token_divergence()
            return
        distillation.check_temperature(self.temperature)
        if self.targets != "top-k" and self.divergence != "kl":
            raise ValueError(
                f"drawn targets are learnt by cross-entropy, divergence=kl, got "
                f"{self.divergence!r}; targets=top-k and full take others"
            )
        distillation.token_divergence(self.divergence)

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
) -> types.Agent[tuning.Mixture]:
    """GKD of `model`; the teacher's parameters are among the learner's constants.

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
    if config.targets == "full":
        config.token_divergence(teacher_divergence)  # Which refuses what would be infinite.
    return tuning.make(
        functools.partial(token_loss, config, teacher_divergence),
        model,
        config.learning,
        algorithm=config,
        teacher=teacher,
        mixture=config.mixture(),
        divergence=regularizers.named(config.operator),
        teacher_divergence=teacher_divergence,
    )


def token_loss(
    config: Config,
    teacher_divergence: regularizers.Divergence,
    logits: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    teacher_logits: jax.Array,
) -> jax.Array:
    """Returns D(p_T || p_S) of the next token after n prefixes, [n], in nats.

    Drawn targets t of K tokens of p_T stand for it in cross-entropy, which is KL but for the
    teacher's entropy: - sum_k t_k ln p_S(k). The top K are compared with one tail of all others.

    Args:
      config: of D, of its temperature and of the targets.
      teacher_divergence: f of the operator that makes the teacher's probabilities.
      logits: of the student, [n, V].
      labels: the tokens that follow, [n]; it is the teacher who says what should.
      keys: one a token, of which the first draws for all.
      teacher_logits: [n, V], constants.
    """
    del labels
    if config.targets == "full":
        return config.token_divergence(teacher_divergence)(logits, teacher_logits)
    theta = regularizers.promote(logits) / config.temperature
    teacher_theta = regularizers.promote(teacher_logits) / config.temperature
    log_p = regularizers.log_softargmax(teacher_theta, teacher_divergence)
    if config.targets == "top-k":
        divergence = distillation.token_divergence(config.divergence)
        top = distillation_targets.top_k_targets(log_p, config.num_targets)
        return distillation_targets.top_k_loss(divergence)(theta, top)
    drawn = distillation_targets.sampled_targets(keys[0], log_p, config.num_targets, config.targets)
    return distillation_targets.sparse_cross_entropy(theta, drawn)

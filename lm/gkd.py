"""Generalised knowledge distillation (GKD): a student learns its teacher's next-token distribution.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
ICLR 2024, https://arxiv.org/abs/2306.13649.

    L = (1 - lambda) E_{(x, y) ~ data} D(p_T || p_S)(y | x)
        + lambda E_x E_{y ~ p_S(. | x)} D(p_T || p_S)(y | x)

No gradient flows through the sampling of y. lambda = 0 is distillation on fixed sequences. With a
lag, y is of a student some steps older: of another distribution of prefixes, under which D is as
good a loss, so that nothing is weighed by a ratio.
"""

import dataclasses
import functools
from typing import Literal

import jax

from kullback.core import regularizers, sampling_ahead, types
from kullback.lm import distillation, distillation_targets, gemma, shared_ids, tuning

Targets = Literal["full", "set", "counts", "top-k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of GKD."""

    divergence: str = "kl"  # D: kl, reverse_kl, jsd-0.1, total_variation, fenchel_young-alpha-1.5.
    student_fraction: float = 0.5  # lambda in [0, 1].
    # Mixing of the two sources: one coin for each batch (the paper), or a share of its rows.
    mixing: Literal["batch", "row"] = "batch"
    # Further learner steps that reuse the student's sequences, unlike the paper, as sampling takes
    # most of a step's time. Their age is logged as sample_age.
    max_age: int = 0
    # D, learner steps by which the student that writes is older than the one that learns, so that
    # the next sequences are written meanwhile. 0: on-policy. Not with max_age (ours).
    lag: int = 0
    # Parts of a batch's prompts, each written apart, as many at a time; with a lag (ours).
    shards: int = 1
    temperature: float = 1.0  # Divisor of both logits inside D; sampling has its own, which is 1.
    # Part of the teacher's distribution that D sees: "full"; num_targets tokens that are drawn from
    # it, by either reading of Gemma 3 ("set", "counts"); its num_targets most probable tokens and
    # the tail as one class ("top-k").
    targets: Targets = "full"
    num_targets: int = 256  # K; Gemma 3's.
    learning: tuning.Config = tuning.Config()

    def __post_init__(self) -> None:
        self._check_targets()
        if self.student_fraction > 0:
            self.learning.lora.check_sampling()
        self._check_lag()
        if self.mixture().student_fraction > 0 and self.learning.pack:
            raise ValueError(
                f"pack=True needs student_fraction=0, got {self.student_fraction}: a packed row "
                "holds several prompts, and the student samples from one"
            )

    @property
    def output_divergence(self) -> str:
        """Name of f of the student's softargmax_f, from which it samples.

        Divergences compare two softmaxes, so f is KL's; a Fenchel-Young loss is for softargmax_f.
        """
        kind, _, f = self.divergence.partition("-")
        return f if kind == "fenchel_young" else "kl"

    def token_divergence(
        self, teacher_divergence: regularizers.Divergence = regularizers.kl
    ) -> distillation.TokenLoss:
        """Returns D over the whole vocabulary: student and teacher logits, [n, V] each -> [n]."""
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

    @property
    def ahead(self) -> sampling_ahead.Ahead:
        """How far ahead of learning texts are written."""
        return sampling_ahead.Ahead(self.lag, self.shards)

    def _check_lag(self) -> None:
        """Raises ValueError for sequences that cannot be written ahead."""
        self.ahead.check(self.mixture().num_sampled(self.learning.batch_size, coin=0.0))
        if self.lag and not self.student_fraction:
            raise ValueError(
                f"lag={self.lag} is of the student's own sequences, of which there are none: set "
                "student_fraction above 0, or leave lag out"
            )
        if self.lag and self.max_age:
            raise ValueError(
                f"lag={self.lag} and max_age={self.max_age} both learn from older sequences: leave "
                "one out"
            )

    def mixture(self) -> tuning.Mixture:
        """Returns the mixture of the data set's and the student's sequences."""
        return tuning.Mixture(
            student_fraction=self.student_fraction,
            mixing=self.mixing,
            max_age=self.max_age,
            ahead=self.ahead,
        )


def presets(family: str) -> Config:
    """Returns settings for "tokens": half of the steps learn from the student's own sequences."""
    del family
    return Config()


def offline_presets(family: str) -> Config:
    """Returns settings for "tokens" of distillation on fixed sequences, lambda = 0."""
    del family
    return Config(student_fraction=0.0)


def make(
    model: gemma.Model,
    teacher: gemma.Model,
    config: Config | None = None,
    *,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
) -> types.Agent[tuning.Mixture]:
    """Returns the GKD agent; the teacher's parameters are the learner's constant `teacher`.

    Args:
      model: the student.
      teacher: of the same tokens; padding rows of its embedding are not read.
      config: hyper-parameters.
      teacher_divergence: f of the softargmax_f that the teacher was trained with.

    Raises:
      ValueError: for a divergence that is infinite for a sparse teacher, or too many targets for
        the vocabulary.
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
        config.token_divergence(teacher_divergence)  # Raises where it would be infinite.
    return tuning.make(
        functools.partial(token_loss, config, teacher_divergence),
        model,
        config.learning,
        algorithm=config,
        teacher=teacher,
        mixture=config.mixture(),
        divergence=regularizers.named(config.output_divergence),
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

    With drawn targets, t over K tokens of p_T, the loss is the cross-entropy - sum_k t_k ln p_S(k),
    which is KL up to the teacher's entropy. With top K targets all other tokens are one class.

    Args:
      config: D, its temperature and the targets.
      teacher_divergence: f of the softargmax_f that makes the teacher's probabilities.
      logits: of the student, [n, V].
      labels: the next tokens, [n]; not used, as the teacher gives the targets.
      keys: one for each token, [n]; the first draws for all.
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
    sampled = distillation_targets.sampled_targets(
        keys[0], log_p, config.num_targets, config.targets
    )
    return distillation_targets.sparse_cross_entropy(theta, sampled)

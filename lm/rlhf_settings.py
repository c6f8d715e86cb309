"""Settings of policy gradients of language models, which rlhf.py makes a learner of.

A setting that a variant of variants.py gives has REINFORCE's value as its default.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kullback.core import learners, names, ranges, regularizers, sampling_ahead
from kullback.lm import (
    distillation,
    policy_gradient,
    surrogate,
    tuning,
    value_network,
    variants,
)

__all__ = ["Config", "of_variant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters; batch_size is a number of texts: prompts times G."""

    # Name of a row of variants.py, whose values `--set variant=NAME` gives to settings; those that
    # are set beside it win. In Python `of_variant` makes it.
    variant: variants.Name = dataclasses.field(
        default="reinforce", metadata={"rows": variants.VARIANTS}
    )
    samples_per_prompt: int = 4  # G.
    baseline: policy_gradient.Baseline = "leave-one-out"  # "value" is a network.
    scale_by_deviation: bool = True  # Whether "group" divides by the standard deviation.
    kl_coefficient: float = 0.05  # beta >= 0, in units of reward a nat.
    kl_estimator: policy_gradient.KlEstimator = "k1"  # Or "k2", "k3"; see policy_gradient.py.
    kl_placement: policy_gradient.Placement = "reward"  # Place of the KL penalty; or "loss".
    reference: Literal["fixed", "moving-average"] = "fixed"  # The start, or an average of pi.
    anchor_rate: float = 0.01  # mu in (0, 1] of the moving average, per learner step.
    # Temperature of policy and reference alike, in sampling, KL penalty and loss. The paper on WARP
    # has 0.9.
    temperature: float = 1.0
    reward_weight: float = 1.0  # Weight of the score; that of the KL is beta.
    length_penalty: float = 0.0  # Reward that a token costs; WARP's appendix E: 0.0005.
    truncation_penalty: float = 0.0  # Reward that a text without a stop token costs.
    # Last share, in [0, 1], of max_new_tokens in which a text costs more and more of
    # truncation_penalty, linearly up to all of it; DAPO's soft punishment. 0 is none.
    overlong_fraction: float = 0.0
    mask_truncated: bool = False  # Whether texts without a stop token are not learnt from (DAPO).
    # Whether the texts of a prompt are one row of a learner step, which has the prompt once: the
    # same gradients but for the order of sums, sooner where prompts are long (ours).
    share_prompts: bool = False
    epochs: int = 1  # Times that a learner step learns from its batch.
    minibatches: int = 1  # Parts of the batch in an epoch, an optimiser step each.
    ratio: surrogate.Ratio = "none"  # To the policy before the batch; "none" needs one epoch.
    detach_ratio: bool = False  # Whether the ratio is a weight without a gradient (CISPO).
    clip_low: float = 0.2  # Ratios are bounded below by 1 - clip_low, in [0, 1); 0 is no bound.
    clip_high: float = 0.2  # And above by 1 + clip_high; 0 is no bound. PPO: 0.2 both.
    ratio_limit: float = 0.0  # Bound where advantages are negative; 0 is none; INTELLECT-2: 4.
    # Weights pi / sampler where the sampler was not the policy, such as a rounded one.
    correction: surrogate.Correction = "none"
    correction_limit: float = 2.0  # C >= 1 of these weights; TRL: 2 for tokens, 3 for texts.
    # D, learner steps by which the policy that writes a batch is older than the one that learns
    # from it, so that the next batch is written meanwhile; with a correction. 0: on-policy.
    lag: int = 0
    # Parts of a batch's prompts, each written apart, as many at a time; with a lag (ours).
    shards: int = 1
    drop_equal: bool = False  # Whether prompts whose texts have equal rewards are left out (DAPO).
    # Batches' worth of texts sampled for one that is learnt from, which has the prompts whose texts
    # differ in reward first; with drop_equal.
    oversample: int = 1
    return_lambda: float = 1.0  # lambda of the returns in the advantages, for "value".
    value_lambda: float = 1.0  # lambda of the value's targets; 0 bootstraps at each token.
    value_clip: float = 0.0  # Most that a value may leave that before the batch; 0 is no bound.
    value_learning_rate: float = 1e-4  # Step size of the value's Adam.
    # Weighting of tokens; "none" is the exact gradient.
    normalisation: policy_gradient.Normalisation = "none"
    distillation_weight: float = 0.0  # w in [0, 1); above 0 needs a teacher.
    divergence: str = "kl"  # D, by a name of `distillation.LOSSES`.
    learning: tuning.Config = tuning.Config(learning_rate=1e-5)

    def __post_init__(self) -> None:
        c, size = self, self.learning.batch_size
        if c.samples_per_prompt < 1 or size % c.samples_per_prompt:
            raise ValueError(
                f"samples_per_prompt must be >= 1 and divide batch_size={size}, "
                f"got {c.samples_per_prompt}"
            )
        if c.baseline != value_network.KEY and c.samples_per_prompt < 2:
            raise ValueError(f"baseline {c.baseline} needs samples_per_prompt >= 2, got 1")
        ranges.inside("[0, inf]", c, "kl_coefficient", "length_penalty", "truncation_penalty")
        ranges.inside("[0, inf]", c, "reward_weight", "value_clip")
        ranges.inside("(0, inf]", c, "temperature", "value_learning_rate")
        ranges.inside("[0, 1]", c, "return_lambda", "value_lambda", "overlong_fraction")
        ranges.inside("[0, 1)", c, "distillation_weight")
        if c.learning.pack or c.learning.reduction != "sequence":
            raise ValueError(
                "pack and reduction are of stored examples; here normalisation says how tokens "
                "count: leave pack=False and reduction=sequence"
            )
        c.learning.lora.check_sampling()
        if c.reference == "moving-average" and c.learning.lora and not c.learning.lora.shared_a:
            raise ValueError(
                "reference=moving-average averages policies, and the average of adapters is that "
                "of their factors only with one A: --set lora.shared_a=true"
            )
        # Traced only, as a configuration may be made before JAX's platform is chosen.
        jax.eval_shape(lambda: policy_gradient.kl_estimate(jnp.zeros(()), c.kl_estimator))
        learners.moving_average(c.anchor_rate)
        self.token_divergence()
        surrogate.check_correction(c.correction, c.correction_limit)
        _ = self.rule
        self._check_passes()
        self._check_lag()

    def _check_passes(self) -> None:
        """Raises ValueError for texts that cannot be chosen or cut as the settings say."""
        c, micro_batches = self, self.learning.micro_batches
        ranges.at_least(1, c, "epochs", "minibatches", "oversample")
        if c.ratio == "none" and (c.variant != "reinforce" or c.detach_ratio):
            raise ValueError(
                f"variant={c.variant} with detach_ratio={c.detach_ratio} needs a ratio, got none: "
                f"rlhf.of_variant({c.variant!r}) has all of its settings"
            )
        if c.ratio == "none" and c.updates > 1:
            raise ValueError(
                f"epochs={c.epochs} and minibatches={c.minibatches} need a ratio, as the policy "
                "moves in between: a variant such as ppo or grpo has one, or ratio=token"
            )
        if c.drop_equal and c.samples_per_prompt < 2:
            raise ValueError("drop_equal compares the texts of a prompt: samples_per_prompt >= 2")
        if c.oversample > 1 and not c.drop_equal:
            raise ValueError(f"oversample={c.oversample} chooses prompts by drop_equal=true")
        if self.learning.batch_size % (c.oversample * c.samples_per_prompt):
            raise ValueError(
                f"oversample={c.oversample} must divide the prompts of a batch, "
                f"{self.learning.batch_size // c.samples_per_prompt}"
            )
        if self.num_learnt % (c.minibatches * micro_batches):
            raise ValueError(
                f"minibatches={c.minibatches} times micro_batches={micro_batches} must divide the "
                f"{self.num_learnt} texts that are learnt from"
            )
        if c.share_prompts and c.minibatches > 1:
            raise ValueError(
                "share_prompts keeps the texts of a prompt together, and minibatches="
                f"{c.minibatches} draws them one by one: minibatches=1"
            )
        if c.share_prompts and self.num_learnt % (c.samples_per_prompt * micro_batches):
            raise ValueError(
                f"share_prompts cuts a batch between prompts: micro_batches={micro_batches} must "
                f"divide the {self.num_learnt // c.samples_per_prompt} that are learnt from"
            )

    def _check_lag(self) -> None:
        """Raises ValueError for texts that cannot be written ahead, or not be learnt from then."""
        self.ahead.check(self.learning.batch_size // self.samples_per_prompt)
        if self.lag and self.correction == "none":
            raise ValueError(
                f"lag={self.lag} learns from texts of an older policy: set correction=truncate, "
                "which weighs them by the ratio of the two"
            )

    @property
    def ahead(self) -> sampling_ahead.Ahead:
        """How far ahead of learning texts are written."""
        return sampling_ahead.Ahead(self.lag, self.shards)

    @property
    def texts_per_row(self) -> int:
        """Texts of a prompt that are one row of a learner step."""
        return self.samples_per_prompt if self.share_prompts else 1

    @property
    def num_learnt(self) -> int:
        """Texts of a batch that are learnt from."""
        return self.learning.batch_size // self.oversample

    @property
    def updates(self) -> int:
        """Optimiser steps of a learner step."""
        return self.epochs * self.minibatches

    @property
    def rule(self) -> surrogate.Rule:
        """The settings of the surrogate."""
        return surrogate.Rule(
            ratio=self.ratio,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            limit=self.ratio_limit,
            detach=self.detach_ratio,
        )

    @property
    def output_divergence(self) -> str:
        """Name of f of the policy's softargmax_f: KL, for softmax."""
        return "kl"

    @property
    def penalty(self) -> tuple[str, float]:
        """Name and value of the setting that weighs the KL penalty."""
        return "kl_coefficient", self.kl_coefficient

    def token_divergence(
        self, teacher_divergence: regularizers.Divergence = regularizers.kl
    ) -> distillation.TokenLoss:
        """Returns D: logits of the policy and the teacher, [n, V] each -> [n]."""
        return distillation.named(self.divergence, teacher_divergence=teacher_divergence)


def of_variant(name: variants.Name, **fields: Any) -> Config:
    """Returns the settings of a variant, with others in place of some.

    Raises:
      ValueError: for an unknown name, or settings that `Config` refuses.
    """
    if name not in variants.VARIANTS:
        raise ValueError(names.unknown("variant", name, variants.VARIANTS, show_all=True))
    return Config(**{**variants.VARIANTS[name], "variant": name, **fields})

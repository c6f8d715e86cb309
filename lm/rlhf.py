"""Reinforcement learning of language models: REINFORCE with a KL penalty to a reference.

    max_pi E_{x, y ~ pi(. | x)} [r(x, y)] - beta KL(pi(. | x) || pi_ref(. | x))

With leave-one-out baselines: Ahmadian et al., "Back to Basics", ACL 2024,
https://arxiv.org/abs/2402.14740; with a moving-average reference: Rame et al., "WARP", 2024,
https://arxiv.org/abs/2406.16768. Learning is on-policy: each batch of texts is sampled by the
policy, scored and learnt from once, so that there are no importance ratios and no clipping. With a
teacher, GKD's combined objective (Agarwal et al., ICLR 2024, equation 5,
https://arxiv.org/abs/2306.13649), w the weight of distillation:

    (1 - w) (the objective above) - w E_{y ~ pi} [D(p_T || pi)(y | x)]
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import learners, regularizers, sampling, types
from kullback.environments import tokens
from kullback.lm import (
    adapters,
    answers,
    batches,
    chunked,
    distillation,
    gemma,
    policy,
    policy_gradient,
    rollouts,
    shared_ids,
    tuning,
    value_network,
)

__all__ = ["Config", "make", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of REINFORCE; batch_size is a number of texts: prompts times G."""

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
    return_lambda: float = 1.0  # lambda of the returns in the advantages, for "value".
    value_lambda: float = 1.0  # lambda of the value's targets; 0 bootstraps at each token.
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
        for name in ("kl_coefficient", "length_penalty", "truncation_penalty", "reward_weight"):
            if not getattr(c, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(c, name)}")
        for name in ("temperature", "value_learning_rate"):
            if not getattr(c, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(c, name)}")
        for name in ("return_lambda", "value_lambda"):
            if not 0 <= getattr(c, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(c, name)}")
        if not 0 <= c.distillation_weight < 1:
            raise ValueError(f"distillation_weight must lie in [0, 1), got {c.distillation_weight}")
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


class _MicroBatch(NamedTuple):
    """The data of a micro-batch; columns are target tokens, T - 1."""

    sequences: batches.Sequences
    weights: jax.Array  # [B, T - 1]: weight of each token in the loss.
    rewards: jax.Array  # [B, T - 1]: rewards of tokens, minus the KL penalty if placed there.
    advantages: jax.Array  # [B, T - 1]; zeros where a value network gives them.
    reference_log_pi: jax.Array  # [B, T - 1]: log-probabilities under the reference.


def presets(family: str) -> Config:
    """Returns settings for "tokens"; the learning rate is for some millions of parameters."""
    del family
    return Config()


def make(
    model: gemma.Model,
    teacher: gemma.Model | None = None,
    config: Config | None = None,
    *,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
    algorithm: Any = None,
) -> types.Agent[rollouts.OnPolicy]:
    """Returns the REINFORCE agent of `model`.

    The learner's constants are the parameters before learning (`start`; with adapters their `base`,
    one copy for policy, reference and value), and the teacher's if there is one. A batch's data are
    `rollouts.Episodes` of the agent's policy. Metrics are means over texts: kl_start and
    kl_reference are k1 of whole texts, nats (the reference is that before this step), answer_tokens
    the length, entropy that of a token, and diversity the share of distinct bigrams among the
    samples of a prompt.

    Args:
      model: the policy.
      teacher: of the combined objective; needed where distillation_weight > 0.
      config: hyper-parameters.
      teacher_divergence: f of the softargmax_f that the teacher was trained with.
      algorithm: the agent's configuration, saved beside the results; None is `config`.

    Raises:
      ValueError: for a teacher without a weight, or a weight without one.
    """
    c = config or Config()
    if (teacher is not None) != (c.distillation_weight > 0):
        raise ValueError(
            f"distillation_weight={c.distillation_weight} "
            + ("has no use for a teacher" if teacher else "> 0 needs a teacher")
        )
    if teacher is not None:
        model, teacher = shared_ids.shared([model, teacher])
    start, model = model, adapters.adapted(model, c.learning.lora)
    context = _Context(
        config=c,
        model=model,
        start=start,
        teacher=teacher,
        divergence=c.token_divergence(teacher_divergence),
    )
    return types.Agent(
        policy=policy.language_model(
            model,
            sampling.Sampling(temperature=c.temperature),
            samples_per_prompt=c.samples_per_prompt,
        ),
        learner=_learner(context),
        actor_params=context.learnt.actor_params,
        experience=rollouts.OnPolicy(
            draws=(policy.Draws(c.samples_per_prompt),),
            temperature=c.temperature,
            has_value=context.has_value,
        ),
        config=algorithm or c,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The settings and models that the losses share."""

    config: Config
    model: gemma.Model  # With adapters, if any.
    start: gemma.Model  # The same without them.
    teacher: gemma.Model | None
    divergence: distillation.TokenLoss  # D of policy and teacher.

    @property
    def has_value(self) -> bool:
        """Whether a value network is the baseline."""
        return self.config.baseline == value_network.KEY

    @property
    def learnt(self) -> adapters.Learnt:
        """The learnt part of the parameters of policy and value."""
        c = self.config.learning
        if self.has_value:
            return adapters.Learnt(settings=c.lora, scheme=c.scheme, frozen=value_network.frozen)
        return adapters.Learnt(settings=c.lora, scheme=c.scheme)


def _learner(context: _Context) -> types.Learner:
    c, init = context.config, context.model.init
    optimizer = tuning.optimizer(c.learning)
    if context.has_value:
        value_learning = dataclasses.replace(c.learning, learning_rate=c.value_learning_rate)
        optimizer = value_network.beside(optimizer, tuning.optimizer(value_learning))
    anchor = {"anchor": learners.moving_average(c.anchor_rate)}
    return learners.sgd(
        init_params=(
            (lambda key: value_network.with_value(init(key), context.model.config.embed_dim))
            if context.has_value
            else init
        ),
        loss=context.learnt.loss(functools.partial(_loss, context)),
        optimizer=optimizer,
        targets=anchor if c.reference == "moving-average" else None,
    )


def _loss(
    context: _Context,
    params: types.Params,
    targets: dict[str, types.Params],
    aux: None,
    batch: types.Batch,
    key: types.Key,
    constants: types.Constants,
) -> tuple[jax.Array, tuple[None, types.Feedback]]:
    """Returns the loss of a batch whose data are `rollouts.Episodes`, and its metrics."""
    del key  # The sampler drew the texts.
    data, text_metrics = _prepare(context, batch, targets, constants)
    value, metrics = tuning.over_micro_batches(
        functools.partial(_micro_batch_loss, context, constants),
        params,
        data,
        context.config.learning.micro_batches,
    )
    return value, (aux, types.Feedback(metrics | text_metrics))


def _prepare(
    context: _Context,
    batch: types.Batch,
    targets: dict[str, types.Params],
    constants: types.Constants,
) -> tuple[_MicroBatch, dict[str, jax.Array]]:
    """Returns the constants of the loss, such as advantages, and metrics of texts, [B] each."""
    c, episodes = context.config, batch.data
    s = jax.tree.map(jnp.asarray, episodes.sequences)
    log_pi, is_answer = jnp.asarray(episodes.log_probability)[:, 1:], s.is_answer[:, 1:]
    log_probabilities = functools.partial(
        answers.log_probabilities,
        temperature=c.temperature,
        chunk=c.learning.chunk,
    )
    # The base of adapters is what learning starts from.
    start_params = constants.base if c.learning.lora else constants.start
    start = log_probabilities(context.start, start_params, s)
    # The moving average before this step's update.
    anchor = log_probabilities(context.model, targets["anchor"], s) if targets else start
    log_ratio = jnp.where(is_answer, log_pi - anchor, 0)
    length = jnp.sum(is_answer, 1)
    is_done = jnp.any(tokens.is_stop(s.tokens[:, 1:], context.model.config.eos_ids) & is_answer, 1)
    scores = c.reward_weight * jnp.asarray(episodes.rewards) - c.length_penalty * length
    scores = scores - c.truncation_penalty * ~is_done
    rewards = policy_gradient.token_rewards(scores, is_answer)
    if c.kl_placement == "reward":
        rewards = rewards - c.kl_coefficient * policy_gradient.kl_estimate(
            log_ratio, c.kl_estimator
        )
    data = _MicroBatch(
        sequences=s,
        weights=policy_gradient.token_weights(
            is_answer, jnp.asarray(batch.weights), c.normalisation
        ),
        rewards=rewards,
        advantages=_advantages(context, rewards),
        reference_log_pi=anchor,
    )
    return data, {
        "kl_start": jnp.sum(jnp.where(is_answer, log_pi - start, 0), 1),
        "kl_reference": jnp.sum(log_ratio, 1),
        "answer_tokens": length.astype(jnp.float32),
        "truncated": 1.0 - is_done,
        "diversity": policy_gradient.distinct_bigrams(
            s.tokens[:, 1:], is_answer, c.samples_per_prompt
        ),
    }


def _advantages(context: _Context, rewards: jax.Array) -> jax.Array:
    """Returns a text's advantage over the others of its prompt, at each token, [B, T - 1]."""
    c, returns = context.config, jnp.sum(rewards, 1)
    if context.has_value:
        return jnp.zeros_like(rewards)
    if c.baseline == "group":
        advantages = policy_gradient.group(
            returns, c.samples_per_prompt, scale=c.scale_by_deviation
        )
    else:
        advantages = policy_gradient.leave_one_out(returns, c.samples_per_prompt)
    return jnp.broadcast_to(advantages[:, None], rewards.shape)


def _micro_batch_loss(
    context: _Context, constants: types.Constants, params: types.Params, data: _MicroBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a micro-batch's summand of the loss, [], and metrics of its texts, [B] each."""
    s, inputs = data.sequences, _inputs(data.sequences)
    features, head = context.model.with_head(params, *inputs)
    features, labels, is_answer = distillation.align(
        features, jnp.asarray(s.tokens), jnp.asarray(s.is_answer)
    )
    advantages, value_loss, metrics = data.advantages, 0.0, {}
    if context.has_value:
        advantages, value_loss, errors = _value_loss(context, params, data)
        metrics["value_error"] = _mean(errors, is_answer)
    is_frozen = bool(context.config.learning.lora)
    heads = [chunked.Head(context.model.unembed, head, _flat(features), is_frozen)]
    if context.teacher is not None:
        teacher_features = context.teacher.features(constants.teacher, *inputs)[:, :-1]
        heads.append(
            chunked.Head(context.teacher.unembed, constants.teacher, _flat(teacher_features))
        )
    value, per_token = chunked.weighted_loss(
        functools.partial(_policy_loss, context),
        data.weights.reshape(-1),
        heads[0],
        labels.reshape(-1),
        advantages.reshape(-1),
        data.reference_log_pi.reshape(-1),
        *heads[1:],
        chunk=context.config.learning.chunk,
        is_answer=is_answer.reshape(-1),
    )
    for name, x in per_token.items():
        metrics[name] = _mean(x.reshape(labels.shape), is_answer)
    return value + value_loss, metrics


def _policy_loss(
    context: _Context,
    logits: jax.Array,
    labels: jax.Array,
    advantages: jax.Array,
    reference_log_pi: jax.Array,
    *teacher_logits: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns token-level losses, [n], whose gradient is the policy gradient, and metrics, [n]."""
    c = context.config
    log_pi = sampling.log_probability(regularizers.promote(logits) / c.temperature, labels)
    losses = -advantages * log_pi
    if c.kl_placement == "loss":
        estimate = policy_gradient.kl_estimate(log_pi - reference_log_pi, c.kl_estimator)
        losses = losses + c.kl_coefficient * estimate
    metrics = {"entropy": regularizers.entropy(jax.lax.stop_gradient(logits) / c.temperature)}
    for teacher in teacher_logits:  # One or none.
        distances = context.divergence(logits, teacher)
        losses = (1 - c.distillation_weight) * losses + c.distillation_weight * distances
        metrics["distance"] = jax.lax.stop_gradient(distances)
    return losses, metrics


def _value_loss(
    context: _Context, params: types.Params, data: _MicroBatch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns advantages, [B, T - 1], the value's loss, [], and its squared errors, [B, T - 1]."""
    c, is_answer = context.config, jnp.asarray(data.sequences.is_answer)[:, 1:]
    values = value_network.predict(context.model, params, *_inputs(data.sequences))
    frozen = jax.lax.stop_gradient(values)
    returns = policy_gradient.lambda_returns(data.rewards, frozen, is_answer, c.return_lambda)
    targets = policy_gradient.lambda_returns(data.rewards, frozen, is_answer, c.value_lambda)
    errors = jnp.where(is_answer, values - targets, 0) ** 2
    return returns - frozen, jnp.sum(data.weights * errors), jax.lax.stop_gradient(errors)


def _inputs(s: batches.Sequences) -> tuple[types.Array, ...]:
    return s.tokens, s.positions, s.segments


def _flat(features: jax.Array) -> jax.Array:
    return features.reshape(-1, features.shape[-1])


def _mean(x: jax.Array, is_answer: jax.Array) -> jax.Array:
    """Returns the mean over each answer's tokens, [B]."""
    total = jnp.sum(jnp.where(is_answer, x, 0), 1)
    return total / jnp.maximum(jnp.sum(is_answer, 1), 1)

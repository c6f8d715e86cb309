"""Reinforcement learning of language models: REINFORCE, with the KL to a reference.

    max_pi E_{x, y ~ pi(. | x)} [r(x, y)] - beta KL(pi(. | x) || pi_ref(. | x))

With leave-one-out baselines: Ahmadian et al., "Back to Basics", ACL 2024,
https://arxiv.org/abs/2402.14740; with a moving-average reference: Rame et al., "WARP", 2024,
https://arxiv.org/abs/2406.16768. Each batch of texts is sampled by the policy, scored, learnt from
once and forgotten, so that the log-probabilities as drawn are the policy's own: no ratios, no
clipping. With a teacher, GKD's combined objective (Agarwal et al., ICLR 2024, equation 5,
https://arxiv.org/abs/2306.13649), w the weight of distillation:

    (1 - w) (the objective above) - w E_{y ~ pi} [D(p_T || pi)(y | x)]
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kullback.core import learners, regularizers, types
from kullback.core import sampling as samplings
from kullback.environments import tokens
from kullback.lm import (
    answers,
    batches,
    chunked,
    distillation,
    gemma,
    policy,
    shared_ids,
    tuning,
)
from kullback.lm import policy_gradient as pg

__all__ = ["Config", "make", "presets"]

VALUE = "value"  # Beside the policy's parameters: of the network that predicts returns.


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """Texts that the policy has just written: `Agent.experience` of reinforcement learning."""

    samples_per_prompt: int
    temperature: float = 1.0  # Of policy and reference.
    has_value: bool = False  # Parameters are those of `with_value`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of REINFORCE; batch_size is texts: prompts times samples of each."""

    samples_per_prompt: int = 4  # G.
    baseline: pg.Baseline = "leave-one-out"  # "value": a network of its own, from the start.
    scale_by_deviation: bool = True  # Of "group": divide by its standard deviation.
    kl_coefficient: float = 0.05  # beta >= 0, in units of reward a nat.
    kl_estimator: pg.KlEstimator = "k1"  # Or "k2", "k3"; see policy_gradient.py.
    kl_placement: pg.Placement = "reward"  # Or "loss": where the penalty stands.
    reference: Literal["fixed", "moving-average"] = "fixed"  # The start, or what follows pi.
    anchor_rate: float = 0.01  # mu in (0, 1] of the moving average, a learner step.
    # Of policy, reference and value alike: both are sampled, scored and learnt at it. The paper on
    # WARP has 0.9.
    temperature: float = 1.0
    reward_weight: float = 1.0  # Of the score, beside beta.
    length_penalty: float = 0.0  # Units of reward that a token costs; WARP's appendix E: 0.0005.
    truncation_penalty: float = 0.0  # Units of reward that a text without its end costs.
    return_lambda: float = 1.0  # Of "value": of the returns that the policy learns from.
    value_lambda: float = 1.0  # Of those that the value learns; 0 is bootstrapped at each token.
    value_learning_rate: float = 1e-4  # Of Adam.
    normalisation: pg.Normalisation = "none"  # How tokens count; "none" is the exact gradient.
    distillation_weight: float = 0.0  # w in [0, 1); above 0 needs a teacher.
    divergence: str = "kl"  # D, of `distillation.named`.
    learning: tuning.Config = tuning.Config(learning_rate=1e-5)

    def __post_init__(self) -> None:
        c, size = self, self.learning.batch_size
        if c.samples_per_prompt < 1 or size % c.samples_per_prompt:
            raise ValueError(
                f"samples_per_prompt must be >= 1 and divide batch_size={size}, "
                f"got {c.samples_per_prompt}"
            )
        if c.baseline != VALUE and c.samples_per_prompt < 2:
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
        # Traced: a configuration is made before it is settled how JAX computes.
        jax.eval_shape(lambda: pg.kl_estimate(jnp.zeros(()), c.kl_estimator))
        learners.moving_average(c.anchor_rate)
        self.token_divergence()

    @property
    def operator(self) -> str:
        """Name of f of the policy's operator: softmax."""
        return "kl"

    def token_divergence(
        self, teacher_divergence: regularizers.Divergence = regularizers.kl
    ) -> distillation.TokenLoss:
        """D, of logits of the student and of the teacher, [n, V] -> [n]."""
        return distillation.named(self.divergence, teacher_divergence=teacher_divergence)


class _Part(NamedTuple):
    """What a micro-batch is learnt from; columns are those of target tokens, T - 1."""

    sequences: batches.Sequences
    weights: jax.Array  # [B, T - 1]: what each token counts in the loss.
    rewards: jax.Array  # [B, T - 1]: of tokens, the KL in it or not.
    advantages: jax.Array  # [B, T - 1]; zeros where they come of values.
    of_reference: jax.Array  # [B, T - 1]: log-probabilities.


def presets(family: str) -> Config:
    """Settings for "tokens"; the learning rate is for models of some millions of parameters."""
    del family
    return Config()


def make(
    model: gemma.Model,
    teacher: gemma.Model | None = None,
    config: Config | None = None,
    *,
    teacher_divergence: regularizers.Divergence = regularizers.kl,
    algorithm: Any = None,
) -> types.Agent[OnPolicy]:
    """REINFORCE of `model`.

    Among the learner's constants are the supervised start's parameters, and a teacher's if it has
    one. A batch's data are `rollouts.Episodes` of the agent's policy. Metrics, means over texts:
    kl_start and kl_reference are k1 of whole texts in nats (to the reference before this step),
    answer_tokens their length, entropy of a token, diversity the share of different bigrams among
    the samples of a prompt.

    Args:
      model: the policy.
      teacher: of the combined objective; needed where distillation_weight > 0.
      config: hyper-parameters.
      teacher_divergence: f of the operator that the teacher was trained with.
      algorithm: what is saved as the agent's configuration; None is `config`.

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
    context = _Context(
        config=c,
        model=model,
        teacher=teacher,
        divergence=c.token_divergence(teacher_divergence),
    )
    return types.Agent(
        policy=policy.language_model(
            model,
            samplings.Sampling(temperature=c.temperature),
            samples_per_prompt=c.samples_per_prompt,
        ),
        learner=_learner(context),
        actor_params=lambda state, steps, evaluate, constants: {"params": state.params},
        experience=OnPolicy(c.samples_per_prompt, c.temperature, context.has_value),
        config=algorithm or c,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """Settings and models that the losses share."""

    config: Config
    model: gemma.Model
    teacher: gemma.Model | None
    divergence: distillation.TokenLoss  # D, of logits of the policy and of the teacher.

    @property
    def has_value(self) -> bool:
        """Whether advantages are returns less what a network predicts."""
        return self.config.baseline == VALUE


def _learner(context: _Context) -> types.Learner:
    c, init = context.config, context.model.init
    optimizer = tuning.optimizer(c.learning)
    if context.has_value:
        of_value = dataclasses.replace(c.learning, learning_rate=c.value_learning_rate)
        optimizer = optax.multi_transform(
            {"policy": optimizer, VALUE: tuning.optimizer(of_value)},
            lambda params: {name: VALUE if name == VALUE else "policy" for name in params},
        )
    follows = {"anchor": learners.moving_average(c.anchor_rate)}
    return learners.sgd(
        init_params=(lambda key: with_value(init(key))) if context.has_value else init,
        loss=functools.partial(_loss, context),
        optimizer=optimizer,
        targets=follows if c.reference == "moving-average" else None,
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
    part, of_texts = _prepare(context, batch, targets, constants)
    value, metrics = tuning.in_parts(
        functools.partial(_part_loss, context, constants),
        params,
        part,
        context.config.learning.micro_batches,
    )
    return value, (aux, types.Feedback(metrics | of_texts))


def _prepare(
    context: _Context,
    batch: types.Batch,
    targets: dict[str, types.Params],
    constants: types.Constants,
) -> tuple[_Part, dict[str, jax.Array]]:
    """Returns what no gradient flows through: rewards and advantages, and metrics of texts, [B]."""
    c, episodes = context.config, batch.data
    s = jax.tree.map(jnp.asarray, episodes.sequences)
    drawn, is_answer = jnp.asarray(episodes.log_probability)[:, 1:], s.is_answer[:, 1:]
    of_frozen = functools.partial(
        log_probabilities, context.model, temperature=c.temperature, chunk=c.learning.chunk
    )
    start = of_frozen(constants.start, s)
    # The weights before this step's update, which sampled; not after it.
    anchor = of_frozen(targets["anchor"], s) if targets else start
    ratio = jnp.where(is_answer, drawn - anchor, 0)
    length = jnp.sum(is_answer, 1)
    ended = jnp.any(tokens.is_stop(s.tokens[:, 1:], context.model.config.eos_ids) & is_answer, 1)
    scores = c.reward_weight * jnp.asarray(episodes.rewards) - c.length_penalty * length
    scores = scores - c.truncation_penalty * ~ended
    rewards = pg.token_rewards(scores, is_answer)
    if c.kl_placement == "reward":
        rewards = rewards - c.kl_coefficient * pg.kl_estimate(ratio, c.kl_estimator)
    part = _Part(
        sequences=s,
        weights=pg.token_weights(is_answer, jnp.asarray(batch.weights), c.normalisation),
        rewards=rewards,
        advantages=_advantages(context, rewards),
        of_reference=anchor,
    )
    return part, {
        "kl_start": jnp.sum(jnp.where(is_answer, drawn - start, 0), 1),
        "kl_reference": jnp.sum(ratio, 1),
        "answer_tokens": length.astype(jnp.float32),
        "truncated": 1.0 - ended,
        "diversity": pg.distinct_bigrams(s.tokens[:, 1:], is_answer, c.samples_per_prompt),
    }


def _advantages(context: _Context, rewards: jax.Array) -> jax.Array:
    """Returns a text's return less that of the others of its prompt, at each token, [B, T - 1]."""
    c, returns = context.config, jnp.sum(rewards, 1)
    if context.has_value:
        return jnp.zeros_like(rewards)
    if c.baseline == "group":
        of_rows = pg.group(returns, c.samples_per_prompt, scale=c.scale_by_deviation)
    else:
        of_rows = pg.leave_one_out(returns, c.samples_per_prompt)
    return jnp.broadcast_to(of_rows[:, None], rewards.shape)


def _part_loss(
    context: _Context, constants: types.Constants, params: types.Params, part: _Part
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns what a micro-batch adds to the loss, and the metrics of its texts."""
    s, inputs = part.sequences, _inputs(part.sequences)
    features, labels, is_answer = _aligned(context.model.features(params, *inputs), s)
    advantages, value_loss, metrics = part.advantages, 0.0, {}
    if context.has_value:
        advantages, value_loss, errors = _value_loss(context, params, part)
        metrics["value_error"] = _mean(errors, is_answer)
    heads = [chunked.Head(context.model.unembed, _embedding(params), _flat(features))]
    if context.teacher is not None:
        of_teacher = context.teacher.features(constants.teacher, *inputs)[:, :-1]
        embedding = _embedding(constants.teacher)
        heads.append(chunked.Head(context.teacher.unembed, embedding, _flat(of_teacher)))
    value, per_token = chunked.weighted_loss(
        functools.partial(_policy_loss, context),
        part.weights.reshape(-1),
        heads[0],
        labels.reshape(-1),
        advantages.reshape(-1),
        part.of_reference.reshape(-1),
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
    of_reference: jax.Array,
    *teacher_logits: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the losses of tokens, [n], whose gradient is the policy's, and their metrics."""
    c = context.config
    log_pi = _log_probability(logits, labels, c.temperature)
    losses = -advantages * log_pi
    if c.kl_placement == "loss":
        estimate = pg.kl_estimate(log_pi - of_reference, c.kl_estimator)
        losses = losses + c.kl_coefficient * estimate
    metrics = {"entropy": regularizers.entropy(jax.lax.stop_gradient(logits) / c.temperature)}
    for of_teacher in teacher_logits:
        distances = context.divergence(logits, of_teacher)
        losses = (1 - c.distillation_weight) * losses + c.distillation_weight * distances
        metrics["distance"] = jax.lax.stop_gradient(distances)
    return losses, metrics


def _value_loss(
    context: _Context, params: types.Params, part: _Part
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns advantages [B, T - 1], the loss of the value [], and its squared errors."""
    c, is_answer = context.config, jnp.asarray(part.sequences.is_answer)[:, 1:]
    hidden = context.model.features(params[VALUE]["decoder"], *_inputs(part.sequences))[:, :-1]
    values = jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), params[VALUE]["head"])
    frozen = jax.lax.stop_gradient(values)
    returns = pg.lambda_returns(part.rewards, frozen, is_answer, c.return_lambda)
    targets = pg.lambda_returns(part.rewards, frozen, is_answer, c.value_lambda)
    errors = jnp.where(is_answer, values - targets, 0) ** 2
    return returns - frozen, jnp.sum(part.weights * errors), jax.lax.stop_gradient(errors)


def log_probabilities(
    model: gemma.Model,
    params: types.Params,
    sequences: batches.Sequences,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
) -> jax.Array:
    """Log-probabilities of a frozen model, float32 [B, T - 1]: of each answer's token, else 0.

    There are no micro-batches: nothing is kept for a gradient.
    """
    found, _ = answers.per_token(
        lambda logits, labels: _log_probability(logits, labels, temperature),
        sequences,
        (model, params),
        chunk=chunk,
    )
    return jax.lax.stop_gradient(found)


def with_value(params: types.Params) -> types.Params:
    """The parameters of a policy, and beside them of a value network.

    The network is a copy of the decoder, whose head, [D], is 0: it begins by predicting 0.
    """
    head = jnp.zeros(params["final_norm"].shape, jnp.float32)
    return {**params, VALUE: {"decoder": jax.tree.map(jnp.copy, params), "head": head}}


def _log_probability(logits: jax.Array, labels: jax.Array, temperature: float) -> jax.Array:
    return samplings.log_probability(regularizers.promote(logits) / temperature, labels)


def _inputs(s: batches.Sequences) -> tuple[types.Array, ...]:
    return s.tokens, s.positions, s.segments


def _aligned(features: jax.Array, s: batches.Sequences) -> tuple[jax.Array, jax.Array, jax.Array]:
    return distillation.align(features, jnp.asarray(s.tokens), jnp.asarray(s.is_answer))


def _embedding(params: types.Params) -> types.Params:
    """What a head reads; gradients are of all that it is given."""
    return {"embedding": params["embedding"]}


def _flat(features: jax.Array) -> jax.Array:
    return features.reshape(-1, features.shape[-1])


def _mean(x: jax.Array, is_answer: jax.Array) -> jax.Array:
    """Mean over a text's tokens, [B]."""
    total = jnp.sum(jnp.where(is_answer, x, 0), 1)
    return total / jnp.maximum(jnp.sum(is_answer, 1), 1)

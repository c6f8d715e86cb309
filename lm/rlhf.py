"""Reinforcement learning of language models: policy gradients with a KL penalty to a reference.

    max_pi E_{x, y ~ pi(. | x)} [r(x, y)] - beta KL(pi(. | x) || pi_ref(. | x))

By default REINFORCE with leave-one-out baselines: Ahmadian et al., "Back to Basics", ACL 2024,
https://arxiv.org/abs/2402.14740; with a moving-average reference: Rame et al., "WARP", 2024,
https://arxiv.org/abs/2406.16768. Each batch of texts is sampled by the policy, scored and learnt
from: once, or in several epochs and minibatches by the surrogate of a variant, such as PPO or GRPO
(variants.py, surrogate.py). With a teacher, GKD's combined objective (Agarwal et al., ICLR 2024,
equation 5, https://arxiv.org/abs/2306.13649), w the weight of distillation:

    (1 - w) (the objective above) - w E_{y ~ pi} [D(p_T || pi)(y | x)]
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import learners, regularizers, sampling, types
from kullback.lm import (
    adapters,
    answers,
    distillation,
    gemma,
    policy,
    policy_gradient,
    policy_loss,
    rollouts,
    shared_ids,
    shared_prompts,
    surrogate,
    tuning,
    value_network,
)
from kullback.lm.rlhf_settings import Config, of_variant

__all__ = ["Config", "make", "of_variant", "presets"]


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
    """Returns the agent of `model` that learns by policy gradients.

    The learner's constants are the parameters before learning (`start`; with adapters their `base`,
    one copy for policy, reference and value), and the teacher's if there is one. A batch's data are
    `rollouts.Episodes` of the agent's policy. Metrics are means over texts: kl_start and
    kl_reference are k1 of whole texts, nats (the reference is that before this step), answer_tokens
    the length, entropy that of a token, and diversity the share of distinct bigrams among the
    samples of a prompt. A learner step takes epochs times minibatches optimiser steps, and an
    anchor follows once, at its end; log-probabilities and values that stay fixed meanwhile are
    those of the parameters before it.

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
    divergence = c.token_divergence(teacher_divergence)
    sharing = functools.partial(
        shared_prompts.model,
        samples_per_prompt=c.texts_per_row,
        answer_length=c.learning.max_new_tokens,
    )
    learnt, taught_by = sharing(model), None if teacher is None else sharing(teacher)
    context = _Context(
        config=c,
        model=learnt,
        start=sharing(start),
        objective=_objective(c, learnt, taught_by, divergence),
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
            shares_prompts=c.share_prompts,
            ahead=c.ahead,
        ),
        config=algorithm or c,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The settings and models that the functions of a learner share."""

    config: Config
    model: gemma.Model  # With adapters, if any.
    start: gemma.Model  # The same without them.
    objective: policy_loss.Objective

    @property
    def has_value(self) -> bool:
        """Whether a value network is the baseline."""
        return self.objective.has_value

    @property
    def learnt(self) -> adapters.Learnt:
        """The learnt part of the parameters of policy and value."""
        c = self.config.learning
        if self.has_value:
            return adapters.Learnt(settings=c.lora, scheme=c.scheme, frozen=value_network.frozen)
        return adapters.Learnt(settings=c.lora, scheme=c.scheme)

    @property
    def has_groups(self) -> bool:
        """Whether there is more than one text of a prompt."""
        return self.config.samples_per_prompt > 1


def _objective(
    c: Config,
    model: gemma.Model,
    teacher: gemma.Model | None,
    divergence: distillation.TokenLoss,
) -> policy_loss.Objective:
    return policy_loss.Objective(
        model=model,
        teacher=teacher,
        divergence=divergence,
        distillation_weight=c.distillation_weight,
        rule=c.rule,
        temperature=c.temperature,
        kl_coefficient=c.kl_coefficient if c.kl_placement == "loss" else 0.0,
        kl_estimator=c.kl_estimator,
        has_value=c.baseline == value_network.KEY,
        return_lambda=c.return_lambda,
        value_lambda=c.value_lambda,
        value_clip=c.value_clip,
        is_frozen=bool(c.learning.lora),
        chunk=c.learning.chunk,
    )


def _learner(context: _Context) -> types.Learner:
    c, init = context.config, context.model.init
    optimizer = tuning.optimizer(c.learning, c.updates)
    if context.has_value:
        value_learning = dataclasses.replace(c.learning, learning_rate=c.value_learning_rate)
        optimizer = value_network.beside(optimizer, tuning.optimizer(value_learning, c.updates))
    anchor = {"anchor": learners.moving_average(c.anchor_rate)}
    passes = learners.Passes(c.epochs, c.minibatches, _report)
    return learners.sgd(
        init_params=(
            (lambda key: value_network.with_value(init(key), context.model.config.embed_dim))
            if context.has_value
            else init
        ),
        loss=context.learnt.loss(functools.partial(_loss, context)),
        optimizer=optimizer,
        targets=anchor if c.reference == "moving-average" else None,
        prepare=context.learnt.prepare(functools.partial(_prepare, context)),
        passes=passes if context.objective.has_ratios else None,
    )


def _report(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns metrics of a learner step from those of its optimiser steps, [U, B] each."""
    return {
        **metrics,
        "ratio_max": jnp.max(metrics["ratio_max"]),
        # Of the first one alone, before which the policy has not moved.
        "ratio_error": jnp.max(metrics["ratio_error"][0]),
    }


def _loss(
    context: _Context,
    params: types.Params,
    targets: dict[str, types.Params],
    aux: None,
    batch: types.Batch,
    key: types.Key,
    constants: types.Constants,
) -> tuple[jax.Array, tuple[None, types.Feedback]]:
    """Returns the loss of a batch whose data are `policy_loss.Rows`, and its metrics."""
    del targets, key  # The sampler drew the texts, and `_prepare` read the reference.
    c = context.config
    value, metrics = tuning.over_micro_batches(
        functools.partial(policy_loss.of_rows, context.objective, constants),
        params,
        batch.data,
        c.learning.micro_batches,
        together=c.texts_per_row,
    )
    return value, (aux, types.Feedback(metrics))


def _prepare(
    context: _Context,
    params: types.Params,
    targets: dict[str, types.Params],
    batch: types.Batch,
    constants: types.Constants,
) -> tuple[types.Batch, dict[str, jax.Array]]:
    """Returns the constants of the loss, such as advantages, and metrics of texts, [B] each.

    The batch's data are `rollouts.Episodes`, and `policy_loss.Rows` in the one returned.
    """
    c, metrics = context.config, {}
    batch = batch._replace(data=jax.tree.map(jnp.asarray, batch.data))
    is_kept = jnp.asarray(batch.weights) > 0  # Prompts whose rewards are missing weigh 0.
    if context.has_groups and (c.drop_equal or context.objective.has_ratios):
        is_equal = policy_gradient.has_equal(batch.data.rewards, c.samples_per_prompt)
        metrics["equal_rewards"] = is_equal.astype(jnp.float32)
        if c.drop_equal:
            is_kept = is_kept & ~is_equal
            rows = policy_gradient.unequal_first(~is_kept, c.samples_per_prompt)[: c.num_learnt]
            batch, is_kept = jax.tree.map(lambda x: jnp.asarray(x)[rows], (batch, is_kept))
    episodes, s = batch.data, batch.data.sequences
    log_pi, is_answer = episodes.log_probability[:, 1:], s.is_answer[:, 1:]
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
    old_log_pi = None
    if c.updates > 1 or c.correction != "none":
        old_log_pi = log_probabilities(context.model, params, s)
    # The policy whose distance is penalised and reported is the one that learns.
    policy_log_pi = old_log_pi if c.lag and old_log_pi is not None else log_pi
    log_ratio = jnp.where(is_answer, policy_log_pi - anchor, 0)
    metrics |= rollouts.text_metrics(s, context.model.config.eos_ids, c.samples_per_prompt)
    length, is_done = jnp.sum(is_answer, 1), metrics["truncated"] == 0
    rewards = policy_gradient.token_rewards(
        _scores(c, episodes.rewards, length, is_done), is_answer
    )
    if c.kl_placement == "reward":
        rewards = rewards - c.kl_coefficient * policy_gradient.kl_estimate(
            log_ratio, c.kl_estimator
        )
    is_active = is_answer & jnp.reshape(is_kept & (is_done | (not c.mask_truncated)), (-1, 1))
    weights = policy_gradient.token_weights(
        is_active, jnp.asarray(batch.weights), c.normalisation, c.learning.max_new_tokens
    )
    if old_log_pi is not None and c.correction != "none":
        corrected = surrogate.corrected(
            old_log_pi, log_pi, is_answer, c.correction, c.correction_limit
        )
        weights = weights * corrected.weights
        metrics["sampler_kl"] = corrected.sampler_kl
        metrics["sampler_ratio"] = jnp.max(corrected.largest)
        metrics["sampler_cut"] = policy_loss.text_mean(corrected.is_cut, is_answer)
    old_values = None
    if c.updates > 1 and context.has_value:
        old_values = value_network.predict(context.model, params, s)
    rows = policy_loss.Rows(
        sequences=s,
        # A minibatch is a share of the batch, whose sums its own stand for.
        weights=weights * c.minibatches,
        rewards=rewards,
        advantages=_advantages(context, rewards),
        reference_log_pi=anchor,
        old_log_pi=old_log_pi if c.updates > 1 else None,
        old_values=old_values,
    )
    return batch._replace(data=rows), metrics | {
        "kl_start": jnp.sum(jnp.where(is_answer, policy_log_pi - start, 0), 1),
        "kl_reference": jnp.sum(log_ratio, 1),
    }


def _scores(c: Config, rewards: jax.Array, length: jax.Array, is_done: jax.Array) -> jax.Array:
    """Returns rewards of texts less what their lengths cost, [B]."""
    scores = c.reward_weight * rewards - c.length_penalty * length
    if not c.overlong_fraction:
        return scores - c.truncation_penalty * ~is_done
    horizon = c.learning.max_new_tokens
    share = policy_gradient.overlong(length, horizon, c.overlong_fraction)
    return scores - c.truncation_penalty * jnp.where(is_done, share, 1)


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

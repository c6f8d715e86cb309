"""BOND: a policy learns the best of N samples of its anchor, by comparisons of rewards alone.

Sessa et al., "BOND: Aligning LLMs with Best-of-N Distillation", 2024,
https://arxiv.org/abs/2407.14622. With y a text of the policy pi, y_1 .. y_k texts of an anchor q to
the same prompt, and y* the best of the first N of them, a step descends the gradient of

    (1 - b) KL(best of N || pi)        by   - log pi(y*)
    + b KL(pi || best of N)            by   - log pi(y) (N - 1) (R - mean R of the other prompts)
    + gamma KL(pi || q)                by   + log pi(y) log (pi(y) / q(y)),

    R = log p(y) - beta log (pi(y) / q(y)),  beta = 1 / (N - 1)

where all factors of log pi(..) are constants, and log p(y) estimates the log-quantile of y among
the anchor's texts (`best_of_n.log_quantile` has it exactly):

    J-BOND     - log 16 if r(y) < min(r(y_1), r(y_2)), else 0, of N = k = 2 (section 5)
    counted    log of the share of y_1 .. y_k with a reward of at most r(y), 1 / (k + 1) or more

An anchor that is the start aims at the best of N of the start. One that is set to the policy every
so many steps (iterative BOND) or is a moving average of it (J-BOND) goes on from there: the best of
N of the best of N is that of N^2.

Shape letters: B texts, those of a prompt adjacent, the policy's first; P prompts; k anchor's texts
of each; T tokens.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from kullback.core import (
    learners,
    names,
    regularizers,
    sampling,
    sampling_ahead,
    sharding,
    types,
)
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
    shared_prompts,
    tuning,
)

__all__ = ["Config", "counted", "j_bond", "make", "policy_weights", "presets"]

ANCHOR = "anchor"  # Name of its parameters among targets, and among those that act.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of BOND; batch_size is a number of texts: prompts times 1 + k."""

    estimator: Literal["j-bond", "counted"] = "j-bond"  # Of a text's log-quantile.
    # N >= 2 of the distribution that is learnt. J-BOND: 2; iterative BOND: 2 and 4, with a fixed
    # anchor 4, 8 and 16 (the paper).
    best_of: int = 2
    # k >= N, texts of the anchor to each prompt. J-BOND: 2; the paper counts among 16.
    anchor_samples: int = 2
    backward_weight: float = 0.5  # b in [0, 1] of KL(pi || best of N); the paper's.
    # gamma >= 0 of KL(pi || anchor), beyond what R has of it. The paper compares 0, 0.5, 1 and 2.
    regularisation: float = 0.0
    # What the anchor is: an average of the policy (J-BOND), the policy as it was every so many
    # steps (iterative BOND), or the start.
    anchor: Literal["moving-average", "periodic", "fixed"] = "moving-average"
    # eta in (0, 1] of the average, per learner step. The paper's for Gemma 7B; faster ones, 0.05
    # and 0.1, gain reward and KL faster.
    anchor_rate: float = 0.02
    # Learner steps >= 1 between two copies of the policy. The paper's iterative BOND; it compares
    # J-BOND with copies every 50.
    anchor_period: int = 1_000
    temperature: float = 1.0  # > 0, of policy and anchor alike; the paper's.
    # Whether both texts of a prompt are one row of a gradient, which has the prompt once: the same
    # but for the order of sums, sooner where prompts are long (ours).
    share_prompts: bool = False
    # Step size and batch are ours: the paper has 128 prompts, 384 texts, and 3e-6 for Gemma 2B and
    # 7B. Its warm-up is 100 steps.
    learning: tuning.Config = tuning.Config(batch_size=48, learning_rate=1e-5, warmup_steps=100)

    def __post_init__(self) -> None:
        c = self
        if not 2 <= c.best_of <= c.anchor_samples:
            raise ValueError(
                f"best_of (N) must lie in [2, anchor_samples={c.anchor_samples}], got {c.best_of}"
            )
        if c.estimator not in ("j-bond", "counted"):
            raise ValueError(names.unknown("estimator", c.estimator, ("j-bond", "counted")))
        if c.estimator == "j-bond" and c.anchor_samples != 2:
            raise ValueError(
                f"estimator=j-bond compares with two texts, got anchor_samples={c.anchor_samples}; "
                "estimator=counted takes more"
            )
        if not 0 <= c.backward_weight <= 1:
            raise ValueError(f"backward_weight (b) must lie in [0, 1], got {c.backward_weight}")
        if not c.regularisation >= 0:
            raise ValueError(f"regularisation (gamma) must be >= 0, got {c.regularisation}")
        if not c.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {c.temperature}")
        anchor_rule(c)
        self._check_batch()
        c.learning.lora.check_sampling()
        if c.anchor == "moving-average" and c.learning.lora and not c.learning.lora.shared_a:
            raise ValueError(
                "anchor=moving-average averages policies, and the average of adapters is that of "
                "their factors only with one A: --set lora.shared_a=true"
            )

    def _check_batch(self) -> None:
        c, texts = self.learning, 1 + self.anchor_samples
        if c.batch_size % texts:
            raise ValueError(
                f"batch_size counts the policy's text and the anchor's {self.anchor_samples} of "
                f"each prompt, and must be a multiple of {texts}, got {c.batch_size}; the next is "
                f"{-(-c.batch_size // texts) * texts}"
            )
        if (c.batch_size // texts) % c.micro_batches:
            raise ValueError(
                f"micro_batches={c.micro_batches} must divide the {c.batch_size // texts} prompts "
                f"of batch_size={c.batch_size}"
            )
        if c.pack or c.reduction != "sequence":
            raise ValueError(
                "pack and reduction are of stored examples, and the loss here is of whole texts: "
                "leave pack=False and reduction=sequence"
            )

    @property
    def output_divergence(self) -> str:
        """Name of f of the policy's softargmax_f: KL, for softmax."""
        return "kl"

    @property
    def ahead(self) -> sampling_ahead.Ahead:
        """Texts are written as they are learnt from."""
        return sampling_ahead.NONE

    @property
    def penalty(self) -> tuple[str, float]:
        """Name and value of the setting that weighs the KL penalty."""
        return "regularisation", self.regularisation


def presets(family: str) -> Config:
    """Returns settings for "tokens": J-BOND."""
    del family
    return Config()


def j_bond(rewards: jax.Array, anchor_rewards: jax.Array) -> jax.Array:
    """Estimates log-quantiles by two texts: -log 16 where both are better, else 0; float, [P].

    A tie is no loss. With p the probability of a reward of at most r(y), and no ties, the
    expectation -(1 - p)^2 log 16 is log p at the median.

    Args:
      rewards: of the policy's texts, [P]; only comparisons enter.
      anchor_rewards: of the anchor's, [P, 2].
    """
    chex.assert_shape(anchor_rewards, (*rewards.shape, 2))
    return jnp.where(rewards < jnp.min(anchor_rewards, 1), -math.log(16.0), 0.0)


def counted(rewards: jax.Array, anchor_rewards: jax.Array) -> jax.Array:
    """Estimates log-quantiles by counting: log of the share of texts that are no better, [P].

    The paper prints the share itself; its equation 8, which this follows, has the logarithm. Where
    no text is as bad, which the paper leaves open, the share counts as 1 / (k + 1).

    Args:
      rewards: of the policy's texts, [P]; only comparisons enter.
      anchor_rewards: of the anchor's, [P, k].
    """
    chex.assert_rank([rewards, anchor_rewards], [1, 2])
    chex.assert_equal_shape_prefix([rewards, anchor_rewards], 1)
    share = jnp.mean(anchor_rewards <= rewards[:, None], 1)
    return jnp.log(jnp.maximum(share, 1 / (anchor_rewards.shape[1] + 1)))


ESTIMATORS = {"j-bond": j_bond, "counted": counted}


def policy_weights(
    log_quantiles: jax.Array, log_ratios: jax.Array, *, b: float, gamma: float, n: int
) -> jax.Array:
    """Returns the factors of log pi(y) that a step climbs, [P]; see the module for the equation.

        b (N - 1) (R - mean R of the others) - gamma log (pi(y) / q(y))

    The paper subtracts gradients of the last term instead of adding them (G_reg), which would climb
    the KL to the anchor; its objective (equation 19) adds the KL.

    Args:
      log_quantiles: estimates of log p(y), [P].
      log_ratios: log (pi(y) / q(y)) of the same texts, of the policy and the anchor before the
        step, nats, [P]. One prompt has no others: its mean is 0.
      b: weight of the backward KL, in [0, 1].
      gamma: weight of the KL to the anchor, >= 0.
      n: N >= 2.
    """
    chex.assert_rank([log_quantiles, log_ratios], 1)
    chex.assert_equal_shape([log_quantiles, log_ratios])
    returns = log_quantiles - log_ratios / (n - 1)
    if len(returns) > 1:
        returns = policy_gradient.leave_one_out(returns, len(returns))
    return b * (n - 1) * returns - gamma * log_ratios


class Compared(NamedTuple):
    """Comparisons of the texts of P prompts, and what a step makes of them."""

    best: jax.Array  # int32, [P]: which of the anchor's texts is the best; the first of equals.
    log_quantiles: jax.Array  # [P]: estimates of the policy's texts.
    weights: (
        jax.Array
    )  # [P, 2]: factors of log pi that a step climbs, of the policy's and the best.


def compared(c: Config, rewards: jax.Array, log_ratios: jax.Array) -> Compared:
    """Compares the texts of each prompt; of rewards nothing but their order enters.

    Args:
      c: hyper-parameters.
      rewards: [P, 1 + k], the policy's text first.
      log_ratios: log (pi(y) / q(y)) of the policy's texts, nats, [P].
    """
    chex.assert_shape(rewards, (*log_ratios.shape, 1 + c.anchor_samples))
    best = jnp.argmax(rewards[:, 1 : 1 + c.best_of], 1)
    log_quantiles = ESTIMATORS[c.estimator](rewards[:, 0], rewards[:, 1:])
    b, gamma = c.backward_weight, c.regularisation
    weights = policy_weights(log_quantiles, log_ratios, b=b, gamma=gamma, n=c.best_of)
    return Compared(best, log_quantiles, jnp.stack([weights, jnp.full_like(weights, 1 - b)], 1))


class _MicroBatch(NamedTuple):
    """The data of a micro-batch: of each prompt the policy's text and the anchor's best."""

    sequences: batches.Sequences  # [P, 2, T].
    weights: jax.Array  # [P, 2]: factors of their log-likelihoods in the loss, a sum.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
    """The settings and models that the losses share."""

    config: Config
    model: gemma.Model  # With adapters, if any.
    start: gemma.Model  # The same without them.

    @property
    def learnt(self) -> adapters.Learnt:
        """The learnt part of the parameters."""
        c = self.config.learning
        return adapters.Learnt(settings=c.lora, scheme=c.scheme)

    def actor_params(
        self,
        state: types.LearnerState,
        steps: types.Array,
        evaluate: bool,
        constants: types.Constants,
    ) -> dict[str, types.Params]:
        """Returns the parameters of the policy and, but for evaluations, of the anchor."""
        acting = self.learnt.actor_params(state, steps, evaluate, constants)
        if evaluate:
            return acting
        return {**acting, ANCHOR: self.learnt.acting(state.targets[ANCHOR], constants)}


def make(
    model: gemma.Model, config: Config | None = None, *, algorithm: Any = None
) -> types.Agent[rollouts.OnPolicy]:
    """Returns the BOND agent of `model`.

    The learner's constants are the parameters before learning (`start`; with adapters their
    `base`), which only a metric reads: of a fixed anchor the learner has a copy. A batch's data are
    `rollouts.Episodes` of the agent's policy, which writes by two sets of parameters. Metrics are
    means over prompts, of the policy's text: kl_start and kl_anchor are k1 of it, nats (the anchor
    is that before this step), log_quantile the estimate, won the share of the anchor's texts that
    are worse, a tie counting half; reward_anchor and reward_best are of the anchor's. See
    `rlhf.make` for the others.

    Args:
      model: the policy.
      config: hyper-parameters.
      algorithm: the agent's configuration, saved beside the results; None is `config`.
    """
    c = config or Config()
    context = _Context(config=c, model=adapters.adapted(model, c.learning.lora), start=model)
    draws = policy.Draws(1), policy.Draws(c.anchor_samples, ANCHOR)
    return types.Agent(
        policy=policy.of_sets(context.model, draws, sampling.Sampling(temperature=c.temperature)),
        learner=learners.sgd(
            init_params=context.model.init,
            loss=context.learnt.loss(functools.partial(_loss, context)),
            optimizer=tuning.optimizer(c.learning),
            targets={ANCHOR: anchor_rule(c)},
        ),
        actor_params=context.actor_params,
        experience=rollouts.OnPolicy(
            draws=draws,
            temperature=c.temperature,
            learnt_per_prompt=2,
            shares_prompts=c.share_prompts,
        ),
        config=algorithm or c,
    )


def anchor_rule(c: Config) -> learners.TargetRule:
    """Returns how the anchor follows the policy.

    Raises:
      ValueError: for an unknown name, or a rate or period that is none.
    """
    rules = {
        "moving-average": learners.moving_average(c.anchor_rate),
        "periodic": learners.periodic(c.anchor_period),
        "fixed": learners.fixed(),
    }
    if c.anchor not in rules:
        raise ValueError(names.unknown("anchor", c.anchor, rules, show_all=True))
    return rules[c.anchor]


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
    frozen = jax.lax.stop_gradient(params)
    data, text_metrics = _prepare(context, batch, frozen, targets[ANCHOR], constants)
    value, metrics = tuning.over_micro_batches(
        functools.partial(_micro_batch_loss, context),
        params,
        data,
        context.config.learning.micro_batches,
    )
    return value, (aux, types.Feedback(metrics | text_metrics))


def _prepare(
    context: _Context,
    batch: types.Batch,
    params: types.Params,
    anchor: types.Params,
    constants: types.Constants,
) -> tuple[_MicroBatch, dict[str, jax.Array]]:
    """Returns what is learnt from, with its weights, and metrics of the prompts, [P] each."""
    c, group = context.config, 1 + context.config.anchor_samples
    by_prompt = sharding.spread(
        jax.tree.map(
            lambda x: jnp.asarray(x).reshape(-1, group, *x.shape[1:]), batch.data.sequences
        )
    )
    rewards = jnp.asarray(batch.data.rewards).reshape(-1, group)
    s = jax.tree.map(lambda x: x[:, 0], by_prompt)
    # By one function, so that the ratio of equal parameters is 1 to the last bit.
    log_probabilities = functools.partial(
        answers.log_probabilities, temperature=c.temperature, chunk=c.learning.chunk
    )
    log_pi = log_probabilities(context.model, params, s)
    start_params = constants.base if c.learning.lora else constants.start
    log_ratios = jnp.sum(log_pi - log_probabilities(context.model, anchor, s), 1)
    kl_start = jnp.sum(log_pi - log_probabilities(context.start, start_params, s), 1)
    best, log_quantiles, weights = compared(c, rewards, log_ratios)
    places = jnp.stack([jnp.zeros_like(best), 1 + best], 1)  # [P, 2]
    chosen = jax.tree.map(
        lambda x: jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), 1),
        by_prompt,
    )
    weights = weights * jnp.asarray(batch.weights).reshape(-1, group)[:, :1] / len(weights)
    policy_rewards, anchor_rewards = rewards[:, 0], rewards[:, 1:]
    by_text = rollouts.text_metrics(batch.data.sequences, context.model.config.eos_ids, group)
    metrics = {
        "kl_start": kl_start,
        "kl_anchor": log_ratios,
        "log_quantile": log_quantiles,
        "won": jnp.mean((1 + jnp.sign(policy_rewards[:, None] - anchor_rewards)) / 2, 1),
        "reward_anchor": jnp.mean(anchor_rewards, 1),
        "reward_best": jnp.take_along_axis(anchor_rewards, best[:, None], 1)[:, 0],
        "diversity": by_text["diversity"],
        **{name: by_text[name][::group] for name in ("answer_tokens", "truncated")},
    }
    return _MicroBatch(chosen, weights), metrics


def _micro_batch_loss(
    context: _Context, params: types.Params, data: _MicroBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a micro-batch's summand of the loss, [], and metrics of the policy's texts, [P]."""
    c = context.config
    s = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data.sequences)
    texts = 2 if c.share_prompts else 1
    model = shared_prompts.model(context.model, texts, c.learning.max_new_tokens)
    features, head = model.with_head(params, s.tokens, s.positions, s.segments, **s.senses)
    features, labels, is_answer = distillation.align(features, s.tokens, s.is_answer)
    weights = jnp.where(is_answer, data.weights.reshape(-1, 1), 0)
    value, entropy = chunked.weighted_loss(
        functools.partial(_token_loss, c.temperature),
        weights.reshape(-1),
        chunked.Head(
            model.unembed,
            head,
            features.reshape(-1, features.shape[-1]),
            is_frozen=bool(c.learning.lora),
        ),
        labels.reshape(-1),
        chunk=c.learning.chunk,
        is_answer=is_answer.reshape(-1),
    )
    of_text = jnp.sum(entropy.reshape(labels.shape), 1) / jnp.maximum(jnp.sum(is_answer, 1), 1)
    return value, {"entropy": of_text.reshape(-1, 2)[:, 0]}


def _token_loss(
    temperature: float, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns negative log-probabilities of tokens, and entropies, [n] each."""
    theta = regularizers.promote(logits) / temperature
    losses = -sampling.log_probability(theta, labels)
    return losses, regularizers.entropy(jax.lax.stop_gradient(theta))

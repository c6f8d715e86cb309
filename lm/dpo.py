"""Direct preference optimisation (DPO): a policy learns from pairs, without a reward model.

Rafailov et al., NeurIPS 2023, https://arxiv.org/abs/2305.18290; with any f-divergence, Wang et al.,
ICLR 2024, https://arxiv.org/abs/2309.16240. The policy that maximises E[r] - beta D_f(pi || ref)
has r(x, y) = beta f'(pi / ref) + c(x) where no probability is 0, so that a policy is a reward
model, too, and learns a pair of answers to x, of which y+ was chosen, by Bradley and Terry's loss:

    h(x, y) = f'(pi(y | x) / ref(y | x)),  d = h(x, y+) - h(x, y-)
    loss = -ln sigmoid(beta d)

f is that of KL in DPO, h = ln pi - ln ref, sums over the tokens of the answer and its end. Other
losses of d, `pair_losses`, take wrong labels into account, or stop at a margin.

Shape letters: B pairs, T tokens of a row, D features, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from kullback.core import learners, regularizers, types
from kullback.lm import (
    adapters,
    answers,
    batches,
    chunked,
    distillation,
    gemma,
    policy,
    preferences,
    shared_prompts,
    tuning,
)

__all__ = ["Config", "Objective", "make", "presets"]

Loss = Literal["sigmoid", "robust", "ipo", "ipo-mean", "hinge"]
REFERENCE = "reference"  # Name of the parameters of a reference that follows the policy.
FAR = 40.0  # Nats beyond which f' of a ratio goes on along its tangent.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss of pairs of answers, and its reference."""

    # Loss of d: "sigmoid", DPO's; "robust" against labels of which a share is wrong; "ipo";
    # "ipo-mean", IPO with the mean of the log-ratio over tokens in place of its sum, as TRL has it;
    # "hinge", SLiC's.
    loss: Loss = "sigmoid"
    # beta > 0, in units of reward a nat: the weight of the divergence; TRL's. For IPO it is tau, of
    # which the margin is 1 / (2 tau).
    beta: float = 0.1
    # Share in [0, 1/2) of labels that are taken to be wrong, by "sigmoid" and "robust".
    label_smoothing: float = 0.0
    # f of the divergence from the reference, by a name of core/divergences.py: "kl" is DPO's
    # KL(pi || ref), "reverse_kl" is KL(ref || pi). Not for IPO.
    divergence: str = "kl"
    # Weight >= 0 of the chosen answer's negative log-likelihood, nats a token (RPO; its paper: 1).
    nll_weight: float = 0.0
    # Reference: "fixed", the policy before it learns, or one that follows it, "moving" (TR-DPO).
    reference: Literal["fixed", "moving"] = "fixed"
    # Share in (0, 1] of the policy in a moving reference, each time that it moves; TRL's. At 1 it
    # is a copy.
    reference_rate: float = 0.6
    reference_period: int = 512  # Learner steps >= 1 from one move to the next; TRL's.

    def __post_init__(self) -> None:
        for name, kind in (("loss", Loss), ("reference", Literal["fixed", "moving"])):
            distillation.check_choice(name, getattr(self, name), kind)
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}; 0.1 is usual")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 1/2), got {self.label_smoothing}")
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(
                f"label_smoothing={self.label_smoothing} is of loss=sigmoid and robust, and "
                f"{self.loss} has none: leave it 0"
            )
        if not self.nll_weight >= 0:
            raise ValueError(f"nll_weight must be >= 0, got {self.nll_weight}")
        self.check_divergence()
        self.rule()

    def check_divergence(self) -> None:
        """Raises ValueError for a divergence by which a policy is no reward model."""
        f = self.f
        if f.is_sparse:
            raise ValueError(
                f"divergence={self.divergence} has a finite f'(0), so that the best policy may "
                "give answers the probability 0, and then its rewards are not those of f'(pi / "
                "ref); kl, reverse_kl, jeffreys, gan, jensen_shannon, hellinger and alpha-A with "
                "A < 1 do not"
            )
        if self.loss.startswith("ipo") and f is not regularizers.kl:
            raise ValueError(
                f"loss={self.loss} is of log-ratios, divergence=kl, got {self.divergence!r}"
            )

    @property
    def f(self) -> regularizers.Divergence:
        """The divergence from the reference."""
        return regularizers.named(self.divergence)

    def rule(self) -> learners.TargetRule:
        """Returns how a moving reference follows the policy."""
        average = learners.moving_average(self.reference_rate)
        return learners.every(self.reference_period, average)

    @property
    def targets(self) -> dict[str, learners.TargetRule]:
        """The reference's rule, if it moves."""
        return {REFERENCE: self.rule()} if self.reference == "moving" else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of DPO; batch_size is a number of pairs."""

    objective: Objective = Objective()  # Loss and reference.
    corruption: float = 0.0  # Share of training pairs whose label is swapped, to study robustness.
    # Whether both answers are one row of a learner step, which has the prompt once: the same but
    # for the order of sums, sooner where prompts are long (ours).
    share_prompts: bool = False
    # The default rate is for some millions of parameters. `reduction` is not used: each loss says
    # how tokens count.
    learning: tuning.Config = tuning.Config(learning_rate=1e-5)

    def __post_init__(self) -> None:
        preferences.is_swapped(0, self.corruption, 0)
        check_learning(self.objective, self.learning)
        if self.share_prompts and self.learning.lora.dropout:
            raise ValueError(
                "share_prompts computes a prompt once, and lora.dropout draws for each answer: "
                "lora.dropout=0"
            )

    @property
    def output_divergence(self) -> str:
        """Name of f of the policy's softargmax_f: KL, for softmax."""
        return "kl"


def check_learning(objective: Objective, learning: tuning.Config) -> None:
    """Raises ValueError for settings of learning that do not go with pairs or a reference."""
    if learning.pack:
        raise ValueError("a loss of pairs is of whole answers: pack must be False")
    is_mean = objective.reference == "moving" and objective.reference_rate < 1
    if is_mean and learning.lora and not learning.lora.shared_a:
        raise ValueError(
            "reference=moving averages policies, and the average of adapters is that of their "
            "factors only with one A: --set lora.shared_a=true, or reference_rate=1"
        )


class Scores(NamedTuple):
    """Log-probabilities of B answers, sums over their tokens; [B] each."""

    log_pi: jax.Array  # Under the policy, nats.
    log_reference: jax.Array  # Under the reference.
    num_tokens: jax.Array  # Tokens of an answer with its end.


class Referred(NamedTuple):
    """A batch's data: pairs, with what a fixed reference says of them."""

    pairs: preferences.Pairs
    # Log-probabilities of chosen and rejected answers under the reference, float32 [B, 2]; None if
    # the reference moves, and is among the learner's targets.
    log_reference: types.Array | None


def implicit_rewards(log_ratio: jax.Array, divergence: regularizers.Divergence) -> jax.Array:
    """Returns h = f'(pi / ref) of ln(pi / ref), [...], in nats for KL.

    Beyond `FAR` nats it goes on along its tangent: f' of the ratio of a long text may be no float,
    and a gradient of 0 would never bring the text back.
    """
    near = jnp.clip(log_ratio, -FAR, FAR)
    value, beyond = jax.jvp(divergence.derivative_of_log, (near,), (log_ratio - near,))
    return value + beyond


def pair_losses(d: jax.Array, loss: Loss, *, beta: float, smoothing: float = 0.0) -> jax.Array:
    """Returns the loss of each difference d = h+ - h-, [...].

        sigmoid     -(1 - e) ln s(beta d) - e ln s(-beta d)
        robust      [-(1 - e) ln s(beta d) + e ln s(-beta d)] / (1 - 2 e)
        ipo         (d - 1 / (2 beta))^2
        hinge       max(0, 1 - beta d)

    s is the sigmoid. "robust" (Chowdhury, Kini & Natarajan 2024, https://arxiv.org/abs/2403.00409)
    is unbiased: if a share e of labels is swapped by chance, its mean is the loss without. IPO:
    Azar et al. 2023, https://arxiv.org/abs/2310.12036; hinge: Zhao et al. 2023,
    https://arxiv.org/abs/2305.10425.

    Args:
      d: float, [...].
      loss: name; "ipo-mean" is "ipo", of another d.
      beta: > 0.
      smoothing: e in [0, 1/2).
    """
    if loss in ("ipo", "ipo-mean"):
        return (d - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return jax.nn.relu(1 - beta * d)
    right, wrong = jax.nn.softplus(-beta * d), jax.nn.softplus(beta * d)
    if loss == "robust":
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    return (1 - smoothing) * right + smoothing * wrong


def differences(objective: Objective, chosen: Scores, rejected: Scores) -> jax.Array:
    """Returns d = h+ - h- of each pair, [B]; of "ipo-mean" the h are means over tokens."""
    chex.assert_rank([*chosen, *rejected], 1)
    chex.assert_equal_shape([*chosen, *rejected])

    def h(scores: Scores) -> jax.Array:
        log_ratio = scores.log_pi - scores.log_reference
        if objective.loss == "ipo-mean":
            return log_ratio / scores.num_tokens
        return implicit_rewards(log_ratio, objective.f)

    return h(chosen) - h(rejected)


def losses(
    objective: Objective, chosen: Scores, rejected: Scores
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of each pair, [B], with the chosen answer's, and metrics, [B] each."""
    d = differences(objective, chosen, rejected)
    value = pair_losses(d, objective.loss, beta=objective.beta, smoothing=objective.label_smoothing)
    value = value - objective.nll_weight * chosen.log_pi / chosen.num_tokens
    return value, {
        "implicit_accuracy": (jnp.sign(d) + 1) / 2,
        "margin": objective.beta * d,
        "chosen_log_probability": chosen.log_pi,
        "rejected_log_probability": rejected.log_pi,
    }


def presets(family: str) -> Config:
    """Returns settings for "tokens"."""
    del family
    return Config()


def make(model: gemma.Model, config: Config | None = None) -> types.Agent[tuning.Mixture]:
    """Returns the agent that learns from batches of `Referred`.

    With adapters the base's parameters are the learner's constant `base`. No reference is kept in
    memory but a moving one, the target `REFERENCE`. Metrics are means over pairs: `margin` is
    beta d, and a pair is right if it is > 0, a tie by half.

    Args:
      model: the policy.
      config: hyper-parameters.
    """
    c = config or Config()
    context = Context(model=adapters.adapted(model, c.learning.lora), start=model, config=c)
    return types.Agent(
        policy=policy.language_model(context.model),
        learner=context.learner(_prepare if c.objective.targets else None),
        actor_params=context.learnt.actor_params,
        experience=tuning.Mixture(),
        config=c,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The model and settings that losses of pairs share."""

    model: gemma.Model  # With adapters, if any.
    start: gemma.Model  # The same without them.
    config: Any  # Has an `objective`, `learning` and `share_prompts`.

    @property
    def learnt(self) -> adapters.Learnt:
        """The learnt part of the policy's parameters."""
        c = self.config.learning
        return adapters.Learnt(settings=c.lora, scheme=c.scheme)

    def of_pairs(self, model: gemma.Model) -> gemma.Model:
        """Returns a model whose full pass takes the answers to a prompt by turns."""
        texts, learning = 2 if self.config.share_prompts else 1, self.config.learning
        return shared_prompts.model(model, texts, learning.max_new_tokens)

    def learner(self, prepare: Callable[..., Any] | None) -> types.Learner:
        """Returns the learner of batches of `Referred`.

        Args:
          prepare: (context, whole parameters, targets, batch, constants) -> such a batch, and
            metrics of it; None: it is one already.
        """
        of_whole = None if prepare is None else functools.partial(prepare, self)
        return learners.sgd(
            init_params=self.model.init,
            loss=self.learnt.loss(functools.partial(_loss, self)),
            optimizer=tuning.optimizer(self.config.learning),
            targets=self.config.objective.targets,
            prepare=None if of_whole is None else self.learnt.prepare(of_whole),
        )


def log_probabilities(
    model: gemma.Model, params: types.Params, rows: batches.Sequences, chunk: int
) -> jax.Array:
    """Returns ln pi(y | x), sums over the tokens of each answer, float32 [B]; no gradient.

    Args:
      model, params: of the policy or a reference.
      rows: prompts with answers, [B, T].
      chunk: tokens whose logits are in memory at a time.
    """
    return jnp.sum(answers.log_probabilities(model, params, rows, chunk=chunk), 1)


def of_both(
    context: Context, model: gemma.Model, params: types.Params, pairs: preferences.Pairs
) -> jax.Array:
    """Returns log-probabilities of chosen and rejected answers under a model, float32 [B, 2]."""
    rows, chunk = _interleaved(pairs), context.config.learning.chunk
    return log_probabilities(context.of_pairs(model), params, rows, chunk).reshape(-1, 2)


def _prepare(
    context: Context,
    params: types.Params,
    targets: dict[str, types.Params],
    batch: types.Batch,
    constants: types.Constants,
) -> tuple[types.Batch, dict[str, jax.Array]]:
    """Returns a batch with the log-probabilities of the reference before this step's update."""
    del params, constants
    pairs = batch.data.pairs
    log_reference = of_both(context, context.model, targets[REFERENCE], pairs)
    return batch._replace(data=Referred(pairs, log_reference)), {}


def _loss(
    context: Context,
    params: types.Params,
    targets: dict[str, types.Params],
    aux: None,
    batch: types.Batch,
    key: types.Key,
    constants: types.Constants,
) -> tuple[jax.Array, tuple[None, types.Feedback]]:
    """Returns the mean loss of a batch of B pairs, whose data are `Referred`, and its metrics."""
    del targets, constants
    weights = jnp.asarray(batch.weights)
    keys = jax.random.split(key, 2 * len(weights)).reshape(-1, 2)  # Of dropout, one an answer.
    value, metrics = tuning.over_micro_batches(
        functools.partial(_micro_batch_loss, context),
        params,
        (batch.data, weights / len(weights), keys),
        context.config.learning.micro_batches,
    )
    return value, (aux, types.Feedback(metrics))


def _interleaved(pairs: preferences.Pairs) -> batches.Sequences:
    """Returns chosen and rejected answers by turns, [2 B, T]: a mesh that cuts pairs cuts these."""
    return jax.tree.map(
        lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:]), pairs.chosen, pairs.rejected
    )


def _micro_batch_loss(
    context: Context,
    params: types.Params,
    data: tuple[Referred, jax.Array, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a micro-batch's summand of the loss, [], and metrics of its pairs, [B] each.

    The weight of a token's log-probability is known once those of both answers are. So the head is
    read twice, a chunk of logits in memory at a time: for the answers, and for the gradient.
    """
    (pairs, log_reference), weights, keys = data
    learning, objective = context.config.learning, context.config.objective
    model, rows = context.of_pairs(context.model), _interleaved(pairs)
    row_keys = None
    if learning.lora.dropout:
        row_keys = keys.reshape(-1)
    inputs = rows.tokens, rows.positions, rows.segments, row_keys
    features, head = model.with_head(params, *inputs, **rows.senses)
    features, labels, is_answer = distillation.align(
        features, jnp.asarray(rows.tokens), jnp.asarray(rows.is_answer)
    )
    flat = features.reshape(-1, features.shape[-1])
    student = chunked.Head(model.unembed, head, flat, is_frozen=bool(learning.lora))
    # Stopped here: what is behind would be linearised for nothing.
    frozen = chunked.Head(model.unembed, *jax.lax.stop_gradient((head, flat)))
    given = {"chunk": learning.chunk, "is_answer": is_answer.reshape(-1)}
    measured = chunked.token_losses(_measures, frozen, labels.reshape(-1), **given)
    log_pi, entropy = (jnp.sum(x.reshape(labels.shape), 1) for x in measured)
    counts = jnp.sum(is_answer, 1)

    def total(log_pi: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        scores = Scores(log_pi, jnp.asarray(log_reference).reshape(-1), counts)
        chosen, rejected = (Scores(*(x[n::2] for x in scores)) for n in (0, 1))
        values, metrics = losses(objective, chosen, rejected)
        return jnp.sum(weights * values), metrics

    (value, metrics), slopes = jax.value_and_grad(total, has_aux=True)(log_pi)
    by_token = jnp.where(is_answer, slopes[:, None], 0)
    linear, _ = chunked.weighted_loss(
        lambda logits, labels: (answers.log_probability(logits, labels, 1.0), ()),
        by_token.reshape(-1),
        student,
        labels.reshape(-1),
        **given,
    )
    # Its gradient is that of the loss, by the chain rule, and its value is none.
    entropy = jnp.mean((entropy / jnp.maximum(counts, 1)).reshape(-1, 2), 1)
    return value + linear - jax.lax.stop_gradient(linear), metrics | {"entropy": entropy}


def _measures(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log-probabilities of tokens, and entropies, [n] each."""
    return answers.log_probability(logits, labels, 1.0), regularizers.entropy(logits)

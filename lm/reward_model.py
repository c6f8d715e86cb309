"""Reward models of preferences: a linear head on a decoder's features of the last token.

Bradley & Terry 1952, with the reward model of Stiennon et al. 2020, "Learning to summarize from
human feedback", https://arxiv.org/abs/2009.01325: of two answers to x the one y+ was chosen,

    r(x, y) = w . h(last token of (x, y)) + b
    loss = -ln sigmoid(r(x, y+) - r(x, y-))

The loss does not depend on b, so rewards have an arbitrary offset, which `centred` may set. Any
network with features [B, D] may take the place of the decoder (`on_features`).

Shape letters: B pairs or rows, T tokens of a row, D features, N pairs of a data set.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import learners, sharding, types
from kullback.environments import tokens
from kullback.lm import adapters, batches, completions, gemma, tuning

__all__ = [
    "Config",
    "Model",
    "bradley_terry",
    "make",
    "on_decoder",
    "on_features",
    "presets",
    "probe",
]

BINS = 10  # Number of bins of `calibration`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of a reward model."""

    dropout: float = 0.05  # Rate on features in [0, 1), in training; WARM draws 0.05 or 0.1.
    margin: float = 0.0  # Margin >= 0 by which the chosen answer's reward should be the larger.
    # Parameters that are trained; "head" is linear probing by gradient steps.
    trains: Literal["all", "head"] = "all"
    # Pairs on whose features, computed once, the head is fitted before the first step (WARM's
    # linear probing); 0 starts with a head of zeros. A model that has a head keeps it.
    probe_pairs: int = 1_024
    probe_penalty: float = 0.01  # Weight > 0 of the head's squared norm, for a unique solution.
    corruption: float = 0.0  # Share of training pairs whose label is swapped, to study robustness.
    # Settings of the optimiser and batches; WARM draws a learning rate of 1e-5, 4e-5 or 1e-4.
    # `reduction` and `chunk` concern token-level losses, and are not used.
    learning: tuning.Config = tuning.Config(learning_rate=4e-5)

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}; WARM's is 0.05")
        if not 0 <= self.corruption <= 1:
            raise ValueError(f"corruption must lie in [0, 1], got {self.corruption}")
        if not self.margin >= 0:
            raise ValueError(f"margin must be >= 0, got {self.margin}")
        if self.trains not in ("all", "head"):
            raise ValueError(f"trains must be all or head, got {self.trains!r}")
        if self.probe_pairs < 0:
            raise ValueError(f"probe_pairs must be >= 0 (0 is no probing), got {self.probe_pairs}")
        if not self.probe_penalty > 0:
            raise ValueError(
                f"probe_penalty must be > 0, got {self.probe_penalty}: of pairs that a head tells "
                "apart wholly there would be no best one"
            )
        if self.learning.lora and self.trains == "head":
            raise ValueError(
                f"trains=head leaves no use for lora.rank={self.learning.lora.rank}: take rank 0"
            )
        if self.learning.scheme:
            raise ValueError(
                "a reward model computes in float32: quantize and quantize_table must be none"
            )
        if self.learning.pack:
            raise ValueError("a reward is of a whole row: pack must be False")


class Model(NamedTuple):
    """A reward model as pure functions; inputs are `batches.Sequences` for a language model.

    Parameters are {"decoder": of the network of features, "head": {"w": [D], "b": []}}; for a
    language model the decoder's tree is the language model's.
    """

    init: Callable[[types.Key], types.Params]  # key -> parameters, with a head of zeros.
    # (decoder's parameters, inputs) -> float32 [B, D]; keys [B] follow for adapters with dropout.
    features: Callable[..., jax.Array]
    # (all parameters, inputs) -> float32 [B], without dropout.
    rewards: Callable[[types.Params, Any], jax.Array]


def on_features(
    init: Callable[[types.Key], types.Params],
    features: Callable[..., jax.Array],
    width: int,
) -> Model:
    """Returns the reward model on any network's features.

    Args:
      init: key -> parameters of the network.
      features: (parameters, inputs) -> float32 [B, D].
      width: D.
    """

    def rewards(params: types.Params, inputs: Any) -> jax.Array:
        return apply_head(params["head"], features(params["decoder"], inputs))

    return Model(lambda key: with_head(init(key), width), features, rewards)


def on_decoder(model: gemma.Model) -> Model:
    """Returns the reward model on a language model's last token; padding may be on either side."""

    def features(
        params: types.Params, sequences: batches.Sequences, keys: types.Key | None = None
    ) -> jax.Array:
        inputs = sequences.tokens, sequences.positions, sequences.segments, keys
        token_features = model.features(params, *inputs, **sequences.senses)
        is_token = jnp.asarray(sequences.segments) > 0  # [B, T]
        last = is_token.shape[1] - 1 - jnp.argmax(is_token[:, ::-1], 1)
        last_features = jnp.take_along_axis(token_features, last[:, None, None], axis=1)[:, 0]
        return last_features.astype(jnp.float32)

    return on_features(model.init, features, model.config.embed_dim)


def with_head(decoder: types.Params, width: int) -> types.Params:
    """Returns parameters of a trained decoder and a head of zeros, [D] with D = `width`."""
    return {"decoder": decoder, "head": {"w": jnp.zeros(width), "b": jnp.zeros(())}}


def centred(params: types.Params, mean_reward: types.Array) -> types.Params:
    """Returns parameters whose rewards are lower by `mean_reward`, []; the loss stays the same."""
    head = params["head"]
    return {**params, "head": {**head, "b": head["b"] - mean_reward}}


def apply_head(head: types.Params, features: jax.Array) -> jax.Array:
    """Returns the rewards w . h + b of features h, [..., D] -> [...], float32."""
    return jnp.einsum("...d,d->...", features, head["w"]) + head["b"]


def bradley_terry(
    chosen: jax.Array, rejected: jax.Array, margin: float | jax.Array = 0.0
) -> jax.Array:
    """Returns the Bradley-Terry loss -ln sigmoid(r+ - r- - margin) of each pair, nats, [...].

    Args:
      chosen, rejected: r+ and r-, [...], of one shape.
      margin: by which r+ should exceed r-; [], or one for each pair.
    """
    return jax.nn.softplus(margin - (chosen - rejected))


def accuracy(margins: types.Array) -> np.ndarray:
    """Returns 1 where r+ - r- > 0, 1/2 where it is 0, else 0; float64 [n].

    A model that gives all answers the same reward thus has an accuracy of 1/2.
    """
    return (np.sign(np.asarray(margins, np.float64)) + 1) / 2


class Bin(NamedTuple):
    """A bin of the reliability diagram, of pairs with confidence in [low, high).

    Confidence is the larger of the probabilities of the two answers.
    """

    low: float
    high: float
    pairs: int  # Number of pairs.
    confidence: float  # Mean over the pairs; NaN without any.
    accuracy: float  # The same.


def calibration(margins: types.Array) -> tuple[float, list[Bin]]:
    """Returns the expected calibration error of the preferred answer, and its reliability diagram.

        sum_k n_k / n |accuracy_k - confidence_k|,  confidence = sigmoid(|r+ - r-|)

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 5,
    https://arxiv.org/abs/1706.04599: ten bins of equal width, here of [1/2, 1], the range of the
    larger of two probabilities. Ties have an accuracy of 1/2.

    Args:
      margins: r+ - r-, [n], n >= 1.
    """
    margins = np.asarray(margins, np.float64)
    confidence, is_right = 1 / (1 + np.exp(-np.abs(margins))), accuracy(margins)
    edges = np.linspace(0.5, 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS - 1)
    table, error = [], 0.0
    for k in range(BINS):
        inside, means = bins == k, (float("nan"),) * 2
        if inside.any():
            means = float(confidence[inside].mean()), float(is_right[inside].mean())
            error += inside.mean() * abs(means[1] - means[0])
        table.append(Bin(float(edges[k]), float(edges[k + 1]), int(inside.sum()), *means))
    return float(error), table


def probe(chosen: types.Array, rejected: types.Array, penalty: float) -> types.Params:
    """Fits a head to frozen features (linear probing), by L-BFGS in float64.

        argmin_w mean softplus(-w . (h+ - h-)) + penalty / 2 |w|^2

    The problem is strictly convex, so that neither the start nor the order of the pairs matters.

    Args:
      chosen, rejected: features h+ and h-, [N, D].
      penalty: > 0.

    Returns:
      {"w": float32 [D], "b": 0}.
    """
    import scipy.optimize  # Late: whoever reads a model would wait for it.

    differences = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = differences @ w
        value = np.mean(np.logaddexp(0, -margins)) + penalty / 2 * (w @ w)
        slope = -np.exp(-np.logaddexp(0, margins)) / len(margins)
        return float(value), slope @ differences + penalty * w

    result = scipy.optimize.minimize(
        loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B", tol=1e-9
    )
    return {"w": jnp.asarray(result.x, jnp.float32), "b": jnp.zeros(())}


def learner(
    model: Model,
    config: Config,
    *,
    dropout: float | jax.Array | None = None,
    rate_scale: float | jax.Array = 1.0,
) -> types.Learner:
    """Returns the learner from batches of `preferences.Pairs`, or any (chosen, rejected) inputs.

    Args:
      model: on any features; one with adapters if the settings have some.
      config: settings.
      dropout: rate in place of the configuration's.
      rate_scale: factor of the learning rate. Both may be traced, so that members of a population
        share a program.
    """
    dropout_rate = config.dropout if dropout is None else dropout
    trains_head = config.trains == "head"

    def micro_batch_loss(params: types.Params, data: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        pairs, weights, keys = data
        # One pass of the network for both answers.
        inputs = sharding.spread(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pairs))
        answer_keys = jax.vmap(jax.random.split, out_axes=1)(keys).reshape(-1)
        row_keys = ()
        if config.learning.lora.dropout:  # Apart from those of the features.
            row_keys = (jax.vmap(lambda key: jax.random.fold_in(key, 1))(answer_keys),)
        features = model.features(params["decoder"], inputs, *row_keys)
        if trains_head:
            features = jax.lax.stop_gradient(features)
        features = _dropout(features, answer_keys, dropout_rate)
        chosen, rejected = jnp.split(apply_head(params["head"], features), 2)
        losses = bradley_terry(chosen, rejected, config.margin)
        value = jnp.sum(weights * losses) / config.learning.batch_size
        margins = jax.lax.stop_gradient(chosen - rejected)
        is_right = (jnp.sign(margins) + 1) / 2
        metrics = {
            "accuracy": is_right,
            "margin": margins,
            "reward_mean": jax.lax.stop_gradient(chosen + rejected) / 2,
            # Confidence minus accuracy: 0 on average for a calibrated model.
            "overconfidence": jax.nn.sigmoid(jnp.abs(margins)) - is_right,
        }
        return value, metrics

    def loss(
        params: types.Params,
        targets: dict[str, types.Params],
        aux: None,
        batch: types.Batch,
        key: types.Key,
        constants: types.Constants,
    ) -> tuple[jax.Array, tuple[None, types.Feedback]]:
        del targets, constants
        keys = jax.random.split(key, batch.weights.shape[0])  # One a pair.
        data = tuple(batch.data), batch.weights, keys
        value, metrics = tuning.over_micro_batches(
            micro_batch_loss, params, data, config.learning.micro_batches
        )
        return value, (aux, types.Feedback(metrics))

    optimizer = optax.chain(tuning.optimizer(config.learning), optax.scale(rate_scale))
    if trains_head:
        optimizer = optax.partition(
            {"learnt": optimizer, "frozen": optax.set_to_zero()},
            {"decoder": "frozen", "head": "learnt"},
        )
    of_learnt = learnt(config).loss(loss)
    return learners.sgd(init_params=model.init, loss=of_learnt, optimizer=optimizer)


def learnt(config: Config) -> adapters.Learnt:
    """Returns what is learnt of a reward model: with adapters, these and the head."""
    return adapters.Learnt(
        settings=config.learning.lora, frozen=lambda decoder: {"decoder": decoder}
    )


def presets(family: str) -> Config:
    """Returns settings for "tokens"."""
    del family
    return Config()


def make(model: gemma.Model, config: Config | None = None) -> types.Agent[None]:
    """Returns the agent that learns a reward model on a decoder from `preferences.Pairs`.

    With adapters the decoder's parameters are the learner's constant `base`.

    `actor_params` are {"params": of the reward model}, to score answers; its policy raises.
    """
    config = config or Config()

    def refuse(*arguments: Any) -> Any:
        raise ValueError("a reward model judges what others write: it has no policy")

    return types.Agent(
        policy=types.Policy(refuse, refuse),
        learner=learner(on_decoder(adapters.adapted(model, config.learning.lora)), config),
        actor_params=learnt(config).actor_params,
        experience=None,
        config=config,
    )


def scorer(model: Model, params: types.Params, name: str = "reward-model") -> tokens.Scorer:
    """Returns the scorer of whole texts, computed inside the program that samples them.

    Args:
      model: on a decoder with the tokenizer of the sampled model.
      params: an argument of that program, in no checkpoint.
      name: for messages.
    """

    def score(params: types.Params, completion: tokens.Completion, context: Any) -> jax.Array:
        return model.rewards(params, joined(completion, context))

    return tokens.Scorer(name, score, params)


def joined(completion: tokens.Completion, context: Any) -> batches.Sequences:
    """Joins prompts and their completions to rows.

    Args:
      completion: [B, T].
      context: `batches.Prompts`, or a tuple that begins with them.

    Raises:
      ValueError: for another context.
    """
    prompts = context
    if not isinstance(context, batches.Prompts) and isinstance(context, tuple) and context:
        prompts = context[0]
    if not isinstance(prompts, batches.Prompts):
        raise ValueError(
            f"a reward model reads (prompts, ...) as its context, got {type(context).__name__}"
        )
    return completions.joined(prompts, completion)


def _dropout(features: jax.Array, keys: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Applies dropout to features [B, D], with a key for each row."""
    keeps = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, features.shape[1:]))(keys)
    return jnp.where(keeps, features / (1 - rate), 0)

"""Reward models of preferences: a linear head on what a decoder makes of an answer's last token.

Bradley & Terry 1952, with the reward model of Stiennon et al. 2020, "Learning to summarize from
human feedback", https://arxiv.org/abs/2009.01325: of two answers to x the one y+ was chosen,

    r(x, y) = w . h(last token of (x, y)) + b
    loss = -ln sigmoid(r(x, y+) - r(x, y-))

A pair says nothing of b, whose gradient is 0: rewards have an offset that `centred` may choose.
Anything that gives features [B, D] may stand for the decoder (`on_features`).

Shape letters: B pairs or rows, T tokens of a row, D features, N pairs of a data set.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from kullback.core import learners, types
from kullback.environments import tokens
from kullback.lm import batches, completions, gemma, tuning

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

BINS = 10  # Of `calibration`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of a reward model."""

    dropout: float = 0.05  # Of features, in [0, 1); WARM draws 0.05 or 0.1. None when scoring.
    margin: float = 0.0  # By which the reward that was chosen should exceed the other, >= 0.
    # "head" is linear probing by gradient steps: the decoder stays as it was.
    trains: Literal["all", "head"] = "all"
    # Pairs on whose features, computed once, the head is fitted before the first step (WARM's
    # linear probing); 0 starts at 0. Not of a model that brings its head.
    probe_pairs: int = 1_024
    probe_penalty: float = 0.01  # > 0, of the head's squared norm; the fit has one solution.
    corruption: float = 0.0  # Share of training pairs whose label is swapped, to study robustness.
    # WARM draws 1e-5, 4e-5 or 1e-4. `reduction` and `chunk` are of tokens, and have no part here.
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
        if self.learning.pack:
            raise ValueError("a reward is of a whole row: pack must be False")


class Model(NamedTuple):
    """A reward model as pure functions; inputs are `batches.Sequences` for a language model.

    Parameters are {"decoder": of what makes features, "head": {"w": [D], "b": []}}: the decoder's
    tree is the language model's own, which is where it comes from and where its rules are from.
    """

    init: Callable[[types.Key], types.Params]  # Drawn, with a head of zeros.
    features: Callable[[types.Params, Any], jax.Array]  # (decoder's, inputs) -> float32 [B, D].
    rewards: Callable[[types.Params, Any], jax.Array]  # (all, inputs) -> float32 [B]; no dropout.


def on_features(
    init: Callable[[types.Key], types.Params],
    features: Callable[[types.Params, Any], jax.Array],
    width: int,
) -> Model:
    """The reward model whose features are those of any network, D = `width`."""

    def rewards(params: types.Params, inputs: Any) -> jax.Array:
        return of_features(params["head"], features(params["decoder"], inputs))

    return Model(lambda key: with_head(init(key), width), features, rewards)


def on_decoder(model: gemma.Model) -> Model:
    """The reward model on a language model's last token, wherever the padding stands."""

    def features(params: types.Params, sequences: batches.Sequences) -> jax.Array:
        every = model.features(params, sequences.tokens, sequences.positions, sequences.segments)
        is_token = jnp.asarray(sequences.segments) > 0  # [B, T]
        last = is_token.shape[1] - 1 - jnp.argmax(is_token[:, ::-1], 1)
        found = jnp.take_along_axis(every, last[:, None, None], axis=1)[:, 0]
        return found.astype(jnp.float32)

    return on_features(model.init, features, model.config.embed_dim)


def with_head(decoder: types.Params, width: int) -> types.Params:
    """Parameters that begin with a trained decoder and a head of zeros, which ranks nothing."""
    return {"decoder": decoder, "head": {"w": jnp.zeros(width), "b": jnp.zeros(())}}


def centred(params: types.Params, mean_reward: types.Array) -> types.Params:
    """The same model with rewards less `mean_reward`, []: b is free where pairs are learnt from."""
    head = params["head"]
    return {**params, "head": {**head, "b": head["b"] - mean_reward}}


def of_features(head: types.Params, features: jax.Array) -> jax.Array:
    """Rewards w . h + b, float32: [..., D] -> [...]."""
    return jnp.einsum("...d,d->...", features, head["w"]) + head["b"]


def bradley_terry(
    chosen: jax.Array, rejected: jax.Array, margin: float | jax.Array = 0.0
) -> jax.Array:
    """-ln sigmoid(r+ - r- - margin) of each pair, in nats.

    Args:
      chosen, rejected: r+ and r-, [...], of one shape.
      margin: by which r+ should exceed r-; a number, or one a pair.
    """
    return jax.nn.softplus(margin - (chosen - rejected))


def accuracy(margins: types.Array) -> np.ndarray:
    """1 where r+ - r- > 0, 1/2 where it is 0, else 0: float64 [n].

    A model that gives all the same reward is then right half of the time, not always.
    """
    return (np.sign(np.asarray(margins, np.float64)) + 1) / 2


class Bin(NamedTuple):
    """A row of the table of reliability."""

    low: float  # Confidence, the greater of both probabilities: in [low, high).
    high: float
    pairs: int  # How many.
    confidence: float  # Means over them; NaN without any.
    accuracy: float


def calibration(margins: types.Array) -> tuple[float, list[Bin]]:
    """Expected calibration error of the preferred answer, and its table of reliability.

        sum_k n_k / n |accuracy_k - confidence_k|,  confidence = sigmoid(|r+ - r-|)

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 5,
    https://arxiv.org/abs/1706.04599: ten bins of equal width, here of [1/2, 1], where the more
    probable of two answers lies. Ties are right half of the time.

    Args:
      margins: r+ - r-, [n], n >= 1.
    """
    margins = np.asarray(margins, np.float64)
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), accuracy(margins)
    edges = np.linspace(0.5, 1, BINS + 1)
    of_bin = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS - 1)
    table, error = [], 0.0
    for k in range(BINS):
        inside, means = of_bin == k, (float("nan"),) * 2
        if inside.any():
            means = float(confidence[inside].mean()), float(right[inside].mean())
            error += inside.mean() * abs(means[1] - means[0])
        table.append(Bin(float(edges[k]), float(edges[k + 1]), int(inside.sum()), *means))
    return float(error), table


def probe(chosen: types.Array, rejected: types.Array, penalty: float) -> types.Params:
    """The head that linear probing finds: of frozen features, by L-BFGS in float64.

        argmin_w mean softplus(-w . (h+ - h-)) + penalty / 2 |w|^2

    The problem is strictly convex: where it starts, and in what order pairs come, is of no account.

    Args:
      chosen, rejected: features h+ and h-, [N, D].
      penalty: > 0.
    """
    differences = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = differences @ w
        value = np.mean(np.logaddexp(0, -margins)) + penalty / 2 * (w @ w)
        slope = -np.exp(-np.logaddexp(0, margins)) / len(margins)
        return float(value), slope @ differences + penalty * w

    found = scipy.optimize.minimize(
        loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B", tol=1e-9
    )
    return {"w": jnp.asarray(found.x, jnp.float32), "b": jnp.zeros(())}


def learner(
    model: Model,
    config: Config,
    *,
    dropout: float | jax.Array | None = None,
    rate_scale: float | jax.Array = 1.0,
) -> types.Learner:
    """Learns from batches whose data are `preferences.Pairs`, or any (chosen, rejected) inputs.

    Args:
      model: on any features.
      config: settings.
      dropout, rate_scale: of features, in place of the configuration's; times its learning rate.
        They may be traced, so that members of a population share a program.
    """
    dropped = config.dropout if dropout is None else dropout
    probes = config.trains == "head"

    def part_loss(params: types.Params, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        pairs, weights, keys = part
        # One pass of the network for both answers.
        inputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pairs)
        features = model.features(params["decoder"], inputs)
        if probes:
            features = jax.lax.stop_gradient(features)
        answer_keys = jax.vmap(jax.random.split, out_axes=1)(keys).reshape(-1)
        features = _dropout(features, answer_keys, dropped)
        chosen, rejected = jnp.split(of_features(params["head"], features), 2)
        losses = bradley_terry(chosen, rejected, config.margin)
        value = jnp.sum(weights * losses) / config.learning.batch_size
        margins = jax.lax.stop_gradient(chosen - rejected)
        right = (jnp.sign(margins) + 1) / 2
        metrics = {
            "accuracy": right,
            "margin": margins,
            "reward_mean": jax.lax.stop_gradient(chosen + rejected) / 2,
            # Confidence less accuracy: 0 on the average of a model that is calibrated.
            "overconfidence": jax.nn.sigmoid(jnp.abs(margins)) - right,
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
        keys = jax.random.split(key, batch.weights.shape[0])  # One a pair, in whatever part it is.
        rows = tuple(batch.data), batch.weights, keys
        value, metrics = tuning.in_parts(part_loss, params, rows, config.learning.micro_batches)
        return value, (aux, types.Feedback(metrics))

    optimizer = optax.chain(tuning.optimizer(config.learning), optax.scale(rate_scale))
    if probes:
        optimizer = optax.partition(
            {"learnt": optimizer, "frozen": optax.set_to_zero()},
            {"decoder": "frozen", "head": "learnt"},
        )
    return learners.sgd(init_params=model.init, loss=loss, optimizer=optimizer)


def presets(family: str) -> Config:
    """Settings for "tokens"."""
    del family
    return Config()


def make(model: gemma.Model, config: Config | None = None) -> types.Agent[None]:
    """A reward model on the decoder `model`, which learns from `preferences.Pairs`.

    Its actor's parameters are {"params": of the reward model}, for whom it judges; nothing acts.
    """
    config = config or Config()

    def refuse(*arguments: Any) -> Any:
        raise ValueError("a reward model judges what others write: it has no policy")

    return types.Agent(
        policy=types.Policy(refuse, refuse),
        learner=learner(on_decoder(model), config),
        actor_params=lambda state, steps, evaluate, constants: {"params": state.params},
        experience=None,
        config=config,
    )


def scorer(model: Model, params: types.Params, name: str = "reward-model") -> tokens.Scorer:
    """The reward of whole texts, computed inside the program that writes them.

    Args:
      model: on a decoder that shares its tokenizer with who writes.
      params: an argument of that program, in no checkpoint.
      name: for messages.
    """

    def score(params: types.Params, completion: tokens.Completion, context: Any) -> jax.Array:
        return model.rewards(params, joined(completion, context))

    return tokens.Scorer(name, score, params)


def joined(completion: tokens.Completion, context: Any) -> batches.Sequences:
    """Prompts and what was written after them.

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
    """Features [B, D], each 0 with probability `rate` and else divided by 1 - rate; a key a row."""
    keeps = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, features.shape[1:]))(keys)
    return jnp.where(keeps, features / (1 - rate), 0)

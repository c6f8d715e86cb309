"""Reward models of points in space, for `kullback reproduce warm`: gold is known, KL is exact.

A response is x in R^20, the policy N(mu, I), the supervised one N(0, I), so that

    KL = |mu|^2 / 2,  gold(x) = w . tanh(A x + b) - c (|x| - 5.2)_+^2

A perceptron is pre-trained to predict the units of gold and as many others. Reward models are tuned
from it on pairs that gold labels, some labels swapped, as lm/warm.py does it. Then mu climbs what
they say, by the score function's gradient.

M members, N pairs, B responses, K steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import averaging, learners, types
from kullback.experiments.reproductions import curves
from kullback.lm import preferences, reward_model, tuning, warm

DIMENSIONS = 20
UNITS = 32  # Of gold, and of distractors.
FEATURES = 128
RADIUS = 5.2  # Beyond it gold falls, where `penalty` is above 0.
WIDE = 1.5  # Standard deviation of what is pre-trained on, and of pairs that are far from training.
SHIFT = 0.5  # Mean of the latter.
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # N of best of N.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of data, reward models and climbs."""

    members: int = 6  # M.
    pairs: int = 2_000
    corruption: float = 0.25
    held_out: int = 4_000  # Pairs, of each kind.
    pretraining_steps: int = 1_500
    pretraining_batch: int = 256
    batch_size: int = 64
    steps: int = 1_500  # Of reward models whose memory of wrong labels is measured.
    climbed_steps: int = 700  # Of those that are climbed.
    learning_rates: tuple[float, ...] = (3e-4, 5e-4, 1e-3)
    dropouts: tuple[float, ...] = (0.05, 0.1)
    penalty: float = 0.6  # c, of the gold that is climbed.
    climbs: int = 360  # Steps, of plain gradient ascent.
    climb_batch: int = 256
    climb_rate: float = 0.05
    climb_every: int = 10  # Steps between two records.
    climb_kl: float = 0.1  # alpha of the climb that is held back.
    evaluation: int = 4_096  # Responses.

    def __post_init__(self) -> None:
        if self.climbs % self.climb_every:
            raise ValueError(
                f"climbs must be a multiple of climb_every={self.climb_every}, got {self.climbs}"
            )
        if self.members < 2:
            raise ValueError(f"members must be >= 2, got {self.members}")
        if self.evaluation < max(COUNTS):
            raise ValueError(f"evaluation must be >= {max(COUNTS)}, got {self.evaluation}")
        self.population()

    def population(self) -> warm.Config:
        """Settings of reward models."""
        return population(self.batch_size, self.learning_rates, self.dropouts)


def population(
    batch_size: int, learning_rates: tuple[float, ...], dropouts: tuple[float, ...]
) -> warm.Config:
    """Settings of reward models, of which each draws a rate and a dropout."""
    learning = tuning.Config(
        batch_size=batch_size, warmup_steps=0, learning_rate=4e-5, max_grad_norm=10.0
    )
    return warm.Config(
        learning_rates=learning_rates,
        dropouts=dropouts,
        reward=reward_model.Config(learning=learning),
    )


class Gold(NamedTuple):
    """What responses are worth."""

    w: jax.Array  # [units]
    a: jax.Array  # [units, dimensions]
    b: jax.Array  # [units]
    others: jax.Array  # [units, dimensions]: distractors, by the same biases.
    penalty: jax.Array  # c, [].


def draw_gold(key: types.Key, penalty: float) -> Gold:
    """Of a seed."""
    keys = jax.random.split(key, 4)
    shape = UNITS, DIMENSIONS
    return Gold(
        w=jax.random.normal(keys[0], (UNITS,)) / 2,
        a=jax.random.normal(keys[1], shape) / np.sqrt(DIMENSIONS),
        b=jax.random.normal(keys[2], (UNITS,)) / 2,
        others=jax.random.normal(keys[3], shape) / np.sqrt(DIMENSIONS),
        penalty=jnp.asarray(penalty, jnp.float32),
    )


def units(gold: Gold, x: jax.Array) -> jax.Array:
    """Gold's hidden units, then the distractors, [B, 2 units]."""
    return jnp.concatenate([jnp.tanh(x @ m.T + gold.b[None]) for m in (gold.a, gold.others)], -1)


def worth(gold: Gold, x: jax.Array) -> jax.Array:
    """The gold reward, [B, dimensions] -> [B]."""
    far = jnp.maximum(jnp.linalg.norm(x, axis=-1) - RADIUS, 0)
    return units(gold, x)[..., :UNITS] @ gold.w - gold.penalty * far**2


@hk.without_apply_rng
@hk.transform
def _network(x: jax.Array) -> jax.Array:
    return hk.nets.MLP([FEATURES, FEATURES], activate_final=True)(x)


MODEL = reward_model.on_features(
    lambda key: _network.init(key, jnp.zeros((1, DIMENSIONS))), _network.apply, FEATURES
)


def pretrain(sizes: Sizes, gold: Gold, key: types.Key) -> types.Params:
    """A perceptron that has learnt to predict the units, of which a linear head reads rewards."""

    def init(key: types.Key) -> types.Params:
        return {"decoder": MODEL.init(key)["decoder"], "head": jnp.zeros((FEATURES, 2 * UNITS))}

    def loss(
        params: Any, targets: Any, aux: None, batch: Any, key: types.Key, constants: types.Constants
    ) -> Any:
        del targets, batch  # Responses are drawn anew at each step.
        x = WIDE * jax.random.normal(key, (sizes.pretraining_batch, DIMENSIONS))
        predicted = MODEL.features(params["decoder"], x) @ params["head"]
        return jnp.mean((predicted - units(constants.base, x)) ** 2), (aux, types.Feedback({}))

    learner = learners.sgd(init, loss, optax.adam(1e-3))
    nothing: Any = None  # In the place of a batch.

    @jax.jit
    def learn(state: types.LearnerState, gold: Gold) -> types.LearnerState:
        def step(state: types.LearnerState, _: None) -> tuple[types.LearnerState, None]:
            return learner.step(state, nothing, types.Constants(base=gold))[0], None

        return jax.lax.scan(step, state, length=sizes.pretraining_steps)[0]

    return learn(learner.init(key), gold).params["decoder"]


class Pairs(NamedTuple):
    """Of two responses the better one first, [N, dimensions] each."""

    better: jax.Array
    worse: jax.Array


def pairs(gold: Gold, key: types.Key, count: int, *, is_far: bool = False) -> Pairs:
    """As gold labels them: of N(0, I), or from farther away."""
    both = jax.random.normal(key, (2, count, DIMENSIONS))
    both = SHIFT + WIDE * both if is_far else both
    first, second = both
    is_first = (worth(gold, first) >= worth(gold, second))[:, None]
    return Pairs(jnp.where(is_first, first, second), jnp.where(is_first, second, first))


class Data(NamedTuple):
    """Pairs of a seed; those to learn from with their labels as they are learnt."""

    train: Pairs
    is_swapped: np.ndarray  # bool, [N]: whose label is wrong.
    near: Pairs  # Held out, from where training pairs are.
    far: Pairs


def data(sizes: Sizes, gold: Gold, seed: int) -> Data:
    """Of a seed."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    right = pairs(gold, keys[0], sizes.pairs)
    is_swapped = preferences.is_swapped(sizes.pairs, sizes.corruption, seed)
    swap = is_swapped[:, None]
    train = Pairs(*(jnp.where(swap, b, a) for a, b in (right, right[::-1])))
    held = sizes.held_out
    return Data(
        train, is_swapped, pairs(gold, keys[1], held), pairs(gold, keys[2], held, is_far=True)
    )


def probed(backbone: types.Params, found: Data) -> types.Params:
    """The reward model that all members start from: its head found by linear probing."""
    features = [MODEL.features(backbone, x) for x in found.train]
    return {"decoder": backbone, "head": reward_model.probe(*features, penalty=0.01)}


def tune(
    sizes: Sizes, starts: list[types.Params], found: Data, seed: int, steps: int, members: int
) -> types.Params:
    """Members' parameters, stacked, [M, ...]."""
    seeds = [1_000 * seed + m for m in range(members)]
    return warm.train(MODEL, starts, *found.train, sizes.population(), seeds, steps)


@jax.jit
def margins(params: types.Params, both: Pairs) -> jax.Array:
    """What a reward model makes of each pair: reward of the better less that of the worse."""
    return MODEL.rewards(params, both.better) - MODEL.rewards(params, both.worse)


@jax.jit
def margins_of_all(members: types.Params, both: Pairs) -> jax.Array:
    """`margins` by each member, [M, N]; their mean is the ensemble's."""
    return jax.vmap(margins, (0, None))(members, both)


def accuracies(found: Data, margin_of: Callable[[Pairs], jax.Array]) -> dict[str, float]:
    """Share of pairs that are ranked as labelled: of training, wrong labels apart, and held out.

    Args:
      found: the pairs.
      margin_of: pairs [N] -> margins [N].
    """
    train = reward_model.accuracy(margin_of(found.train))
    return {
        "corrupted": float(train[found.is_swapped].mean()) if found.is_swapped.any() else np.nan,
        "clean": float(train[~found.is_swapped].mean()),
        "near": float(reward_model.accuracy(margin_of(found.near)).mean()),
        "far": float(reward_model.accuracy(margin_of(found.far)).mean()),
    }


def member(members: types.Params, m: int) -> types.Params:
    """One of stacked parameters."""
    return jax.tree.map(lambda x: x[m], members)


def split(members: types.Params) -> list[types.Params]:
    """All of stacked parameters."""
    return [member(members, m) for m in range(len(jax.tree.leaves(members)[0]))]


def between(members: types.Params, share: float) -> types.Params:
    """(1 - share) of the first member's weights and `share` of the second's."""
    return averaging.mean([member(members, 0), member(members, 1)], [1 - share, share])


def ranked(found: Data, members: types.Params) -> list[dict[str, Any]]:
    """Accuracies of each member, of the mean of their predictions and of their weights."""
    rows: list[dict[str, Any]] = []
    for m, params in enumerate(split(members)):
        own = accuracies(found, functools.partial(margins, params))
        rows.append({"model": f"single-{m}", **own})
    together = accuracies(found, lambda both: jnp.mean(margins_of_all(members, both), 0))
    mean = warm.average(split(members))
    averaged = accuracies(found, functools.partial(margins, mean))
    return [*rows, {"model": "ensemble", **together}, {"model": "average", **averaged}]


def connected(found: Data, members: types.Params) -> list[dict[str, Any]]:
    """Accuracy between the first two members: of mean weights, mean predictions, and the mean."""
    ends = [accuracies(found, functools.partial(margins, member(members, m))) for m in (0, 1)]
    rows: list[dict[str, Any]] = []
    for share in np.linspace(0, 1, 9).tolist():
        weights = accuracies(found, functools.partial(margins, between(members, share)))

        def mixed(both: Pairs, share: float = share) -> jax.Array:
            one, two = margins_of_all(members, both)[:2]
            return (1 - share) * one + share * two

        predictions = accuracies(found, mixed)
        for kind in ("near", "far"):
            rows.append(
                {
                    "share": share,
                    "pairs": kind,
                    "weights": weights[kind],
                    "predictions": predictions[kind],
                    "mean_accuracy": (1 - share) * ends[0][kind] + share * ends[1][kind],
                }
            )
    return rows


class Climb(NamedTuple):
    """What mu's way up a proxy is worth, at each record, [K + 1]."""

    kl: jax.Array
    proxy: jax.Array
    gold: jax.Array


def climber(sizes: Sizes, reward: Callable[[Any, jax.Array], jax.Array], alpha: float = 0.0) -> Any:
    """The pure (parameters of the reward, gold, key) -> `Climb`.

        mu <- mu + rate (E[(r(x) - mean r) (x - mu)] - alpha mu)

    Args:
      sizes: of the climb.
      reward: (parameters, [B, dimensions]) -> [B].
      alpha: what a nat costs.
    """

    def climb(params: Any, gold: Gold, key: types.Key) -> Climb:
        key, shown_key = jax.random.split(key)
        shown = jax.random.normal(shown_key, (sizes.evaluation, DIMENSIONS))  # The same throughout.

        def record(mu: jax.Array) -> Climb:
            x = mu[None] + shown
            return Climb(mu @ mu / 2, jnp.mean(reward(params, x)), jnp.mean(worth(gold, x)))

        def step(mu: jax.Array, key: types.Key) -> tuple[jax.Array, None]:
            noise = jax.random.normal(key, (sizes.climb_batch, DIMENSIONS))
            rewards = reward(params, mu[None] + noise)
            ascent = jnp.mean((rewards - jnp.mean(rewards))[:, None] * noise, 0) - alpha * mu
            return mu + sizes.climb_rate * ascent, None

        def stretch(mu: jax.Array, keys: types.Key) -> tuple[jax.Array, Climb]:
            mu, _ = jax.lax.scan(step, mu, keys)
            return mu, record(mu)

        mu = jnp.zeros(DIMENSIONS)
        keys = jax.random.split(key, (sizes.climbs // sizes.climb_every, sizes.climb_every))
        _, later = jax.lax.scan(stretch, mu, keys)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), record(mu), later)

    return climb


@functools.cache
def _climbers(sizes: Sizes) -> dict[str, Callable[..., Climb]]:
    """By what is climbed: compiled, for all seeds."""
    average = climber(sizes, MODEL.rewards)
    return {
        "members": jax.jit(jax.vmap(average, (0, None, None))),
        "ensemble": jax.jit(climber(sizes, functools.partial(warm.ensemble, MODEL))),
        "average": jax.jit(average),
        "average-held-back": jax.jit(climber(sizes, MODEL.rewards, sizes.climb_kl)),
        "gold": jax.jit(climber(sizes, worth)),
    }


def climbs(sizes: Sizes, gold: Gold, members: types.Params, seed: int) -> list[dict[str, Any]]:
    """Rows of all climbs: up each member, both averages, gold, and one held back."""
    key, programs = jax.random.fold_in(jax.random.key(seed), 4), _climbers(sizes)
    alone = programs["members"](members, gold, key)
    mean = warm.average(split(members))
    found = {f"single-{m}": member(alone, m) for m in range(sizes.members)}
    for name, params in (
        ("ensemble", members),
        ("average", mean),
        ("average-held-back", mean),
        ("gold", gold),
    ):
        found[name] = programs[name](params, gold, key)
    rows: list[dict[str, Any]] = []
    for name, climb in found.items():
        for n, (kl, proxy, value) in enumerate(zip(*map(np.asarray, climb), strict=True)):
            step = n * sizes.climb_every
            of_record = {"kl": float(kl), "proxy": float(proxy), "gold": float(value)}
            rows.append({"reward": name, "step": step, **of_record})
    return rows


def best_of(sizes: Sizes, gold: Gold, members: types.Params, seed: int) -> list[dict[str, Any]]:
    """Rows of best of N from the supervised policy: gold and proxy of what each model picks."""
    key = jax.random.fold_in(jax.random.key(seed), 5)
    x = jax.random.normal(key, (sizes.evaluation, DIMENSIONS))
    own = [np.asarray(MODEL.rewards(params, x)) for params in split(members)]
    proxies = {f"single-{m}": rewards for m, rewards in enumerate(own)}
    proxies["ensemble"] = np.mean(own, 0)
    proxies["average"] = np.asarray(MODEL.rewards(warm.average(split(members)), x))
    value = np.asarray(worth(gold, x))
    rows: list[dict[str, Any]] = []
    for name, proxy in {**proxies, "gold": value}.items():
        picked = (curves.best_of(proxy, of, COUNTS) for of in (proxy, value))
        for count, by_proxy, by_gold in zip(COUNTS, *picked, strict=True):
            row = {"reward": name, "n": count, "proxy": float(by_proxy), "gold": float(by_gold)}
            rows.append(row)
    return rows

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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import averaging, learners, ranges, types
from kullback.experiments.reproductions import reward_models, study
from kullback.experiments.reproductions.reward_models import Data, accuracies, split
from kullback.lm import reward_model, warm

DIMENSIONS = 20
UNITS = 32  # Of gold, and of distractors.
FEATURES = 128
RADIUS = 5.2  # Beyond it gold falls, where `penalty` is above 0.
WIDE = 1.5  # Standard deviation of what is pre-trained on, and of pairs that are far from training.
SHIFT = 0.5  # Mean of the latter.
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # N of best of N.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of data, reward models and climbs."""

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
        ranges.multiples("climb_every", self, "climbs")
        ranges.at_least(2, self, "members")
        ranges.at_least(max(COUNTS), self, "evaluation")
        self.population()

    def population(self) -> warm.Config:
        """Returns settings of reward models."""
        return reward_models.settings(self.batch_size, self.learning_rates, self.dropouts)


SIZES = Sizes()


class Gold(NamedTuple):
    """Gold's parameters."""

    w: jax.Array  # [units]
    a: jax.Array  # [units, dimensions]
    b: jax.Array  # [units]
    others: jax.Array  # [units, dimensions]: distractors, by the same biases.
    penalty: jax.Array  # c, [].


def draw_gold(key: types.Key, penalty: float) -> Gold:
    """Draws what responses are worth."""
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
    """Returns gold's hidden units, then the distractors, [B, 2 units]."""
    return jnp.concatenate([jnp.tanh(x @ m.T + gold.b[None]) for m in (gold.a, gold.others)], -1)


def worth(gold: Gold, x: jax.Array) -> jax.Array:
    """Returns the gold reward, [B, dimensions] -> [B]."""
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
    """Returns a perceptron that has learnt to predict units, of which a head reads rewards."""

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

    run = jax.jit(learners.scan(learner, learners.stored, lambda feedback, data: None))
    batches = jnp.zeros((sizes.pretraining_steps, 1))  # Which are not looked at.
    return run(learner.init(key), types.Constants(base=gold), batches, key)[0].params["decoder"]


class Pairs(NamedTuple):
    """Responses of which the first is better, [N, dimensions] each."""

    better: jax.Array
    worse: jax.Array


def pairs(gold: Gold, key: types.Key, count: int, *, is_far: bool = False) -> Pairs:
    """Draws pairs from N(0, I), or from farther away, and labels them by gold."""
    both = jax.random.normal(key, (2, count, DIMENSIONS))
    both = SHIFT + WIDE * both if is_far else both
    first, second = both
    is_first = (worth(gold, first) >= worth(gold, second))[:, None]
    return Pairs(jnp.where(is_first, first, second), jnp.where(is_first, second, first))


def draw(sizes: Sizes, gold: Gold, seed: int) -> Data:
    """Draws the pairs of a seed."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    train, near = pairs(gold, keys[0], sizes.pairs), pairs(gold, keys[1], sizes.held_out)
    far = pairs(gold, keys[2], sizes.held_out, is_far=True)
    right = Data(train, np.zeros(sizes.pairs, bool), near, far)
    return reward_models.with_errors(right, sizes.corruption, seed)


@jax.jit
def margins(params: types.Params, pairs: reward_models.Pairs) -> jax.Array:
    """Returns what a reward model makes of each pair, the reward of the better less the other's."""
    better, worse = pairs
    return MODEL.rewards(params, better) - MODEL.rewards(params, worse)


@jax.jit
def margins_of_all(members: types.Params, pairs: reward_models.Pairs) -> jax.Array:
    """Returns `margins` by each member, [M, N]; their mean is the ensemble's."""
    return jax.vmap(margins, (0, None))(members, pairs)


def margins_of(kind: str, params: types.Params, pairs: reward_models.Pairs) -> jax.Array:
    """Returns `margins` of a single model or of an ensemble, [N]."""
    if kind == "ensemble":
        return jnp.mean(margins_of_all(params, pairs), 0)
    return margins(params, pairs)


def connected(data: Data, members: types.Params) -> Iterator[study.Row]:
    """Yields accuracy between two members: of mean weights, mean predictions, and the mean."""
    first, second = split(members)[:2]
    ends = [accuracies(data, functools.partial(margins, one)) for one in (first, second)]
    for share in np.linspace(0, 1, 9).tolist():
        mixed = averaging.mean([first, second], [1 - share, share])

        def predicted(pairs: reward_models.Pairs, share: float = share) -> jax.Array:
            one, two = margins_of_all(members, pairs)[:2]
            return (1 - share) * one + share * two

        weights = accuracies(data, functools.partial(margins, mixed))
        predictions = accuracies(data, predicted)
        for kind in ("near", "far"):
            mean = (1 - share) * ends[0][kind] + share * ends[1][kind]
            row = {"share": share, "pairs": kind, "weights": weights[kind]}
            yield {**row, "predictions": predictions[kind], "mean_accuracy": mean}


class Climb(NamedTuple):
    """Worth of mu's way up a proxy at each record, [K + 1]."""

    kl: jax.Array
    proxy: jax.Array
    gold: jax.Array


def climber(sizes: Sizes, reward: Callable[[Any, jax.Array], jax.Array], alpha: float = 0.0) -> Any:
    """Returns the pure (parameters of the reward, gold, key) -> `Climb`.

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

        keys = jax.random.split(key, (sizes.climbs // sizes.climb_every, sizes.climb_every))
        return way(sizes, step, record, keys)

    return climb


def way(
    sizes: Sizes,
    step: Callable[[jax.Array, Any], tuple[jax.Array, None]],
    record: Callable[[jax.Array], Climb],
    keys: types.Key | None = None,
) -> Climb:
    """Returns the worth of mu at 0, and after each stretch of `climb_every` steps.

    Args:
      sizes: of the climb.
      step: (mu, its key) -> mu.
      record: mu -> its worth, of which a climb is made.
      keys: of each step, [K, climb_every]; None: there is no chance in them.
    """

    def stretch(mu: jax.Array, keys: types.Key | None) -> tuple[jax.Array, Climb]:
        mu, _ = jax.lax.scan(step, mu, keys, length=sizes.climb_every)
        return mu, record(mu)

    mu = jnp.zeros(DIMENSIONS)
    _, later = jax.lax.scan(stretch, mu, keys, length=sizes.climbs // sizes.climb_every)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), record(mu), later)


def records(sizes: Sizes, climb: Climb) -> Iterator[study.Row]:
    """Yields the records of a climb as rows, with their step."""
    for n, record in enumerate(zip(*(np.asarray(x).tolist() for x in climb), strict=True)):
        yield {"step": n * sizes.climb_every, **Climb(*record)._asdict()}


@functools.cache
def _climbers(sizes: Sizes) -> dict[str, Callable[..., Climb]]:
    """Returns compiled climbs by what is climbed, for all seeds."""
    average = climber(sizes, MODEL.rewards)
    return {
        "members": jax.jit(jax.vmap(average, (0, None, None))),
        "ensemble": jax.jit(climber(sizes, functools.partial(warm.ensemble, MODEL))),
        "average": jax.jit(average),
        "average-held-back": jax.jit(climber(sizes, MODEL.rewards, sizes.climb_kl)),
        "gold": jax.jit(climber(sizes, worth)),
    }


def climbs(sizes: Sizes, gold: Gold, members: types.Params, seed: int) -> Iterator[study.Row]:
    """Climbs each member, both averages, gold, and the average held back; yields the records."""
    key, programs = jax.random.fold_in(jax.random.key(seed), 4), _climbers(sizes)
    alone = split(programs["members"](members, gold, key))
    ways = {f"single-{m}": climb for m, climb in enumerate(alone)}
    mean = warm.average(split(members))
    params = {"ensemble": members, "average": mean, "average-held-back": mean, "gold": gold}
    ways |= {name: programs[name](given, gold, key) for name, given in params.items()}
    for name, climb in ways.items():
        for record in records(sizes, climb):
            yield {"reward": name, **record}


def best_of(sizes: Sizes, gold: Gold, members: types.Params, seed: int) -> study.Rows:
    """Returns rows of best of N from the supervised policy."""
    key = jax.random.fold_in(jax.random.key(seed), 5)
    x = jax.random.normal(key, (sizes.evaluation, DIMENSIONS))
    alone = split(members)
    by_model = {f"single-{m}": np.asarray(MODEL.rewards(one, x)) for m, one in enumerate(alone)}
    by_model["ensemble"] = np.mean([*by_model.values()], 0)
    by_model["average"] = np.asarray(MODEL.rewards(warm.average(alone), x))
    proxies = {name: rewards[None] for name, rewards in by_model.items()}
    return reward_models.best_of(proxies, np.asarray(worth(gold, x))[None], COUNTS)


def compare(sizes: Sizes, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields all tables of a seed."""
    del journal  # It takes no time.
    gold_key, net_key = jax.random.split(jax.random.key(seed))
    plain, bent = (draw_gold(gold_key, c) for c in (0.0, sizes.penalty))
    backbone, config = pretrain(sizes, plain, net_key), sizes.population()

    def tuned(starts: list[types.Params], members: int, steps: int) -> types.Params:
        return reward_models.train(MODEL, starts, data.train, config, seed, members, steps)

    data = draw(sizes, plain, seed)
    start = reward_models.probed(MODEL.features, backbone, data)
    members = tuned([start], sizes.members, sizes.steps)
    yield from study.tagged("accuracies", reward_models.ranked(data, members, margins_of))
    of_start = accuracies(data, functools.partial(margins, start))
    yield from study.tagged("accuracies", [{"model": "linear-probe", **of_start}])
    yield from study.tagged("path", connected(data, members))
    apart = tuned([MODEL.init(key) for key in jax.random.split(net_key)], 2, sizes.steps)
    yield from study.tagged("apart", reward_models.ranked(data, apart, margins_of))

    data = draw(sizes, bent, seed)
    start = reward_models.probed(MODEL.features, backbone, data)
    members = tuned([start], sizes.members, sizes.climbed_steps)
    yield from study.tagged("climbs", climbs(sizes, bent, members, seed))
    yield from study.tagged("best_of", best_of(sizes, bent, members, seed))

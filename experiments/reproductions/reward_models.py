"""Reward models of pairs whose gold is known, for `kullback reproduce warm`.

Members of a population are tuned their own ways, as lm/warm.py does it, in one compiled program;
then they are asked how they rank pairs, alone and averaged. M members, N pairs, n draws, K steps.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, trees, types
from kullback.experiments.reproductions import curves, study
from kullback.lm import epochs, lora, preferences, reward_model, tuning, warm

Pairs = tuple[Any, Any]  # Inputs of a model, [N, ...] each: the better of two, and the other.


class Data(NamedTuple):
    """Pairs of a seed; those to learn from with their labels as they are learnt."""

    train: Pairs
    is_swapped: np.ndarray  # bool, [N]: whose label is wrong.
    near: Pairs  # Held out, from where training pairs are.
    far: Pairs


def with_errors(right: Data, corruption: float, seed: int) -> Data:
    """Returns the data with a share of labels swapped."""
    is_swapped = preferences.is_swapped(len(right.is_swapped), corruption, seed)
    one, other = right.train
    train = trees.pick(is_swapped, other, one), trees.pick(is_swapped, one, other)
    return right._replace(train=train, is_swapped=is_swapped)


def settings(
    batch_size: int,
    learning_rates: tuple[float, ...],
    dropouts: tuple[float, ...],
    adapters: lora.Config = lora.Config(),
) -> warm.Config:
    """Returns settings of a population, of which each member draws a rate and a dropout."""
    rates = {"warmup_steps": 0, "learning_rate": 4e-5, "max_grad_norm": 10.0}
    learning = tuning.Config(batch_size=batch_size, lora=adapters, **rates)
    return warm.Config(
        learning_rates=learning_rates,
        dropouts=dropouts,
        reward=reward_model.Config(learning=learning),
    )


def probed(features: Callable[..., types.Array], decoder: types.Params, data: Data) -> types.Params:
    """Returns the reward model that all members start from: its head is found by probing."""
    head = reward_model.probe(*(features(decoder, x) for x in data.train), penalty=0.01)
    return {"decoder": decoder, "head": head}


def train(
    model: reward_model.Model,
    starts: Sequence[types.Params],
    pairs: Pairs,
    config: warm.Config,
    seed: int,
    members: int,
    steps: int,
    constants: types.Constants = types.NO_CONSTANTS,
) -> types.Params:
    """Tunes M members of a small network at once, whose data are in memory.

    Args:
      model: its features.
      starts: with the shared head; member m starts from the m-th, and they are taken in turn.
      pairs: to learn from.
      config: of the population; its `starts` are not read.
      seed: of all; members have seeds of their own.
      members: M.
      steps: K learner steps.
      constants: of their learners; the base of adapters.

    Returns:
      What the members have learnt, stacked, [M, ...].
    """
    seeds = [1_000 * seed + m for m in range(members)]
    base, drawn = config.reward, [warm.draw(config, seed) for seed in seeds]
    size = base.learning.batch_size
    (num_pairs,) = {len(leaf) for leaf in jax.tree.leaves(pairs)}
    orders = [
        [
            epochs.indices(step, num_items=num_pairs, batch_size=size, seed=seed)
            for step in range(steps)
        ]
        for seed in seeds
    ]

    def take(state: Any, constants: types.Constants, rows: jax.Array, key: types.Key) -> Any:
        del state, constants, key
        return jax.tree.map(lambda x: jnp.asarray(x)[rows], pairs)

    def one(
        constants: types.Constants,
        seed: jax.Array,
        scale: jax.Array,
        dropout: jax.Array,
        start: types.Params,
        order: jax.Array,
    ) -> types.Params:
        learner = reward_model.learner(model, base, dropout=dropout, rate_scale=scale)
        state = learner.init(jax.random.key(seed))._replace(params=start)
        run = learners.scan(learner, take, report=lambda feedback, data: None)
        return run(state, constants, order, state.key)[0].params

    rates = np.array([member.learning_rate for member in drawn], np.float32)
    return jax.jit(jax.vmap(one, (None, *[0] * 5)))(
        constants,
        np.asarray(seeds, np.uint32),
        rates / np.float32(base.learning.learning_rate),
        np.array([member.dropout for member in drawn], np.float32),
        warm.stacked([starts[m % len(starts)] for m in range(members)]),
        np.array(orders, np.int32),
    )


def split(members: types.Params) -> list[types.Params]:
    """Returns all of stacked parameters, [M, ...]."""
    count = len(jax.tree.leaves(members)[0])
    return [jax.tree.map(lambda x, m=m: x[m], members) for m in range(count)]


def proxies(members: types.Params) -> dict[str, tuple[str, types.Params]]:
    """Returns whether each reward is of a single model or an ensemble, and its parameters."""
    alone = split(members)
    singles = {f"single-{m}": ("single", params) for m, params in enumerate(alone)}
    averages = {"ensemble": ("ensemble", members), "average": ("single", warm.average(alone))}
    return {**singles, **averages}


def accuracies(data: Data, margin_of: Callable[[Pairs], types.Array]) -> dict[str, Any]:
    """Returns the share of pairs that are ranked as labelled; None of no pairs.

    Args:
      data: training pairs, wrong labels apart, and held-out ones.
      margin_of: pairs [N] -> reward of the better less that of the other, [N].
    """
    train, wrong = reward_model.accuracy(margin_of(data.train)), data.is_swapped
    return {
        "corrupted": float(train[wrong].mean()) if wrong.any() else None,
        "clean": float(train[~wrong].mean()),
        "near": float(reward_model.accuracy(margin_of(data.near)).mean()),
        "far": float(reward_model.accuracy(margin_of(data.far)).mean()),
    }


def ranked(
    data: Data, members: types.Params, margins: Callable[[str, types.Params, Pairs], types.Array]
) -> study.Rows:
    """Returns accuracies of each member, of the mean of their predictions and of their weights.

    Args:
      data: see `accuracies`.
      members: stacked, [M, ...].
      margins: (single or ensemble, its parameters, pairs) -> margins, [N].
    """
    return [
        {"model": name, **accuracies(data, functools.partial(margins, *proxy))}
        for name, proxy in proxies(members).items()
    ]


def best_of(
    proxies: Mapping[str, np.ndarray],
    gold: np.ndarray,
    counts: Sequence[int],
    distance: Callable[[np.ndarray, int], dict[str, float]] = lambda proxy, count: {},
) -> study.Rows:
    """Returns rows of best of N: gold and proxy of what each model picks, means over prompts.

    Args:
      proxies: rewards of n draws to P prompts by model, [P, n].
      gold: of the same, [P, n], which picks too.
      counts: N.
      distance: (proxy [P, n], N) -> columns that say how far away the picks are.
    """
    rows: study.Rows = []
    for name, proxy in {**proxies, "gold": gold}.items():
        by_proxy, by_gold = (
            np.mean([curves.best_of(p, x, counts) for p, x in zip(proxy, of, strict=True)], 0)
            for of in (proxy, gold)
        )
        for k, count in enumerate(counts):
            values = {"proxy": float(by_proxy[k]), "gold": float(by_gold[k])}
            rows.append({"reward": name, "n": count, **distance(proxy, count), **values})
    return rows

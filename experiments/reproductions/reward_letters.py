"""Reward models of texts of letters, for `kullback reproduce warm`: a small decoder and known gold.

A decoder learns what the source writes (letters.py). Of two texts that it writes to a prompt, gold
says which is better; a share of these labels is swapped. Reward models are tuned on them from the
decoder, its head found by linear probing. Then the supervised policy is moved toward what they say:
by best of N, and by REINFORCE. All is measured by gold on prompts that nothing was learnt from.

M members, N pairs, B texts, n draws to a prompt.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import sampling, types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import curves, letters, reward_toy, rewarded
from kullback.lm import (
    batches,
    best_of_n,
    completions,
    gemma,
    preferences,
    reward_model,
    rlhf,
    warm,
)

FAR = 2.0  # Temperature at which the texts of pairs far from training ones are drawn.
LANGUAGE = letters.Sizes(letters=8, held_out=16)  # So few that gold can be learnt of the pairs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the decoder, its data, reward models and policies."""

    language: letters.Sizes = LANGUAGE
    width: int = 32
    num_layers: int = 2
    members: int = 6  # M.
    pairs: int = 2_048
    held_out: int = 2_048  # Pairs, of each kind.
    corruptions: tuple[float, ...] = (0.0, 0.125, 0.25)  # The last one's models are climbed.
    batch_size: int = 32  # Pairs.
    steps: int = 480  # Of reward models.
    learning_rates: tuple[float, ...] = (3e-4, 5e-4, 1e-3)
    dropouts: tuple[float, ...] = (0.05, 0.1)
    # Best of N.
    prompts: int = 16  # Held-out ones.
    draws: int = 512  # Texts of each, n.
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # N.
    # REINFORCE.
    singles: int = 3  # Members that are climbed, the first of them.
    policy_steps: int = 300
    policy_batch: int = 128
    samples_per_prompt: int = 4
    policy_rate: float = 1e-3
    kl_coefficient: float = 0.01  # In units of a reward model's reward, a nat.
    records: int = 10
    samples: int = 16  # Texts of each held-out prompt, of which gold and KL are means.

    def __post_init__(self) -> None:
        if not 1 <= self.singles <= self.members or self.members < 2:
            raise ValueError(
                f"singles must lie in 1 to members={self.members}, at least 2, got {self.singles}"
            )
        if self.policy_steps % self.records:
            raise ValueError(
                f"policy_steps must be a multiple of records={self.records}, "
                f"got {self.policy_steps}"
            )
        if not self.corruptions:
            raise ValueError("corruptions must have one value at least, got ()")
        if self.prompts > self.language.held_out:
            raise ValueError(
                f"prompts must be <= held_out={self.language.held_out} of the language, "
                f"got {self.prompts}"
            )
        if not all(1 <= n <= self.draws for n in self.counts):
            raise ValueError(f"counts must lie in 1 to draws={self.draws}, got {self.counts}")
        self.population()
        self.policy()

    def population(self) -> warm.Config:
        """Settings of reward models."""
        return reward_toy.population(self.batch_size, self.learning_rates, self.dropouts)

    def policy(self) -> rlhf.Config:
        """Settings of REINFORCE."""
        return rlhf.Config(
            samples_per_prompt=self.samples_per_prompt,
            kl_coefficient=self.kl_coefficient,
            learning=self.language.learning(self.policy_batch, self.policy_rate),
        )


class Lab(NamedTuple):
    """The decoder, and compiled programs, for all seeds."""

    sizes: Sizes
    model: gemma.Model
    reward: reward_model.Model
    language: Callable[[int], letters.Language]
    start: Callable[[int], types.Params]  # Supervised, of a seed.
    # (acting params, prompts, key) -> two texts a prompt, by temperature.
    write: dict[float, Callable[..., batches.Sequences]]
    rewards: dict[str, Callable[..., jax.Array]]  # Of "single" (or average) and "ensemble".
    features: Callable[..., jax.Array]
    climb: dict[str, rewarded.Program]  # By "single", "ensemble", "gold".
    measure: Callable[..., rewarded.Measured]
    draw: Callable[..., rewarded.Measured]  # The same with `draws` texts a prompt.


def make(sizes: Sizes) -> Lab:
    """Builds a lab; programs compile at their first use."""
    words = sizes.language
    model = gemma.make(words.decoder(sizes.width, sizes.num_layers))
    reward = reward_model.on_decoder(model)
    language = functools.cache(lambda seed: letters.make(words, seed))
    supervise = rewarded.supervised(model, words)
    gold = letters.scorer(language(0).tables)  # Parameters of scorers are arguments.
    agent = rlhf.make(model, config=sizes.policy())
    scorers = {
        "single": reward_model.scorer(reward, None),
        "ensemble": warm.ensemble_scorer(reward, None),
        "gold": gold,
    }

    def program(scorer: Any) -> rewarded.Program:
        return rewarded.program(agent, model, scorer)

    def write(temperature: float) -> Callable[..., batches.Sequences]:
        drawn = sampling.Sampling(temperature=temperature)
        sampler = completions.sampler(model, words.horizon, sampling=drawn, samples_per_prompt=2)
        return jax.jit(sampler.sequences)

    return Lab(
        sizes=sizes,
        model=model,
        reward=reward,
        language=language,
        start=functools.cache(lambda seed: supervise(language(seed), seed)),
        write={temperature: write(temperature) for temperature in (1.0, FAR)},
        rewards={
            "single": jax.jit(reward.rewards),
            "ensemble": jax.jit(functools.partial(warm.ensemble, reward)),
        },
        features=jax.jit(reward.features),
        climb={name: program(scorer) for name, scorer in scorers.items()},
        measure=rewarded.measurer(model, words.horizon, sizes.samples, gold),
        draw=rewarded.measurer(model, words.horizon, sizes.draws, gold),
    )


def pairs(
    lab: Lab, seed: int, prompts: np.ndarray, count: int, number: int, temperature: float = 1.0
) -> preferences.Pairs:
    """`count` pairs of texts of the supervised policy, as gold labels them.

    Args:
      lab: the decoder.
      seed: of all.
      prompts: ids, [n, P], which are taken in turn.
      count: pairs.
      number: of the random numbers.
      temperature: at which texts are drawn.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 6), number)
    ids = jnp.asarray(prompts[np.resize(np.arange(len(prompts)), count)])
    tables = lab.language(seed).tables
    acting = {"params": lab.start(seed)}
    rows = lab.write[temperature](acting, letters.as_prompts(ids), key)
    one, two = (jax.tree.map(lambda x, k=k: x[k::2], rows) for k in (0, 1))
    return letters.labelled(tables, one, two)


class Data(NamedTuple):
    """Pairs of a seed, the labels of those to learn from still right."""

    right: preferences.Pairs
    near: preferences.Pairs  # Held-out prompts.
    far: preferences.Pairs  # The same, with texts that the supervised policy seldom writes.


def data(lab: Lab, seed: int) -> Data:
    """Of a seed."""
    language, held = lab.language(seed), lab.sizes.held_out
    return Data(
        pairs(lab, seed, language.train, lab.sizes.pairs, 0),
        pairs(lab, seed, language.held_out, held, 1),
        pairs(lab, seed, language.held_out, held, 2, FAR),
    )


def swapped(right: preferences.Pairs, is_swapped: np.ndarray) -> preferences.Pairs:
    """The pairs, some with their label wrong; bool, [N]."""

    def swap(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(is_swapped.reshape(-1, *(1,) * (a.ndim - 1)), b, a)

    chosen = jax.tree.map(swap, right.chosen, right.rejected)
    return preferences.Pairs(chosen, jax.tree.map(swap, right.rejected, right.chosen))


class Population(NamedTuple):
    """Reward models of one seed and share of wrong labels."""

    members: types.Params  # Stacked, [M, ...].
    train: preferences.Pairs  # As they were learnt.
    is_swapped: np.ndarray  # bool, [N].


def population(lab: Lab, found: Data, corruption: float, seed: int) -> Population:
    """Members with one head to start from, tuned their own ways."""
    sizes = lab.sizes
    is_swapped = preferences.is_swapped(sizes.pairs, corruption, seed)
    train = swapped(found.right, is_swapped)
    decoder = lab.start(seed)
    features = [lab.features(decoder, rows) for rows in train]
    start = {"decoder": decoder, "head": reward_model.probe(*features, penalty=0.01)}
    seeds = [1_000 * seed + m for m in range(sizes.members)]
    members = warm.train(
        lab.reward, [start], *train, sizes.population(), seeds, sizes.steps, together=True
    )
    return Population(members, train, is_swapped)


def proxies(lab: Lab, members: types.Params) -> dict[str, tuple[str, types.Params]]:
    """By name: which of `Lab.rewards` it is, and its parameters."""
    alone = reward_toy.split(members)
    found = {f"single-{m}": ("single", params) for m, params in enumerate(alone)}
    return found | {
        "ensemble": ("ensemble", members),
        "average": ("single", warm.average(alone)),
    }


def ranked(lab: Lab, found: Data, own: Population) -> list[dict[str, Any]]:
    """Accuracies of each member, of the mean of their predictions and of their weights."""
    rows: list[dict[str, Any]] = []
    for name, (kind, params) in proxies(lab, own.members).items():

        def right(both: preferences.Pairs, kind: str = kind, params: Any = params) -> np.ndarray:
            chosen, rejected = (np.asarray(lab.rewards[kind](params, rows)) for rows in both)
            return reward_model.accuracy(chosen - rejected)

        train, wrong = right(own.train), own.is_swapped
        rows.append(
            {
                "model": name,
                "corrupted": float(train[wrong].mean()) if wrong.any() else None,
                "clean": float(train[~wrong].mean()),
                "near": float(right(found.near).mean()),
                "far": float(right(found.far).mean()),
            }
        )
    return rows


def connected(lab: Lab, found: Data, own: Population) -> float:
    """Accuracy half-way between two members' weights less their mean one, held out; of all pairs.

    Linear mode connectivity is that it is not below 0.
    """
    alone = reward_toy.split(own.members)

    def accuracy(params: types.Params) -> float:
        chosen, rejected = (np.asarray(lab.rewards["single"](params, x)) for x in found.near)
        return float(reward_model.accuracy(chosen - rejected).mean())

    ends = [accuracy(params) for params in alone]
    gaps = [
        accuracy(warm.average([alone[a], alone[b]])) - (ends[a] + ends[b]) / 2
        for a in range(len(alone))
        for b in range(a)
    ]
    return float(np.mean(gaps))


def best_of(lab: Lab, members: types.Params, seed: int) -> list[dict[str, Any]]:
    """Rows of best of N: gold and proxy of what each model picks, means over held-out prompts.

    The bound of the KL is that of N alone; the other KL is that of the draws as a distribution,
    in which equal rewards share what they have.
    """
    sizes, language = lab.sizes, lab.language(seed)
    key, start = jax.random.fold_in(jax.random.key(seed), 7), lab.start(seed)
    prompts = language.held_out[: sizes.prompts]
    made = lab.draw(start, start, language.tables, prompts, key)
    gold = np.asarray(made.reward).reshape(sizes.prompts, sizes.draws)
    found = {
        name: _in_parts(lab.rewards[kind], params, made.rows, sizes.draws)
        for name, (kind, params) in proxies(lab, members).items()
    }
    uniform = np.full(sizes.draws, 1 / sizes.draws)
    rows: list[dict[str, Any]] = []
    for name, proxy in {**found, "gold": gold}.items():
        picked = [
            np.mean([curves.best_of(p, x, sizes.counts) for p, x in zip(proxy, of, strict=True)], 0)
            for of in (proxy, gold)
        ]
        for count, by_proxy, by_gold in zip(sizes.counts, *picked, strict=True):
            kl = np.mean([best_of_n.kl(uniform, own, count) for own in proxy])
            of_count = {"n": count, "kl_bound": best_of_n.kl_bound(count), "kl": float(kl)}
            values = {"proxy": float(by_proxy), "gold": float(by_gold)}
            rows.append({"reward": name, **of_count, **values})
    return rows


def _in_parts(
    rewards: Callable[..., jax.Array], params: types.Params, rows: batches.Sequences, size: int
) -> np.ndarray:
    """Rewards of many rows, [n / size, size], so many at a time."""
    count = len(rows.lengths) // size
    parts = [jax.tree.map(lambda x, k=k: x[k * size : (k + 1) * size], rows) for k in range(count)]
    return np.stack([np.asarray(rewards(params, part)) for part in parts])


def climbs(
    lab: Lab, members: types.Params, seed: int, work: reproduce.Work
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of REINFORCE up each reward, and of who writes the better texts at the end."""
    known = proxies(lab, members)
    kept = [f"single-{m}" for m in range(lab.sizes.singles)]
    ways = {name: known[name] for name in (*kept, "ensemble", "average")}
    ways["gold"] = ("gold", lab.language(seed).tables)
    rows: list[dict[str, Any]] = []
    ends: dict[str, np.ndarray] = {}
    for number, (name, (kind, params)) in enumerate(ways.items()):
        found, ends[name] = climb(lab, kind, params, seed)
        work.tick((number + 1) * lab.sizes.policy_steps, found[-1]["gold"], "gold")
        rows += [{"reward": name, **row} for row in found]
    start = lab.start(seed)
    ends["start"] = np.asarray(_measure(lab, start, seed).reward)
    pairs = [(name, "start") for name in ways] + [("average", other) for other in ends]
    wins = [
        {"policy": one, "against": other, "win_rate": curves.win_rate(ends[one], ends[other])}
        for one, other in dict.fromkeys(pairs)
        if one != other
    ]
    return rows, wins


def _measure(lab: Lab, params: types.Params, seed: int) -> rewarded.Measured:
    """Texts and gold of a policy: the same prompts and random numbers for all of a seed."""
    language, key = lab.language(seed), jax.random.fold_in(jax.random.key(seed), 8)
    return lab.measure(params, lab.start(seed), language.tables, language.held_out, key)


def climb(
    lab: Lab, kind: str, scorer: types.Params, seed: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Records of one policy, and the gold of its texts at the end, [B]."""
    sizes, language, program = lab.sizes, lab.language(seed), lab.climb[kind]
    state = rewarded.begun(program.agent, lab.start(seed), seed)
    key = jax.random.fold_in(jax.random.key(seed), 9)
    stretch, rows = sizes.policy_steps // sizes.records, []
    gold = np.zeros(0)
    for first in range(0, sizes.policy_steps + 1, stretch):
        found = _measure(lab, state.params, seed)
        gold = np.asarray(found.reward)
        proxy = gold if kind == "gold" else np.asarray(lab.rewards[kind](scorer, found.rows))
        means = {"kl": found.kl, "proxy": proxy, "gold": gold}
        rows.append({"step": first, **{name: float(np.mean(x)) for name, x in means.items()}})
        if first < sizes.policy_steps:
            prompts = rewarded.drawn(language, program.agent, seed, first, stretch)
            state, _ = program.run(state, lab.start(seed), scorer, prompts, key)
    return rows, gold

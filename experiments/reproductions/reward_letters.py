"""Reward models of texts of letters, for `kullback reproduce warm`: a small decoder and known gold.

A decoder learns what the source writes (letters.py). Of two texts that it writes to a prompt, gold
says which is better; a share of these labels is swapped. Reward models are tuned on them from the
decoder, its head found by linear probing. Then the supervised policy is moved toward what they say:
by best of N, and by REINFORCE. All is measured by gold on prompts that nothing was learnt from.

M members, N pairs, B texts, n draws to a prompt.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, sampling, types
from kullback.experiments.reproductions import curves, letters, reward_models, rewarded, study
from kullback.experiments.reproductions.reward_models import Data, proxies, split
from kullback.lm import (
    adapters,
    batches,
    best_of_n,
    completions,
    gemma,
    lora,
    preferences,
    reward_model,
    rlhf,
    warm,
)

FAR = 2.0  # Temperature at which the texts of pairs far from training ones are drawn.
PAIRS, DRAWS, EVALUATION, LEARNING = 6, 7, 8, 9  # Streams of random numbers.
LANGUAGE = letters.Sizes(letters=8, held_out=16)  # So few that gold can be learnt of the pairs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the decoder, its data, reward models and policies."""

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
    # Of adapters, which share one A and are learnt in place of the decoder's weights; 0: there are
    # none.
    rank: int = 0
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
        ranges.at_least(2, self, "members")
        ranges.inside("[1, members]", self, "singles")
        ranges.multiples("records", self, "policy_steps")
        if not self.corruptions:
            raise ValueError("corruptions must have one value at least, got ()")
        if self.prompts > self.language.held_out:
            raise ValueError(
                f"prompts must be <= held_out={self.language.held_out} of the language, "
                f"got {self.prompts}"
            )
        ranges.inside("[1, draws]", self, "counts")
        self.population()
        self.policy()

    @property
    def adapters(self) -> lora.Config:
        """The settings of reward models' adapters."""
        return lora.Config(rank=self.rank, shared_a=True)

    def population(self) -> warm.Config:
        """Returns settings of reward models."""
        drawn = self.learning_rates, self.dropouts
        return reward_models.settings(self.batch_size, *drawn, self.adapters)

    def policy(self) -> rlhf.Config:
        """Returns settings of REINFORCE."""
        return rlhf.Config(
            samples_per_prompt=self.samples_per_prompt,
            kl_coefficient=self.kl_coefficient,
            learning=self.language.learning(self.policy_batch, self.policy_rate),
        )


SIZES = Sizes()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Letters:
    """A decoder of letters, its reward models and policies; compiled, for all seeds."""

    sizes: Sizes
    world: rewarded.World
    tuned: rewarded.World  # The same, with the adapters of reward models.
    reward: reward_model.Model
    learner: reward_model.Model  # The same, with adapters.
    # (acting params, prompts, key) -> two texts a prompt, by temperature.
    write: dict[float, Callable[..., batches.Sequences]]
    rewards: dict[str, Callable[..., jax.Array]]  # Of "single" (or average) and "ensemble".
    features: Callable[..., jax.Array]
    climbers: dict[str, rewarded.Climber]  # By "single", "ensemble", "gold".
    evaluate: Callable[..., rewarded.Evaluation]
    draw: Callable[..., rewarded.Evaluation]  # The same with `draws` texts a prompt.


def make(sizes: Sizes) -> Letters:
    """Returns the decoder and all that is made of it; programs compile at their first use."""
    language = sizes.language
    model = gemma.make(language.decoder(sizes.width, sizes.num_layers))
    reward = reward_model.on_decoder(model)
    with_adapters = reward_model.on_decoder(adapters.adapted(model, sizes.adapters))
    world = rewarded.world(model, language)
    agent = rlhf.make(model, config=sizes.policy())
    scorers = {
        "single": reward_model.scorer(reward, None),
        "ensemble": warm.ensemble_scorer(reward, None),
        "gold": rewarded.GOLD,
    }

    def write(temperature: float) -> Callable[..., batches.Sequences]:
        drawn = sampling.Sampling(temperature=temperature)
        sampler = completions.sampler(model, language.horizon, sampling=drawn, samples_per_prompt=2)
        return jax.jit(sampler.sequences)

    return Letters(
        sizes=sizes,
        world=world,
        tuned=rewarded.adapted(world, sizes.adapters),
        reward=reward,
        learner=with_adapters,
        write={temperature: write(temperature) for temperature in (1.0, FAR)},
        rewards={
            "single": jax.jit(reward.rewards),
            "ensemble": jax.jit(functools.partial(warm.ensemble, reward)),
        },
        features=jax.jit(reward.features),
        climbers={n: rewarded.climber(world, agent, scorer) for n, scorer in scorers.items()},
        evaluate=rewarded.evaluator(world, language.horizon, sizes.samples),
        draw=rewarded.evaluator(world, language.horizon, sizes.draws),
    )


@functools.cache
def draw(experiment: Letters, seed: int) -> Data:
    """Writes the pairs of a seed, and labels them by gold.

    Far ones are of the same prompts as near ones, with texts that the supervised policy seldom
    writes.
    """
    sizes, world = experiment.sizes, experiment.world
    language, start = world.language(seed), world.start(seed)

    def pairs(
        prompts: np.ndarray, count: int, number: int, temperature: float = 1.0
    ) -> preferences.Pairs:
        key = jax.random.fold_in(rewarded.stream_key(seed, PAIRS), number)
        ids = jnp.asarray(prompts[np.resize(np.arange(len(prompts)), count)])  # Each in turn.
        rows = experiment.write[temperature]({"params": start}, letters.as_prompts(ids), key)
        one, two = (jax.tree.map(lambda x, k=k: x[k::2], rows) for k in (0, 1))
        return letters.labelled(language.tables, one, two)

    return Data(
        train=pairs(language.train, sizes.pairs, 0),
        is_swapped=np.zeros(sizes.pairs, bool),
        near=pairs(language.held_out, sizes.held_out, 1),
        far=pairs(language.held_out, sizes.held_out, 2, FAR),
    )


@functools.cache
def tune(experiment: Letters, corruption: float, seed: int) -> tuple[Data, types.Params]:
    """Returns data with wrong labels, and members with one head, tuned on them their own ways."""
    sizes, decoder = experiment.sizes, experiment.world.start(seed)
    data = reward_models.with_errors(draw(experiment, seed), corruption, seed)
    start = reward_models.probed(experiment.features, decoder, data)
    if sizes.adapters:
        start = {**experiment.learner.init(jax.random.key(seed)), "head": start["head"]}
    given = sizes.population(), seed, sizes.members, sizes.steps, experiment.tuned.constants(seed)
    members = reward_models.train(experiment.learner, [start], data.train, *given)
    whole = jax.vmap(functools.partial(experiment.tuned.whole, seed))
    return data, {**members, "decoder": whole(members["decoder"])}


def margins(
    experiment: Letters, kind: str, params: types.Params, pairs: reward_models.Pairs
) -> np.ndarray:
    """Returns the reward of the better less the other's, [N]."""
    better, worse = (np.asarray(experiment.rewards[kind](params, rows)) for rows in pairs)
    return better - worse


def rank(
    experiment: Letters, corruption: float, seed: int, journal: study.Journal
) -> Iterator[study.Row]:
    """Tunes a population; yields what lies between its members, and how it ranks pairs."""
    del journal  # It takes little time.
    data, members = tune(experiment, corruption, seed)
    gap = connected(experiment, members, data)
    yield {"table": "halfway", "corruption": corruption, "gap": gap}
    for row in reward_models.ranked(data, members, functools.partial(margins, experiment)):
        yield {"table": "accuracies", "corruption": corruption, **row}


def connected(experiment: Letters, members: types.Params, data: Data) -> float:
    """Returns accuracy half-way between two members less their mean one, held out; of all pairs.

    Linear mode connectivity is that it is not below 0.
    """

    def accuracy(params: types.Params) -> float:
        return float(reward_model.accuracy(margins(experiment, "single", params, data.near)).mean())

    alone = split(members)
    ends = [accuracy(params) for params in alone]
    gaps = [
        accuracy(warm.average([alone[a], alone[b]])) - (ends[a] + ends[b]) / 2
        for a in range(len(alone))
        for b in range(a)
    ]
    return float(np.mean(gaps))


def move(experiment: Letters, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Moves the policy toward what models say that learnt of the most wrong labels."""
    _, members = tune(experiment, max(experiment.sizes.corruptions), seed)
    yield from study.tagged("best_of", best_of(experiment, members, seed))
    yield from climbs(experiment, members, seed, journal)


def best_of(experiment: Letters, members: types.Params, seed: int) -> study.Rows:
    """Returns rows of best of N of held-out prompts.

    The bound of the KL is that of N alone; the other KL is that of the draws as a distribution,
    in which equal rewards share what they have.
    """
    sizes, start = experiment.sizes, experiment.world.start(seed)
    prompts = experiment.world.language(seed).held_out[: sizes.prompts]
    texts = experiment.draw(start, seed, DRAWS, prompts)
    shape = sizes.prompts, sizes.draws
    by_prompt = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), texts.rows)
    parts = [jax.tree.map(lambda x, p=p: x[p], by_prompt) for p in range(sizes.prompts)]
    uniform = np.full(sizes.draws, 1 / sizes.draws)

    def rewards(kind: str, params: types.Params) -> np.ndarray:
        return np.stack([np.asarray(experiment.rewards[kind](params, part)) for part in parts])

    def distance(proxy: np.ndarray, count: int) -> dict[str, float]:
        kl = np.mean([best_of_n.kl(uniform, of_prompt, count) for of_prompt in proxy])
        return {"kl_bound": best_of_n.kl_bound(count), "kl": float(kl)}

    by_model = {name: rewards(*proxy) for name, proxy in proxies(members).items()}
    gold = np.asarray(texts.reward).reshape(shape)
    return reward_models.best_of(by_model, gold, sizes.counts, distance)


def climb(
    experiment: Letters, proxy: tuple[str, types.Params], seed: int
) -> Iterator[tuple[study.Row, np.ndarray]]:
    """Yields records of REINFORCE up a reward: a row, and the gold of each of its texts, [B].

    Args:
      experiment: of the policy.
      proxy: "single", "ensemble" or "gold", and its parameters; see `reward_models.proxies`.
      seed: of all.
    """
    (kind, scorer), sizes = proxy, experiment.sizes
    steps = sizes.policy_steps, sizes.records
    climber = experiment.climbers[kind]
    for step, params in rewarded.records(climber, seed, LEARNING, *steps, scorer):
        texts = experiment.evaluate(params, seed, EVALUATION)
        gold = np.asarray(texts.reward)
        is_gold = kind == "gold"
        seen = gold if is_gold else np.asarray(experiment.rewards[kind](scorer, texts.rows))
        means = {"kl": texts.kl, "proxy": seen, "gold": gold}
        yield {"step": step, **{column: float(np.mean(x)) for column, x in means.items()}}, gold


def climbs(
    experiment: Letters, members: types.Params, seed: int, journal: study.Journal
) -> Iterator[study.Row]:
    """Yields records of REINFORCE up each reward, and who writes the better texts at the end."""
    sizes, ends = experiment.sizes, {}
    known = proxies(members) | {"gold": ("gold", experiment.world.language(seed).tables)}
    kept = [f"single-{m}" for m in range(sizes.singles)]
    for number, name in enumerate((*kept, "ensemble", "average", "gold"), 1):
        for row, gold in climb(experiment, known[name], seed):
            ends[name] = gold
            yield {"table": "climbs", "reward": name, **row}
        journal.tick(number * sizes.policy_steps, float(np.mean(ends[name])), "gold")
    pairs = [(name, "start") for name in ends]
    ends["start"] = np.asarray(
        experiment.evaluate(experiment.world.start(seed), seed, EVALUATION).reward
    )
    pairs += [("average", other) for other in ends]
    for one, other in dict.fromkeys(pairs):
        if one != other:
            win_rate = curves.win_rate(ends[one], ends[other])
            yield {"table": "wins", "policy": one, "against": other, "win_rate": win_rate}

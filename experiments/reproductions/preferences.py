"""`kullback reproduce preferences`: policies of pairs of which a share of the labels is wrong.

Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290), its robust
form (Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409) and IPO (Azar et al. 2023,
https://arxiv.org/abs/2310.12036) are compared with a reward model that a policy climbs by REINFORCE
with leave-one-out baselines (RLOO), and with the average of several (WARM, Rame et al. 2024,
https://arxiv.org/abs/2401.12187), on the same pairs: what gold each reaches at which KL.

Responses are points, of reward_toy.py: the policy is N(mu, I), its reference N(0, I), and

    ln pi(x) / ref(x) = mu . x - |mu|^2 / 2,  KL = |mu|^2 / 2

so that the log-ratios of DPO and every KL are exact. All ways are plain gradient steps of mu from
0, compared at equal KL along the way: beta scales how far DPO goes, and not whither. The baseline
of a batch is its mean, which is leave-one-out but for a factor of (B - 1) / B. Where the papers
have language models, the rewards that such policies stand for are linear, and gold is not; a
perceptron that judges first has the richer class. So all is asked once more of a small decoder,
which direct ways, reward models and policies share (preferred_letters.py), with the most wrong
labels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import (
    charts,
    curves,
    judging,
    preferred_letters,
    reward_models,
    reward_toy,
    study,
)
from kullback.lm import dpo, warm

NAMES = {
    "dpo": "DPO",
    "robust": "robust DPO",
    "ipo": "IPO",
    "reward-model": "reward model + RLOO",
    "warm": "WARM + RLOO",
    "gold": "gold + RLOO",
}
DIRECT = ("dpo", "robust", "ipo")
JUDGED = tuple(name for name in NAMES if name != "gold")
POINTS, DECODER = "ways", "decoder"  # Tables, of points and of a decoder.
SHARED = "gold, pairs and members"  # Of ways with one seed.
# Claims, and the way that is above the other.
COMPARED = (
    ("robust DPO above DPO", "robust", "dpo"),
    ("IPO above DPO", "ipo", "dpo"),
    ("a reward model that is climbed above DPO", "reward-model", "dpo"),
    ("a reward model that is climbed above robust DPO", "reward-model", "robust"),
    ("the average of reward models above one", "warm", "reward-model"),
    ("the average of reward models above DPO", "warm", "dpo"),
)
HEADLINES = ("robust DPO above DPO", "the average of reward models above DPO")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, what is compared, and the sizes."""

    seeds: int = 20
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.
    corruptions: tuple[float, ...] = (0.0, 0.25)  # Shares of wrong labels in [0, 1/2); ascending.
    beta: float = 0.1  # Of DPO and its robust form, > 0.
    ipo_beta: float = 0.02  # tau of IPO, > 0: at 0.1 it ends within a nat, where labels are wrong.
    # Step size > 0 of the direct ways, whose gradients are divided by the slope of their loss at
    # the start, so that their first steps are equal; in units of `toy.climb_rate`.
    descent_rate: float = 0.05
    kl: float = 4.0  # Nats > 0 at which ways are compared, if all of them go so far.
    toy: reward_toy.Sizes = reward_toy.SIZES
    decoder: preferred_letters.Sizes = dataclasses.field(default_factory=preferred_letters.Sizes)

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds")
        ranges.at_least(0, self, "first_seed")
        ranges.inside("[0, 0.5)", self, "corruptions")
        ranges.inside("(0, inf)", self, "beta", "ipo_beta", "descent_rate", "kl")

    def objective(self, name: str, corruption: float) -> dpo.Objective:
        """Returns the loss of a direct way; the robust one is told the share of wrong labels."""
        return dpo.Objective(
            loss="sigmoid" if name == "dpo" else name,  # pyright: ignore[reportArgumentType]
            beta=self.ipo_beta if name == "ipo" else self.beta,
            label_smoothing=corruption if name == "robust" else 0.0,
        )


def descent(config: Config, objective: dpo.Objective) -> Any:
    """Returns the pure (pairs, gold, key) -> `reward_toy.Climb` of a direct way.

    Its proxy is the share of the pairs, as they are labelled, that the policy ranks so.

        mu <- mu - rate grad (mean loss of d) / |loss'(0)|,  d = mu . (better - worse)

    Args:
      config: sizes, and the step size.
      objective: the loss, and beta.
    """
    sizes = config.toy
    loss = functools.partial(
        dpo.pair_losses,
        loss=objective.loss,
        beta=objective.beta,
        smoothing=objective.label_smoothing,
    )
    slope = jnp.abs(jax.grad(loss)(0.0))

    def run(pairs: reward_models.Pairs, gold: reward_toy.Gold, key: Any) -> reward_toy.Climb:
        shown = jax.random.normal(key, (sizes.evaluation, reward_toy.DIMENSIONS))
        better, worse = pairs

        def differences(mu: jax.Array) -> jax.Array:
            # The reference is N(0, I), whose normaliser, like |mu|^2 / 2, both answers share.
            counts = jnp.ones(len(better))
            zeros = jnp.zeros(len(better))
            chosen, rejected = (dpo.Scores(x @ mu, zeros, counts) for x in (better, worse))
            return dpo.differences(objective, chosen, rejected)

        def record(mu: jax.Array) -> reward_toy.Climb:
            is_right = (jnp.sign(differences(mu)) + 1) / 2
            reached = jnp.mean(reward_toy.worth(gold, mu[None] + shown))
            return reward_toy.Climb(mu @ mu / 2, jnp.mean(is_right), reached)

        def step(mu: jax.Array, _: None) -> tuple[jax.Array, None]:
            gradient = jax.grad(lambda mu: jnp.mean(loss(differences(mu))))(mu)
            return mu - config.descent_rate * gradient / slope, None

        return reward_toy.way(sizes, step, record)

    return run


@functools.cache
def _programs(config: Config, corruption: float) -> dict[str, Any]:
    """Returns compiled ways by name, for all seeds."""
    climb = reward_toy.climber(config.toy, _scaled)
    return {
        **{name: jax.jit(descent(config, config.objective(name, corruption))) for name in DIRECT},
        "reward-model": jax.jit(jax.vmap(climb, (0, None, None))),
        "warm": jax.jit(climb),
        "gold": jax.jit(reward_toy.climber(config.toy, reward_toy.worth)),
    }


def _scaled(model: dict[str, Any], x: jax.Array) -> jax.Array:
    """Returns rewards in units of their spread over the reference, [B]: steps are of one size."""
    return reward_toy.MODEL.rewards(model["params"], x) / model["spread"]


def scaled(params: Any, config: Config, seed: int) -> dict[str, Any]:
    """Returns a reward model with the spread of its rewards over the reference's responses."""
    key = jax.random.fold_in(jax.random.key(seed), 6)
    x = jax.random.normal(key, (config.toy.evaluation, reward_toy.DIMENSIONS))
    return {"params": params, "spread": jnp.std(reward_toy.MODEL.rewards(params, x))}


def compare(
    config: Config, corruption: float, seed: int, journal: study.Journal
) -> Iterator[study.Row]:
    """Yields the records of all ways of a seed."""
    del journal  # It takes no time.
    sizes = dataclasses.replace(config.toy, corruption=corruption)
    gold_key, net_key = jax.random.split(jax.random.key(seed))
    plain, bent = (reward_toy.draw_gold(gold_key, c) for c in (0.0, sizes.penalty))
    data = reward_toy.draw(sizes, bent, seed)
    backbone = reward_toy.pretrain(sizes, plain, net_key)
    start = reward_models.probed(reward_toy.MODEL.features, backbone, data)
    members = reward_models.train(
        reward_toy.MODEL,
        *([start], data.train, sizes.population(), seed, sizes.members, sizes.climbed_steps),
    )
    # No shapes of the programs depend on the share; the same noise for all.
    programs, key = _programs(config, corruption), jax.random.fold_in(jax.random.key(seed), 4)
    alone = reward_models.split(members)
    given = {
        "reward-model": warm.stacked([scaled(one, config, seed) for one in alone]),
        "warm": scaled(warm.average(alone), config, seed),
        "gold": bent,
    }
    given |= dict.fromkeys(DIRECT, data.train)
    for name in NAMES:
        climb = programs[name](given[name], bent, key)
        ways = reward_models.split(climb) if name == "reward-model" else [climb]
        for member, way in enumerate(ways):
            for record in reward_toy.records(sizes, way):
                yield {"way": name, "member": member, **record}


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields all ways, by share of wrong labels and seed."""
    for corruption, seed in itertools.product(config.corruptions, study.seeds_of(config)):
        columns = {"corruption": corruption, "seed": seed}
        run = functools.partial(compare, config, corruption, seed)
        part = f"{corruption:g}-{seed}"
        yield study.Arm(part, steps(config), run, table=POINTS, columns=columns)
    most = max(config.corruptions)
    objectives = {name: config.objective(name, most) for name in DIRECT}
    given = config.decoder, DECODER, config.first_seed, most, objectives
    yield from preferred_letters.arms(*given)


def steps(config: Config) -> int:
    """Returns the steps of one arm; twenty of a perceptron or a policy count as one."""
    sizes = config.toy
    of_models = sizes.pretraining_steps + sizes.members * sizes.climbed_steps
    return -(-(of_models + (sizes.members + len(NAMES)) * sizes.climbs) // 20)


def at_kl(
    rows: study.Rows, most: float, corruption: float, names: tuple[str, ...] = JUDGED
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the KL where ways are compared, [seeds], and gold of each there, [seeds].

    It is `most`, or as far as the shortest way of a seed goes; of members, their mean.
    """
    values: dict[str, np.ndarray] = {}
    ways = {name: curves_of(rows, corruption, name) for name in names}
    reach = np.min([kl.max(2).min(1) for kl, _ in ways.values()], 0)
    at = np.minimum(most, reach)
    for name, (kl, gold) in ways.items():
        by_member = [
            [curves.value_at(*way, at=where) for way in zip(one_kl, one_gold, strict=True)]
            for one_kl, one_gold, where in zip(kl, gold, at, strict=True)
        ]
        values[name] = np.mean(by_member, 1)
    return at, values


def curves_of(rows: study.Rows, corruption: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns KL and gold along a way, [seeds, members, n] each."""
    of_way = study.where(rows, corruption=corruption, way=name)
    members = study.distinct(of_way, "member")
    kl, gold = (
        np.stack([study.by_seed(of_way, column, member=m) for m in members], 1)
        for column in ("kl", "gold")
    )
    return kl, gold


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges ways at equal KL, with each share of wrong labels, and what these cost."""
    rows, most = tables[POINTS], max(config.corruptions)
    by_share = {share: at_kl(rows, config.kl, share) for share in config.corruptions}
    for share, values in by_share.items():
        yield from compared(f"{share:.0%} of labels wrong", values, share, share == most)
    if len(by_share) > 1:
        least = min(by_share)
        for name in JUDGED:
            yield judging.above(
                f"{NAMES[name]}: wrong labels cost gold (at {least:.0%} less at {most:.0%})",
                by_share[least][1][name] - by_share[most][1][name],
                shared=SHARED,
            )
    values = at_kl(tables[DECODER], config.decoder.kl, most)
    yield from compared(f"a decoder, {most:.0%} of labels wrong", values, most, True)


def compared(
    of: str, values: tuple[np.ndarray, dict[str, np.ndarray]], share: float, has_headlines: bool
) -> Iterator[judging.Check]:
    """Judges the claims of ways at equal KL.

    Args:
      of: what they are ways of.
      values: from `at_kl`.
      share: of wrong labels.
      has_headlines: whether the papers' headlines are asked of it.
    """
    at, gold = values
    ends = " to ".join(dict.fromkeys(f"{x:.3g}" for x in (at.min(), at.max())))
    where = f"{of}, gold at {ends} nats"
    for claim, one, other in COMPARED:
        if share or "robust" not in (one, other):  # It is DPO where no label is wrong.
            check = judging.above(f"{claim} ({where})", gold[one] - gold[other], shared=SHARED)
            is_headline = has_headlines and claim in HEADLINES
            yield judging.headline(check) if is_headline else check
    yield judging.reported(where, judging.means({NAMES[n]: x for n, x in gold.items()}))


def figures(config: Config, tables: study.Tables) -> dict[str, charts.Grid]:
    """Returns gold over KL, a panel for each share of wrong labels, and one of the decoder."""
    panels = [
        _panel(tables[POINTS], share, config.kl, f"{share:.0%} of labels wrong")
        for share in config.corruptions
    ]
    most = max(config.corruptions)
    titled = f"a decoder, {most:.0%} of labels wrong"
    panels.append(_panel(tables[DECODER], most, config.decoder.kl, titled))
    return {"preferences": charts.Grid(panels=panels, width=5.2, height=3.8)}


def _panel(rows: study.Rows, share: float, most: float, title: str) -> charts.Panel:
    marks: list[charts.Mark] = []
    for number, name in enumerate(NAMES):
        kl, gold = curves_of(rows, share, name)
        at = np.linspace(0, min(2 * most, kl.max(2).min()), 100)
        values = [
            np.mean([[curves.value_at(*x, k) for k in at] for x in zip(*way, strict=True)], 0)
            for way in zip(kl, gold, strict=True)
        ]
        styles = {"color": f"C{number}"}, {"lw": 0.6, "alpha": 0.25}
        marks.append(charts.Seeds(at, np.array(values), NAMES[name], *styles))
    axes = {
        "xlabel": "KL to the reference, nats",
        "ylabel": "gold reward",
        "title": f"{title}; thin lines are seeds",
    }
    return charts.Panel(marks=marks, axes=axes, legend={"fontsize": 7, "framealpha": 0.5})


def seconds(config: Config) -> float:
    """Estimates compiling, steps on points, and those of the decoder."""
    points = config.seeds * len(config.corruptions) * steps(config)
    return 120 + points * 0.015 + config.decoder.seeds * config.decoder.work * 0.05


STUDY = study.Study(
    claim="Of pairs with wrong labels, robust DPO reaches more gold than DPO at equal KL, and so "
    "does a policy that climbs an average of reward models.",
    source="Rafailov et al. 2023, arXiv:2305.18290; Chowdhury et al. 2024, arXiv:2403.00409",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: study.split(rows, POINTS, DECODER),
    claims=claims,
    figures=figures,
    seconds=seconds,
)

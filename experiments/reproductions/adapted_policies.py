"""Policies of letters that learn all weights or adapters, and their averages; see adapters.py.

Members of a seed start from one supervised policy and see other prompts, as WARP's do
(merged_policies.py). All that is measured is of whole weights, with adapters merged.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import averaging, ranges, types
from kullback.experiments.reproductions import letters, rewarded, study
from kullback.lm import gemma, lora, merging, rlhf

# All weights; adapters with one frozen A; adapters each with an A of its own, which is learnt.
Way = Literal["full", "shared", "free"]
NAIVE = "naive"  # The mean of both factors, each by itself.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the policy and of its learning."""

    width: int = 32
    num_layers: int = 2
    rank: int = 4  # Of adapters, on all matrices of all layers.
    batch_size: int = 64  # Texts: prompts times samples of each.
    samples_per_prompt: int = 4
    kl_coefficient: float = 0.05  # beta, to the supervised start.
    full_rate: float = 1e-3
    shared_rate: float = 1e-2
    free_rate: float = 1e-2
    members: int = 2
    member_steps: int = 150  # Learner steps of each member.
    records: int = 5  # Points of the first member's curve.
    samples: int = 16  # Texts of each held-out prompt, of which rewards and KL are means.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "records", "samples", "rank")
        ranges.at_least(2, self, "members")
        ranges.multiples("records", self, "member_steps")

    def adapters(self, way: Way) -> lora.Config:
        """Returns the settings of a way's adapters; rank 0 of all weights."""
        rank = 0 if way == "full" else self.rank
        return lora.Config(rank=rank, alpha=float(self.rank), shared_a=way == "shared")

    def member(self, way: Way, language: letters.Sizes) -> rlhf.Config:
        """Returns the settings of a member."""
        rate: float = getattr(self, f"{way}_rate")
        learning = language.learning(self.batch_size, rate)
        return rlhf.Config(
            samples_per_prompt=self.samples_per_prompt,
            kl_coefficient=self.kl_coefficient,
            learning=dataclasses.replace(learning, lora=self.adapters(way)),
        )


class Policies(NamedTuple):
    """A way to learn, for all seeds."""

    way: Way
    sizes: Sizes
    world: rewarded.World
    climber: rewarded.Climber
    evaluate: rewarded.Evaluate  # Of whole weights.


def make(sizes: Sizes, language: letters.Sizes) -> list[Policies]:
    """Returns all ways; they have the supervised policy in common."""
    model = gemma.make(language.decoder(sizes.width, sizes.num_layers))
    plain = rewarded.world(model, language)
    evaluate = rewarded.evaluator(plain, language.horizon, sizes.samples)

    def of_way(way: Way) -> Policies:
        world = rewarded.adapted(plain, sizes.adapters(way))
        agent = rlhf.make(model, config=sizes.member(way, language))
        climber = rewarded.climber(world, agent, rewarded.GOLD)
        return Policies(way, sizes, world, climber, evaluate)

    return [of_way("full"), of_way("shared"), of_way("free")]


def compare(policies: Policies, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Trains the members of a seed; yields points of curve and fronts, and what merges are."""
    sizes, world = policies.sizes, policies.world
    learnt: list[types.Params] = []
    stretch = sizes.member_steps // sizes.records
    for number in range(sizes.members):
        begun = policies.climber.begin(seed, number)
        # The number of the step says which prompts are next.
        state = begun._replace(steps=jnp.asarray(number * sizes.member_steps, jnp.int32))
        for record in range(1, sizes.records + 1):
            state, _ = policies.climber.advance(state, seed, rewarded.LEARNING, stretch)
            done = number * sizes.member_steps + record * stretch
            journal.tick(done)
            if number == 0:
                yield point(
                    policies, seed, "run", record * stretch, world.whole(seed, state.params)
                )
        learnt.append(state.params)
    start, members = world.start(seed), [world.whole(seed, x) for x in learnt]
    of_factors = world.whole(seed, averaging.mean(learnt))
    slerp = averaging.slerp(members, start, group_of=merging.gemma_groups("layer"))
    ends = {"mean": averaging.mean(members), "slerp": slerp}
    if policies.way == "free":
        ends[NAIVE] = of_factors
    for number, member in enumerate(members):
        yield point(policies, seed, "member", number, member)
    for arm, end in ends.items():
        for at_eta in rewarded.front(start, end):
            yield point(policies, seed, arm, *at_eta)
    where = {"table": "merges", "way": policies.way, "seed": seed}
    yield {**where, **geometry(start, members, of_factors)}


def point(policies: Policies, seed: int, arm: str, at: float, params: types.Params) -> study.Row:
    """Returns reward and KL of a policy: the same prompts and numbers for all of a seed."""
    evaluation = policies.evaluate(params, seed, rewarded.EVALUATION)
    of = {"way": policies.way, "seed": seed, "arm": arm, "at": at}
    means = {"kl": evaluation.kl, "reward": evaluation.reward}
    return {"table": "points", **of, **{name: float(np.mean(x)) for name, x in means.items()}}


def geometry(
    start: types.Params, members: list[types.Params], of_factors: types.Params
) -> dict[str, float]:
    """Returns how the members' task vectors lie, and how far the mean of factors is from theirs.

    Args:
      start: of all.
      members: as whole weights.
      of_factors: the weights of the mean of what members have learnt.

    Returns:
      cosine: of the first two task vectors. factors_error: |of_factors - mean| / |mean - start|.
    """
    [whole] = averaging.cosines(members, start, averaging.whole).values()
    mean = averaging.mean(members)
    error = norm(of_factors, mean) / norm(mean, start)
    return {"cosine": float(whole[0, 1]), "factors_error": error}


def norm(one: types.Params, other: types.Params) -> float:
    """Returns the Euclidean distance of two policies' weights."""
    squares = jax.tree.map(lambda a, b: float(np.sum(np.square(np.float64(a) - b))), one, other)
    return float(np.sqrt(sum(jax.tree.leaves(squares))))

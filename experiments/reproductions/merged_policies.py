"""Policies of letters and the averages of their weights, for `kullback reproduce warp`.

See warp.py, which judges. Runs are those of lm/rlhf.py and lm/warp.py; KL and reward are measured
on held-out prompts, with the same random numbers for all policies of a seed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from kullback.core import averaging, trees, types
from kullback.experiments.reproductions import letters, mlp_policy, rewarded, study
from kullback.lm import gemma, lora, merging, rlhf, tuning, warp

MOVING = "moving"  # The arm that is a run with a moving anchor.
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # Of merges.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a policy and of its learning."""

    kind: Literal["perceptron", "decoder"]
    width: int = 64
    num_layers: int = 2  # Of a decoder.
    batch_size: int = 128  # Texts: prompts times samples of each.
    samples_per_prompt: int = 4
    learning_rate: float = 1e-3
    member_steps: int = 300  # Learner steps of each run, T.
    # Of adapters, which share one A and are learnt in place of a decoder's weights; 0: there are
    # none.
    rank: int = 0

    def __post_init__(self) -> None:
        if self.rank and self.kind != "decoder":
            raise ValueError(f"a {self.kind} has no adapters: rank must be 0, got {self.rank}")

    def learning(self, language: letters.Sizes) -> tuning.Config:
        """Returns settings of a learner."""
        learning = language.learning(self.batch_size, self.learning_rate)
        return dataclasses.replace(learning, lora=lora.Config(rank=self.rank, shared_a=True))

    def model(self, language: letters.Sizes) -> gemma.Model:
        """Returns the policy."""
        config = language.decoder(self.width, self.num_layers)
        if self.kind == "perceptron":
            return mlp_policy.make(config, letters.PROMPT)
        return gemma.make(config)


PERCEPTRON = Sizes(kind="perceptron")
DECODER = Sizes(kind="decoder", member_steps=200)


class Policies(NamedTuple):
    """A kind of policy, and what trains and measures it; for all seeds."""

    name: str
    algorithm: warp.Config
    world: rewarded.World
    fixed: dict[str, rewarded.Climber]  # By arm: runs with a fixed anchor.
    member: rewarded.Climber  # One with a moving anchor.
    whole: rewarded.Climber  # WARP.
    evaluate: Callable[..., rewarded.Evaluation]


class Merge(NamedTuple):
    """An iteration: where its members began, their weights, and their spherical merge."""

    init: types.Params
    members: list[types.Params]
    merged: types.Params


def make(
    name: str,
    model: gemma.Model,
    language: letters.Sizes,
    fixed: Mapping[str, rlhf.Config],
    algorithm: warp.Config,
    samples: int,
) -> Policies:
    """Returns a kind of policy; programs compile at their first use.

    Args:
      name: of the kind.
      model: the policy.
      language: what it writes.
      fixed: settings of runs with a fixed anchor, by arm.
      algorithm: settings of WARP.
      samples: texts of each held-out prompt, of which rewards and KL are means.
    """
    world = rewarded.adapted(rewarded.world(model, language), algorithm.learning.lora)

    def climber(agent: types.Agent) -> rewarded.Climber:
        return rewarded.climber(world, agent, rewarded.GOLD)

    member_kind = warp.KINDS[type(algorithm.member)]
    return Policies(
        name=name,
        algorithm=algorithm,
        world=world,
        fixed={arm: climber(rlhf.make(model, config=config)) for arm, config in fixed.items()},
        member=climber(member_kind.make(model, config=algorithm.member)),
        whole=climber(warp.make(model, algorithm)),
        evaluate=rewarded.evaluator(world, language.horizon, samples),
    )


def anchored(
    policies: Policies, seed: int, records: int, arm: str, journal: study.Journal
) -> Iterator[study.Row]:
    """Trains with a fixed anchor; yields reward and KL on the way."""
    steps = policies.algorithm.member_steps
    for done, params in rewarded.records(
        policies.fixed[arm], seed, rewarded.LEARNING, steps, records
    ):
        yield (row := point(policies, seed, arm, done, params))
        journal.tick(done, row["reward"], "reward")


def averaged(
    policies: Policies, seed: int, records: int, iterations: int, journal: study.Journal
) -> Iterator[study.Row]:
    """Trains by WARP; yields the curve of its first run, merges, and fronts to the start."""
    points, merges = iterate(policies, seed, records, iterations, journal)
    first, start = merges[0], policies.member.begin(seed).params
    for way in ("slerp", "lerp"):
        for share in LAMBDAS:
            merged = merge(first, way, share)
            points.append(point(policies, seed, f"{way}-by-lambda", share, merged))
    ends = {"one-1": first.members[0], "lerp-1": merge(first, "lerp")}
    ends |= {f"slerp-{n}": one.merged for n, one in enumerate(merges, 1)}
    for arm, end in ends.items():
        points += [point(policies, seed, arm, *at_eta) for at_eta in rewarded.front(start, end)]
    yield from study.tagged("points", points)
    for number, one in enumerate(merges, 1):
        yield {"table": "merges", **compare(policies, seed, number, one)}


def iterate(
    policies: Policies, seed: int, records: int, iterations: int, journal: study.Journal
) -> tuple[study.Rows, list[Merge]]:
    """Trains by WARP's learner; returns the curve of its first member, and each iteration's merge.

    What the learner keeps are merges. So the last stretch of each member is run twice, by the
    member's learner too, which ends with the member's weights.
    """
    size = policies.algorithm.member_steps
    stretch = size // records
    state = policies.whole.begin(seed)
    curve, merges = [point(policies, seed, MOVING, 0, state.params)], []
    for _ in range(iterations):
        init, members = state.params, []
        for _ in range(policies.algorithm.members):
            for record in range(1, records + 1):
                before = state
                state, _ = policies.whole.advance(before, seed, rewarded.LEARNING, stretch)
                done = int(state.steps)
                if record == records:
                    alone = before._replace(aux=None)
                    end, _ = policies.member.advance(alone, seed, rewarded.LEARNING, stretch)
                    members.append(end.params)
                if done <= size:
                    params = members[0] if done == size else state.params
                    curve.append(point(policies, seed, MOVING, done, params))
                journal.tick(done, curve[-1]["reward"], "reward")
        merges.append(Merge(init, members, state.aux.merged))
    return curve, merges


def merge(one: Merge, way: str, share: float = 0.5) -> types.Params:
    """Merges two members: lambda = `share` of the way from the first to the second."""
    if way == "lerp":
        return averaging.mean(one.members, [1 - share, share])
    return averaging.slerp(one.members, one.init, t=share, group_of=merging.gemma_groups("layer"))


def point(
    policies: Policies, seed: int, arm: str, at: float, params: types.Params
) -> dict[str, Any]:
    """Returns reward and KL of a policy: the same prompts and numbers for all of a seed."""
    evaluation = policies.evaluate(params, seed, rewarded.EVALUATION)
    reward, kl = (np.asarray(x, np.float64) for x in (evaluation.reward, evaluation.kl))
    return {
        "policy": policies.name,
        "seed": seed,
        "arm": arm,
        "at": at,  # Learner steps of a run, lambda of a merge, else eta.
        "kl": float(kl.mean()),
        "reward": float(reward.mean()),
        "reward_error": float(reward.std() / np.sqrt(len(reward))),
    }


def compare(policies: Policies, seed: int, iteration: int, one: Merge) -> dict[str, Any]:
    """Returns what members and both merges are worth, and how their task vectors lie."""
    ends = {"one": one.members[0], "two": one.members[1]}
    ends |= {"slerp": one.merged, "lerp": merge(one, "lerp")}
    values: dict[str, float] = {}
    for name, params in ends.items():
        of_end = point(policies, seed, name, 1, params)
        values |= {f"{column}_{name}": of_end[column] for column in ("reward", "kl")}
    by_layer = averaging.cosines(one.members, one.init, merging.gemma_groups("layer"))
    cosines = np.concatenate([np.ravel(x[..., 0, 1]) for x in by_layer.values()])
    [whole] = averaging.cosines(one.members, one.init, averaging.whole).values()
    return {
        "policy": policies.name,
        "seed": seed,
        "iteration": iteration,
        **values,
        "cosine_whole": float(whole[0, 1]),
        "cosine_least": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "cosine_most": float(cosines.max()),
        "identity_error": identity_error(one),
    }


def identity_error(one: Merge) -> float:
    """Returns how far the half-way merges are from their identity, by the greatest weight's move.

    At lambda = 1/2 the spherical task vector of a group is the linear one, divided by
    cos(Omega / 2), whatever the norms (Rame et al., appendix B).
    """
    group_of = merging.gemma_groups("tensor")
    slerp = averaging.slerp(one.members, one.init, t=0.5, group_of=group_of)
    cosines = averaging.cosines(one.members, one.init, group_of)
    policies = slerp, averaging.mean(one.members), one.init
    spherical, linear, base = (
        {path: np.asarray(leaf, np.float64) for path, leaf in trees.named_leaves(policy).items()}
        for policy in policies
    )
    error, scale = 0.0, 0.0
    for path, begin in base.items():
        cosine = np.atleast_1d(cosines[group_of(path).name][..., 0, 1])
        half = np.sqrt((1 + cosine) / 2).reshape(-1, *(1,) * (begin.ndim - 1))
        moved = (linear[path] - begin) / half
        error = max(error, float(np.max(np.abs(spherical[path] - begin - moved))))
        scale = max(scale, float(np.max(np.abs(moved))))
    return error / scale if scale else float("nan")

"""Policies of letters and the averages of their weights, for `kullback reproduce warp`.

See warp.py, which judges. Runs are those of lm/rlhf.py and lm/warp.py; KL and reward are measured
on held-out prompts, with the same random numbers for all policies of a seed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from kullback.core import averaging, types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import letters, mlp_policy, rewarded
from kullback.lm import gemma, merging, rlhf, tuning, warp

FIXED = {"fixed-strong": "strong", "fixed-weak": "weak"}  # Arms, and which beta is theirs.
MOVING = "moving"
LANGUAGE = letters.Sizes()
ETAS = tuple(n / 10 for n in range(11))  # Of fronts.
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # Of merges.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a policy and its learning."""

    kind: Literal["perceptron", "decoder"]
    width: int = 64
    num_layers: int = 2  # Of a decoder.
    batch_size: int = 128  # Texts: prompts times samples of each.
    samples_per_prompt: int = 4
    learning_rate: float = 1e-3
    member_steps: int = 300  # Learner steps of each run, T.

    def learning(self, language: letters.Sizes) -> tuning.Config:
        """Settings of a learner."""
        return language.learning(self.batch_size, self.learning_rate)

    def model(self, language: letters.Sizes) -> gemma.Model:
        """The policy."""
        config = language.decoder(self.width, self.num_layers)
        if self.kind == "perceptron":
            return mlp_policy.make(config, letters.PROMPT)
        return gemma.make(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, and the sizes."""

    seeds: int = 3
    iterations: int = 2
    strong: float = 0.1  # beta; that of the moving anchor too.
    weak: float = 0.01
    anchor_rate: float = 0.01  # mu.
    next_start: float = 0.3  # eta of the next iteration's start.
    records: int = 10  # Points of a run's curve.
    samples: int = 16  # Texts of each held-out prompt, of which rewards and KL are means.
    # Of areas: beyond this KL, nats, nothing counts. The reward that is worth nothing is the
    # supervised start's.
    reference_kl: float = 30.0
    language: letters.Sizes = LANGUAGE
    toy: Sizes = Sizes(kind="perceptron")
    decoder: Sizes = Sizes(kind="decoder", member_steps=200)

    def __post_init__(self) -> None:
        for name in ("seeds", "iterations", "records", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for sizes in (self.toy, self.decoder):
            if sizes.member_steps % self.records:
                raise ValueError(
                    f"member_steps must be a multiple of records={self.records}, "
                    f"got {sizes.member_steps}"
                )
            self.algorithm(sizes)
        if not self.reference_kl > 0:
            raise ValueError(f"reference_kl must be > 0 nats, got {self.reference_kl}")

    def member(self, sizes: Sizes, beta: float, reference: Any) -> rlhf.Config:
        """Settings of one run of REINFORCE."""
        return rlhf.Config(
            samples_per_prompt=sizes.samples_per_prompt,
            kl_coefficient=beta,
            reference=reference,
            anchor_rate=self.anchor_rate,
            learning=sizes.learning(self.language),
        )

    def algorithm(self, sizes: Sizes) -> warp.Config:
        """Settings of WARP, of two members."""
        return warp.Config(
            members=2,
            member_steps=sizes.member_steps,
            next_start=self.next_start,
            member=self.member(sizes, self.strong, "moving-average"),
        )


class Lab(NamedTuple):
    """A policy, and its compiled programs, for all seeds."""

    name: str
    sizes: Sizes
    language: Callable[[int], letters.Language]
    start: Callable[[int], types.Params]  # Supervised, of a seed.
    fixed: dict[str, rewarded.Program]  # By arm.
    member: rewarded.Program  # One with a moving anchor.
    whole: rewarded.Program  # WARP.
    measure: Callable[..., rewarded.Measured]


class Merge(NamedTuple):
    """An iteration: where its members began, their weights, and their spherical merge."""

    init: types.Params
    members: list[types.Params]
    merged: types.Params


def make(config: Config, name: str, sizes: Sizes) -> Lab:
    """Builds a lab; programs compile at their first use."""
    model, words = sizes.model(config.language), config.language
    language = functools.cache(lambda seed: letters.make(words, seed))
    supervise = rewarded.supervised(model, words)
    gold = letters.scorer(language(0).tables)  # Its tables are an argument.

    def program(agent: types.Agent) -> rewarded.Program:
        return rewarded.program(agent, model, gold)

    betas = {arm: getattr(config, field) for arm, field in FIXED.items()}
    fixed = {arm: config.member(sizes, beta, "fixed") for arm, beta in betas.items()}
    return Lab(
        name=name,
        sizes=sizes,
        language=language,
        start=functools.cache(lambda seed: supervise(language(seed), seed)),
        fixed={arm: program(rlhf.make(model, config=c)) for arm, c in fixed.items()},
        member=program(rlhf.make(model, config=config.algorithm(sizes).member)),
        whole=program(warp.make(model, config.algorithm(sizes))),
        measure=rewarded.measurer(model, words.horizon, config.samples, gold),
    )


def anchored(config: Config, lab: Lab, arm: str, seed: int, work: reproduce.Work) -> reproduce.Rows:
    """A run with a fixed anchor: reward and KL on its way."""
    program = lab.fixed[arm]
    state = rewarded.begun(program.agent, lab.start(seed), seed)
    rows = [point(lab, seed, arm, 0, state.params)]
    stretch = lab.sizes.member_steps // config.records
    for first in range(0, lab.sizes.member_steps, stretch):
        state = advance(lab, program, state, seed, stretch)
        rows.append(point(lab, seed, arm, first + stretch, state.params))
        work.tick(first + stretch, rows[-1]["reward"], "reward")
    return rows


def averaged(config: Config, lab: Lab, seed: int, work: reproduce.Work) -> reproduce.Rows:
    """WARP: the curve of its first run, its merges, and their fronts toward the start."""
    start = lab.start(seed)
    points, found = iterate(config, lab, seed, work)
    rows: reproduce.Rows = []
    first = found[0]
    for way in ("slerp", "lerp"):
        for share in LAMBDAS:
            merged = merge(first, way, share)
            points.append(point(lab, seed, f"{way}-by-lambda", share, merged))
    ends = {"one-1": first.members[0], "lerp-1": merge(first, "lerp")}
    ends |= {f"slerp-{n}": one.merged for n, one in enumerate(found, 1)}
    for arm, end in ends.items():
        for eta in ETAS:
            points.append(point(lab, seed, arm, eta, averaging.liti(start, end, eta)))
    for number, one in enumerate(found, 1):
        rows += compared(lab, seed, number, one)
    return [{"table": "points", **row} for row in points] + rows


def iterate(
    config: Config, lab: Lab, seed: int, work: reproduce.Work
) -> tuple[reproduce.Rows, list[Merge]]:
    """Runs WARP's learner; returns the curve of its first member, and each iteration's merge.

    What the learner keeps are merges. So the last stretch of each member is run twice, by the
    member's learner too, which ends with the member's weights.
    """
    algorithm, size = config.algorithm(lab.sizes), lab.sizes.member_steps
    stretch = size // config.records
    state = rewarded.begun(lab.whole.agent, lab.start(seed), seed)
    curve, found = [point(lab, seed, MOVING, 0, state.params)], []
    for _ in range(config.iterations):
        init, members = state.params, []
        for _ in range(algorithm.members):
            for record in range(1, config.records + 1):
                before = state
                state = advance(lab, lab.whole, before, seed, stretch)
                done = int(state.steps)
                if record == config.records:
                    alone = before._replace(aux=None)
                    members.append(advance(lab, lab.member, alone, seed, stretch).params)
                if done <= size:
                    params = members[0] if done == size else state.params
                    curve.append(point(lab, seed, MOVING, done, params))
                work.tick(done, curve[-1]["reward"], "reward")
        found.append(Merge(init, members, state.aux.merged))
    return curve, found


def advance(
    lab: Lab, program: rewarded.Program, state: types.LearnerState, seed: int, steps: int
) -> types.LearnerState:
    """The state so many learner steps later."""
    language, key = lab.language(seed), jax.random.fold_in(jax.random.key(seed), 2)
    prompts = rewarded.drawn(language, program.agent, seed, int(state.steps), steps)
    return program.run(state, lab.start(seed), language.tables, prompts, key)[0]


def merge(one: Merge, way: str, share: float = 0.5) -> types.Params:
    """Two members merged: lambda = `share` of the way from the first to the second."""
    if way == "lerp":
        return averaging.mean(one.members, [1 - share, share])
    return averaging.slerp(one.members, one.init, t=share, group_of=merging.gemma_groups("layer"))


def point(lab: Lab, seed: int, arm: str, at: float, params: types.Params) -> dict[str, Any]:
    """Reward and KL of a policy: the same prompts and random numbers for all of a seed."""
    language, key = lab.language(seed), jax.random.fold_in(jax.random.key(seed), 3)
    found = lab.measure(params, lab.start(seed), language.tables, language.held_out, key)
    reward, kl = (np.asarray(x, np.float64) for x in (found.reward, found.kl))
    return {
        "policy": lab.name,
        "seed": seed,
        "arm": arm,
        "at": at,  # Learner steps of a run, lambda of a merge, else eta.
        "kl": float(kl.mean()),
        "reward": float(reward.mean()),
        "reward_error": float(reward.std() / np.sqrt(len(reward))),
    }


def compared(lab: Lab, seed: int, iteration: int, one: Merge) -> reproduce.Rows:
    """A row: members against both merges, and how their task vectors lie."""
    ends = {"one": one.members[0], "two": one.members[1]}
    ends |= {"slerp": one.merged, "lerp": merge(one, "lerp")}
    values: dict[str, float] = {}
    for name, params in ends.items():
        of_end = point(lab, seed, name, 1, params)
        values |= {f"{column}_{name}": of_end[column] for column in ("reward", "kl")}
    groups = merging.gemma_groups("layer")
    found = averaging.cosines(one.members, one.init, groups)
    cosines = np.concatenate([np.ravel(x[..., 0, 1]) for x in found.values()])
    [whole] = averaging.cosines(one.members, one.init, averaging.whole).values()
    return [
        {
            "table": "merges",
            "policy": lab.name,
            "seed": seed,
            "iteration": iteration,
            **values,
            "cosine_whole": float(whole[0, 1]),
            "cosine_least": float(cosines.min()),
            "cosine_mean": float(cosines.mean()),
            "cosine_most": float(cosines.max()),
            "identity_error": identity_error(one),
        }
    ]


def identity_error(one: Merge) -> float:
    """How far the half-way merges are from their identity, by the greatest weight's move.

    At lambda = 1/2 the spherical task vector of a group is the linear one, divided by
    cos(Omega / 2), whatever the norms (Rame et al., appendix B).
    """
    group_of = merging.gemma_groups("tensor")
    slerp = averaging.slerp(one.members, one.init, t=0.5, group_of=group_of)
    lerp = averaging.mean(one.members)
    cosines = averaging.cosines(one.members, one.init, group_of)
    flat = (_by_path(x) for x in (slerp, lerp, one.init))
    spherical, linear, base = flat
    error, scale = 0.0, 0.0
    for path, begin in base.items():
        cosine = np.atleast_1d(cosines[group_of(path).name][..., 0, 1])
        half = np.sqrt((1 + cosine) / 2).reshape(-1, *(1,) * (begin.ndim - 1))
        moved = (linear[path] - begin) / half
        error = max(error, float(np.max(np.abs(spherical[path] - begin - moved))))
        scale = max(scale, float(np.max(np.abs(moved))))
    return error / scale if scale else float("nan")


def _by_path(params: types.Params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in leaves
    }

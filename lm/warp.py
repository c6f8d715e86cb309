"""WARP: policies learnt from rewards, whose weights are averaged at three stages.

Rame et al., "WARP: On the Benefits of Weight Averaged Rewarded Policies", 2024,
https://arxiv.org/abs/2406.16768, algorithm 1. An iteration trains M members, one after another,
from the same start theta_init; they differ in the prompts that they see:

    each member     REINFORCE, with a KL penalty to a moving average of its own weights (EMA);
                    or BOND, whose anchor is such an average
    theta_slerp     spherical interpolation of the members' task vectors theta_m - theta_init
    theta_init  <-  (1 - eta) theta_init + eta theta_slerp (LITI), where the next iteration starts

The result of a run is the front (1 - eta) theta_sft + eta theta_slerp over eta in [0, 1].

All of it is one learner: its place in an iteration follows from the number of its steps, and the
trees of an iteration (`IterationTrees`) are part of its state, so that a run may be resumed at any
step. The spherical mean follows the paper's recursion (appendix B.3), one member at a time, so that
two trees suffice for any number of members.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import averaging, ranges, sampling_ahead, types
from kullback.lm import bond, gemma, merging, rlhf, rollouts, tuning, value_network

ETAS = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)  # Points of the front; the paper's.


def _check_rlhf(member: rlhf.Config) -> None:
    if member.baseline == value_network.KEY:
        raise ValueError("warp averages policies: baseline value has a network beside")
    if member.distillation_weight:
        raise ValueError("warp has no teacher: distillation_weight must be 0")


class _Kind(NamedTuple):
    """An algorithm that a member may learn by."""

    make: Callable[..., types.Agent[rollouts.OnPolicy]]  # (model, config=, algorithm=) -> agent.
    check: Callable[[Any], None]  # Raises ValueError for settings that a member cannot have.


KINDS: Mapping[type, _Kind] = {
    rlhf.Config: _Kind(rlhf.make, _check_rlhf),
    bond.Config: _Kind(bond.make, lambda member: None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of WARP; those of a member are REINFORCE's or BOND's."""

    members: int = 2  # M.
    # T, learner steps of a member, the same in all iterations. The paper: 9,000 in the first, then
    # 7,000, 7,000, 5,000, 5,000. A run has steps / (M T) iterations.
    member_steps: int = 100
    next_start: float = 0.3  # eta of LITI in (0, 1], by which the next iteration's start moves.
    group: Literal["layer", "tensor", "all"] = "layer"  # Parameters that slerp takes as one vector.
    # Settings of each member, with the paper's beta and mu; the paper samples 128 texts at
    # temperature 0.9, and has a learning rate of 1e-6. Those of `warp-bond` are of BOND.
    member: rlhf.Config | bond.Config = dataclasses.field(
        default_factory=lambda: rlhf.Config(
            kl_coefficient=0.1, reference="moving-average", anchor_rate=0.01
        )
    )

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "members", "member_steps")
        if not 0 < self.next_start <= 1:
            raise ValueError(f"next_start (eta) must lie in (0, 1], got {self.next_start}")
        if self.group not in merging.GROUPS:
            raise ValueError(f"group must be one of {merging.GROUPS}, got {self.group!r}")
        KINDS[type(self.member)].check(self.member)
        if self.learning.lora and not self.learning.lora.shared_a:
            raise ValueError(
                "warp averages policies, and the average of adapters is that of their factors only "
                "with one A: --set lora.shared_a=true"
            )

    @property
    def learning(self) -> tuning.Config:
        """Settings that all learners of language models share."""
        return self.member.learning

    @property
    def output_divergence(self) -> str:
        """Name of f of the policy's softargmax_f: KL, for softmax."""
        return "kl"

    @property
    def penalty(self) -> tuple[str, float]:
        """Name and value of the setting that weighs the KL penalty."""
        return self.member.penalty

    @property
    def ahead(self) -> sampling_ahead.Ahead:
        """How far ahead of learning a member's texts are written."""
        return self.member.ahead

    @property
    def iteration_steps(self) -> int:
        """Learner steps of an iteration, M T."""
        return self.members * self.member_steps

    def check(self, steps: int) -> None:
        """Raises ValueError unless `steps`, learner steps of a run, are whole iterations."""
        if steps < 1 or steps % self.iteration_steps:
            least = -(-max(steps, 1) // self.iteration_steps) * self.iteration_steps
            raise ValueError(
                f"steps must be whole iterations of {self.members} members of "
                f"{self.member_steps} steps, got {steps}; the next is {least}"
            )


class IterationTrees(NamedTuple):
    """The parameters that an iteration remembers: `LearnerState.aux`."""

    init: types.Params  # theta_init of this iteration.
    merged: types.Params  # theta_slerp of the members so far, else of the last iteration.


def presets(family: str) -> Config:
    """Returns settings for "tokens"."""
    del family
    return Config()


def bond_presets(family: str) -> Config:
    """Returns settings for "tokens" whose members learn by J-BOND."""
    return Config(member=bond.presets(family))


def make(model: gemma.Model, config: Config | None = None) -> types.Agent[rollouts.OnPolicy]:
    """Returns the WARP agent of `model`; constants are those of its members.

    Metrics are theirs too, and the number of the iteration. The member that learns acts; between
    two iterations that is the next one's start.
    """
    config = config or Config()
    agent = KINDS[type(config.member)].make(model, config=config.member, algorithm=config)
    on_policy = agent.experience
    # No member learns from texts of another one, which had other parameters.
    ahead = on_policy.ahead._replace(period=config.member_steps)
    return agent._replace(
        learner=learner(agent.learner, config),
        experience=dataclasses.replace(on_policy, ahead=ahead),
    )


def learner(member: types.Learner, config: Config) -> types.Learner:
    """Returns the learner of all members of all iterations, from that of one member.

    Args:
      member: whose state has no aux.
      config: of WARP.
    """
    group_of = merging.gemma_groups(config.group)

    def init(key: types.Key) -> types.LearnerState:
        state = member.init(key)
        # These values are never read: the first step of an iteration writes both.
        return state._replace(
            aux=IterationTrees(*(jax.tree.map(jnp.copy, state.params) for _ in range(2)))
        )

    def merge(trees: IterationTrees, params: types.Params, number: jax.Array) -> types.Params:
        """Returns theta_slerp of one more member, before which `number` were merged."""

        def merge_after(count: int) -> types.Params:
            if count == 0:
                return params
            pair = [trees.merged, params]
            return averaging.slerp(pair, trees.init, t=1 / (count + 1), group_of=group_of)

        branches = [lambda count=count: merge_after(count) for count in range(config.members)]
        return jax.lax.switch(number, branches)

    def step(
        state: types.LearnerState,
        batch: types.Batch,
        constants: types.Constants = types.NO_CONSTANTS,
    ) -> tuple[types.LearnerState, types.Feedback]:
        place = state.steps % config.iteration_steps
        number = place // config.member_steps
        start = jax.lax.cond(place == 0, lambda: state.params, lambda: state.aux.init)
        trees = IterationTrees(start, state.aux.merged)
        learnt, feedback = member.step(state._replace(aux=None), batch, constants)

        def begin_next() -> types.LearnerState:
            """Returns the next member's state, which keeps only counters and key."""
            merged = merge(trees, learnt.params, number)
            params = jax.lax.cond(
                number == config.members - 1,
                lambda: averaging.liti(trees.init, merged, config.next_start),
                lambda: trees.init,
            )
            return learnt._replace(
                params=params,
                opt_state=member.init(state.key).opt_state,
                targets={name: params for name in learnt.targets},
                aux=IterationTrees(trees.init, merged),
            )

        ends = (state.steps + 1) % config.member_steps == 0
        learnt = jax.lax.cond(ends, begin_next, lambda: learnt._replace(aux=trees))
        iteration = (state.steps // config.iteration_steps).astype(jnp.float32)
        return learnt, feedback._replace(metrics={**feedback.metrics, "iteration": iteration})

    return types.Learner(init, step)

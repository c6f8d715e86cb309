"""WARM: reward models that are trained differently, and averaged in weight space.

Rame et al. 2024, "WARM: On the Benefits of Weight Averaged Reward Models",
https://arxiv.org/abs/2401.12187:

    phi_i = reward model i, tuned from a common start with a common linear-probed head
    phi_WARM = 1/M sum_i phi_i;  compared with r_ENS(x, y) = 1/M sum_i r_{phi_i}(x, y)

Members differ in the order of their data, in learning rate and dropout, and optionally in the
checkpoint of a supervised run that they start from (the paper's Baklava). They share the head of
linear probing, without which their average is a bad model.

Shape letters: M members, B rows or pairs.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import averaging, types
from kullback.environments import tokens
from kullback.lm import gemma, memory, reward_model, tuning

_DRAW = 2**61  # Number of a stream of random bits that the order of batches does not use.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings that members draw, and settings that they share; the defaults are the paper's."""

    learning_rates: tuple[float, ...] = (1e-5, 4e-5, 1e-4)  # Values of which each draws one.
    dropouts: tuple[float, ...] = (0.05, 0.1)  # The same, of the dropout of features.
    # Steps of checkpoints of the run that --model names, from which members start in turn
    # (Baklava); () is the newest alone.
    starts: tuple[int, ...] = ()
    # Shared settings, but for learning_rate and dropout, which are drawn.
    reward: reward_model.Config = dataclasses.field(default_factory=reward_model.Config)

    def __post_init__(self) -> None:
        for name in ("learning_rates", "dropouts"):
            if not getattr(self, name):
                raise ValueError(f"{name} must have one value at least, got ()")
        if min(self.starts, default=0) < 0:
            raise ValueError(f"starts must be steps >= 0 of a run, got {self.starts}")
        plain = reward_model.Config()
        if self.reward.learning.learning_rate != plain.learning.learning_rate:
            raise ValueError(
                "learning_rate is drawn from learning_rates: set these, one value for all alike"
            )
        if self.reward.dropout != plain.dropout:
            raise ValueError("dropout is drawn from dropouts: set these, one value for all alike")
        if self.learning.lora and not self.learning.lora.shared_a:
            raise ValueError(
                "warm averages reward models, and the average of adapters is that of their factors "
                "only with one A: --set lora.shared_a=true"
            )
        if self.learning.lora and self.starts:
            raise ValueError(
                f"members with adapters share one base, got starts={self.starts}; leave it empty"
            )
        for rate in self.learning_rates:
            dataclasses.replace(self.reward.learning, learning_rate=rate)  # Raises.
        for dropout in self.dropouts:
            dataclasses.replace(self.reward, dropout=dropout)

    @property
    def learning(self) -> tuning.Config:
        """Settings that all learners of language models share."""
        return self.reward.learning


class Member(NamedTuple):
    """The settings that are drawn for a member, beside the order of its data."""

    learning_rate: float
    dropout: float
    start: int | None  # Step of the checkpoint it starts from; None is the common start.


class Peak(NamedTuple):
    """Peak memory in bytes."""

    training: int  # Of a learner step, or of all members' at once.
    averaging: int  # The mean so far, the next member, and their mean.
    ensemble: int  # All members.

    @property
    def total(self) -> int:
        """Peak over all stages."""
        return max(self)


def presets(family: str) -> Config:
    """Returns settings for "tokens": the paper's."""
    del family
    return Config()


def draw(config: Config, seed: int) -> Member:
    """Draws the member of a seed, which decides the order of its data too."""
    # Raw bits, which NumPy promises never to change, as for the order of batches.
    bits = np.random.Philox(key=np.array([seed, _DRAW], np.uint64)).random_raw(2)
    rate, dropout = (
        values[int(bit % np.uint64(len(values)))]
        for bit, values in zip(bits, (config.learning_rates, config.dropouts), strict=True)
    )
    start = config.starts[seed % len(config.starts)] if config.starts else None
    return Member(rate, dropout, start)


def member_config(config: Config, seed: int) -> reward_model.Config:
    """Returns the settings of the reward model that is the member of a seed."""
    member = draw(config, seed)
    learning = dataclasses.replace(config.learning, learning_rate=member.learning_rate)
    return dataclasses.replace(config.reward, dropout=member.dropout, learning=learning)


def make(model: gemma.Model, config: Config | None = None, seed: int = 0) -> types.Agent[None]:
    """Returns the agent of a seed's member, on the decoder `model`; see `reward_model.make`."""
    config = config or Config()
    return reward_model.make(model, member_config(config, seed))._replace(config=config)


def average(members: Iterable[types.Params]) -> types.Params:
    """Returns the uniform mean of members' weights, including the head.

    Two members are in memory at a time beside the mean.

    Raises:
      ValueError: without a member, or if they differ in shape.
    """
    mean: types.Params = None
    count = 0
    for params in members:
        mean = averaging.mean([mean, params], [count, 1]) if count else params
        count += 1
    if not count:
        raise ValueError("no member to average")
    return mean


def stacked(members: Sequence[types.Params]) -> types.Params:
    """Stacks members to one tree, [M, ...].

    Raises:
      ValueError: without a member.
    """
    if not members:
        raise ValueError("no member to put together")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def ensemble(model: reward_model.Model, members: types.Params, inputs: Any) -> jax.Array:
    """Returns the mean of all members' rewards, float32 [B], computed one member after another.

    Args:
      model: of the members.
      members: stacked parameters, [M, ...].
      inputs: as of `model.rewards`.
    """
    return jnp.mean(jax.lax.map(lambda params: model.rewards(params, inputs), members), 0)


def ensemble_scorer(model: reward_model.Model, members: types.Params) -> tokens.Scorer:
    """Returns the scorer by the mean reward of `members`, stacked [M, ...]; see `reward_model`."""

    def score(params: types.Params, completion: tokens.Completion, context: Any) -> jax.Array:
        return ensemble(model, params, reward_model.joined(completion, context))

    return tokens.Scorer("ensemble of reward models", score, members)


def peak_bytes(needs: memory.Needs, num_members: int, *, together: bool = False) -> Peak:
    """Returns the peak memory of M members.

    Args:
      needs: of a member's learner step.
      num_members: M.
      together: whether all are trained at once, by vmap, or one after another.
      adapters: of the members, if they learn these alone.
    """
    # Adapters are merged into a copy of their base, which is frozen; there is none without them.
    return Peak(
        training=needs.total * (num_members if together else 1),
        averaging=needs.parameters * 3 + needs.frozen * 2,
        ensemble=needs.parameters * num_members + needs.frozen * (num_members + 1),
    )

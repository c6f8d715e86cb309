"""WARM: reward models that differ, averaged weight by weight into one.

Rame et al. 2024, "WARM: On the Benefits of Weight Averaged Reward Models",
https://arxiv.org/abs/2401.12187:

    phi_i = the reward model i, from one start with one linear-probed head, tuned its own way
    phi_WARM = 1/M sum_i phi_i;  compared with r_ENS(x, y) = 1/M sum_i r_{phi_i}(x, y)

Members differ in the order of their data, in learning rate and dropout, and, if asked for, in
where along one run of supervised tuning they start (the paper's Baklava). They share the head
that linear probing finds, without which their average is no good model.

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
from kullback.lm import gemma, reward_model, tuning

_DRAW = 2**61  # Keeps the bits of draws apart from those that order batches.
_BYTES = 4  # Of a number: parameters, gradients and moments are float32.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How members differ, and what they share; the defaults are the paper's."""

    learning_rates: tuple[float, ...] = (1e-5, 4e-5, 1e-4)  # Each draws one.
    dropouts: tuple[float, ...] = (0.05, 0.1)  # Of features, likewise.
    # Steps of checkpoints of the run that --model names, from which members start in turn
    # (Baklava); () is the newest alone.
    starts: tuple[int, ...] = ()
    # What they share; its learning_rate and dropout are drawn anew.
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
        for rate in self.learning_rates:
            dataclasses.replace(self.reward.learning, learning_rate=rate)  # Raises.
        for dropout in self.dropouts:
            dataclasses.replace(self.reward, dropout=dropout)

    @property
    def learning(self) -> tuning.Config:
        """Settings that all learners of language models share."""
        return self.reward.learning


class Member(NamedTuple):
    """What one member has for its own, beside the order of its data."""

    learning_rate: float
    dropout: float
    start: int | None  # Step of a checkpoint; None is where all start.


class Peak(NamedTuple):
    """Bytes of parameters, gradients and moments; activations come on top."""

    training: int
    averaging: int  # The mean so far, the next member, and their mean.
    ensemble: int  # All members at once, as predictions of all need them.

    @property
    def total(self) -> int:
        """The most at any time."""
        return max(self)


def presets(family: str) -> Config:
    """Settings for "tokens": the paper's."""
    del family
    return Config()


def draw(config: Config, seed: int) -> Member:
    """The member of a seed, which decides the order of its data too."""
    # Raw bits, as in the order of batches: NumPy promises never to change them.
    bits = np.random.Philox(key=np.array([seed, _DRAW], np.uint64)).random_raw(2)
    rate, dropout = (
        values[int(bit % np.uint64(len(values)))]
        for bit, values in zip(bits, (config.learning_rates, config.dropouts), strict=True)
    )
    start = config.starts[seed % len(config.starts)] if config.starts else None
    return Member(rate, dropout, start)


def of_member(config: Config, seed: int) -> reward_model.Config:
    """Settings of the reward model that is the member of a seed."""
    member = draw(config, seed)
    learning = dataclasses.replace(config.learning, learning_rate=member.learning_rate)
    return dataclasses.replace(config.reward, dropout=member.dropout, learning=learning)


def make(model: gemma.Model, config: Config | None = None, seed: int = 0) -> types.Agent[None]:
    """The member of a seed, on the decoder `model`; see `reward_model.make`."""
    config = config or Config()
    return reward_model.make(model, of_member(config, seed))._replace(config=config)


def average(members: Iterable[types.Params]) -> types.Params:
    """The uniform mean of members' weights, head included; two are in memory beside it.

    Raises:
      ValueError: without any, or if they differ in shape.
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
    """Members as one tree, [M, ...]; ValueError without any."""
    if not members:
        raise ValueError("no member to put together")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def ensemble(model: reward_model.Model, members: types.Params, inputs: Any) -> jax.Array:
    """Mean of the rewards that all members give, float32 [B]: one member after another.

    Args:
      model: whose parameters they are.
      members: stacked, [M, ...].
      inputs: as of `model.rewards`.
    """
    return jnp.mean(jax.lax.map(lambda params: model.rewards(params, inputs), members), 0)


def ensemble_scorer(model: reward_model.Model, members: types.Params) -> tokens.Scorer:
    """`reward_model.scorer` of the mean of predictions; `members` are stacked, [M, ...]."""

    def score(params: types.Params, completion: tokens.Completion, context: Any) -> jax.Array:
        return ensemble(model, params, reward_model.joined(completion, context))

    return tokens.Scorer("ensemble of reward models", score, members)


def peak_bytes(config: gemma.Config, num_members: int, *, together: bool = False) -> Peak:
    """What M members take, from shapes alone.

    Args:
      config: of the decoder.
      num_members: M.
      together: whether all are trained at once, by vmap, and not one after another.
    """
    size = _BYTES * (gemma.num_params(config).total + config.embed_dim + 1)
    at_once = num_members if together else 1
    # Parameters, gradients, and Adam's two moments.
    return Peak(training=4 * size * at_once, averaging=3 * size, ensemble=size * num_members)

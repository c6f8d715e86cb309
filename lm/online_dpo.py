"""Online DPO: the policy writes two answers to each prompt, and a reward says which is chosen.

Guo et al., "Direct Language Model Alignment from Online AI Feedback", 2024,
https://arxiv.org/abs/2402.04792. The loss, and its reference, are those of dpo.py. Two answers of
equal reward say nothing, and count for nothing.

Shape letters: B texts, the two of a prompt adjacent; P = B / 2 prompts; T tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import (
    adapters,
    batches,
    dpo,
    gemma,
    policy,
    preferences,
    rollouts,
    tuning,
)

__all__ = ["Config", "make", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of online DPO; batch_size is a number of texts, two a prompt."""

    objective: dpo.Objective = dpo.Objective()  # Loss and reference.
    share_prompts: bool = False  # As of `dpo.Config`.
    # The default rate is for some millions of parameters.
    learning: tuning.Config = tuning.Config(learning_rate=1e-5)

    def __post_init__(self) -> None:
        c = self.learning
        if c.batch_size % 2 or (c.batch_size // 2) % c.micro_batches:
            raise ValueError(
                f"batch_size counts two texts of each prompt: its half must be a multiple of "
                f"micro_batches={c.micro_batches}, got batch_size={c.batch_size}"
            )
        dpo.check_learning(self.objective, c)
        c.lora.check_sampling()

    @property
    def output_divergence(self) -> str:
        """Name of f of the policy's softargmax_f: KL, for softmax."""
        return "kl"

    @property
    def penalty(self) -> tuple[str, float]:
        """Name and value of the setting that weighs the divergence from the reference."""
        return "beta", self.objective.beta


def presets(family: str) -> Config:
    """Returns settings for "tokens"."""
    del family
    return Config()


def make(model: gemma.Model, config: Config | None = None) -> types.Agent[rollouts.OnPolicy]:
    """Returns the agent that learns from batches of `rollouts.Episodes` of its own.

    The learner's constants are the parameters before learning (`start`; with adapters their
    `base`): a fixed reference, from which kl_start is measured. Metrics are those of `dpo.make`;
    kl_start and kl_reference are k1 of whole texts, nats, equal_rewards is the share of prompts
    whose answers have one reward; see `rlhf.make` for the others.

    Args:
      model: the policy.
      config: hyper-parameters.
    """
    c = config or Config()
    context = dpo.Context(model=adapters.adapted(model, c.learning.lora), start=model, config=c)
    draws = (policy.Draws(2),)
    return types.Agent(
        policy=policy.language_model(context.model, samples_per_prompt=2),
        learner=context.learner(_prepare),
        actor_params=context.learnt.actor_params,
        experience=rollouts.OnPolicy(
            draws=draws, learnt_per_prompt=2, shares_prompts=c.share_prompts
        ),
        config=c,
    )


def ranked(
    sequences: batches.Sequences, rewards: jax.Array
) -> tuple[preferences.Pairs, jax.Array, jax.Array]:
    """Returns the better answer to each prompt as chosen, and the other as rejected.

    Args:
      sequences: two answers to each prompt, [2 P, T].
      rewards: of them, [2 P].

    Returns:
      The pairs, the places of chosen and rejected among the two, int [P, 2], and whether their
      rewards are equal, bool [P]; then the first counts as chosen.
    """
    two = rewards.reshape(-1, 2)
    best = jnp.argmax(two, 1)
    places = jnp.stack([best, 1 - best], 1)

    def of(place: int) -> batches.Sequences:
        def taken(x: jax.Array) -> jax.Array:
            by_prompt = jnp.asarray(x).reshape(-1, 2, *x.shape[1:])
            return by_prompt[jnp.arange(len(two)), places[:, place]]

        return jax.tree.map(taken, sequences)

    return preferences.Pairs(of(0), of(1)), places, two[:, 0] == two[:, 1]


def _prepare(
    context: dpo.Context,
    params: types.Params,
    targets: dict[str, types.Params],
    batch: types.Batch,
    constants: types.Constants,
) -> tuple[types.Batch, dict[str, jax.Array]]:
    """Returns a batch of P pairs, and metrics of their texts."""
    del params
    episodes: Any = jax.tree.map(jnp.asarray, batch.data)  # `rollouts.Episodes`.
    pairs, places, is_tie = ranked(episodes.sequences, episodes.rewards)
    start_params = constants.base if context.config.learning.lora else constants.start
    start = log_reference = dpo.of_both(context, context.start, start_params, pairs)
    if targets:  # The reference before this step's update.
        log_reference = dpo.of_both(context, context.model, targets[dpo.REFERENCE], pairs)
    drawn = jnp.sum(episodes.log_probability, 1).reshape(-1, 2)
    drawn = jnp.take_along_axis(drawn, places, 1)  # [P, 2], as the pairs are.
    weights = jnp.asarray(batch.weights).reshape(-1, 2)[:, 0]
    data = dpo.Referred(pairs, log_reference)
    return batch._replace(data=data, weights=jnp.where(is_tie, 0, weights)), {
        "kl_start": (drawn - start).reshape(-1),
        "kl_reference": (drawn - log_reference).reshape(-1),
        "equal_rewards": is_tie.astype(jnp.float32),
        **rollouts.text_metrics(episodes.sequences, context.model.config.eos_ids, 2),
    }

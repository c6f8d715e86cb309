"""A step of REINFORCE with leave-one-out baselines: 4 prompts, 4 texts of each, 64 + 64 tokens.

A policy of four layers samples and learns, its start is the reference, and a reward model of two
layers scores.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import platform, sequences, types
from kullback.experiments.benchmarks import flops, language_models, machine, peer, rows, timing
from kullback.lm import (
    completions,
    gemma,
    reward_model,
    rlhf,
    rollouts,
    tuning,
    value_network,
    variants,
)


class Sizes(NamedTuple):
    """The sizes of a step."""

    prompts: int
    samples: int  # Texts of each prompt.
    prompt: int  # Tokens of a prompt.
    new: int  # Tokens of a text after it.

    @property
    def rows(self) -> int:
        """Texts of a step."""
        return self.prompts * self.samples

    def settings(self, variant: variants.Name = "reinforce") -> rlhf.Config:
        """Returns hyper-parameters of such a step."""
        learning = tuning.Config(
            batch_size=self.rows, max_prompt_length=self.prompt, max_new_tokens=self.new
        )
        return rlhf.of_variant(variant, samples_per_prompt=self.samples, learning=learning)


SIZES = Sizes(prompts=4, samples=4, prompt=64, new=64)
SCORER = language_models.STUDENT
TARGET_RATIO = 2.0  # Half of the peer's time.
TARGET_SECONDS = 0.77  # For a step, on two cores.


def stepper(
    model: gemma.Model,
    start: types.Params,
    sizes: Sizes,
    score: rollouts.Score,
    score_params: Any = None,
    variant: variants.Name = "reinforce",
    *,
    is_kept: bool = False,
) -> Callable[[], float]:
    """Makes a function that does one iteration of the loop over sequences and returns 1.

    Args:
      model: the policy.
      start: its parameters before learning, which are the reference.
      sizes: of a step.
      score: gives the rewards.
      score_params: parameters of `score`.
      variant: of the policy gradient.
      is_kept: whether texts are written and scored once, and each iteration learns from them.
    """
    agent = rlhf.make(model, config=sizes.settings(variant))
    sampler = completions.of_policy(agent.policy, model, sizes.new, sizes.samples)
    sample = functools.partial(rollouts.sample, sampler, score)
    prompts = language_models.prompts(model.config, sizes.prompts, sizes.prompt)
    given = {"params": start}, prompts, jax.random.key(0), score_params
    write = completions.compiled(sample)
    if is_kept:
        kept = write(*given)
        source = sequences.Source(sizes.rows, example=kept, stored=lambda step, count: kept)
    else:
        sampling = sequences.Sampling(
            num_rows=lambda step: sizes.rows,
            prompts=lambda step, count: prompts,
            sample=lambda acting, drawn, key: write(acting, drawn, key, score_params),
            score=lambda episodes, drawn: np.asarray(episodes.rewards),
        )
        example = jax.eval_shape(sample, *given)
        source = sequences.Source(sizes.rows, example=example, sampling=sampling)
    has_value = agent.experience.has_value

    def begin() -> types.Params:
        return value_network.with_value(start) if has_value else start

    constants = types.Constants(start=start)
    loop = sequences.make(agent, source, 0, params=begin, constants=constants)
    return timing.advancing(loop, 1)


def small(
    sizes: Sizes = SIZES, variant: variants.Name = "reinforce", *, is_kept: bool = False
) -> Callable[[], float]:
    """Makes the stepper of a small policy, whose texts a smaller model scores; see `stepper`."""
    model, scorer = (gemma.make(c) for c in (language_models.SMALL, SCORER))
    scores = reward_model.on_decoder(scorer)
    reward = reward_model.scorer(scores, jax.jit(scores.init)(jax.random.key(1)))
    start = jax.jit(model.init)(jax.random.key(0))
    return stepper(model, start, sizes, reward.score, reward.params, variant, is_kept=is_kept)


def cost(
    policy: gemma.Config,
    sizes: Sizes,
    scorer: gemma.Config | None = None,
    variant: variants.Name = "reinforce",
) -> int:
    """Counts the operations of a step: sampling, policy forward and backward, reference, reward.

    Where a batch is learnt from several times, the policy that wrote it is read once more. A value
    network, which has the policy's shape, learns as often as the policy.

    Args:
      policy: its shape.
      sizes: of the step.
      scorer: shape of the model that scores; None is a rule, which costs nothing.
      variant: of the policy gradient.
    """
    settings = sizes.settings(variant)
    networks = 2 if settings.baseline == value_network.KEY else 1
    learnt = 3 * settings.epochs + (settings.updates > 1)  # Passes, a gradient is two.
    before, both = range(sizes.prompt - 1), sizes.prompt + sizes.new
    sampling = sizes.prompts * flops.decoder(policy, before)
    sampling += sizes.rows * flops.decoder(policy, range(sizes.prompt - 1, both - 1))
    heads = 1 + learnt + 1  # For the new tokens: sampled, learnt from, compared with.
    learning = (networks * learnt + 1) * flops.decoder(policy, range(both))
    learning += sizes.new * heads * flops.unembedding(policy)
    scoring = flops.decoder(scorer, range(both)) if scorer else 0
    return sampling + sizes.rows * (learning + scoring)


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside TRL's RLOO trainer at the same work."""
    platform.run_large_programs()
    ours = timing.rates({"step": small()}, budget.seconds)

    def theirs() -> dict[str, float]:
        shapes = map(language_models.described, (language_models.SMALL, SCORER))
        sizes = json.dumps([*SIZES, SIZES.settings().kl_coefficient])
        result = run_peer("transformers", "reinforce", budget.seconds, sizes, *shapes)
        return {f"trl, {key}": 1 / seconds for key, seconds in result.items()}

    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    seconds = {key: 1 / rate for key, rate in best.items() if key.startswith("trl, ")}
    # TRL as it comes, where the peer's value is the better of that and of torch that keeps memory.
    default = {key: x for key, x in seconds.items() if key == "trl, default_seconds"}
    return [
        rows.Row(
            name="step of REINFORCE, leave-one-out",
            ours=1 / best["step"],
            unit="s",
            lower_is_better=True,
            **rows.of_peer(seconds, "trl, seconds", "trl"),
            target=TARGET_SECONDS,
            target_ratio=TARGET_RATIO,
            limit_share=best["step"] * cost(language_models.SMALL, SIZES, SCORER) / best["sgemm"],
            details={"sgemm": best["sgemm"], **default},
        )
    ]

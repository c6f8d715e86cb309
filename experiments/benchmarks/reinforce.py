"""A step of REINFORCE with leave-one-out baselines: 4 prompts, 4 texts of each, 64 + 64 tokens.

A policy of four layers samples and learns, its start is the reference, and a reward model of two
layers scores.
"""

import functools
import json
from collections.abc import Callable

import jax
import numpy as np

from kullback.core import platform, sequences, types
from kullback.experiments.benchmarks import flops, language_models, machine, peer, rows, timing
from kullback.lm import completions, gemma, reward_model, rlhf, rollouts, tuning

PROMPTS, SAMPLES, PROMPT, NEW = 4, 4, 64, 64
ROWS = PROMPTS * SAMPLES
SCORER = language_models.STUDENT
TARGET_RATIO = 2.0  # Half of the peer's time.
TARGET_SECONDS = 0.77  # For a step, on two cores.
CONFIG = rlhf.Config(
    samples_per_prompt=SAMPLES,
    learning=tuning.Config(batch_size=ROWS, max_prompt_length=PROMPT, max_new_tokens=NEW),
)


def stepper() -> Callable[[], float]:
    """Makes a function that does one iteration of the loop over sequences and returns 1."""
    model, scorer = (gemma.make(c) for c in (language_models.SMALL, SCORER))
    agent = rlhf.make(model, config=CONFIG)
    scores = reward_model.on_decoder(scorer)
    reward = reward_model.scorer(scores, jax.jit(scores.init)(jax.random.key(1)))
    sampler = completions.of_policy(agent.policy, model, NEW, SAMPLES)
    write = jax.jit(functools.partial(rollouts.sample, sampler, reward.score))
    prompts = language_models.prompts(model.config, PROMPTS, PROMPT)
    params = jax.jit(model.init)(jax.random.key(0))
    given = {"params": params}, prompts, jax.random.key(0), reward.params
    sampling = sequences.Sampling(
        num_rows=lambda step: ROWS,
        prompts=lambda step, count: prompts,
        sample=lambda acting, drawn, key: write(acting, drawn, key, reward.params),
        score=lambda episodes, drawn: np.asarray(episodes.rewards),
    )
    source = sequences.Source(ROWS, example=jax.eval_shape(write, *given), sampling=sampling)
    constants = types.Constants(start=params)
    loop = sequences.make(agent, source, 0, params=lambda: params, constants=constants)
    state = loop.init()

    def work() -> float:
        nonlocal state
        state = loop.advance(state, loop.steps(state) + 1)
        return 1

    work()
    return work


def cost() -> int:
    """Counts the operations of a step: sampling, policy forward and backward, reference, reward."""
    policy, both = language_models.SMALL, PROMPT + NEW
    sampling = PROMPTS * flops.decoder(policy, range(PROMPT - 1))
    sampling += ROWS * flops.decoder(policy, range(PROMPT - 1, both - 1))
    heads = 1 + 3 + 1  # For the new tokens: sampled, learnt from, compared with.
    learning = ROWS * ((3 + 1) * flops.decoder(policy, range(both)))
    scoring = ROWS * flops.decoder(SCORER, range(both))
    return sampling + learning + scoring + ROWS * NEW * heads * flops.unembedding(policy)


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside TRL's RLOO trainer at the same work."""
    platform.run_large_programs()
    ours = timing.rates({"step": stepper()}, budget.seconds)

    def theirs() -> dict[str, float]:
        shapes = map(language_models.described, (language_models.SMALL, SCORER))
        sizes = json.dumps([PROMPTS, SAMPLES, PROMPT, NEW, CONFIG.kl_coefficient])
        result = run_peer("transformers", "reinforce", budget.seconds, sizes, *shapes)
        return {f"trl, {key}": 1 / seconds for key, seconds in result.items()}

    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    value = best.get("trl, seconds")
    # TRL as it comes, where the peer's value is the better of that and of torch that keeps memory.
    key = "trl, default_seconds"
    default = {} if value is None else {key: 1 / best[key]}
    return [
        rows.Row(
            name="step of REINFORCE, leave-one-out",
            ours=1 / best["step"],
            unit="s",
            lower_is_better=True,
            peer="" if value is None else "trl",
            peer_value=None if value is None else 1 / value,
            target=TARGET_SECONDS,
            target_ratio=TARGET_RATIO,
            limit_share=best["step"] * cost() / best["sgemm"],
            details={"sgemm": best["sgemm"], **default},
        )
    ]

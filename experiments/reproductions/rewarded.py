"""Policies of letters that learn by REINFORCE, and what they are worth at which distance.

Writing, scoring and learning are those of runs (lm/completions.py, lm/rlhf.py), many learner steps
in one compiled program. B rows, n learner steps, P tokens of a prompt.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import learners, types
from kullback.environments import tokens
from kullback.experiments.reproductions import letters, small_models
from kullback.lm import batches, completions, gemma, rlhf, rollouts, sft

# (state, supervised start, parameters of the scorers, prompts [n, B / G, P], key) -> state and the
# mean metrics of each step.
Run = Callable[..., tuple[types.LearnerState, dict[str, jax.Array]]]


class Program(NamedTuple):
    """An agent, and many of its learner steps as one compiled program; for all seeds."""

    agent: types.Agent[rlhf.OnPolicy]
    run: Run


class Measured(NamedTuple):
    """Texts that a policy wrote to held-out prompts, and their worth, [B] each."""

    rows: batches.Sequences
    reward: jax.Array  # By the scorer of the program.
    kl: jax.Array  # KL(pi || start) of next tokens after what it wrote, summed; nats of a text.


def program(
    agent: types.Agent[rlhf.OnPolicy], model: gemma.Model, scorer: tokens.Scorer
) -> Program:
    """Learner steps of an agent of `rlhf` or `warp`, each from texts that it has just written.

    Args:
      agent: that learns.
      model: its decoder.
      scorer: what texts are worth; its parameters are an argument of the program.
    """
    horizon = agent.config.learning.max_new_tokens
    samples = agent.experience.samples_per_prompt
    sampler = completions.of_policy(agent.policy, model, horizon, samples)

    @jax.jit
    def run(
        state: types.LearnerState,
        start: types.Params,
        scorers: types.Params,
        prompts: jax.Array,
        key: types.Key,
    ) -> tuple[types.LearnerState, dict[str, jax.Array]]:
        def rows(
            state: types.LearnerState, constants: types.Constants, ids: jax.Array, key: types.Key
        ) -> rollouts.Episodes:
            acting = agent.actor_params(state, state.steps, False, constants)
            prompts = letters.as_prompts(ids)
            return rollouts.sample(sampler, scorer.score, acting, prompts, key, scorers)

        def report(feedback: types.Feedback, data: rollouts.Episodes) -> dict[str, jax.Array]:
            del data
            return jax.tree.map(jnp.mean, feedback.metrics)

        learn = learners.scan(agent.learner, rows, report)
        return learn(state, types.Constants(start=start), prompts, key)

    return Program(agent, run)


def drawn(
    language: letters.Language, agent: types.Agent[rlhf.OnPolicy], seed: int, first: int, count: int
) -> jax.Array:
    """Training prompts of learner steps `first` to `first + count`, int32 [count, B / G, P]."""
    size = agent.config.learning.batch_size // agent.experience.samples_per_prompt
    return small_models.take(language.train, count, size, seed, first)


def measurer(
    model: gemma.Model, horizon: int, samples_per_prompt: int, scorer: tokens.Scorer
) -> Callable[..., Measured]:
    """The compiled (params, start, parameters of the scorer, prompts [n, P], key) -> `Measured`.

    The KL has no draw in it but that of the prefixes: after each it is the sum over all tokens.
    """
    sampler = completions.sampler(model, horizon, samples_per_prompt=samples_per_prompt)

    @jax.jit
    def measure(
        params: types.Params,
        start: types.Params,
        score_params: types.Params,
        prompts: jax.Array,
        key: types.Key,
    ) -> Measured:
        acting, given = {"params": params}, letters.as_prompts(prompts)
        episodes = rollouts.sample(sampler, scorer.score, acting, given, key, score_params)
        rows = episodes.sequences
        inputs = rows.tokens, rows.positions, rows.segments
        of_start, own = (model.apply(p, *inputs) for p in (start, params))
        kl = small_models.sequence_distance(of_start, own, rows)
        return Measured(rows, jnp.asarray(episodes.rewards), kl)

    return measure


def supervised(
    model: gemma.Model, sizes: letters.Sizes
) -> Callable[[letters.Language, int], types.Params]:
    """(language, seed) -> parameters that have learnt what the source writes; compiled once."""
    config = sft.Config(learning=sizes.learning(sizes.start_batch, sizes.start_rate))
    learner = sft.make(model, config).learner
    run = jax.jit(learners.scan(learner, learners.stored))

    def start(language: letters.Language, seed: int) -> types.Params:
        rows = letters.corpus(language, sizes, seed)
        items = small_models.take(rows, sizes.start_steps, sizes.start_batch, seed)
        key = jax.random.key(seed)
        return run(learner.init(key), types.NO_CONSTANTS, items, key)[0].params

    return start


def begun(agent: types.Agent[rlhf.OnPolicy], start: types.Params, seed: int) -> types.LearnerState:
    """A learner's state that starts from the supervised parameters."""
    return learners.with_params(agent.learner.init(jax.random.key(seed)), start)

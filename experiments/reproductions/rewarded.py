"""Models of letters that learn by REINFORCE, and what they are worth at which distance.

Writing, scoring and learning are those of runs (lm/completions.py, lm/rlhf.py), many learner steps
in one compiled program. B rows, n learner steps, P tokens of a prompt.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import averaging, learners, trees, types
from kullback.environments import tokens
from kullback.experiments.reproductions import letters, small_models
from kullback.lm import batches, completions, gemma, lora, rollouts, sft

GOLD = letters.scorer(None)  # Tables are an argument of all programs.
LEARNING, EVALUATION = 2, 3  # Streams of random numbers.
SHARED = 2**31 - 1  # That of what adapters share.
ETAS = tuple(n / 10 for n in range(11))  # Of fronts.


class Evaluation(NamedTuple):
    """Texts that a policy wrote to prompts, and their worth, [B] each."""

    rows: batches.Sequences
    reward: jax.Array  # By gold.
    kl: jax.Array  # KL(pi || start) of next tokens after what it wrote, summed; nats of a text.


def _no_factors(seed: int) -> types.Params:
    del seed
    return {}


Evaluate = Callable[..., Evaluation]  # See `evaluator`.


class World(NamedTuple):
    """Languages of letters and a model that writes them, of all seeds."""

    model: gemma.Model
    language: Callable[[int], letters.Language]  # Of a seed.
    start: Callable[[int], types.Params]  # Of a seed: the model, once it has learnt the language.
    # Settings of what is learnt from there on in place of all weights, see `adapted`.
    adapters: lora.Config = lora.Config()
    factors: Callable[[int], types.Params] = _no_factors  # Of a seed: every A that is shared.

    def constants(self, seed: int) -> types.Constants:
        """Returns the parameters that a learner reads."""
        if not self.adapters:
            return types.Constants(start=self.start(seed))
        return types.Constants(base=trees.joined(self.start(seed), self.factors(seed)))

    def whole(self, seed: int, learnt: types.Params) -> types.Params:
        """Returns all weights of a model: what is learnt, or the start with adapters merged."""
        if not self.adapters:
            return learnt
        pairs = trees.joined(self.factors(seed), learnt)
        return lora.merged(self.model.config, self.adapters, self.start(seed), pairs)


def world(
    model: gemma.Model,
    sizes: letters.Sizes,
    corpus: Callable[[letters.Language, letters.Sizes, int], batches.Sequences] = letters.corpus,
) -> World:
    """Returns the world of a model; each seed is drawn and learnt when it is first asked for.

    Args:
      model: the policy.
      sizes: of the language, and of how its start learns.
      corpus: (language, sizes, seed) -> the texts that the start learns.
    """
    language = functools.cache(functools.partial(letters.make, sizes))
    config = sft.Config(learning=sizes.learning(sizes.start_batch, sizes.start_rate))
    trainer = small_models.trainer(sft.make(model, config).learner)

    @functools.cache
    def start(seed: int) -> types.Params:
        rows, key = corpus(language(seed), sizes, seed), jax.random.key(seed)
        return small_models.trained(trainer, rows, sizes.start_steps, sizes.start_batch, seed, key)

    return World(model, language, start)


def adapted(world: World, adapters: lora.Config) -> World:
    """Returns the world in which adapters of the start are learnt; of rank 0, the world itself."""

    @functools.cache
    def factors(seed: int) -> types.Params:
        return lora.shared_factors(world.model.config, adapters, stream_key(seed, SHARED))

    shared = factors if adapters and adapters.shared_a else _no_factors
    return world._replace(adapters=adapters, factors=shared)


def evaluator(world: World, horizon: int, samples_per_prompt: int) -> Evaluate:
    """Returns (learnt, seed, stream, prompts [n, P]) -> what the policy writes, compiled.

    All policies of a seed are given the same random numbers, those of `stream`. The KL has no draw
    in it but that of the prefixes: after each it is the sum over all tokens.
    """
    model = world.model
    sampler = completions.sampler(model, horizon, samples_per_prompt=samples_per_prompt)

    @jax.jit
    def measure(
        params: types.Params,
        start: types.Params,
        score_params: types.Params,
        prompts: jax.Array,
        key: types.Key,
    ) -> Evaluation:
        acting, given = {"params": params}, letters.as_prompts(prompts)
        episodes = rollouts.sample(sampler, GOLD.score, acting, given, key, score_params)
        rows = episodes.sequences
        inputs = rows.tokens, rows.positions, rows.segments
        of_start, of_policy = (model.apply(p, *inputs) for p in (start, params))
        kl = small_models.sequence_distance(of_start, of_policy, rows)
        return Evaluation(rows, jnp.asarray(episodes.rewards), kl)

    def evaluate(
        params: types.Params, seed: int, stream: int, prompts: types.Array | None = None
    ) -> Evaluation:
        language = world.language(seed)
        given = language.held_out if prompts is None else prompts
        whole, start = world.whole(seed, params), world.start(seed)
        return measure(whole, start, language.tables, given, stream_key(seed, stream))

    return evaluate


def stream_key(seed: int, stream: int) -> types.Key:
    """Returns the key of one of the streams of random numbers of a seed."""
    return jax.random.fold_in(jax.random.key(seed), stream)


class Climber(NamedTuple):
    """An agent that climbs a reward by texts that it writes; compiled, for all seeds."""

    # Of a seed: it starts from the supervised model; a number more draws other adapters.
    begin: Callable[..., types.LearnerState]
    # (state, seed, stream, steps, parameters of the scorer) -> the state so many steps later, and
    # the mean metrics of each.
    advance: Callable[..., tuple[types.LearnerState, dict[str, jax.Array]]]


def climber(world: World, agent: types.Agent[rollouts.OnPolicy], scorer: tokens.Scorer) -> Climber:
    """Returns many learner steps of an agent of `rlhf` or `warp` as one compiled program.

    Args:
      world: of the agent's model.
      agent: that learns.
      scorer: what texts are worth; its parameters are an argument of the program.
    """
    learning, samples = agent.config.learning, agent.experience.samples_per_prompt
    sampler = completions.of_policy(agent.policy, world.model, learning.max_new_tokens, samples)

    @jax.jit
    def run(
        state: types.LearnerState,
        constants: types.Constants,
        scorers: types.Params,
        prompts: jax.Array,
        key: types.Key,
    ) -> tuple[types.LearnerState, dict[str, jax.Array]]:
        def rows(state: Any, constants: types.Constants, ids: Any, key: Any) -> rollouts.Episodes:
            acting = agent.actor_params(state, state.steps, False, constants)
            given = letters.as_prompts(ids)
            return rollouts.sample(sampler, scorer.score, acting, given, key, scorers)

        def report(feedback: types.Feedback, data: rollouts.Episodes) -> dict[str, jax.Array]:
            del data
            return jax.tree.map(jnp.mean, feedback.metrics)

        learn = learners.scan(agent.learner, rows, report)
        return learn(state, constants, prompts, key)

    def begin(seed: int, number: int = 0) -> types.LearnerState:
        key = jax.random.key(seed)
        state = agent.learner.init(jax.random.fold_in(key, number) if number else key)
        return state if world.adapters else learners.with_params(state, world.start(seed))

    def advance(
        state: types.LearnerState, seed: int, stream: int, steps: int, scorers: types.Params = None
    ) -> tuple[types.LearnerState, dict[str, jax.Array]]:
        language, size = world.language(seed), learning.batch_size // samples
        prompts = small_models.take(language.train, steps, size, seed, int(state.steps))
        given = language.tables if scorers is None else scorers
        return run(state, world.constants(seed), given, prompts, stream_key(seed, stream))

    return Climber(begin, advance)


def front(start: types.Params, end: types.Params) -> Iterator[tuple[float, types.Params]]:
    """Yields eta, from 0 to 1, and the policy so far on the way from a start to an end (LITI)."""
    for eta in ETAS:
        yield eta, averaging.liti(start, end, eta)


def records(
    climber: Climber,
    seed: int,
    stream: int,
    steps: int,
    count: int,
    scorers: types.Params = None,
) -> Iterator[tuple[int, types.Params]]:
    """Yields learner steps and the policy: at the start, and at `count` records up to `steps`."""
    state, stretch = climber.begin(seed), steps // count
    yield 0, state.params
    for done in range(stretch, steps + 1, stretch):
        state, _ = climber.advance(state, seed, stream, stretch, scorers)
        yield done, state.params

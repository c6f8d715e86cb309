"""Policies over answers that are enumerated, so that each distance and each reward is exact.

The world of `kullback reproduce bond`. To each of P prompts there are A answers, with normal
rewards and normal logits of a reference; a policy is a table of logits. It learns from samples by
Adam, as a language model does, and is measured by sums over all answers. An answer is one token.

S seeds, P prompts, A answers, R records.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import learners, ranges, types
from kullback.lm import best_of_n, bond, policy_gradient

J_BOND = "j-bond"  # The name of its run.


def by_beta(beta: float) -> str:
    """Returns the name of a run of REINFORCE."""
    return f"beta = {beta:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the world, and the step size."""

    prompts: int = 32  # P, all of them in each step.
    answers: int = 64  # A.
    learning_rate: float = 0.02  # Of Adam.

    def __post_init__(self) -> None:
        ranges.at_least(2, self, "prompts", "answers")
        ranges.inside("(0, inf)", self, "learning_rate")


class World(NamedTuple):
    """Prompts and their answers, [S, P, A] each, or those of a seed, [P, A]."""

    logits: types.Array  # Of the reference.
    rewards: types.Array


def world(sizes: Sizes, seeds: range) -> World:
    """Returns the worlds of seeds."""
    shape = 2, sizes.prompts, sizes.answers
    drawn = [np.random.default_rng(seed).normal(size=shape) for seed in seeds]
    return World(*np.asarray(drawn, np.float32).swapaxes(0, 1))


def reinforced(sizes: Sizes, beta: float, samples: int) -> types.Learner:
    """Returns REINFORCE with leave-one-out baselines and a KL to the reference in the reward.

    Args:
      sizes: of the world.
      beta: weight of the KL, in units of reward a nat.
      samples: G of each prompt.
    """

    def loss(
        logits: jax.Array, targets: Any, aux: None, batch: Any, key: types.Key, given: World
    ) -> Any:
        del targets, batch
        log_pi, log_reference = jax.nn.log_softmax(logits), jax.nn.log_softmax(given.logits)
        shape = samples, len(logits)
        drawn = jax.random.categorical(key, log_pi, shape=shape).T  # [P, G]
        likely, reference, rewards = (_at(x, drawn) for x in (log_pi, log_reference, given.rewards))
        returns = rewards - beta * jax.lax.stop_gradient(likely - reference)
        advantages = policy_gradient.leave_one_out(returns.reshape(-1), samples)
        return -jnp.mean(advantages * likely.reshape(-1)), (aux, types.Feedback({}))

    return _learner(sizes, loss)


def bonded(sizes: Sizes, c: bond.Config) -> types.Learner:
    """Returns BOND, of whose settings those of language models are not read."""

    def loss(
        logits: jax.Array, targets: Any, aux: None, batch: Any, key: types.Key, given: World
    ) -> Any:
        del batch
        policy_key, anchor_key = jax.random.split(key)
        log_pi = jax.nn.log_softmax(logits)
        log_anchor = jax.nn.log_softmax(targets[bond.ANCHOR])
        policy_drawn = jax.random.categorical(policy_key, log_pi)[:, None]  # [P, 1]
        shape = c.anchor_samples, len(logits)
        anchor_drawn = jax.random.categorical(anchor_key, log_anchor, shape=shape).T  # [P, k]
        drawn = jnp.concatenate([policy_drawn, anchor_drawn], 1)
        log_ratios = jax.lax.stop_gradient(_at(log_pi - log_anchor, policy_drawn))[:, 0]
        best, _, weights = bond.compared(c, _at(given.rewards, drawn), log_ratios)
        learnt = jnp.concatenate([policy_drawn, _at(anchor_drawn, best[:, None])], 1)
        value = -jnp.mean(jnp.sum(weights * _at(log_pi, learnt), 1))
        return value, (aux, types.Feedback({}))

    return _learner(sizes, loss, {bond.ANCHOR: bond.anchor_rule(c)})


def _at(table: types.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jnp.asarray(table), places, 1)


def _learner(sizes: Sizes, loss: learners.Loss, targets: Any = None) -> types.Learner:
    return learners.sgd(
        init_params=lambda key: jnp.zeros((sizes.prompts, sizes.answers)),
        loss=loss,
        optimizer=optax.adam(sizes.learning_rate),
        targets=targets,
    )


def trained(
    learner: types.Learner, given: World, seeds: range, steps: int, records: int
) -> np.ndarray:
    """Returns the policy's logits at the start and `records` times, [R + 1, S, P, A].

    Args:
      learner: from `reinforced` or `bonded`; it begins at the reference.
      given: the worlds of the seeds.
      seeds: of worlds and samples.
      steps: learner steps, a multiple of `records`.
      records: R.
    """

    def run(given: World, key: types.Key) -> jax.Array:
        state = learners.with_params(learner.init(key), given.logits)

        def step(state: types.LearnerState, _: None) -> tuple[types.LearnerState, None]:
            constants: Any = given  # A world is all that this learner reads.
            batch: Any = None
            return learner.step(state, batch, constants)[0], None

        def stretch(state: types.LearnerState, _: None) -> tuple[types.LearnerState, jax.Array]:
            state, _ = jax.lax.scan(step, state, length=steps // records)
            return state, state.params

        return jax.lax.scan(stretch, state, length=records)[1]

    keys = jax.vmap(jax.random.key)(jnp.asarray([*seeds]))
    learnt = jax.jit(jax.vmap(run, out_axes=1))(World(*map(jnp.asarray, given)), keys)
    return np.concatenate([np.asarray(given.logits)[None], np.asarray(learnt)])


@functools.cache
def _best(sizes: Sizes, seed: int, n: int) -> np.ndarray:
    """Returns the exact distribution of the best of N of a seed's reference, float64 [P, A]."""
    given = world(sizes, range(seed, seed + 1))
    pairs = zip(softmax(given.logits[0]), given.rewards[0], strict=True)
    return np.array([best_of_n.distribution(p, r, n) for p, r in pairs])


def softmax(logits: types.Array) -> np.ndarray:
    """Returns probabilities, float64, [..., A]."""
    x = np.asarray(logits, np.float64)
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Returns KL(p || q), nats, the mean over prompts; [P, A] each."""
    ratio = np.log(np.where(p > 0, p, 1)) - np.log(np.where(p > 0, q, 1))
    return float(np.mean(np.sum(p * ratio, -1)))


def measured(
    sizes: Sizes, given: World, number: int, seed: int, policy: np.ndarray, n: int
) -> dict[str, float]:
    """Returns exact means over prompts of a policy, by column.

    Args:
      sizes: of the world.
      given: worlds, of which the one of a number is meant.
      number: place of the seed among the worlds.
      seed: of the world.
      policy: probabilities, float64 [P, A].
      n: N of the best-of-N distribution that it is compared with.
    """
    best = _best(sizes, seed, n)
    return {
        "reward": float(np.mean(np.sum(policy * given.rewards[number], -1))),
        "kl": divergence(policy, softmax(given.logits[number])),
        "forward": divergence(best, policy),
        "backward": divergence(policy, best),
    }

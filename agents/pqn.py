"""PQN: Q-learning of whole trajectories by many parallel rows, without replay or target network.

Gallici, Fellows, Ellis, Pou, Masmitja, Foerster & Martin, "Simplifying Deep Temporal Difference
Learning", 2024, https://arxiv.org/abs/2407.04811. Layer normalisation keeps what a target network
kept. Deviations: a cut of an episode bootstraps from the state that it was cut in, where the
authors take it for an end; planes of zeros and ones are not divided by 255.

Shape letters: T ticks, B rows, A actions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
import rlax

from kullback.agents import q_learning
from kullback.core import (
    layers,
    learners,
    networks,
    online,
    policies,
    ranges,
    returns,
    rollout,
    types,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of PQN; the defaults are the authors' for Atari."""

    torso: networks.TorsoName = "nature_ln"  # A torso with normalised layers.
    trace_decay: float = 0.65  # lambda in [0, 1]; 0 is one step, 1 the whole return.
    learning_rate: float = 2.5e-4  # Step size of RAdam at first,
    decay_learner_steps: int = 0  # and learner steps to 0, linearly; 0 keeps it.
    max_gradient_norm: float = 10.0  # Longer gradients are cut to this length.
    epsilon: float = 0.001  # Probability of a random action, once annealed.
    epsilon_decay_env_steps: int = 5_000_000  # Agent steps from epsilon 1, linearly.
    epsilon_evaluate: float = 0.0  # Probability of a random action in evaluation.
    iteration: online.Config = online.Config()

    def __post_init__(self) -> None:
        ranges.inside("[0, 1]", self, "trace_decay", "epsilon", "epsilon_evaluate")
        ranges.inside("(0, inf]", self, "learning_rate", "max_gradient_norm")
        ranges.at_least(0, self, "decay_learner_steps", "epsilon_decay_env_steps")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; comments give the sources.

    The authors have 128 rows, as the registry says; with fewer (`--num-envs`), iterations are
    smaller and come as much more often.
    """
    if family == "atari":  # purejaxql's pqn_atari.yaml.
        return Config()
    if family == "minatar":
        return Config(
            # purejaxql's pqn_minatar.yaml: 10 million agent steps, of which epsilon falls for a
            # tenth, and 64 learner steps for 4,096 of them.
            torso="minatar_ln",
            learning_rate=5e-4,
            decay_learner_steps=156_250,
            epsilon=0.05,
            epsilon_decay_env_steps=1_000_000,
            iteration=online.Config(reward_clip=None),
        )
    vectors = online.Config(length=16, epochs=4, batch_size=16, reward_clip=None)
    if family == "gym":  # Ours.
        return Config(
            torso="mlp_ln",
            learning_rate=5e-4,
            epsilon=0.05,
            epsilon_decay_env_steps=20_000,
            iteration=vectors,
        )
    if family == "toy":  # Ours: small enough for tests that take seconds.
        return Config(
            torso="mlp_ln",
            learning_rate=2e-3,
            decay_learner_steps=3_000,  # Its action values differ by less than a step's noise.
            epsilon=0.1,
            epsilon_decay_env_steps=2_000,
            iteration=dataclasses.replace(vectors, epochs=8),
        )
    raise ValueError(f"no presets for {family!r}; expected atari, minatar, gym or toy")


class Labels(NamedTuple):
    """The labels of one row's T ticks, or of B items."""

    target: jax.Array  # float32, [T]: the return that q(s, a) regresses to.
    metrics: dict[str, jax.Array]  # float32, [T], logged as means.


class Items(NamedTuple):
    """Items to learn from, [T, B, ...] or [B, ...]."""

    observation: types.Array
    action: types.Array  # int32.
    labels: Labels


class Seen(NamedTuple):
    """The part of a trajectory that labels are made of: [T, B, ...], or one row's, [T, ...]."""

    reward: jax.Array  # Clipped.
    discount: jax.Array  # gamma, or 0 at a true end.
    last: jax.Array  # bool: whether an episode ended or was cut.
    q_tm1: jax.Array  # [T, B, A]: values by which the row acted.
    q_t: jax.Array  # [T, B, A]: of the state that the tick led to, before any reset.


def q_lambda_returns(
    r_t: jax.Array,
    discount_t: jax.Array,
    last_t: jax.Array,
    q_t: jax.Array,
    trace_decay: float,
) -> jax.Array:
    """Returns Peng's Q(lambda) of one row's T ticks, [T]; vmap it over rows.

        G_t = r_t + discount_t [(1 - lambda_t) max_a q_t(a) + lambda_t G_{t+1}],
        lambda_t = lambda (1 - last_t), and 0 at the last tick

    Traces go on through actions that explored.

    Args:
      r_t, discount_t: float, [T]; gamma is in the discount, which is 0 at a true end.
      last_t: bool, [T]: whether an episode ended or was cut.
      q_t: values, [T, A], of the state that the tick led to, before any reset.
      trace_decay: lambda.
    """
    chex.assert_rank([r_t, discount_t, last_t, q_t], [1, 1, 1, 2])
    chex.assert_type([r_t, discount_t, last_t, q_t], [float, float, bool, float])
    chex.assert_equal_shape_prefix([r_t, discount_t, last_t, q_t], 1)
    lambdas = trace_decay * (1.0 - last_t)
    return jnp.asarray(rlax.lambda_returns(r_t, discount_t, jnp.max(q_t, -1), lambdas))


def seen(
    network: networks.Network,
    config: online.Config,
    acting: types.Params,
    trajectory: rollout.Trajectory,
) -> Seen:
    """Returns what labels are made of, with the values of the acting parameters."""
    timestep = trajectory.timestep
    reward, discount, last = (
        jnp.ravel(x)[:, None] for x in (timestep.reward, timestep.discount, timestep.last())
    )
    reward, discount, _ = returns.n_step_return(
        reward, discount, last, config.discount, config.reward_clip
    )
    following = jnp.asarray(timestep.next_observation)
    q_t = network.apply(acting["params"], following.reshape(-1, *following.shape[2:]))
    shape = timestep.reward.shape
    return Seen(
        reward=reward.reshape(shape),
        discount=discount.reshape(shape),
        last=jnp.asarray(timestep.last()),
        q_tm1=trajectory.extras["action_values"],
        q_t=q_t.reshape(*shape, -1),
    )


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent[online.Experience]:
    """Returns a PQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()

    def label(s: Seen, actions: jax.Array, log_probabilities: jax.Array) -> Labels:
        del actions, log_probabilities
        target = q_lambda_returns(s.reward, s.discount, s.last, s.q_t, config.trace_decay)
        return Labels(target, {})

    return assemble(torso, spec, label, config)


def assemble(
    torso: networks.Torso | None,
    spec: types.Spec,
    label: Callable[[Seen, jax.Array, jax.Array], Labels],
    config: Config,
    entropy: Callable[[jax.Array], jax.Array] = q_learning.greedy_entropy,
    algorithm: Any = None,
) -> types.Agent[online.Experience]:
    """Returns the agent that regresses q(s, a) to labels of trajectories, made once an iteration.

        L = mean (G - q(s, a))^2 / 2

    Args:
      torso: as for `make`.
      spec: of the environment.
      label: (what one row saw, its actions [T], their log-probabilities as drawn [T]) -> labels.
      config: settings of learning.
      entropy: q [A] -> entropy in nats, [], of the policy that the labels evaluate.
      algorithm: the algorithm's own configuration, saved beside the results; None is `config`.
    """
    torso = torso or networks.torso(config.torso, spec)
    network = networks.action_values(torso, spec.num_actions, layers.FLAX)

    def items(acting: types.Params, trajectory: rollout.Trajectory) -> Items:
        s = seen(network, config.iteration, acting, trajectory)
        over_rows = jax.vmap(label, in_axes=1, out_axes=1)
        labels = over_rows(s, trajectory.action, trajectory.extras["log_probability"])
        return Items(trajectory.observation, trajectory.action, labels)

    def loss(params: types.Params, seen: Items) -> tuple[jax.Array, dict[str, jax.Array]]:
        q = network.apply(params, seen.observation)  # [B, A]
        q_a = rlax.batched_index(q, seen.action)
        error = jax.lax.stop_gradient(seen.labels.target) - q_a
        metrics = q_learning.metrics(q, q_a, jax.vmap(entropy)(q)) | seen.labels.metrics
        return jnp.mean(rlax.l2_loss(error)), metrics

    rate = config.learning_rate
    if config.decay_learner_steps:
        rate = optax.linear_schedule(rate, 0.0, config.decay_learner_steps)
    epsilons = optax.linear_schedule(1.0, config.epsilon, max(config.epsilon_decay_env_steps, 1))

    return types.Agent(
        policy=policies.with_values(policies.epsilon_greedy, network.apply),
        learner=learners.sgd(
            init_params=lambda key: network.init(key, spec.zeros()),
            loss=learners.plain(loss),
            optimizer=optax.chain(
                optax.clip_by_global_norm(config.max_gradient_norm), optax.radam(rate)
            ),
        ),
        actor_params=q_learning.acting(epsilons, lambda steps: config.epsilon_evaluate),
        experience=online.Experience(config.iteration, items),
        config=config if algorithm is None else algorithm,
    )

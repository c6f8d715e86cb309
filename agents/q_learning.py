"""The DQN family: its settings, and an agent made from a regression target.

Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015. An algorithm
of the family brings one function, the target of one transition; see dqn.py and munchausen.py.
Agents that learn distributions share `assemble` and the settings; see distributional.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax
import rlax

from kullback.core import learners, networks, policies, prioritized, ranges, spectral, types
from kullback.core.replay import Config as ReplayConfig

__all__ = [
    "Config",
    "Family",
    "Learning",
    "Target",
    "action_gap",
    "assemble",
    "assert_transition",
    "greedy_entropy",
    "make",
    "presets",
]

# Families of environments that have presets.
Family = Literal["atari", "minatar", "gym", "toy"]

# (target_q_tm1 [A], a_tm1, r_t, discount_t, target_q_t [A]) -> the value that q_tm1[a_tm1]
# regresses to, []; a target that selects by online values takes q_t [A] of the online network too.
Target = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """Settings of a Q-learner but for its loss; the defaults are the Munchausen paper's for Atari.

    They are those of its DQN with Adam.
    """

    torso: networks.TorsoName = "auto"  # "auto" picks by the shape of the observation.
    learning_rate: float = 5e-5  # Step size of Adam.
    adam_epsilon: float = 0.01 / 32  # > 0, added to the root of the second moment.
    max_gradient_norm: float | None = None  # Of all parameters together, to which it is clipped.
    target_period: int = 2_000  # Learner steps between two target copies.
    epsilon: float = 0.01  # Probability of a random action, once annealed.
    # From 1, linearly once learning begins; or exponentially from the first step, towards it.
    epsilon_decay: Literal["linear", "exponential"] = "linear"
    # Agent steps of that: all of a linear decay, the time constant of an exponential one.
    epsilon_decay_env_steps: int = 250_000
    # Agent steps from which no action is random, in evaluation either; None: never.
    epsilon_zero_env_steps: int | None = None
    epsilon_evaluate: float = 0.001  # Probability of a random action in evaluation.
    replay: ReplayConfig = ReplayConfig()

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if not self.adam_epsilon > 0:
            raise ValueError(f"adam_epsilon must be > 0, got {self.adam_epsilon}")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise ValueError(
                f"max_gradient_norm must be > 0 or None, got {self.max_gradient_norm}; BTR: 10"
            )
        if self.target_period < 1:
            raise ValueError(f"target_period must be >= 1 learner step, got {self.target_period}")
        ranges.inside("[0, 1]", self, "epsilon", "epsilon_evaluate")
        ranges.at_least(0, self, "epsilon_decay_env_steps")
        if self.epsilon_decay not in ("linear", "exponential"):
            raise ValueError(
                f"epsilon_decay must be linear or exponential, got {self.epsilon_decay}"
            )
        if self.epsilon_zero_env_steps is not None and self.epsilon_zero_env_steps < 0:
            raise ValueError(
                f"epsilon_zero_env_steps must be >= 0 or None, got {self.epsilon_zero_env_steps}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Settings of a Q-learner."""

    loss: Literal["huber", "squared"] = "huber"  # Huber's threshold is 1; both halve the square.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("huber", "squared"):
            raise ValueError(f"loss must be huber or squared, got {self.loss}")


def presets(family: Family) -> Config:
    """Returns settings for a family of environments; comments give the source of each value.

    Raises:
      ValueError: for a family that has none.
    """
    if family == "atari":
        # The Munchausen authors' atari.gin: 8,000 agent steps are 2,000 learner steps. Dopamine's
        # own DQN has centred RMSProp at 2.5e-4, and its TensorFlow torso pads ("nature_same").
        return Config()
    if family == "minatar":
        return Config(
            # Young & Tian's network. Ceron & Castro ("Revisiting Rainbow") have no hidden layer
            # and pad ("minatar_linear").
            torso="minatar",
            # Ceron & Castro: Adam at 2.5e-4, the squared loss (Young & Tian: RMSProp, Huber).
            learning_rate=2.5e-4,
            loss="squared",
            # A target copy every 1,000 agent steps, both: Ceron & Castro count agent steps, and
            # Young & Tian updates, one an agent step. At one update for four agent steps that is
            target_period=250,  # learner steps.
            # Young & Tian anneal over 100,000 steps, to 0.1; Ceron & Castro over 250,000 to 0.01.
            epsilon_decay_env_steps=100_000,
            # Both: 100,000 transitions, batches of 32. Young & Tian start after 5,000 steps and
            # learn at every step; Ceron & Castro at every fourth. Rewards are 0 and 1 but for
            # Seaquest's surfacing, and neither clips.
            replay=ReplayConfig(capacity=100_000, min_replay_size=5_000, reward_clip=None),
        )
    if family == "gym":
        # The Munchausen authors' cartpole.gin: epsilon is constant.
        return Config(
            torso="mlp",
            learning_rate=1e-3,
            target_period=25,  # 100 agent steps.
            epsilon_decay_env_steps=0,
            replay=ReplayConfig(
                capacity=50_000, min_replay_size=500, batch_size=128, reward_clip=None
            ),
        )
    if family == "toy":  # Ours: small enough for tests that take seconds.
        return Config(
            torso="mlp_small",
            learning_rate=3e-3,
            loss="squared",
            target_period=50,
            epsilon=0.1,
            epsilon_decay_env_steps=2_000,
            epsilon_evaluate=0.0,
            replay=ReplayConfig(
                capacity=5_000, min_replay_size=500, batch_size=32, reward_clip=None
            ),
        )
    raise ValueError(f"no presets for {family!r}; expected atari, minatar, gym or toy")


def assert_transition(
    q_tm1: jax.Array, a_tm1: jax.Array, r_t: jax.Array, discount_t: jax.Array, q_t: jax.Array
) -> None:
    """Checks, while a target is traced, that its arguments are one transition and no batch.

    Args: q_tm1, q_t: float, [A]; a_tm1: int, []; r_t, discount_t: float, [].

    Raises:
      AssertionError: for other shapes or types.
    """
    inputs = [q_tm1, a_tm1, r_t, discount_t, q_t]
    chex.assert_rank(inputs, [1, 0, 0, 0, 1])
    chex.assert_type(inputs, [float, int, float, float, float])
    chex.assert_equal_shape([q_tm1, q_t])


def greedy_entropy(q: jax.Array) -> jax.Array:
    """Returns the entropy of a greedy policy, 0, [], of q [A]."""
    del q
    return jnp.zeros(())


def make(
    target: Target,
    torso: networks.Torso | None,
    spec: types.Spec,
    config: Config,
    entropy: Callable[[jax.Array], jax.Array] = greedy_entropy,
    algorithm: Any = None,
    selects_online: bool = False,
) -> types.Agent:
    """Returns the agent that regresses q(s, a) towards `target`, made from target-network values.

        L = mean_B l(target(q_bar(s_tm1), a_tm1, r_t, discount_t, q_bar(s_t)) - q(s_tm1, a_tm1))

    Args:
      target: of one transition; see `Target`. Its gradient is stopped here.
      torso: observations [B, ...] -> features [B, D]; None takes the one that `config` names.
      spec: of the environment.
      config: settings of the family.
      entropy: q [A] -> entropy in nats, [], of the policy that the target evaluates.
      algorithm: the algorithm's own configuration, saved beside the results; None is `config`.
      selects_online: whether the target takes the online network's q(s_t) too.
    """
    network = networks.action_values(torso or networks.torso(config.torso, spec), spec.num_actions)
    regression_loss = rlax.huber_loss if config.loss == "huber" else rlax.l2_loss

    def loss(
        params: types.Params,
        targets: dict[str, types.Params],
        aux: None,
        batch: types.Batch,
        key: types.Key,
        constants: types.Constants,
    ) -> tuple[jax.Array, tuple[None, types.Feedback]]:
        del key, constants  # Nothing is random in this loss.
        t: types.Transition = batch.data
        q_tm1 = network.apply(params, t.observation)  # [B, A]
        # Two passes, not one over both: where a target ignores q_tm1, XLA drops the first.
        target_q_tm1 = network.apply(targets["periodic"], t.observation)
        target_q_t = network.apply(targets["periodic"], t.next_observation)
        inputs = (target_q_tm1, t.action, t.reward, t.discount, target_q_t)
        if selects_online:
            inputs = (*inputs, network.apply(params, t.next_observation))
        target_tm1 = jax.vmap(target)(*inputs)
        q_a_tm1 = rlax.batched_index(q_tm1, t.action)
        td_error = jax.lax.stop_gradient(target_tm1) - q_a_tm1
        losses = batch.weights * regression_loss(td_error)  # [B]
        reported = metrics(q_tm1, q_a_tm1, jax.vmap(entropy)(q_tm1))
        return jnp.mean(losses), (aux, types.Feedback(reported, jnp.abs(td_error)))

    return assemble(
        lambda key: network.init(key, spec.zeros()),
        loss,
        policies.epsilon_greedy(network.apply),
        config,
        algorithm,
    )


def assemble(
    init_params: Callable[[types.Key], types.Params],
    loss: learners.Loss,
    policy: types.Policy,
    config: Learning,
    algorithm: Any = None,
    init_aux: Callable[[types.Params], Any] = lambda params: None,
    evaluated: Callable[[types.Params], types.Params] = lambda params: params,
) -> types.Agent:
    """Returns the agent of a loss: Adam, a target network "periodic", annealed exploration.

    Where the replay is prioritised, the learner weights items by importance sampling.

    Args:
      init_params: key -> parameters of the online network.
      loss: as `learners.sgd` takes it; it must heed `batch.weights`.
      policy: its parameters are {"params", "epsilon"}.
      config: settings of learning.
      algorithm: as for `make`.
      init_aux: params -> the state that the loss carries from step to step.
      evaluated: online parameters -> the parameters that act in evaluation.
    """
    optimizer = optax.adam(config.learning_rate, eps=config.adam_epsilon)
    if config.max_gradient_norm is not None:
        clip = optax.clip_by_global_norm(config.max_gradient_norm)
        optimizer = optax.chain(clip, optimizer)
    learner = learners.sgd(
        init_params=init_params,
        loss=loss,
        optimizer=optimizer,
        targets={"periodic": learners.periodic(config.target_period)},
        init_aux=init_aux,
        advance=spectral.iterate,
    )
    replay: ReplayConfig = config.replay
    if replay.priority_exponent:
        exponent = optax.linear_schedule(
            replay.importance_exponent,
            replay.importance_exponent_final,
            replay.importance_learner_steps,
        )
        learner = prioritized.weighted(learner, exponent)
    return types.Agent(
        policy=policy,
        learner=learner,
        actor_params=acting(
            _until_zero(config, _epsilon(config)),
            _until_zero(config, lambda steps: config.epsilon_evaluate),
            evaluated,
        ),
        experience=replay,
        config=config if algorithm is None else algorithm,
    )


def action_gap(q: jax.Array) -> jax.Array:
    """Returns the best minus the second-best value, [], of q [A]; 0 where there is one action."""
    chex.assert_rank(q, 1)
    if len(q) == 1:
        return jnp.zeros_like(q[0])
    others = jnp.where(jnp.arange(len(q)) == jnp.argmax(q), -jnp.inf, q)
    return jnp.max(q) - jnp.max(others)


def metrics(q: jax.Array, q_a: Any, entropy: jax.Array) -> dict[str, jax.Array]:
    """Returns the metrics of a batch by name, [] each.

    Args:
      q: action values, [B, A].
      q_a: of the actions taken, [B] or [B, 1].
      entropy: of the policy that the target evaluates, in nats, [B] or [].
    """
    return {
        "mean_q": jnp.mean(q_a),
        "action_gap": jnp.mean(jax.vmap(action_gap)(q)),
        "policy_entropy": jnp.mean(entropy),
    }


def acting(
    exploring: optax.Schedule,
    evaluating: optax.Schedule,
    evaluated: Callable[[types.Params], types.Params] = lambda params: params,
) -> Callable[[types.LearnerState, types.Array, bool, types.Constants], Any]:
    """Returns `Agent.actor_params`: online parameters, and epsilon.

    Args:
      exploring, evaluating: agent steps taken -> epsilon, [], in training and in evaluation.
      evaluated: online parameters -> the parameters that act in evaluation.
    """

    def actor_params(
        state: types.LearnerState,
        env_steps: types.Array,
        evaluate: bool,
        constants: types.Constants,
    ) -> Any:
        del constants
        epsilon = (evaluating if evaluate else exploring)(env_steps)
        params = evaluated(state.params) if evaluate else state.params
        return {"params": params, "epsilon": jnp.asarray(epsilon, jnp.float32)}

    return actor_params


def _until_zero(config: Learning, schedule: optax.Schedule) -> optax.Schedule:
    """Returns a schedule of epsilon that is 0 from the agent steps on that `config` names."""
    end = config.epsilon_zero_env_steps
    if end is None:
        return schedule
    return lambda steps: jnp.where(jnp.asarray(steps) < end, schedule(steps), 0.0)


def _epsilon(config: Learning) -> optax.Schedule:
    """Returns epsilon of the agent steps taken, before it is zero.

    Linearly, as in Dopamine, it is 1 while the replay fills.
    """
    decay = config.epsilon_decay_env_steps
    if decay == 0:
        return optax.constant_schedule(config.epsilon)
    if config.epsilon_decay == "exponential":
        above = 1 - config.epsilon
        return lambda steps: config.epsilon + above * jnp.exp(-jnp.asarray(steps) / decay)
    return optax.linear_schedule(
        init_value=1.0,
        end_value=config.epsilon,
        transition_steps=decay,
        transition_begin=config.replay.min_replay_size,
    )

"""Language models that play games: a frame is an image, an action a word, and a tick one pass.

    <bos> begin soft ... soft end "play:"  ->  one of the words of the actions

The next token is one of the actions' ids, whose logits alone are computed. The encoder of frames is
frozen. Both learners are agents of the compiled loop (core/online.py), which act, see and learn in
one program; a frame is encoded once, when it is acted upon.

GKD (Agarwal et al. 2024, https://arxiv.org/abs/2306.13649) with an agent of games as the teacher,
whose values q give the next token's distribution softmax(q / tau). A share lambda of the games is
the student's, the rest are the teacher's; 0 is behaviour cloning.

    L = E_{frames of these games} D(softmax(q / tau) || pi)

Then the game's own reward: PPO's surrogate (Schulman et al. 2017,
https://arxiv.org/abs/1707.06347) of advantages by a value that is linear in the last token's
features, where each frame is a text of one token.

Shape letters: T ticks, B games side by side, N frames, S pixels of a side, M soft tokens of a
frame, E width of their features, D width of the decoder, A actions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.core import learners, online, ranges, regularizers, rollout, types
from kullback.environments.minatar import games
from kullback.experiments.reproductions import small_sight
from kullback.lm import distillation, surrogate, tokenizer, tuning, vision

WORDS = ("noop", "left", "up", "right", "down", "fire")  # Of MinAtar's actions, in their order.
PROMPT = "play:"

Values = Callable[[types.Params, types.Array], jax.Array]  # (params, frames [N, ...]) -> q [N, A].


class Player(NamedTuple):
    """A decoder that plays."""

    seer: small_sight.Seer
    actions: tuple[int, ...]  # Ids of the actions' words, [A].
    prompt: tuple[int, ...]  # Of each frame.
    scale: int  # Pixels of a cell's side.

    def encode(self, encoder: types.Params, frames: types.Array) -> jax.Array:
        """Returns the features of frames, [N, 1, M, E], without a gradient."""
        images = pictures(frames, self.scale)
        return vision.pooled(self.seer.vision, encoder, images)[:, None]

    def features(self, params: types.Params, pooled: types.Array) -> jax.Array:
        """Returns the features from which the next token follows, [N, D]."""
        tokens = jnp.broadcast_to(
            jnp.array(self.prompt, jnp.int32), (len(pooled), len(self.prompt))
        )
        return self.seer.decoder.features(params, tokens, sensed=pooled)[:, -1]

    def logits(self, params: types.Params, features: jax.Array) -> jax.Array:
        """Returns the logits of the actions' words alone, [N, A]."""
        head = {"embedding": params["embedding"][jnp.array(self.actions)]}
        return self.seer.decoder.unembed(head, features)


def make(sizes: small_sight.Sizes, scale: int) -> Player:
    """Returns a player of MinAtar's games.

    Args:
      sizes: of encoder and decoder.
      scale: pixels of a cell's side; the pictures have 10 times as many.
    """
    seer = small_sight.make(sizes, (PROMPT, *WORDS) * 2, 8 + sizes.num_soft + len(PROMPT))
    actions = tuple(tokenizer.id_of(seer.tokenizer, word) for word in WORDS)
    return Player(seer, actions, seer.prompt(PROMPT), scale)


def pictures(frames: types.Array, scale: int) -> jax.Array:
    """Returns frames as they are drawn (`games.render`), float32 [N, S, S, 3] in [-1, 1].

    Args:
      frames: bool, [N, 10, 10, C].
      scale: pixels of a cell's side.
    """
    chex.assert_rank(frames, 4)
    frames, shape = jnp.asarray(frames), (*frames.shape[:3], 3)
    picture = jnp.broadcast_to(jnp.array(games.BACKGROUND, jnp.float32), shape)
    for channel in range(frames.shape[-1]):  # Later channels over earlier.
        colour = jnp.broadcast_to(jnp.array(games.PALETTE[channel], jnp.float32), shape)
        picture = jnp.where(frames[..., channel, None], colour, picture)
    return jnp.repeat(jnp.repeat(picture, scale, 1), scale, 2) / 127.5 - 1


def policy(player: Player, *, greedy: bool = False, sees: bool = True) -> types.Policy:
    """Returns a player's policy; its params are {"params": of the decoder, "encoder"}.

    Extras are "log_policy", [B, A], and what learning needs: "log_probability" of the action, and
    "pooled".

    Args:
      player: the decoder.
      greedy: whether it takes the most probable action, or draws one.
      sees: whether it sees its own game, or the next row's, as a control.
    """

    def step(
        acting: types.Params, observation: types.Array, state: None, key: types.Key
    ) -> tuple[jax.Array, None, dict[str, jax.Array]]:
        pooled = player.encode(acting["encoder"], observation)
        pooled = pooled if sees else jnp.roll(pooled, 1, 0)
        features = player.features(acting["params"], pooled)
        log_policy = jax.nn.log_softmax(player.logits(acting["params"], features))
        action = jnp.argmax(log_policy, -1) if greedy else jax.random.categorical(key, log_policy)
        return action.astype(jnp.int32), state, _extras(log_policy, action, pooled, features)

    return types.Policy(_no_memory, step)


def _no_memory(params: types.Params, context: Any, max_length: int) -> None:
    del params, context, max_length


def _extras(
    log_policy: jax.Array, action: jax.Array, pooled: jax.Array, features: jax.Array
) -> dict[str, jax.Array]:
    chosen = jnp.take_along_axis(log_policy, action[:, None], 1)[:, 0]
    return {
        "log_policy": log_policy,
        "log_probability": chosen,
        "pooled": pooled,
        "features": features,
    }


# Distillation.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Settings of GKD from an agent of games."""

    divergence: str = "kl"  # D, as of `distillation.named`.
    temperature: float = 0.03  # tau > 0 of the teacher's softmax(q / tau), in units of reward.
    learning_rate: float = 1e-3
    iteration: online.Config = online.Config(length=8, epochs=1, batch_size=128)

    def __post_init__(self) -> None:
        ranges.inside("(0, inf)", self, "temperature", "learning_rate")
        distillation.named(self.divergence)


class Taught(NamedTuple):
    """Frames, and what the teacher thinks of them."""

    pooled: jax.Array  # [N, 1, M, E].
    teacher_logits: jax.Array  # [N, A].


def distilled(
    player: Player, teacher: Values, config: Distillation, num_own: int
) -> types.Agent[online.Experience]:
    """Returns the agent that learns its teacher's next token on games of both.

    Its constants are the encoder, `base`, and the teacher's parameters, `teacher`. The first games
    are the student's; both players draw their actions.

    Args:
      player: the student.
      teacher: its values.
      config: settings.
      num_own: games of the student's, lambda B; 0 is behaviour cloning.
    """
    divergence = distillation.named(config.divergence)

    def step(
        acting: types.Params, observation: types.Array, state: None, key: types.Key
    ) -> tuple[jax.Array, None, dict[str, jax.Array]]:
        teacher_logits = teacher(acting["teacher"], observation) / config.temperature
        pooled = player.encode(acting["encoder"], observation)
        drawn = teacher_logits
        if num_own:
            features = player.features(acting["params"], pooled[:num_own])
            drawn = drawn.at[:num_own].set(player.logits(acting["params"], features))
        action = jax.random.categorical(key, drawn).astype(jnp.int32)
        extras = {"pooled": pooled, "teacher_logits": teacher_logits}
        return action, state, extras

    def label(acting: types.Params, trajectory: rollout.Trajectory) -> Taught:
        del acting
        return Taught(*(trajectory.extras[name] for name in Taught._fields))

    def loss(params: types.Params, x: Taught) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = player.logits(params, player.features(params, x.pooled))
        distance = jnp.mean(divergence(logits, x.teacher_logits))
        entropy = jnp.mean(regularizers.entropy(jax.lax.stop_gradient(logits)))
        return distance, {"entropy": entropy}

    return types.Agent(
        policy=types.Policy(_no_memory, step),
        learner=learners.sgd(
            init_params=player.seer.decoder.init,
            loss=learners.plain(loss),
            optimizer=tuning.optimizer(tuning.Config(learning_rate=config.learning_rate)),
        ),
        actor_params=_acting,
        experience=online.Experience(config.iteration, label),
        config=config,
    )


def _acting(
    state: types.LearnerState, env_steps: types.Array, evaluate: bool, constants: types.Constants
) -> dict[str, types.Params]:
    del env_steps, evaluate
    acting = {"params": state.params, "encoder": constants.base}
    return acting if constants.teacher is None else {**acting, "teacher": constants.teacher}


# Reinforcement learning.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Improvement:
    """Settings of reinforcement learning in the game."""

    learning_rate: float = 5e-4
    trace_decay: float = 0.95  # lambda in [0, 1] of the advantages.
    value_weight: float = 0.5  # Of the value's squared error.
    entropy_weight: float = 0.01  # >= 0, in units of standardised advantages a nat.
    clip: float = 0.2  # e in (0, 1) of both bounds of the ratio.
    iteration: online.Config = online.Config(length=32, epochs=2, batch_size=256, reward_clip=None)

    def __post_init__(self) -> None:
        ranges.inside("[0, 1]", self, "trace_decay")
        ranges.inside("(0, 1)", self, "clip")
        ranges.inside("[0, inf)", self, "value_weight", "entropy_weight")
        ranges.inside("(0, inf)", self, "learning_rate")


class Played(NamedTuple):
    """Frames, the actions that were taken, and what these were worth."""

    pooled: jax.Array  # [N, 1, M, E].
    action: jax.Array  # int32, [N].
    log_probability: jax.Array  # [N], of the action as it was drawn.
    advantage: jax.Array  # [N], standardised over an iteration.
    target: jax.Array  # [N]: return that the value regresses to, in units of reward.


def advantages(
    reward_t: jax.Array, discount_t: jax.Array, values: jax.Array, trace_decay: float
) -> jax.Array:
    """Returns generalised advantages of one game's T ticks, [T]; vmap it over games.

        A_t = sum_k (gamma lambda)^k (r_t+k + gamma V(s_t+k+1) - V(s_t+k))

    Schulman et al., ICLR 2016, https://arxiv.org/abs/1506.02438.

    Args:
      reward_t: [T].
      discount_t: [T]: gamma, and 0 where an episode ended.
      values: [T + 1]: V of the frames that were acted upon, and of the next.
      trace_decay: lambda.
    """
    chex.assert_rank([reward_t, discount_t, values], 1)
    estimate = rlax.truncated_generalized_advantage_estimation
    return jnp.asarray(estimate(reward_t, discount_t, trace_decay, values))


def with_value(params: types.Params, width: int) -> types.Params:
    """Adds a value of 0 to a decoder's parameters; it is linear in features, [D]."""
    return {"params": params, "value": {"w": jnp.zeros(width), "b": jnp.zeros(())}}


def improved(player: Player, config: Improvement) -> types.Agent[online.Experience]:
    """Returns the agent that learns from the game's reward; its constant `base` is the encoder.

    Its parameters are those of `with_value`. An episode that is cut counts as ended.
    """
    width = player.seer.decoder.config.embed_dim
    rule = surrogate.Rule(ratio="token", clip_low=config.clip, clip_high=config.clip)
    acts = policy(player)

    def value(head: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
        return features @ head["w"] + head["b"]

    def label(acting: types.Params, trajectory: rollout.Trajectory) -> Played:
        extras, timestep = trajectory.extras, trajectory.timestep
        _, _, following = acts.step(acting, timestep.observation[-1], None, jax.random.key(0))
        features = jnp.concatenate([extras["features"], following["features"][None]])
        values = value(acting["value"], features)  # [T + 1, B]
        goes_on = jnp.asarray(timestep.discount) * (1 - timestep.last())
        over_games = jax.vmap(advantages, (1, 1, 1, None), 1)
        discount = config.iteration.discount * goes_on
        reward = jnp.asarray(timestep.reward)
        gained = over_games(reward, discount, values, config.trace_decay)
        standardised = (gained - jnp.mean(gained)) / (jnp.std(gained) + 1e-8)
        drawn = extras["log_probability"]
        target = gained + values[:-1]
        return Played(extras["pooled"], trajectory.action, drawn, standardised, target)

    def loss(params: types.Params, x: Played) -> tuple[jax.Array, dict[str, jax.Array]]:
        features = player.features(params["params"], x.pooled)
        log_policy = jax.nn.log_softmax(player.logits(params["params"], features))
        log_pi = jnp.take_along_axis(log_policy, x.action[:, None], 1)[:, 0]
        log_ratio = jax.lax.stop_gradient(log_pi - x.log_probability)
        losses, is_clipped = surrogate.surrogate(log_pi, log_ratio, x.advantage, rule)
        error = (value(params["value"], features) - x.target) ** 2
        entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, -1)
        total = losses + config.value_weight * error - config.entropy_weight * entropy
        measured = {"entropy": entropy, "value_error": error, "clip_fraction": is_clipped}
        return jnp.mean(total), jax.tree.map(jnp.mean, measured)

    def acting(
        state: types.LearnerState,
        env_steps: types.Array,
        evaluate: bool,
        constants: types.Constants,
    ) -> dict[str, types.Params]:
        del env_steps, evaluate
        return {**state.params, "encoder": constants.base}

    return types.Agent(
        policy=acts,
        learner=learners.sgd(
            init_params=lambda key: with_value(player.seer.decoder.init(key), width),
            loss=learners.plain(loss),
            optimizer=tuning.optimizer(tuning.Config(learning_rate=config.learning_rate)),
        ),
        actor_params=acting,
        experience=online.Experience(config.iteration, label),
        config=config,
    )

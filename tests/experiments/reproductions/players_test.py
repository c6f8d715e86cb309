"""Tests of experiments/reproductions/players.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import compiled, online, rollout, types
from kullback.environments import minatar
from kullback.environments.minatar import games
from kullback.experiments.reproductions import players, small_sight
from kullback.lm import siglip

SIZES = small_sight.Sizes(
    side=10, patch=5, num_soft=4, encoder_width=8, encoder_layers=1, width=8, layers=1
)
BATCH = 4
SHORT = online.Config(length=2, epochs=1, batch_size=BATCH, reward_clip=None)


@pytest.fixture(scope="module")
def player() -> players.Player:
    return players.make(SIZES, 1)


@pytest.fixture(scope="module")
def encoder() -> types.Params:
    return jax.jit(siglip.make(SIZES.encoder).init)(jax.random.key(0))


@pytest.fixture(scope="module")
def params(player: players.Player) -> types.Params:
    return jax.jit(player.seer.decoder.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def encode(player: players.Player, encoder: types.Params) -> Any:
    """Returns frames -> their features, compiled."""
    return functools.partial(jax.jit(player.encode), encoder)


@pytest.fixture(scope="module")
def logits(player: players.Player) -> Any:
    """Returns (params, features of frames) -> logits of the actions' words, compiled."""
    return jax.jit(lambda params, pooled: player.logits(params, player.features(params, pooled)))


@pytest.fixture(scope="module")
def environment() -> types.Environment:
    return minatar.make("breakout", BATCH)


def frames(number: int, channels: int = 4) -> np.ndarray:
    return np.random.default_rng(number).random((number, 10, 10, channels)) < 0.2


def teacher(params: types.Params, observation: types.Array) -> jax.Array:
    """Returns values of an agent that wants the same action in all frames: `params`."""
    return jnp.broadcast_to(params, (len(observation), 6))


def test_a_frame_is_seen_as_it_is_drawn():
    for channels, scale in ((4, 16), (10, 16), (4, 1)):
        given = frames(2, channels)
        seen = np.asarray(players.pictures(given, scale))
        drawn = np.stack([games.render(frame) for frame in given])
        step = games.PIXELS // scale
        np.testing.assert_allclose(seen, drawn[:, ::step, ::step] / 127.5 - 1, atol=1e-6)


def test_logits_are_those_of_the_actions_words_behind_the_frame(
    player: players.Player, encode: Any, logits: Any, params: types.Params
):
    pooled = encode(frames(3))
    assert pooled.shape == (3, 1, 4, 8)
    tokens = np.tile(np.array(player.prompt, np.int32), (3, 1))
    whole = jax.jit(player.seer.decoder.apply)(params, tokens, sensed=pooled)[:, -1]
    got = logits(params, pooled)
    np.testing.assert_allclose(got, np.asarray(whole)[:, list(player.actions)], rtol=1e-5)
    texts = [player.seer.tokenizer.decode([i]) for i in player.actions]
    assert texts == ["noop", "left", "up", "right", "down", "fire"]
    assert player.seer.tokenizer.decode(player.prompt[-2:]).endswith("play:")


def test_actions_are_drawn_by_the_words_probabilities(
    player: players.Player, encoder: types.Params, params: types.Params
):
    acting, observation = {"params": params, "encoder": encoder}, frames(400)

    def stepped(observation: np.ndarray, seed: int = 0, **how: bool) -> Any:
        step = jax.jit(players.policy(player, **how).step)
        action, _, extras = step(acting, observation, None, jax.random.key(seed))
        return np.asarray(action), np.asarray(extras["log_policy"]), extras

    action, log_policy, extras = stepped(np.repeat(observation[:1], 400, 0))
    p = np.exp(np.float64(log_policy[0]))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    counts = np.bincount(action, minlength=6) / 400
    assert np.abs(counts - p).max() < 4 * np.sqrt(0.25 / 400)
    chosen = log_policy[np.arange(400), action]
    np.testing.assert_array_equal(extras["log_probability"], chosen)
    best, of_each, _ = stepped(observation, greedy=True)
    np.testing.assert_array_equal(best, np.argmax(of_each, -1))
    assert np.abs(np.diff(of_each, axis=0)).max() > 1e-4, "frames matter"
    _, blind, _ = stepped(observation, sees=False)
    np.testing.assert_allclose(blind, np.roll(of_each, 1, 0), atol=1e-5)


@pytest.mark.parametrize("num_own", [0, 2, BATCH])
def test_a_share_of_the_games_is_the_students(
    num_own: int,
    player: players.Player,
    encoder: types.Params,
    encode: Any,
    params: types.Params,
):
    """The teacher always takes action 3, the student never."""
    config = players.Distillation(iteration=SHORT)
    agent = players.distilled(player, teacher, config, num_own)
    embedding = params["embedding"].at[player.actions[3]].set(0)
    features = jax.jit(player.features)(params, encode(frames(1)))[0]
    embedding = embedding.at[player.actions[2]].set(1e3 * features)
    acting = {
        "params": {**params, "embedding": embedding},
        "encoder": encoder,
        "teacher": jnp.array([0, 0, 0, 1e3, 0, 0]),
    }
    given = np.repeat(frames(1), BATCH, 0)
    action, _, extras = jax.jit(agent.policy.step)(acting, given, None, jax.random.key(0))
    assert np.asarray(action).tolist() == [2] * num_own + [3] * (BATCH - num_own)
    tau = config.temperature
    np.testing.assert_allclose(extras["teacher_logits"][0, 3], 1e3 / tau)


def test_the_distance_is_kl_from_the_teachers_softmax(
    player: players.Player, encode: Any, logits: Any, params: types.Params
):
    config = players.Distillation(iteration=SHORT)
    agent = players.distilled(player, teacher, config, BATCH)
    q = np.random.default_rng(0).normal(scale=0.05, size=(3, 6)).astype(np.float32)
    taught = players.Taught(encode(frames(3)), jnp.array(q / config.temperature))
    state = jax.jit(agent.learner.init)(jax.random.key(0))._replace(params=params)
    _, feedback = jax.jit(agent.learner.step)(state, types.Batch.of(taught), types.NO_CONSTANTS)
    p, log_q = np.exp(np.float64(q) / config.temperature), np.float64(logits(params, taught.pooled))
    p /= p.sum(-1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    expected = np.mean(np.sum(p * (np.log(p) - log_q), -1))
    np.testing.assert_allclose(feedback.metrics["loss"], expected, rtol=1e-4)


def test_advantages_are_sums_of_errors():
    random = np.random.default_rng(0)
    reward, values = random.normal(size=5), random.normal(size=6)
    discount = 0.9 * np.array([1, 1, 0, 1, 1])  # An episode ends in the third tick.
    expected = np.zeros(5)
    for t in range(5):
        weight = 1.0
        for k in range(t, 5):
            expected[t] += weight * (reward[k] + discount[k] * values[k + 1] - values[k])
            weight *= discount[k] * 0.8
    r, d, v = (jnp.asarray(x, jnp.float32) for x in (reward, discount, values))
    np.testing.assert_allclose(players.advantages(r, d, v, 0.8), expected, rtol=1e-5)
    with pytest.raises(AssertionError):
        players.advantages(r[None], d[None], v[None], 0.8)


def test_the_surrogate_has_the_policy_gradient_before_it_moves(
    player: players.Player, encode: Any, logits: Any, params: types.Params
):
    """With all else off the gradient is that of -mean A log pi(a), by automatic differentiation."""
    config = players.Improvement(value_weight=0.0, entropy_weight=0.0, iteration=SHORT)
    agent = players.improved(player, config)
    pooled, action = encode(frames(3)), jnp.array([0, 5, 2])
    advantage = jnp.array([1.0, -2.0, 0.5])

    def objective(params: Any) -> jax.Array:
        log_policy = jax.nn.log_softmax(logits(params, pooled))
        return -jnp.mean(advantage * log_policy[jnp.arange(3), action])

    log_policy = jax.nn.log_softmax(logits(params, pooled))
    drawn = log_policy[jnp.arange(3), action]
    played = players.Played(pooled, action, drawn, advantage, jnp.zeros(3))
    state = jax.jit(agent.learner.init)(jax.random.key(0))
    state = state._replace(params=players.with_value(params, SIZES.width))
    step = jax.jit(agent.learner.step)
    after, feedback = step(state, types.Batch.of(played), types.NO_CONSTANTS)
    np.testing.assert_allclose(feedback.metrics["loss"], -np.mean(advantage), rtol=1e-5)
    assert feedback.metrics["clip_fraction"] == 0
    # Adam's first moment is a tenth of the gradient, as it is below the norm that is cut to.
    expected = jax.jit(jax.grad(objective))(params)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))
    moments = [x for x in jax.tree.leaves(after.opt_state) if x.shape == params["embedding"].shape]
    scale = 0.1 / max(1.0, norm)
    np.testing.assert_allclose(moments[0], scale * expected["embedding"], atol=1e-6)


def test_episodes_end_the_advantages_of_the_game(
    player: players.Player, encoder: types.Params, params: types.Params
):
    """Rewards of 1 a tick; the second game ends in the first tick, by a cut."""
    agent = players.improved(player, players.Improvement(iteration=SHORT, trace_decay=1.0))
    value = {"w": jnp.zeros(SIZES.width), "b": jnp.array(10.0)}
    acting = {"params": params, "value": value, "encoder": encoder}
    observation = frames(2)
    step, label = jax.jit(agent.policy.step), jax.jit(agent.experience.label)
    _, _, extras = step(acting, observation, None, jax.random.key(0))
    step_type = np.array([[types.MID, types.LAST], [types.MID, types.MID]], np.int8)
    ones = np.ones((2, 2), np.float32)
    both = np.stack([observation, observation])
    timestep = types.TimeStep(step_type, ones, ones, both, both)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), extras)
    none, valid = jnp.zeros((2, 2), jnp.int32), jnp.ones((2, 2), bool)
    played = label(acting, rollout.Trajectory(jnp.array(both), none, timestep, stacked, valid))
    # Returns: 1 + 0.99 + 0.99^2 10 of the first game, 1 of the second, whose episode ended.
    expected = [[1 + 0.99 + 0.99**2 * 10, 1], [1 + 0.99 * 10] * 2]
    np.testing.assert_allclose(played.target, expected, rtol=1e-5)
    gained = np.array(expected) - 10
    np.testing.assert_allclose(played.advantage, (gained - gained.mean()) / gained.std(), rtol=1e-4)
    np.testing.assert_array_equal(played.pooled[0], extras["pooled"])


@pytest.mark.slow
def test_both_learn_in_the_compiled_loop(
    player: players.Player, encoder: types.Params, environment: types.Environment
):
    """A frame is encoded once: learning has no encoder among its inputs."""
    values = jnp.array([0, 0, 0, 0.05, 0, 0])
    constants = types.Constants(base=encoder, teacher=values)
    agent = players.distilled(
        player, teacher, players.Distillation(learning_rate=1e-2, iteration=SHORT), BATCH
    )
    loop = compiled.make(agent, environment, [0], constants=constants)
    state = loop.init()
    while loop.steps(state) < 40:
        state = loop.advance(state, 40)
    state, (first,) = loop.rows(state)
    while loop.steps(state) < 400:
        state = loop.advance(state, 400)
    state, (last,) = loop.rows(state)
    assert last["loss"] < first["loss"] / 2
    further = players.improved(player, players.Improvement(iteration=SHORT))
    loop = compiled.make(further, environment, [0], constants=types.Constants(base=encoder))
    state = loop.advance(loop.init(), 16)
    _, (row,) = loop.rows(state)
    assert np.isfinite(row["loss"]) and np.isfinite(row["value_error"])


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        (players.Distillation, {"temperature": 0.0}, "temperature"),
        (players.Distillation, {"divergence": "none"}, "unknown distillation loss"),
        (players.Improvement, {"clip": 1.0}, "clip"),
        (players.Improvement, {"trace_decay": 1.1}, "trace_decay"),
        (players.Improvement, {"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: Any, fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        config(**fields)

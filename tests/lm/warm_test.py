"""Tests of lm/warm.py: populations of reward models, and their average."""

import dataclasses
import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from kullback.core import averaging, types
from kullback.lm import batches, gemma, reward_model, tuning, warm

LEARNING = tuning.Config(batch_size=8, warmup_steps=0, learning_rate=4e-5, max_grad_norm=10.0)


def linear(params: Any, x: jax.Array) -> jax.Array:
    """Features W x: with the head, a linear network of two layers."""
    return jnp.einsum("df,bf->bd", params["w"], x)


LAYERS = reward_model.on_features(
    lambda key: {"w": jax.random.normal(key, (4, 3))}, linear, width=4
)
FIXED = reward_model.on_features(lambda key: {"w": jnp.zeros(0)}, lambda params, x: x, width=3)


def drawn(model: reward_model.Model, seed: int) -> Any:
    params = model.init(jax.random.key(seed))
    width = len(params["head"]["w"])
    w = jax.random.normal(jax.random.key(seed + 100), (width,))
    return {**params, "head": {"w": w, "b": jnp.float32(seed)}}


def between(one: Any, other: Any, share: float) -> Any:
    """(1 - share) one + share other."""
    return averaging.mean([one, other], [1 - share, share])


@functools.cache
def inputs() -> jax.Array:
    return jax.random.normal(jax.random.key(7), (6, 3))


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(share=st.floats(0, 1, width=32, allow_subnormal=False), seed=st.integers(0, 5))
def test_of_a_linear_model_both_averages_are_one(share: float, seed: int):
    one, other = drawn(FIXED, seed), drawn(FIXED, seed + 10)
    of_weights = FIXED.rewards(between(one, other, share), inputs())
    of_rewards = (1 - share) * FIXED.rewards(one, inputs())
    of_rewards += share * FIXED.rewards(other, inputs())
    np.testing.assert_allclose(of_weights, of_rewards, atol=1e-5)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(share=st.floats(0, 1, width=32, allow_subnormal=False), seed=st.integers(0, 5))
def test_of_two_layers_they_differ_by_the_product_of_differences(share: float, seed: int):
    """WA - ENS = -lambda (1 - lambda) (w_1 - w_2)' (W_1 - W_2) x, exactly."""
    one, other = drawn(LAYERS, seed), drawn(LAYERS, seed + 10)
    found = LAYERS.rewards(between(one, other, share), inputs())
    found -= (1 - share) * LAYERS.rewards(one, inputs()) + share * LAYERS.rewards(other, inputs())
    heads, layers = (
        np.asarray(a, np.float64) - np.asarray(b, np.float64)
        for a, b in (
            (one["head"]["w"], other["head"]["w"]),
            (one["decoder"]["w"], other["decoder"]["w"]),
        )
    )
    expected = -share * (1 - share) * (heads @ layers @ np.asarray(inputs(), np.float64).T)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_average_is_uniform_and_in_any_order():
    members = [drawn(LAYERS, seed) for seed in range(5)]
    mean = warm.average(iter(members))
    exact = jax.tree.map(lambda *x: np.mean(np.asarray(x, np.float64), 0), *members)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, exact)
    turned = warm.average(members[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, turned)
    same = warm.average([members[0]] * 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), same, members[0])
    two = warm.average(members[:2])
    expected = between(members[0], members[1], 0.5)
    jax.tree.map(np.testing.assert_array_equal, two, expected)
    for function in (warm.average, warm.stacked):
        with pytest.raises(ValueError, match="no member"):
            function([])


def test_the_ensemble_is_the_mean_of_predictions():
    members = [drawn(LAYERS, seed) for seed in range(3)]
    ensemble = jax.jit(functools.partial(warm.ensemble, LAYERS))
    found = ensemble(warm.stacked(members), inputs())
    expected = np.mean([LAYERS.rewards(one, inputs()) for one in members], 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_average_keeps_what_members_agree_on():
    """Section 4.3 of the paper, exactly for M members: p^2 + p (1 - p) / M of feature j, not p.

    A featurizer has each orthogonal feature with probability p; its best head has the same ones.
    """
    p, count = np.array([0.9, 0.5, 0.1]), 4
    chosen = np.random.default_rng(0).random((20_000, count, 3)) < p
    features = jnp.asarray(chosen, jnp.float32)
    mean = averaging.mean([{"f": features[:, m], "w": features[:, m]} for m in range(count)])
    of_weights = np.mean(mean["f"] * mean["w"], 0)
    np.testing.assert_allclose(of_weights, p**2 + p * (1 - p) / count, atol=0.01)
    of_rewards = np.mean(chosen.astype(float), (0, 1))
    np.testing.assert_allclose(of_rewards, p, atol=0.01)
    assert np.all(of_weights < of_rewards + 1e-9)


def test_members_draw_all_there_is_and_the_same_again():
    config = warm.Config(starts=(100, 200, 300))
    members = [warm.draw(config, seed) for seed in range(60)]
    assert members == [warm.draw(config, seed) for seed in range(60)]
    pairs = {(member.learning_rate, member.dropout) for member in members}
    assert pairs == {(a, b) for a in config.learning_rates for b in config.dropouts}
    assert [member.start for member in members[:4]] == [100, 200, 300, 100]
    assert warm.draw(warm.Config(), 3).start is None
    own = warm.of_member(config, 5)
    assert (own.learning.learning_rate, own.dropout) == members[5][:2]
    assert own.learning.batch_size == config.learning.batch_size


@functools.cache
def population() -> dict[bool, Any]:
    """Three members of two layers, all at once and one after another."""
    config = warm.Config(learning_rates=(1e-2, 1e-3), reward=reward_model.Config(learning=LEARNING))
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 40, 3)).astype(np.float32)
    chosen[:, 0] += 1
    starts = [drawn(LAYERS, 0)]
    return {
        together: warm.train(
            LAYERS, starts, chosen, rejected, config, (0, 1, 2), 10, together=together
        )
        for together in (True, False)
    }


def test_members_at_once_learn_what_they_learn_in_turn():
    found = population()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[True], found[False]
    )
    w = np.asarray(found[True]["decoder"]["w"])
    assert w.shape == (3, 4, 3)
    assert len({one.tobytes() for one in w}) == 3, "they differ"
    start = np.asarray(drawn(LAYERS, 0)["decoder"]["w"])
    assert np.all(np.max(np.abs(w - start), (1, 2)) > 1e-4), "each has learnt"


def test_a_member_is_the_learner_of_its_settings():
    """Oracle: the plain learner with the member's own configuration, step by step."""
    config = warm.Config(learning_rates=(1e-2, 1e-3), reward=reward_model.Config(learning=LEARNING))
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 40, 3)).astype(np.float32)
    chosen[:, 0] += 1
    learner = reward_model.learner(LAYERS, warm.of_member(config, 1))
    state = learner.init(jax.random.key(1))._replace(params=drawn(LAYERS, 0))
    step, ones = jax.jit(learner.step), np.ones(8, np.float32)
    for number in range(10):
        rows = batches.indices(number, num_items=40, batch_size=8, seed=1)
        batch = types.Batch((chosen[rows], rejected[rows]), rows, ones / 8, ones)
        state, _ = step(state, batch, types.NO_CONSTANTS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-5),
        population()[True],
        state.params,
    )


WIDTH, UNITS, STEPS = 20, 64, 700


def network(params: Any, x: Any) -> jax.Array:
    """Two hidden layers, [B, 20] -> [B, 64]."""
    for layer in ("first", "second"):
        x = jax.nn.relu(jnp.einsum("bi,io->bo", x, params[layer]))
    return x


def init_network(key: jax.Array) -> Any:
    keys = jax.random.split(key)
    shapes = {"first": (WIDTH, UNITS), "second": (UNITS, UNITS)}
    return {
        name: jax.random.normal(k, shape) * (2 / shape[0]) ** 0.5
        for (name, shape), k in zip(shapes.items(), keys, strict=True)
    }


MLP = reward_model.on_features(init_network, network, UNITS)


@functools.partial(jax.jit, static_argnums=2)
def pretrained(key: jax.Array, gold: jax.Array, steps: int) -> Any:
    """A network whose features are linear in what the gold reward is made of."""
    learner = optax.adam(1e-3)
    key, readout_key = jax.random.split(key)
    params = {
        "network": init_network(key),
        "readout": 0.1 * jax.random.normal(readout_key, (UNITS, gold.shape[1])),
    }

    def loss(params: Any, x: jax.Array) -> jax.Array:
        found = jnp.einsum("bd,dk->bk", network(params["network"], x), params["readout"])
        return jnp.mean((found - jnp.tanh(jnp.einsum("bi,ik->bk", x, gold))) ** 2)

    def body(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        x = 1.5 * jax.random.normal(key, (256, WIDTH))
        updates, state = learner.update(jax.grad(loss)(params, x), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(body, (params, learner.init(params)), keys)[0][0]["network"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_average_memorises_fewer_wrong_labels_than_an_ensemble(seed: int):
    """Observation 3 of the paper: 2,000 pairs, of which a quarter is wrong; six members.

    Of pairs that were learnt wrongly the average repeats fewer than the ensemble of predictions,
    and of right ones too; of pairs from elsewhere it knows as much. Members that start from
    networks of their own have no average.
    """
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(WIDTH, 64)).astype(np.float32) / WIDTH**0.5
    weights = rng.normal(size=32)

    def pairs(count: int, mean: float, scale: float) -> list[np.ndarray]:
        x = (mean + scale * rng.normal(size=(2, count, WIDTH))).astype(np.float32)
        worth = np.tanh(x @ gold[:, :32]) @ weights  # The other 32 units distract.
        best = np.argmax(worth, 0)
        return [x[best, np.arange(count)], x[1 - best, np.arange(count)]]

    chosen, rejected = pairs(2_000, 0.0, 1.0)
    wrong = np.arange(2_000) < 500
    learnt = [np.where(wrong[:, None], a, b) for a, b in ((rejected, chosen), (chosen, rejected))]
    base = pretrained(jax.random.key(seed), gold, 1_500)
    head = reward_model.probe(network(base, learnt[0]), network(base, learnt[1]), 0.01)
    learning = dataclasses.replace(LEARNING, batch_size=64)
    config = warm.Config(
        learning_rates=(3e-4, 5e-4, 1e-3), reward=reward_model.Config(learning=learning)
    )

    def members(starts: list[Any]) -> Any:
        seeds = range(10 * seed, 10 * seed + 6)
        return warm.train(MLP, starts, learnt[0], learnt[1], config, seeds, STEPS)

    def accuracies(rewards: Any) -> list[float]:
        tests = [
            (learnt[0][wrong], learnt[1][wrong]),
            (learnt[0][~wrong], learnt[1][~wrong]),
            held_out,
            elsewhere,
        ]
        return [
            float(reward_model.accuracy(np.asarray(rewards(a) - rewards(b))).mean())
            for a, b in tests
        ]

    held_out, elsewhere = pairs(4_000, 0.0, 1.0), pairs(4_000, 0.5, 1.5)
    of_all = members([{"decoder": base, "head": head}])
    parts = [jax.tree.map(lambda x, m=m: x[m], of_all) for m in range(6)]
    averaged = accuracies(functools.partial(MLP.rewards, warm.average(parts)))
    together = accuracies(functools.partial(warm.ensemble, MLP, of_all))
    assert averaged[0] < together[0] - 0.01  # Wrong labels, repeated.
    assert averaged[1] < together[1]
    assert averaged[3] >= together[3] - 0.01
    half = between(parts[0], parts[1], 0.5)
    singles = np.mean([accuracies(functools.partial(MLP.rewards, p)) for p in parts[:2]], 0)
    assert accuracies(functools.partial(MLP.rewards, half))[2] >= singles[2] - 0.01
    apart = members([drawn(MLP, 100 * seed + m) for m in range(6)])
    mixed = warm.average([jax.tree.map(lambda x, m=m: x[m], apart) for m in range(6)])
    lost = accuracies(functools.partial(MLP.rewards, mixed))
    assert lost[2] < averaged[2] - 0.1


def test_memory_is_known_before():
    config = gemma.PRESETS["tiny"]
    shapes = jax.eval_shape(reward_model.on_decoder(gemma.make(config)).init, jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    assert warm.peak_bytes(config, 6) == warm.Peak(4 * size, 3 * size, 6 * size)
    assert warm.peak_bytes(config, 6).total == 6 * size
    assert warm.peak_bytes(config, 6, together=True).total == 24 * size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warm.Config(learning_rates=()), "learning_rates must have one value at least"),
        (lambda: warm.Config(dropouts=()), "dropouts must have one value at least"),
        (lambda: warm.Config(learning_rates=(1e-5, 0.0)), "learning_rate must be > 0"),
        (lambda: warm.Config(dropouts=(1.0,)), "dropout must lie in"),
        (lambda: warm.Config(starts=(-1,)), "starts must be steps >= 0"),
        (
            lambda: warm.Config(reward=reward_model.Config(dropout=0.2)),
            "dropout is drawn from dropouts",
        ),
        (
            lambda: warm.Config(
                reward=reward_model.Config(learning=dataclasses.replace(LEARNING, learning_rate=1))
            ),
            "learning_rate is drawn from learning_rates",
        ),
    ],
)
def test_settings_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()

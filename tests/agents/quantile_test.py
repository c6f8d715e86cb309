"""Tests of agents/quantile.py, qr_dqn.py and iqn.py."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import strategies as st

from kullback.agents import distributional, dqn, iqn, munchausen_iqn, qr_dqn, quantile
from kullback.core import heads, networks, types

SPEC = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
loss_of = jax.jit(quantile.quantile_loss, static_argnums=3)
target = jax.jit(iqn.iqn_target)
plain = jax.jit(dqn.dqn_target)
peer = jax.jit(functools.partial(rlax.quantile_q_learning, huber_param=1.0))
values = hnp.arrays(np.float32, (5,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))


def definition(z, u, y, kappa=1.0):
    """Sums the quantile Huber loss in float64, item by item."""
    total = 0.0
    for z_i, u_i in zip(np.asarray(z, np.float64), u.astype(np.float64), strict=True):
        for y_j in np.asarray(y, np.float64):
            d = y_j - z_i
            huber = 0.5 * d * d if abs(d) <= kappa else kappa * (abs(d) - 0.5 * kappa)
            total += abs(u_i - (d < 0)) * huber / kappa / len(y)
    return total


def small(**fields) -> distributional.Config:
    return distributional.Config(torso="mlp_small", learning_rate=1e-2, **fields)


def batch(seed: int = 0, size: int = 8, weights=None) -> types.Batch:
    rng = np.random.default_rng(seed)
    t = types.Transition(
        rng.normal(size=(size, 3)).astype(np.float32),
        rng.integers(0, 4, size).astype(np.int32),
        2 * rng.normal(size=size).astype(np.float32),
        np.float32(0.9) * rng.integers(0, 2, size).astype(np.float32),
        rng.normal(size=(size, 3)).astype(np.float32),
    )
    ones = np.ones(size, np.float32)
    return types.Batch(t, ones.astype(np.int32), ones, ones if weights is None else weights)


def test_golden():
    # y - z = 2 and -0.5: 0.9 * (2 - 0.5) for u = 0.9, (1 - 0.25) * 0.125 for u = 0.25.
    got = loss_of(np.array([0.0], np.float32), np.array([0.9]), np.array([2.0], np.float32), 1.0)
    np.testing.assert_allclose(got, 0.9 * 1.5, rtol=1e-6)
    got = loss_of(np.array([0.5], np.float32), np.array([0.25]), np.array([0.0], np.float32), 1.0)
    np.testing.assert_allclose(got, 0.75 * 0.125, rtol=1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    z=values, y=values, seed=st.integers(0, 99), kappa=st.sampled_from([0.5, 1.0, 2.0])
)
def test_loss_is_the_sum_over_quantiles_of_means_over_targets(z, y, seed, kappa):
    u = np.random.default_rng(seed).random(5, np.float32)
    got = loss_of(z, u, y[:3], kappa)
    np.testing.assert_allclose(got, definition(z, u, y[:3], kappa), rtol=1e-4, atol=1e-5)


def test_a_quantile_moves_up_with_its_fraction_and_rests_where_the_fraction_lies_below():
    # Far off (more than kappa) the gradient of z is -u below the target and 1 - u above it.
    grad = jax.jit(jax.grad(lambda z, u, y: quantile.quantile_loss(z, u, y, 1.0).sum()))
    u, y = np.array([0.2, 0.7], np.float32), np.array([5.0], np.float32)
    ones = np.ones(2, np.float32)
    np.testing.assert_allclose(grad(0 * ones, u, y), [-0.2, -0.7], rtol=1e-6)
    np.testing.assert_allclose(grad(9 * ones, u, y), [0.8, 0.3], rtol=1e-6)
    assert not np.any(grad(5 * ones, u, y))


@hypothesis.settings(deadline=None)
@hypothesis.given(
    z_tm1=hnp.arrays(
        np.float32, (4, 3), elements=st.floats(-9, 9, width=32, allow_subnormal=False)
    ),
    z_t=hnp.arrays(np.float32, (5, 3), elements=st.floats(-9, 9, width=32, allow_subnormal=False)),
    others=hnp.arrays(
        np.float32, (6, 3), elements=st.floats(-9, 9, width=32, allow_subnormal=False)
    ),
    action=st.integers(0, 2),
)
def test_target_and_loss_are_those_of_rlax(z_tm1, z_t, others, action):
    u = np.array([0.1, 0.3, 0.6, 0.95], np.float32)
    q_t = np.asarray(jnp.mean(others, axis=0))
    y = target(z_t, np.zeros(3, np.float32), action, 0.5, 0.9, q_t)
    np.testing.assert_allclose(y, 0.5 + 0.9 * z_t[:, q_t.argmax()], rtol=1e-5, atol=1e-5)
    theirs = peer(z_tm1, u, action, 0.5, 0.9, others, z_t)
    ours = loss_of(z_tm1[:, action], u, np.asarray(y), 1.0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    z_t=hnp.arrays(np.float32, (1, 3), elements=st.floats(-9, 9, width=32, allow_subnormal=False)),
    r=st.floats(-1, 1, width=32, allow_subnormal=False),
)
def test_one_quantile_regresses_to_the_target_of_dqn(z_t, r):
    q = np.zeros(3, np.float32)
    y = target(z_t, q, 0, r, 0.9, z_t[0])
    assert y.shape == (1,) and y[0] == plain(q, 0, r, 0.9, z_t[0])
    # And the loss, at the fraction 1/2, is half of DQN's.
    half = loss_of(q[:1], np.array([0.5], np.float32), np.asarray(y), 1.0)
    np.testing.assert_allclose(half, rlax.huber_loss(y[0]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["qr-dqn", "munchausen"])
def test_the_learner_follows_the_definition(name):
    """With fixed fractions nothing is random; a bonus shows which values make the policies."""
    n = 6
    network = heads.quantiles(networks.torso("mlp_small", SPEC), 4, n)
    if name == "qr-dqn":
        agent = qr_dqn.make(None, SPEC, qr_dqn.Config(num_quantiles=n, learning=small()))
    else:
        soft = functools.partial(munchausen_iqn.munchausen_iqn_target, tau=0.1, alpha=0.9, l_0=-1.0)
        agent = quantile.make(
            soft,
            network,
            SPEC,
            small(),
            samples=quantile.Samples(online=n, target=n, policy=n),
            kappa=1.0,
            entropy=lambda q: jnp.zeros(()),
        )
    state = agent.learner.init(jax.random.key(0))
    old = network.init(jax.random.key(1), SPEC.zeros())
    state = state._replace(targets={"periodic": old})
    weights = np.linspace(0, 2, 8).astype(np.float32)
    items = batch(weights=weights)
    t, u = items.data, (np.arange(n) + 0.5) / n

    def z(params, observation):
        fractions = network.fractions(jax.random.key(0), 8, n)
        return np.asarray(
            network.apply(params, jax.random.key(0), observation, fractions), np.float64
        )

    z_tm1, old_tm1, old_t = (
        z(state.params, t.observation),
        z(old, t.observation),
        z(old, t.next_observation),
    )
    losses = []
    for i in range(8):
        q_t, q_tm1 = old_t[i].mean(0), old_tm1[i].mean(0)
        if name == "qr-dqn":
            y = t.reward[i] + t.discount[i] * old_t[i][:, q_t.argmax()]
        else:
            log_pi = q_t / 0.1 - np.logaddexp.reduce(q_t / 0.1)
            bonus = q_tm1[t.action[i]] - 0.1 * np.logaddexp.reduce(q_tm1 / 0.1)
            v = (np.exp(log_pi) * (old_t[i] - 0.1 * log_pi)).sum(1)
            y = t.reward[i] + 0.9 * np.clip(bonus, -1, 0) + t.discount[i] * v
        losses.append(definition(z_tm1[i][:, t.action[i]], u, y))
    after, feedback = jax.jit(agent.learner.step)(state, items, types.NO_CONSTANTS)
    np.testing.assert_allclose(feedback.metrics["loss"], np.mean(weights * losses), rtol=1e-4)
    assert feedback.priorities is not None
    np.testing.assert_allclose(feedback.priorities, losses, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.targets["periodic"], old)
    acting = agent.actor_params(state, np.asarray(0), True, types.NO_CONSTANTS)
    acting["epsilon"] = np.float32(0)
    action, _, _ = jax.jit(agent.policy.step)(acting, t.observation, None, jax.random.key(0))
    np.testing.assert_array_equal(action, z_tm1.mean(1).argmax(1))


def test_priorities_may_be_absolute_errors():
    # y - z is 2, 4 and 1, 3: their means are 3 and 2.
    z, y = jnp.array([0.0, 1.0]), jnp.array([2.0, 4.0])
    assert quantile.absolute_error(z, y) == 5


@pytest.mark.parametrize(
    ("shares_samples", "bonus_of"),
    [
        (False, "online"),
        (True, "target"),
        pytest.param(False, "target", marks=pytest.mark.slow),
        pytest.param(True, "online", marks=pytest.mark.slow),
    ],
)
def test_each_pass_has_its_network_its_fractions_and_its_noise(bonus_of, shares_samples):
    """A network of three numbers, z = p observation (u + noise): what is learnt shows the draws."""
    counts = quantile.Samples(online=2, target=3, policy=4)
    network = heads.QuantileNetwork(
        init=lambda key, observation: jnp.ones(4),
        apply=lambda p, key, observation, u: (
            (p[None, None] + jnp.sum(observation, 1)[:, None, None])
            * (u[:, :, None] + jax.random.normal(key, (1, 1, 1)))
        ),
        fractions=lambda key, rows, count: jax.random.uniform(key, (rows, count)),
        without_noise=lambda p: p,
    )

    def target(z_t, q_tm1, a_tm1, r_t, discount_t, q_t):
        return r_t + q_tm1[a_tm1] + discount_t * (z_t[:, 0] + 3 * q_t[1])

    agent = quantile.make(
        target,
        network,
        SPEC,
        small(),
        samples=counts,
        kappa=1.0,
        bonus_of=bonus_of,
        shares_samples=shares_samples,
        priority="error",
    )
    state = agent.learner.init(jax.random.key(0))
    params, old = np.arange(4, dtype=np.float32), np.array([1, -1, 3, 0], np.float32)
    state = state._replace(params=jnp.asarray(params), targets={"periodic": jnp.asarray(old)})
    items = batch()
    _, feedback = jax.jit(agent.learner.step)(state, items, None)

    key = jax.random.fold_in(state.key, 0)
    keys = jax.random.split(key, 4)
    noises = jax.random.split(jax.random.fold_in(key, quantile.NOISE))

    def z(p, observation, key, noise, count):
        u = np.asarray(jax.random.uniform(key, (8, count)), np.float64)
        at = p[None, None] + observation.sum(1)[:, None, None]
        drawn = np.asarray(jax.random.normal(noise, (1, 1, 1)), np.float64)
        return at * (u[:, :, None] + drawn)

    t = items.data
    online, target_net = (params, noises[0]), (old, noises[1])
    of_bonus = online if bonus_of == "online" else target_net
    z_tm1 = z(online[0], t.observation, keys[0], online[1], 2)
    z_t = z(target_net[0], t.next_observation, keys[1], target_net[1], 3)
    q_tm1 = z(of_bonus[0], t.observation, keys[2], of_bonus[1], 4).mean(1)
    q_t = z(target_net[0], t.next_observation, keys[3], target_net[1], 4).mean(1)
    q_t = z_t.mean(1) if shares_samples else q_t
    errors = [
        np.abs(
            t.reward[i]
            + q_tm1[i, t.action[i]]
            + t.discount[i] * (z_t[i, :, 0] + 3 * q_t[i, 1])
            - z_tm1[i, :, None, t.action[i]]
        )
        .mean(1)
        .sum()
        for i in range(8)
    ]
    np.testing.assert_allclose(feedback.priorities, errors, rtol=1e-4)


@pytest.mark.slow
def test_iqn_draws_new_fractions_to_act_and_to_learn():
    config = iqn.Config(
        samples=quantile.Samples(online=3, target=4, policy=2),
        network=quantile.Implicit(hidden=8),
        learning=small(),
    )
    agent = iqn.make(None, SPEC, config)
    state = agent.learner.init(jax.random.key(0))
    learn = jax.jit(agent.learner.step)
    losses = [
        float(learn(state._replace(key=jax.random.key(k)), batch(), None)[1].metrics["loss"])
        for k in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
    step = jax.jit(agent.policy.step)
    # Larger weights, so that fractions matter to which action is best.
    larger = state._replace(params=jax.tree.map(lambda x: 4 * x, state.params))
    acting = agent.actor_params(larger, np.asarray(0), True, types.NO_CONSTANTS)
    observation = batch(size=200).data.observation
    first, again, other = (
        np.asarray(step(acting, observation, None, jax.random.key(k))[0]) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.slow
def test_seeds_by_vmap_equal_runs_one_by_one():
    config = munchausen_iqn.Config(
        network=quantile.Implicit(hidden=0), learning=small(target_period=2)
    )
    agent = munchausen_iqn.make(None, SPEC, config)
    keys = [jax.random.key(seed) for seed in range(2)]
    axes = types.LearnerState(0, 0, 0, None, 0, 0)  # pyright: ignore[reportArgumentType]
    together = jax.jit(jax.vmap(agent.learner.step, in_axes=(axes, None, None), out_axes=(axes, 0)))
    alone = jax.jit(agent.learner.step)
    states = jax.vmap(agent.learner.init, out_axes=axes)(jnp.stack(keys))
    singles = [agent.learner.init(key) for key in keys]
    for i in range(5):
        states, _ = together(states, batch(i), None)
        singles = [alone(single, batch(i), None)[0] for single in singles]
    stacked = jax.tree.map(lambda *x: np.stack(x), *[single.params for single in singles])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states.params, stacked)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantile.Samples(online=0), "online must be >= 1, got 0"),
        (lambda: quantile.Implicit(num_cosines=0), "num_cosines >= 1"),
        (lambda: qr_dqn.Config(num_quantiles=0), "num_quantiles must be >= 1"),
        (lambda: qr_dqn.Config(huber_threshold=0.0), "huber_threshold must be > 0"),
        (lambda: iqn.Config(huber_threshold=-1.0), "huber_threshold must be > 0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()

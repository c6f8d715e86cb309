"""Tests of core/loops.py, core/compiled.py and core/host.py: one agent, two loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback import agents
from kullback.core import checkpoints, compiled, host, loops, networks, replay, spans, types
from kullback.environments import toy
from kullback.experiments.runs import settings


class OnHost:
    """A compiled environment behind the host's interface."""

    def __init__(self, environment: types.Environment):
        self.spec, self.num_envs = environment.spec, environment.num_envs
        self._reset, self._step = jax.jit(environment.reset), jax.jit(environment.step)
        self._state = self._action = None

    def reset(self, seed: int) -> types.TimeStep:
        self._state, timestep = self._reset(jax.random.key(seed))
        return jax.tree.map(np.asarray, timestep)

    def send(self, action: np.ndarray) -> None:
        assert self._action is None
        self._action = action

    def recv(self) -> types.TimeStep:
        self._state, timestep = self._step(self._state, self._action)
        self._action = None
        return jax.tree.map(np.asarray, timestep)

    def render(self) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        pass


@functools.cache
def agent(name: str = "m-dqn", *changes: str) -> types.Agent:
    entry = agents.AGENTS[name]
    config = settings.apply(entry.presets("toy"), changes)
    return entry.make(None, toy.chain(1).spec, config)


PRIORITISED = ("priority_exponent=0.6", "importance_learner_steps=50", "n_step=2")


def compiled_loop(seeds=(0,), num_envs=4, name="m-dqn", changes=(), **flags) -> loops.Loop:
    return compiled.make(
        agent(name, *changes),
        toy.chain(num_envs, **flags),
        seeds,
        lambda n: toy.chain(n, **flags),
    )


def to_end(loop: loops.Loop, state, until: int):
    while loop.steps(state) < until:
        state = loop.advance(state, until)
    return state


def equal(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(_numbers(x), _numbers(y)), a, b)


def _numbers(x):
    if isinstance(x, int):
        return x
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


@pytest.mark.parametrize(
    ("period", "num_envs", "expected"),
    [(4, 1, (4, 1)), (4, 2, (2, 1)), (4, 4, (1, 1)), (4, 16, (1, 4)), (1, 3, (1, 3))],
)
def test_pace(period, num_envs, expected):
    config = replay.Config(samples_per_update=period)
    pace = loops.pace(config, num_envs)
    assert tuple(pace) == expected
    assert pace.env_steps(num_envs) == period * pace.updates


def test_a_pace_that_does_not_fit_names_the_nearest_that_does():
    with pytest.raises(ValueError, match="num_envs=7; the nearest valid num_envs is 8"):
        loops.pace(replay.Config(), 7)
    with pytest.raises(ValueError, match="num_envs must be >= 1"):
        loops.pace(replay.Config(), 0)


@pytest.mark.parametrize(
    ("kind", "num_envs"),
    [
        pytest.param("host", 8, marks=pytest.mark.slow),
        pytest.param("compiled", 1, marks=pytest.mark.slow),
        pytest.param("compiled", 8, marks=pytest.mark.slow),
        pytest.param("host", 1, marks=pytest.mark.slow),
    ],
)
def test_updates_are_one_in_four_agent_steps_after_the_warm_up(kind, num_envs):
    if kind == "compiled":
        loop = compiled_loop(num_envs=num_envs)
    else:
        loop = host.make(agent(), OnHost(toy.chain(num_envs)), seed=0)
    state = to_end(loop, loop.init(), 500)
    assert loop.steps(state) == 504 if num_envs == 8 else 500
    assert int(state.learner.steps) == 0
    start = loop.steps(state)
    state = to_end(loop, state, 700)
    assert int(state.learner.steps) == (loop.steps(state) - start) // 4


@pytest.mark.parametrize("changes", [(), PRIORITISED], ids=["uniform", "prioritised"])
@pytest.mark.parametrize("kind", ["compiled", "host"])
@pytest.mark.slow
def test_how_a_run_is_cut_into_calls_changes_no_number_and_nor_does_evaluation(kind, changes):
    def loop():
        if kind == "compiled":
            return compiled_loop(changes=changes)
        make_environment = lambda n: OnHost(toy.chain(n))  # noqa: E731  # As short as the other.
        return host.make(agent("m-dqn", *changes), OnHost(toy.chain(4)), 0, make_environment)

    one = loop()
    whole = to_end(one, one.init(), 900)
    other = loop()
    state = other.init()
    for until in (3, 17, 480, 520, 800, 900):
        state = to_end(other, state, until)
        other.evaluate(state, 2)
    equal(whole, state)


@pytest.mark.parametrize(
    "changes",
    [(), pytest.param(PRIORITISED, marks=pytest.mark.slow)],
    ids=["uniform", "prioritised"],
)
def test_seeds_in_one_program_equal_runs_one_by_one(changes):
    together = compiled_loop(seeds=(3, 4), changes=changes)
    states = to_end(together, together.init(), 540)  # Ten updates.
    _, rows = together.rows(states)
    alone = compiled_loop(seeds=(3,), changes=changes)  # Its program is that of any seed.
    for k, seed in enumerate((3, 4)):
        begun = compiled_loop(seeds=(seed,), changes=changes).init()
        state = to_end(alone, begun, 540)
        learner = compiled.seed_of(states.learner, k, 2)
        assert int(learner.steps) == int(state.learner.steps) == 10
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            learner.params,
            state.learner.params,
        )
        contents = compiled.seed_of(states.replay, k, 2)
        equal(contents._replace(priorities=None), state.replay._replace(priorities=None))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3),
            contents.priorities,
            state.replay.priorities,
        )
        _, (row,) = alone.rows(state)
        assert rows[k]["episodes"] == row["episodes"]
    assert not np.array_equal(_numbers(states.key[0]), _numbers(states.key[1]))


def test_both_loops_make_the_same_updates_of_the_same_data():
    learner = agent().learner
    store = replay.host(toy.chain(1).spec, agent().experience, 2)
    contents, environment = store.init(), OnHost(toy.chain(2))
    observation = environment.reset(0).observation
    rng = np.random.default_rng(0)
    for _ in range(400):
        action = rng.integers(0, 2, 2).astype(np.int32)
        environment.send(action)
        timestep = environment.recv()
        contents = store.add(contents, observation, action, timestep)
        observation = timestep.observation
    batches = [store.sample(contents, rng) for _ in range(10)]

    on_host = learner.init(jax.random.key(0))
    step = jax.jit(learner.step, donate_argnums=0)
    for batch in batches:
        on_host, _ = step(on_host, batch, types.NO_CONSTANTS)

    @jax.jit
    def in_one_program(state, batches):
        return jax.lax.scan(
            lambda s, b: (learner.step(s, b, types.NO_CONSTANTS)[0], None), state, batches
        )[0]

    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    in_scan = in_one_program(learner.init(jax.random.key(0)), stacked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), on_host.params, in_scan.params
    )


def test_dqn_finds_the_optimal_values_of_the_chain():
    loop = compiled_loop(name="dqn")
    state = to_end(loop, loop.init(), 20_000)
    network_values = _values(state)
    expected = toy.optimal_values(8)  # gamma^(7 - s) to the right.
    np.testing.assert_allclose(network_values, expected, atol=0.05)


def _values(state) -> np.ndarray:
    network = networks.action_values(networks.torso("mlp_small", toy.chain(1).spec), 2)
    return np.asarray(network.apply(state.learner.params, np.eye(8, dtype=np.float32)))


@pytest.mark.parametrize(
    "num_envs",
    [4, pytest.param(1, marks=pytest.mark.slow)],
    ids=["one tick", "four ticks"],
)
def test_a_host_run_hands_priorities_back_and_restores_them(num_envs, tmp_path):
    def loop():
        return host.make(agent("m-dqn", *PRIORITISED), OnHost(toy.chain(num_envs)), 0)

    one = loop()
    state = to_end(one, one.init(), 600)
    held = np.array(state.replay.priorities.levels[0])
    pending = state.pending
    assert pending is not None
    told = np.asarray(pending.indices) < len(state.replay.action)
    # An update of one tick that is also the last has not been told yet; of four, it has.
    assert told.all() if num_envs == 4 else not told.any()
    assert len(np.unique(held[held > 0])) > 10  # Those learnt from differ, by their errors.
    assert (held > 0).sum() == np.sum(state.replay.newest - 1 - state.replay.oldest)

    snapshot, added = one.snapshot(state), [spans.span(state.replay, None)]
    checkpoints.save(tmp_path, 600, snapshot, {})
    steps = int(state.learner.steps)
    to_end(one, state, 640)  # Changes the arrays of `state`, and must not change what was saved.
    np.testing.assert_array_equal(snapshot.priorities.levels[0], held)
    other = loop()
    restored, _, _ = checkpoints.restore_latest(tmp_path, other.template())
    resumed = other.restore(restored, added)
    np.testing.assert_array_equal(resumed.replay.priorities.levels[0], held)
    equal(resumed.pending, pending)
    resumed = to_end(other, resumed, 640)
    assert int(resumed.learner.steps) == steps + 10


def test_a_host_run_is_the_same_with_its_frames_on_the_device():
    def loop(frames_on: str) -> loops.Loop:
        changes = (*PRIORITISED, f"frames_on={frames_on}")
        return host.make(agent("m-dqn", *changes), OnHost(toy.chain(4)), 0)

    ends, resumed = {}, {}
    for frames_on in ("host", "device"):
        one = loop(frames_on)
        begun = to_end(one, one.init(), 540)
        assert (begun.frames is not None) == (frames_on == "device")
        # Copies: the loop goes on in the arrays of its state.
        snapshot = jax.tree.map(jnp.copy, one.snapshot(begun))
        added = {name: np.array(rows) for name, rows in spans.span(begun.replay, None).items()}
        ends[frames_on] = to_end(one, begun, 600)._replace(frames=None)
        resumed[frames_on] = to_end(one, one.restore(snapshot, [added]), 600)._replace(frames=None)
    assert int(ends["host"].learner.steps) == 25
    equal(ends["host"], ends["device"])
    equal(resumed["host"], resumed["device"])


def test_evaluation_needs_an_environment_on_the_host():
    loop = host.make(agent(), OnHost(toy.chain(4)), 0)
    with pytest.raises(ValueError, match="no environment to evaluate in"):
        loop.evaluate(loop.init(), 1)


def test_evaluation_plays_one_episode_a_row_with_its_own_epsilon():
    loop = compiled_loop(max_episode_steps=30)
    returns = loop.evaluate(loop.init(), 6).returns
    assert returns.shape == (1, 6) and set(np.unique(returns)) <= {0.0, 1.0}


def endless(num_envs: int) -> types.Environment:
    """Makes rows of which row r pays 1 a tick for 2 + 7 r ticks; the last never ends."""
    first = jnp.zeros((num_envs, 8), jnp.float32)
    length = jnp.where(jnp.arange(num_envs) == num_envs - 1, 10**9, 2 + 7 * jnp.arange(num_envs))

    def timestep(kind: jax.Array) -> types.TimeStep:
        ones = jnp.ones(num_envs)
        return types.TimeStep(kind.astype(jnp.int8), ones, ones, first, first)

    def reset(key: types.Key):
        return jnp.zeros(num_envs, jnp.int32), timestep(jnp.full(num_envs, types.FIRST))

    def step(age: jax.Array, action: jax.Array):
        last = age + 1 == length
        kind = jnp.where(last, types.LAST, types.MID)
        return jnp.where(last, 0, age + 1), timestep(kind)

    return types.Environment(toy.chain(1).spec, num_envs, reset, step)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("compiled", 300),
        pytest.param("host", 13, marks=pytest.mark.slow),
        pytest.param("compiled", 13, marks=pytest.mark.slow),
        pytest.param("host", 300, marks=pytest.mark.slow),
    ],
)
def test_an_episode_without_an_end_is_cut_and_counted(kind, limit):
    if kind == "compiled":
        loop = compiled.make(agent(), toy.chain(4), (0, 1), endless, evaluation_limit=limit)
    else:
        loop = host.make(
            agent(), OnHost(toy.chain(4)), 0, lambda n: OnHost(endless(n)), evaluation_limit=limit
        )
    episodes = loop.evaluate(loop.init(), 3)
    np.testing.assert_array_equal(episodes.returns, [[2, 9, limit]] * len(loop.seeds))
    np.testing.assert_array_equal(episodes.cut, [[False, False, True]] * len(loop.seeds))
    assert episodes.num_cut == len(loop.seeds)


def test_where_nothing_is_said_the_limit_is_the_default_or_the_environments_if_that_is_longer():
    longest = [None, 200, 50_000]
    specs = [dataclasses.replace(toy.chain(1).spec, max_episode_steps=n) for n in longest]
    assert [loops.evaluation_limit(spec) for spec in specs] == [27_000, 27_000, 50_000]
    assert [loops.evaluation_limit(spec, 100) for spec in specs] == [100] * 3


def test_a_call_is_at_most_twice_the_last_and_takes_as_long_as_is_wanted(monkeypatch):
    chunk = loops.ChunkSize(8)
    with chunk.timed(8):
        pass
    assert chunk.size == 16
    monkeypatch.setattr(loops, "CHUNK_SECONDS", 1e-9)
    with chunk.timed(16):
        pass
    assert chunk.size == 1


def test_how_an_evaluation_is_cut_into_calls_changes_no_number(monkeypatch):
    def walk(num_envs: int) -> types.Environment:
        return toy.chain(num_envs, length=12, max_episode_steps=600)

    uniform = lambda params, observation, state, key: (  # noqa: E731
        jax.random.randint(key, (len(observation),), 0, 2),
        state,
        {},
    )
    policy = types.Policy(lambda params, context, max_length: None, uniform)
    walker = agent()._replace(
        policy=policy, actor_params=lambda state, steps, evaluate, constants: {}
    )
    state = compiled_loop().init()
    # As evaluations of earlier versions found it, in calls of 250 ticks.
    golden = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    for seconds in (loops.CHUNK_SECONDS, 1e-9):  # Of the latter each call is one tick.
        monkeypatch.setattr(loops, "CHUNK_SECONDS", seconds)
        evaluate = compiled.evaluator(walker, walk(4))
        # In three rounds.
        episodes = evaluate(state.learner, state.env_steps, jax.random.key(5), 12)
        assert episodes.returns.tolist() == golden and not episodes.cut.any()


def test_what_a_loop_made_to_evaluate_in_is_closed_with_it():
    environments = []

    class Counted(OnHost):
        def close(self):
            environments.remove(self)

    def make_environment(rows: int) -> OnHost:
        environments.append(Counted(toy.chain(rows, max_episode_steps=3)))
        return environments[-1]

    loop = host.make(agent(), OnHost(toy.chain(4)), 0, make_environment)
    state = loop.init()
    for rows in (2, 3, 2):
        loop.evaluate(state, rows)
    assert len(environments) == 2
    loop.close()
    assert not environments


@pytest.mark.parametrize(
    ("changes", "num_envs", "on_host", "in_one_program"),
    [
        ((), 4, 500, 500),  # As min_replay_size says, where that is enough.
        (("n_step=3",), 4, 500, 500),
        (("n_step=3",), 512, 1536, 1024),  # What an iteration adds is drawn in it, if compiled.
        (("n_step=2",), 512, 1024, 512),
        (("n_step=3", "min_replay_size=32"), 1, 32, 32),
        (("n_step=40", "min_replay_size=32"), 1, 40, 36),
    ],
)
def test_learning_begins_when_a_batch_can_be_drawn(changes, num_envs, on_host, in_one_program):
    config = settings.apply(agent().experience, changes)
    assert loops.learning_begins(config, num_envs, sees_own_ticks=False) == on_host
    assert loops.learning_begins(config, num_envs, sees_own_ticks=True) == in_one_program


def test_a_row_needs_n_steps_of_the_capacity():
    config = replay.Config(capacity=500, min_replay_size=500, n_step=3)
    assert loops.learning_begins(config, 250 - 2, sees_own_ticks=False) > 0
    message = "capacity=500 is 1 a row of num_envs=512, and n_step=3 needs .*; set capacity=1536"
    with pytest.raises(ValueError, match=message):
        loops.learning_begins(config, 512, sees_own_ticks=False)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("compiled", PRIORITISED, id="compiled-prioritised", marks=pytest.mark.slow),
        pytest.param("host", ("n_step=3",), id="host-uniform"),
        pytest.param("compiled", ("n_step=3",), id="compiled-uniform", marks=pytest.mark.slow),
        pytest.param("host", PRIORITISED, id="host-prioritised", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_learnt_from_slots_that_are_empty(kind, changes):
    """Rows of 600: their first steps are many, and none has n of them yet."""
    built = agent("dqn", *changes)
    if kind == "compiled":
        loop = compiled.make(built, toy.chain(600), (0,))
    else:
        loop = host.make(built, OnHost(toy.chain(600)), 0)
    state, n = loop.init(), built.experience.n_step
    while int(state.learner.steps) == 0:
        state = loop.advance(state, loop.steps(state) + 1)
    assert np.all(np.asarray(state.replay.newest) >= n) and int(state.learner.steps) == 150
    assert loop.steps(state) == 600 * (n + 1 if kind == "host" else n)
    _, (row,) = loop.rows(state)
    assert np.isfinite(row["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "action"),
    [("compiled", 1), ("seeds", 0), ("host", 1)],
)
def test_what_is_frozen_is_read_by_learner_and_policy(kind, action):
    """By its base alone this policy always goes one way, and this learner says which."""

    def step(params, observation, state, key):
        return jnp.full(len(observation), params["base"], jnp.int32), state, {}

    def learn(state, batch, constants):
        state, feedback = agent().learner.step(state, batch, constants)
        return state, feedback._replace(metrics=feedback.metrics | {"base": constants.base * 1.0})

    follower = agent()._replace(
        policy=types.Policy(lambda params, context, max_length: None, step),
        learner=agent().learner._replace(step=learn),
        actor_params=lambda state, steps, evaluate, constants: {"base": constants.base},
    )
    constants = types.Constants(base=jnp.asarray(action))
    if kind == "host":
        environments = OnHost(toy.chain(4)), 0, lambda n: OnHost(toy.chain(n))
        loop = host.make(follower, *environments, constants=constants)
    else:
        seeds = (0, 1) if kind == "seeds" else (0,)
        loop = compiled.make(follower, toy.chain(4), seeds, toy.chain, constants=constants)
    state = to_end(loop, loop.init(), 700)
    state, rows = loop.rows(state)
    assert [row["base"] for row in rows] == [action] * len(loop.seeds)
    assert [row["return_mean"] > 0 for row in rows] == [bool(action)] * len(loop.seeds)
    returns = loop.evaluate(state, 3).returns
    assert np.all(returns == returns[0, 0]) and (returns[0, 0] > 0) == bool(action)

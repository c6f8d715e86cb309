"""Tests of who acts for the host loop: core/crews.py, chunks.py, actor_process.py and so on."""

import collections
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import psutil
import pytest

from kullback.core import (
    acting,
    acting_elsewhere,
    actor_process,
    checkpoints,
    chunks,
    crews,
    experience,
    host,
    loops,
    posts,
    replay,
    spans,
    types,
)
from tests import on_host
from tests.crewed import (
    ROWS,
    SEED,
    SHARDED,
    Lossy,
    digest,
    done,
    gone,
    losing,
    making,
    run,
    threads,
)


def killed(worker: Any) -> None:
    os.kill(worker._process.pid, signal.SIGKILL)


def processes(count: int, rows: int, **more: Any) -> Any:
    recipe = functools.partial(on_host.recipe, rows, **more)
    return lambda program: actor_process.workers(count, recipe)


@dataclasses.dataclass
class Definition:
    """The definition, in one thread that keeps all parameters."""

    changes: dict[str, Any]

    def run(self, num_envs: int, iterations: int) -> tuple[types.LearnerState, replay.State]:
        agent = on_host.agent(**self.changes)
        config = agent.experience
        shards, lag, ticks = config.shards, config.lag, config.chunk_ticks
        period = loops.pace(config, num_envs)
        rows, store = num_envs // shards, replay.host(on_host.SPEC, config, num_envs)
        learner_key, key = jax.random.split(jax.random.key(SEED))
        learner, contents = agent.learner.init(learner_key), store.init()
        environments = [on_host.Walk(rows) for _ in range(shards)]
        seeds = [SEED] if shards == 1 else [self.seed(n) for n in range(shards)]
        keys = [key] if shards == 1 else [jax.random.fold_in(key, n) for n in range(shards)]
        pairs = zip(environments, seeds, strict=True)
        observations = [environment.reset(seed).observation for environment, seed in pairs]
        versions, steps = [learner], 0

        @jax.jit
        def learn(state: types.LearnerState, batches: types.Batch) -> types.LearnerState:
            step = agent.learner.step
            none = types.NO_CONSTANTS
            return jax.lax.scan(lambda s, b: (step(s, b, none)[0], None), state, batches)[0]

        policy = jax.jit(agent.policy.step)
        for iteration in range(iterations):
            for call in range(max(ticks // period.ticks, 1)):
                if contents.newest.sum() >= config.min_replay_size:
                    drawn = steps + call * period.ticks * num_envs
                    generator = np.random.default_rng([SEED, drawn, 0])
                    batches = store.sample(contents, generator, period.updates)
                    learner = learn(learner, batches)
            versions.append(learner)
            for tick in range(ticks or period.ticks):
                ahead = iteration + (tick > 0 and not ticks)
                acts = versions[max(ahead - lag, 0)]
                params = agent.actor_params(acts, loops.count(steps), False, types.NO_CONSTANTS)
                parts = []
                for n, environment in enumerate(environments):
                    folded = jax.random.fold_in(keys[n], steps)
                    action, _, _ = policy(params, observations[n], None, folded)
                    environment.send(np.asarray(action))
                    parts.append((observations[n], np.asarray(action), environment.recv()))
                    observations[n] = parts[-1][2].observation
                joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
                contents = store.add(contents, *joined)
                steps += num_envs
        return learner, contents

    def seed(self, shard: int) -> int:
        return int(np.random.SeedSequence([SEED, 0, shard]).generate_state(1)[0] >> 1)


@pytest.mark.parametrize(
    ("changes", "num_envs"),
    [
        ({}, 2),  # Two ticks an iteration.
        (SHARDED, 4),
        ({"shards": 2, "lag": 2, "chunk_ticks": 3}, 4),
        ({"shards": 2, "lag": 1}, 2),
    ],
)
def test_a_run_is_as_its_plan_defines_it(changes: dict[str, Any], num_envs: int):
    agent = on_host.agent(**changes)
    plan = chunks.schedule(agent.experience, num_envs)
    rows = num_envs // plan.shards
    workers = None if plan.is_plain else threads(2, rows)
    loop = host.make(agent, on_host.Walk(num_envs), SEED, workers=workers)
    state = run(loop, loop.init())
    loop.close()
    iterations = state.env_steps // (plan.ticks * num_envs)
    learner, contents = Definition(changes).run(num_envs, iterations)
    assert int(state.learner.steps) == int(learner.steps) >= 10
    for name in ("frames", "action", "reward", "last"):
        np.testing.assert_array_equal(getattr(state.replay, name), getattr(contents, name))
    for one, other in zip(
        *map(jax.tree.leaves, (state.learner.params, learner.params)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_any_number_of_workers_gives_the_same_bits():
    one, two, four = (done(**SHARDED, workers=threads(n, 1)) for n in (1, 2, 4))
    assert digest(one) == digest(two) == digest(four)
    assert digest(one) != digest(done(shards=4, lag=2, workers=threads(4, 1)))


def test_what_a_lost_process_acted_is_cut_and_begins_anew():
    lost = [(1, 40)]  # Shards 1 and 3 are those of one worker.
    restarts: dict[str, list[crews.Restart]] = {"killed": [], "gone": []}
    digests, contents = {}, {}
    for name, workers, lose in (
        ("killed", processes(2, 1), killed),
        ("gone", threads(2, 1), gone),
    ):
        losses = losing(workers, lost, lose)
        state = done(workers=losses, on_restart=restarts[name].append, **SHARDED)
        digests[name], contents[name] = digest(state), state.replay
    assert digests["killed"] == digests["gone"] != digest(done(workers=threads(4, 1), **SHARDED))
    for name, noted in restarts.items():
        assert [(restart.shard, restart.steps) for restart in noted] == [(1, 40), (3, 40)], name
    for restart in restarts["killed"]:
        assert restart.cause.startswith("worker 1 (")
        assert restart.cause.endswith("was ended by SIGKILL")
    stored = contents["gone"]
    length = len(stored.action) // ROWS
    for shard in (1, 3):
        transition = 40 // ROWS - 1  # The last before it: a cut, or an end that came then.
        before, after = stored.starts[shard * length + transition :][:2]
        assert stored.last[shard * length + before] and not stored.age[shard * length + after]


def test_workers_that_are_lost_again_and_again_end_the_run():
    lost = [(0, 40)] * 5
    with (
        making(**SHARDED, workers=losing(threads(2, 1), lost, gone)) as loop,
        pytest.raises(posts.Lost, match="5 workers were lost within a minute, the last: it is go"),
    ):
        run(loop, loop.init())


def test_workers_that_are_lost_over_one_chunk_end_the_run_however_late(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(posts, "LOSS_SECONDS", 0.0)
    lost = [(0, 40)] * 5
    with (
        making(**SHARDED, workers=losing(threads(2, 1), lost, gone)) as loop,
        pytest.raises(posts.Lost, match="5 workers were lost over the same chunk, the last: it is"),
    ):
        run(loop, loop.init())


def test_who_lets_the_learner_wait_is_named_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posts, "LATE_SECONDS", 0.05)
    late: list[str] = []
    slow = losing(threads(2, 1), [(1, 40)], lambda worker: time.sleep(0.5))
    assert digest(done(workers=slow, on_late=late.append, **SHARDED)) == digest(
        done(workers=threads(4, 1), **SHARDED)
    )
    assert "thread 1 has let shard 1 wait for 0 seconds" in late


@pytest.mark.parametrize("size", [1, 10_000_000])  # The latter waits in the socket.
def test_a_process_that_hangs_is_lost(size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acting_elsewhere, "SECONDS", 1.0)
    monkeypatch.setattr(actor_process, "_END_SECONDS", 0.1)
    worker = actor_process.Remote(0, functools.partial(on_host.recipe, 1))
    os.kill(worker._process.pid, signal.SIGSTOP)
    ask = acting.Ask(0, 1, 0, 1, np.zeros(2, np.uint32), seed=1)
    with pytest.raises(posts.Lost, match=r"worker 0 \(.*, pid \d+\) gave no chunk for 1 seconds"):
        worker.act(ask, (0, [np.zeros(size, np.float32)]))
    worker.close()
    assert worker._process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_worker_ends_when_the_process_that_learns_is_killed():
    program = (
        "import functools, time\n"
        "from kullback.core import actor_process\n"
        "from tests import on_host\n"
        "worker = actor_process.Remote(0, functools.partial(on_host.recipe, 1))\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as learner:
        assert learner.stdout is not None
        worker = psutil.Process(int(learner.stdout.readline()))
        learner.kill()
    worker.wait(120)


def test_an_error_of_an_environment_ends_the_run_whoever_steps_it():
    for workers in (threads(2, 1, breaks_at=5), processes(1, 1, breaks_at=5)):
        with (
            making(**SHARDED, workers=workers) as loop,
            pytest.raises(ValueError, match="the environment broke at tick 5"),
        ):
            run(loop, loop.init())


def test_a_run_goes_on_the_same_with_other_workers(tmp_path: Any):
    with making(**SHARDED, workers=threads(4, 1)) as loop:
        state = run(loop, loop.init(), 40)
        checkpoints.save(tmp_path, 40, loop.snapshot(state), {})
        added = {name: np.array(x) for name, x in spans.span(state.replay, None).items()}
    ends = []
    for count in (1, 3):
        with making(**SHARDED, workers=threads(count, 1)) as loop:
            for _ in range(2):  # The second time what was under way is thrown away.
                saved, _, _ = checkpoints.restore_latest(tmp_path, loop.template())
                state = loop.restore(saved, [added])
                assert state.env_steps == 40
                ends.append(digest(run(loop, state)))
    assert len(set(ends)) == 1


def test_a_process_does_not_take_parameters_of_another_state_for_those_of_now(tmp_path: Any):
    with making(**SHARDED, workers=processes(1, 1)) as loop:
        state = run(loop, loop.init(), 40)
        checkpoints.save(tmp_path, 40, loop.snapshot(state), {})
        added = {name: np.array(x) for name, x in spans.span(state.replay, None).items()}
        ends = []
        for _ in range(2):  # Before the second, all that a worker has seen is the first version.
            saved, _, _ = checkpoints.restore_latest(tmp_path, loop.template())
            state = loop.restore(saved, [added])
            ends.append(digest(run(loop, state)))
            loop.init()
    assert ends[0] == ends[1]


def test_a_slow_learner_is_not_buried_in_chunks():
    chunk_counts: collections.Counter[int] = collections.Counter()

    def counting(program: acting.Program) -> posts.Workers:
        given = threads(4, 1)(program)

        def hire(number: int) -> Any:
            def lose(worker: Any) -> None:
                chunk_counts[number] += 1

            every = [(number, ROWS * n) for n in range(100)]
            return Lossy(given.hire(number), every, lose)

        return given._replace(hire=hire)

    with making(shards=4, lag=3, workers=counting) as loop:
        state = run(loop, loop.init(), 40)
        loop.close()  # Whose threads do what they are asked for.
        assert state.env_steps == 40
    assert all(count <= 10 + 3 + 1 for count in chunk_counts.values()), chunk_counts


def test_packed_chunks_are_unpacked_as_they_were():
    local, key = on_host.recipe(3), jax.random.key_data(jax.random.key(1))
    learner = on_host.agent().learner.init(jax.random.key(0))
    ask = acting.Ask(0, 40, 0, 3, np.asarray(key), seed=5)
    ticks = local.act(ask, acting.read(local.program, learner))
    assert sum(tick.timestep.last().sum() for tick in ticks) > 5
    arrays = acting.packed(on_host.SPEC, ticks)
    for tick, got in zip(ticks, acting.unpacked(arrays), strict=True):
        newest = tick._replace(
            observation=tick.observation[:, -1:],
            timestep=tick.timestep._replace(
                observation=tick.timestep.observation[:, -1:],
                next_observation=tick.timestep.next_observation[:, -1:],
            ),
        )
        jax.tree.map(np.testing.assert_array_equal, newest, got)


def test_acting_reads_no_moments_of_the_optimiser():
    agent = on_host.agent()
    learner = agent.learner.init(jax.random.key(0))
    leaves = acting.read(acting.program(agent), learner)
    expected = jax.tree.leaves(learner.params)
    assert len(leaves) == len(expected)
    assert all(one is other for one, other in zip(leaves, expected, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": 3}, "shards=3 must divide num_envs=4"),
        ({"samples_per_update": 8, "chunk_ticks": 3}, "chunk_ticks=3 must be a multiple of 2"),
        ({"lag": 1}, "shards=1 and lag=1 need workers"),
        ({"lag": -1}, "lag must be >= 0, got -1"),
    ],
)
def test_refuses_what_does_not_fit(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message), making(**changes):
        pass


def test_refuses_more_workers_than_shards_and_shards_in_a_compiled_environment():
    with (
        pytest.raises(ValueError, match=r"workers=5 must lie in \[1, 4\]"),
        making(**SHARDED, workers=threads(5, 1)),
    ):
        pass
    with pytest.raises(ValueError, match="are for environments on the host"):
        kind = on_host.agent(**SHARDED).experience
        experience.learning_begins(kind, ROWS, is_compiled=True)


def test_a_recipe_that_no_other_process_can_import_is_refused():
    with (
        pytest.raises(ValueError, match="hand over functions of a module"),
        making(
            **SHARDED, workers=lambda program: actor_process.workers(1, lambda: on_host.recipe(1))
        ) as loop,
    ):
        run(loop, loop.init())

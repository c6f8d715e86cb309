"""Tests of core/sampling_ahead.py, through the loop that samples by it."""

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import (
    acting_elsewhere,
    actor_process,
    checkpoints,
    learners,
    loops,
    policies,
    posts,
    sampling_ahead,
    sequences,
    trees,
    types,
)

ROWS, LENGTH, TOKENS, STEPS = 4, 5, 3, 6


def agent() -> types.Agent:
    """Learns to repeat what it samples, so that any other sample leads elsewhere."""

    def loss(params: Any, targets: Any, aux: Any, batch: types.Batch, key: Any, constants: Any):
        losses = -jnp.mean(jax.nn.log_softmax(params)[batch.data], -1)  # [B]
        return jnp.mean(batch.weights * losses), (aux, types.Feedback({}))

    learner = learners.sgd(
        init_params=lambda key: jax.random.normal(key, (TOKENS,)),
        loss=loss,
        optimizer=optax.adam(0.1),
    )
    nobody = policies.softmax(lambda params, observation: jnp.asarray(observation))  # Not asked.
    return types.Agent(
        policy=nobody,
        learner=learner,
        actor_params=lambda state, steps, evaluate, constants: {"params": state.params},
        experience=None,
    )


def prompts(step: int, rows: int = ROWS) -> list[int]:
    return [100 * step + n for n in range(rows)]


@jax.jit
def program(params: Any, given: Any, key: Any) -> Any:
    """Returns a token of each place, as the prompt and the parameters say."""
    keys = jax.vmap(lambda prompt: jax.random.fold_in(key, prompt))(given)
    return jax.vmap(lambda k: jax.random.categorical(k, params, shape=(LENGTH,)))(keys)


def sample(acting: Any, given: list[int], key: Any) -> Any:
    return program(acting["params"], np.asarray(given), key)


def stored(step: int, rows: int) -> np.ndarray:
    """Returns rows that nobody samples."""
    return np.random.default_rng(step).integers(0, TOKENS, (rows, LENGTH), np.int32)


def always(step: int) -> int:
    return ROWS


def sometimes(step: int) -> int:
    """Returns the rows that are sampled at a step, of which there may be none."""
    return (2, 0, ROWS)[step % 3]


def make(
    lag: int,
    shards: int = 2,
    workers: posts.Workers | int | None = None,
    sample: Any = sample,
    period: int = 0,
    counts: Any = always,
    max_age: int = 0,
    **more: Any,
) -> loops.Loop:
    source = sequences.Source(
        num_rows=ROWS,
        example=jax.ShapeDtypeStruct((ROWS, LENGTH), np.int32),
        stored=None if counts is always else stored,
        sampling=sequences.Sampling(
            num_rows=counts,
            prompts=prompts,
            sample=sample,
            score=lambda rows, prompts: np.asarray(rows)[:, 0],
            ahead=sampling_ahead.Ahead(lag, shards, period),
            max_age=max_age,
        ),
    )
    return sequences.make(agent(), source, seed=5, workers=workers, **more)


@contextlib.contextmanager
def closed(loop: loops.Loop) -> Iterator[None]:
    try:
        yield
    finally:
        loop.close()


def run(loop: loops.Loop, state: Any, until: int = STEPS) -> Any:
    while loop.steps(state) < until:
        state = loop.advance(state, until)
    return state


def done(loop: loops.Loop) -> Any:
    with closed(loop):
        return run(loop, loop.init())


def equal(one: sequences.RunState, other: sequences.RunState) -> None:
    """Compares two states to the last bit, but for seconds."""
    emptied = ({**x.metrics.learner, sequences.WAITED: 0} for x in (one, other))
    sums = (x.metrics._replace(learner=y) for x, y in zip((one, other), emptied, strict=True))
    pair = (x._replace(metrics=y) for x, y in zip((one, other), sums, strict=True))
    for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
        np.testing.assert_array_equal(trees.to_numpy(a), trees.to_numpy(b))


@pytest.mark.parametrize(
    ("lag", "shards", "period", "counts"),
    [
        (3, 4, 0, always),
        (2, 2, 4, sometimes),
        *(pytest.param(1, n, 0, always, marks=pytest.mark.slow) for n in (1, 2)),
        pytest.param(9, 2, 3, always, marks=pytest.mark.slow),
    ],
)
def test_rows_are_those_of_the_policy_so_many_steps_before(
    lag: int, shards: int, period: int, counts: Any
):
    """The definition, in a loop that samples when it learns, and keeps all parameters."""
    state = done(make(lag, shards, period=period, counts=counts))
    learner, _, key = agent().learner, None, jax.random.split(jax.random.key(5))
    learnt, key = learner.init(key[0]), key[1]
    step, versions, ages = jax.jit(learner.step), [learnt.params], []
    for n in range(STEPS):
        begun = period * (n // period) if period else 0
        params = versions[max(n - lag, begun)]
        count, of_step = counts(n), jax.random.fold_in(key, n)
        size = count // shards
        parts = [
            program(
                params,
                np.asarray(prompts(n)[k * size : (k + 1) * size]),
                jax.random.fold_in(of_step, k),
            )
            for k in range(shards if count else 0)
        ]
        rows = np.concatenate([*map(np.asarray, parts), stored(n, ROWS - count)])
        learnt, _ = step(learnt, types.Batch.of(rows), types.NO_CONSTANTS)
        versions.append(learnt.params)
        ages.append(min(lag, n - begun) if count else 0)
    np.testing.assert_array_equal(state.learner.params, learnt.params)
    assert float(state.metrics.learner["sample_age"]) == sum(ages) > 0
    for kept, version in zip(state.acted[-STEPS:], versions[-lag - 1 : -1], strict=True):
        np.testing.assert_array_equal(kept, version)
    assert len({np.asarray(x).tobytes() for x in versions}) == STEPS + 1


def test_any_number_of_threads_gives_the_same_bits():
    one, two, four = (done(make(1, 4, workers)) for workers in (1, 2, 4))
    equal(one, two)
    equal(one, four)


class Writer:
    """The writing of a worker in another process."""

    def __init__(self, parted: acting_elsewhere.Parted):
        self._parted = parted

    def answer(self, ask: sampling_ahead.Ask, version: Any) -> np.ndarray:
        here = sampling_ahead.Thread(name="", write=sample)
        return np.asarray(here.act(ask, self._parted.whole(version)))

    def close(self) -> None:
        pass


def processes(count: int) -> posts.Workers:
    def make(parted: acting_elsewhere.Parted) -> posts.Workers:
        return actor_process.workers(count, functools.partial(Writer, parted))

    return acting_elsewhere.sharing(count, types.NO_CONSTANTS, make)


class Lossy:
    """A worker that something happens to before it answers what it is asked n-th."""

    def __init__(self, worker: posts.Worker, turns: list[int], happens: Callable[[Any], None]):
        self.worker, self._turns, self._happens = worker, turns, happens

    @property
    def name(self) -> str:
        return self.worker.name

    def act(self, ask: Any, version: Any) -> Any:
        self._turns[0] -= 1
        if self._turns[0] < 0 and self._turns[1]:
            self._turns[1] -= 1
            self._happens(self.worker)
        return self.worker.act(ask, version)

    def close(self) -> None:
        self.worker.close()


def losing(workers: posts.Workers, first: int, count: int, happens: Any) -> posts.Workers:
    """Returns workers with whom something happens so often, from their n-th answer on."""
    turns = [first, count]
    return workers._replace(hire=lambda number: Lossy(workers.hire(number), turns, happens))


def killed(worker: Any) -> None:
    os.kill(worker._process.pid, signal.SIGKILL)


def gone(worker: Any) -> None:
    raise posts.Lost("it is gone")


def test_processes_give_the_bits_of_threads_and_one_that_is_killed_changes_none():
    whole, told = done(make(1, 4)), list[str]()
    equal(done(make(1, 4, losing(processes(2), 9, 1, killed), tell=told.append)), whole)
    (line,) = told
    assert line.startswith("worker ") and line.endswith(
        "was ended by SIGKILL: what it was to sample was sampled again, the same"
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_processes_gives_the_bits_of_threads(count: int):
    equal(done(make(1, 4, processes(count))), done(make(1, 4)))


def test_workers_that_are_lost_again_and_again_end_the_run_at_a_step_that_is_kept():
    threads = sampling_ahead.threads(2, sample)
    loop = make(1, 4, losing(threads, 9, 5, gone))
    with closed(loop), pytest.raises(loops.Abandoned) as abandoned:
        run(loop, loop.init())
    cause = abandoned.value.__cause__
    assert isinstance(cause, posts.Lost)
    assert str(cause) == "5 workers were lost within a minute, the last: it is gone"
    assert abandoned.value.state.steps == 2
    again = make(1, 4)
    with closed(again):
        saved = loop.snapshot(abandoned.value.state)
        equal(run(again, again.restore(saved)), done(make(1, 4)))


def test_who_lets_the_learner_wait_is_named_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posts, "LATE_SECONDS", 0.05)
    told: list[str] = []
    slow = losing(sampling_ahead.threads(1, sample), 3, 1, lambda worker: time.sleep(0.5))
    equal(done(make(1, 2, slow, tell=told.append)), done(make(1, 2)))
    assert "thread 0 has let shard 1 of step 1 wait for 0 seconds" in told


def test_parameters_go_out_once_a_version():
    workers, versions = sampling_ahead.threads(2, sample), list[int]()

    def publish(version: int, acting: Any) -> Any:
        versions.append(version)
        return workers.publish(version, acting)

    done(make(2, 2, workers._replace(publish=publish), period=4))
    assert versions == [0, 1, 4, 5]


def test_workers_get_no_more_than_what_writing_reads():
    received: list[Any] = []

    def write(acting: Any, given: Any, key: Any) -> np.ndarray:
        received.append(acting)
        return np.asarray(given)

    parts = sampling_ahead.Parts(
        arrays=lambda given: given,
        write=write,
        rows=lambda given, written: 2 * written,
        reads=lambda acting: acting["params"],
    )
    sampler = sampling_ahead.sampler(sampling_ahead.Ahead(1), prompts, parts)
    sampler.begin(1, lambda: {"params": 7, "critic": 8}, jax.random.key(0))
    np.testing.assert_array_equal(sampler.take(1).rows, 2 * np.asarray(prompts(1)))
    sampler.close()
    assert received == [7]


def test_refuses_workers_without_work():
    sampling_ahead.check(4, sampling_ahead.Ahead(2, 2))
    with pytest.raises(ValueError, match=r"workers=5 must lie in \[1, 4\], shards=2 of each of"):
        sampling_ahead.check(5, sampling_ahead.Ahead(2, 2))


def test_without_a_lag_nothing_is_sampled_ahead():
    state = done(make(0))
    assert state.acted is None and sequences.WAITED not in state.metrics.learner


@pytest.mark.parametrize("step", [3, 4])
def test_rows_in_flight_are_made_again_after_a_kill(step: int, tmp_path: Any):
    given: dict[str, Any] = {"period": 4, "counts": sometimes}
    whole, first, second = (done(make(2, **given)), make(2, **given), make(2, **given))
    with closed(first):
        checkpoints.save(tmp_path, step, first.snapshot(run(first, first.init(), step)), {})
    with closed(second):
        saved, _, _ = checkpoints.restore_latest(tmp_path, second.template())
        equal(run(second, second.restore(saved)), whole)


def test_a_state_gone_back_to_forgets_what_was_sampled_ahead():
    loop = make(1)
    with closed(loop):
        equal(run(loop, loop.init()), run(loop, loop.init()))


def test_the_next_rows_are_sampled_while_these_are_learnt_from():
    begun = [threading.Event() for _ in range(STEPS + 2)]

    def noting(acting: Any, given: list[int], key: Any) -> Any:
        begun[given[0] // 100].set()
        return sample(acting, given, key)

    def on_sampled(step: int, *more: Any) -> None:
        assert begun[step + 1].wait(60), "nobody samples the rows of the next step"

    done(make(1, sample=noting, on_sampled=on_sampled))


def test_an_error_of_a_thread_ends_the_step_that_learns_from_its_rows():
    broken = [True]

    def failing(acting: Any, given: list[int], key: Any) -> Any:
        if given[0] // 100 == 3 and broken[0]:
            raise KeyError("no text")
        return sample(acting, given, key)

    loop = make(1, sample=failing)
    with closed(loop), pytest.raises(loops.Abandoned) as abandoned:
        run(loop, loop.init())
    state = abandoned.value.state
    assert state.steps == 3 and isinstance(abandoned.value.__cause__, KeyError)
    broken[0] = False
    again = make(1)
    with closed(again):
        equal(run(again, again.restore(loop.snapshot(state))), done(make(1)))


def test_no_mesh_and_no_second_way_to_older_rows():
    with pytest.raises(ValueError, match="lag=1 does not go with a mesh: programs that run beside"):
        sampling_ahead.Ahead(1).check_mesh("a mesh")
    sampling_ahead.NONE.check_mesh("a mesh")
    with pytest.raises(ValueError, match="lag=1 and max_age=2 both learn from older rows"):
        make(1, max_age=2)


def test_refuses_what_does_not_divide():
    loop = make(1, shards=3)
    with closed(loop), pytest.raises(loops.Abandoned) as abandoned:
        loop.advance(loop.init(), 1)
    assert str(abandoned.value.__cause__) == "shards=3 must divide the 4 prompts of a step"

"""Every agent of the registry in every family of environments, by the loop that it has there."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from kullback import agents
from kullback.core import compiled, host, loops, types
from kullback.experiments.runs import plans, resolved

# Small enough for a test; what is learnt from begins early and few frames are kept.
SMALL = ("capacity=400", "min_replay_size=64", "batch_size=4", "target_period=5")
# Agents without replay, which learn in compiled environments alone, and their settings.
ONLINE: dict[str, tuple[str, ...]] = dict.fromkeys(("m-pqn", "pqn"), ("length=4", "batch_size=8"))
ENVIRONMENTS = ("minatar/breakout", "gym/CartPole-v1", "atari/pong")
FAST = {("m-dqn", "gym/CartPole-v1")}  # What compiles soonest.
SEEDS = (3, 4)

_compiled: list[str] = []  # An entry a program that XLA made, in this process.


@functools.cache
def listen() -> None:
    """Registers a listener of compilations once: JAX keeps it for ever."""

    def note(event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            _compiled.append(str(details))

    jax.monitoring.register_event_duration_secs_listener(note)


def loop_of(agent: str, environment: str) -> Iterator[loops.Loop]:
    """Returns the loop that `kullback train` would run, of two seeds if they share a program."""
    small = ONLINE.get(agent, SMALL)
    plan = plans.Plan(agent=agent, environment=environment, num_envs=4, settings=small)
    named = resolved.resolve(plan)
    four_rows = named.make_environment(4)
    built = named.make_agent(four_rows.spec)
    if isinstance(four_rows, types.Environment):
        yield compiled.make(built, four_rows, SEEDS)
        return
    try:
        yield host.make(built, four_rows, SEEDS[0])
    finally:
        four_rows.close()


def proceed(loop: loops.Loop, state: Any, until: int) -> Any:
    while loop.steps(state) < until:
        state = loop.advance(state, until)
    return state


@pytest.mark.parametrize(
    ("agent", "environment"),
    [
        pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow)
        for pair in itertools.product(sorted(agents.AGENTS), ENVIRONMENTS)
        if pair[0] not in ONLINE or pair[1].startswith("minatar/")
    ],
)
def test_it_learns_there_and_compiles_nothing_anew(agent: str, environment: str):
    listen()
    for loop in loop_of(agent, environment):
        state = proceed(loop, loop.init(), 128)
        before = [np.array(x) for x in jax.tree.leaves(state.learner.params)]
        state, _ = loop.rows(state)
        number = len(_compiled)
        state = proceed(loop, state, 320)  # Some copies of the target among them.
        state, rows = loop.rows(state)
        assert _compiled[number:] == []
        after = jax.tree.leaves(state.learner.params)
        assert any(np.any(a != b) for a, b in zip(after, before, strict=True))
        assert len(rows) == len(loop.seeds)
        for row in rows:
            assert np.isfinite(row["loss"]) and np.isfinite(row["action_gap"])


def test_the_listener_hears_a_compilation():
    listen()
    number = len(_compiled)
    jax.jit(lambda x: x * 3 + number)(np.ones(7 + number % 5))
    assert len(_compiled) > number

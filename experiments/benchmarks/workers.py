"""Emulators that others step: what threads, processes and chunks give, and who waits for whom."""

import functools
import pickle
from typing import NamedTuple

import jax
import numpy as np

from kullback import environments
from kullback.core import acting
from kullback.experiments.benchmarks import peer, rows, speeds, timing
from kullback.experiments.runs import plans, resolved, staffing

AGENT, NUM_ENVS, SHARDS = "dqn", 16, 2
ALONE = "one thread"


class Way(NamedTuple):
    """A way of stepping emulators apart from learning."""

    settings: tuple[str, ...]
    ticks: int = 1  # Of a chunk.
    flags: tuple[str, ...] = ()  # By which processes step them.


_APART = (f"shards={SHARDS}", "lag=1")
WAYS = {
    ALONE: Way(()),
    "2 threads": Way(_APART),
    "2 processes, chunks of 1 tick": Way(_APART, 1, ("--workers=2",)),
    "2 processes, chunks of 8": Way((*_APART, "chunk_ticks=8"), 8, ("--workers=2",)),
}
# Agent steps of a run: about half a minute on two cores.
STEPS = {"atari/pong": 8_000, "gym/CartPole-v1": 40_000}
SMALL = ("min_replay_size=1000", "capacity=10000")


def speed(environment: str, way: Way, steps: int) -> speeds.Speed:
    """Measures agent steps a second."""
    given = [f"--set={setting}" for setting in (*SMALL, *way.settings)]
    sizes = (f"--num-envs={NUM_ENVS}", f"--steps={steps}", f"--log-every={steps // 10}")
    never = "--checkpoint-every=1000000000"
    arguments = [AGENT, environment, *sizes, never, *given, *way.flags]
    return speeds.trained(speeds.of_folder, arguments)


def details(environment: str, way: Way, measured: speeds.Speed) -> dict[str, float]:
    """Returns, of processes, the share of the time for which they are waited for, and bytes.

    With threads the time counts what a learner step that has returned has left to compute.
    """
    if not way.flags:
        return {}
    share = measured.wait_seconds * measured.rate / (NUM_ENVS * way.ticks)
    return {"share_of_waiting": share, "bytes_a_step": num_bytes(environment, way)}


def num_bytes(environment: str, way: Way) -> float:
    """Returns the bytes that a worker sends and gets for an agent step, as they are pickled.

    The third chunk is measured: of the frames of a row that are stacked the newest is sent alone.
    """
    settings, ticks = (*SMALL, *way.settings), way.ticks
    plan = plans.Plan(
        agent=AGENT, environment=environment, num_envs=NUM_ENVS, steps=1, settings=settings
    )
    named, size = resolved.resolve(plan), NUM_ENVS // SHARDS
    spec = environments.make(environment, 1).spec
    recipe = staffing.Recipe(
        named=named, make_agent=None, make_environment=None, spec=spec, rows=size
    )
    local = recipe()
    learner = named.make_agent(spec).learner.init(jax.random.key(0))
    leaves = [np.asarray(leaf) for leaf in acting.read(local.program, learner)]
    key = np.asarray(jax.random.key_data(jax.random.key(1)))
    sent = 0
    for chunk in range(3):
        done, seed = chunk * ticks * NUM_ENVS, None if chunk else 1
        ask = acting.Ask(0, ticks, done, NUM_ENVS, key, seed)
        given = acting.packed(spec, local.act(ask, leaves))
        sent = len(pickle.dumps((ask, leaves))) + len(pickle.dumps(given))
    local.close()
    return sent / (size * ticks)


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures a run of each kind in turn; the peer is the thread that does all itself."""
    del run_peer
    results = list[rows.Row]()
    for environment, steps in STEPS.items():
        measures = {
            name: functools.partial(speed, environment, way, steps) for name, way in WAYS.items()
        }
        best = speeds.in_turn(measures, budget.rounds)
        alone = {ALONE: best[ALONE].rate}
        results += [
            rows.Row(
                name=f"{environment}, {AGENT}, {NUM_ENVS} envs stepped by {name}",
                ours=measured.rate,
                unit="steps/s",
                details=details(environment, WAYS[name], measured),
                **({} if name == ALONE else rows.of_peer(alone, ALONE)),
            )
            for name, measured in best.items()
        ]
    return results

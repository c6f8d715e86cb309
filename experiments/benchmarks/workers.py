"""Emulators that others step: what threads, processes and chunks give, and who waits for whom."""

import pickle

import jax
import numpy as np

from kullback import environments
from kullback.core import acting
from kullback.experiments.benchmarks import peer, rows, speeds, timing
from kullback.experiments.runs import plans, resolved, staffing

AGENT, NUM_ENVS, SHARDS = "dqn", 16, 2
ALONE = "one thread"
APART = (f"shards={SHARDS}", "lag=1")
# Settings of the run, and flags of who steps it.
WHO: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ALONE: ((), ()),
    "2 threads": (APART, ()),
    "2 processes, chunks of 1 tick": (APART, ("--workers=2",)),
    "2 processes, chunks of 8": ((*APART, "chunk_ticks=8"), ("--workers=2",)),
}
# Agent steps of a run: about half a minute on two cores.
STEPS = {"atari/pong": 8_000, "gym/CartPole-v1": 40_000}
SMALL = ("min_replay_size=1000", "capacity=10000")


def speed(environment: str, who: str, steps: int) -> dict[str, float]:
    """Returns agent steps a second; of processes the share of waiting, and bytes a step, too."""
    settings, flags = WHO[who]
    settings = (*SMALL, *settings)
    given = [f"--set={setting}" for setting in settings]
    sizes = (f"--num-envs={NUM_ENVS}", f"--steps={steps}", f"--log-every={steps // 10}")
    never = "--checkpoint-every=1000000000"
    trained = speeds.trained(speeds.of_folder, [AGENT, environment, *sizes, never, *given, *flags])
    measured = {"steps_per_second": trained.rate}
    ticks = 8 if "chunk_ticks=8" in settings else 1
    if flags:  # With threads the time counts a learner step that has returned, but not computed.
        measured["share_of_waiting"] = trained.wait_seconds * trained.rate / (NUM_ENVS * ticks)
        measured["bytes_a_step"] = num_bytes(environment, settings, ticks)
    return measured


def num_bytes(environment: str, settings: tuple[str, ...], ticks: int) -> float:
    """Returns the bytes that a worker sends and gets for an agent step, as they are pickled.

    The third chunk is measured: of the frames of a row that are stacked the newest is sent alone.
    """
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
        best: dict[str, dict[str, float]] = {}
        for _ in range(budget.rounds):
            for who in WHO:
                rates = speed(environment, who, steps)
                known = best.get(who, rates)
                best[who] = max(rates, known, key=lambda x: x["steps_per_second"])
        alone = best[ALONE].pop("steps_per_second")
        for who, measured in best.items():
            beside = {} if who == ALONE else {"peer": ALONE, "peer_value": alone}
            results.append(
                rows.Row(
                    name=f"{environment}, {AGENT}, {NUM_ENVS} envs stepped by {who}",
                    ours=measured.pop("steps_per_second", alone),
                    unit="steps/s",
                    details=measured,
                    **beside,
                )
            )
    return results

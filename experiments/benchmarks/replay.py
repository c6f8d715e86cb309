"""Batches of 32 stacked pairs out of 100,000 frames of 84 x 84, about 7.1 kB a transition."""

from collections.abc import Callable

import numpy as np

from kullback.core import platform, replay, types
from kullback.experiments.benchmarks import peer, rows, timing

CAPACITY, NUM_ENVS, EPISODE = 100_000, 4, 1_000
PEERS = {  # Name, environment and program, arguments beside seconds and capacity.
    "numpy": ("numpy", "replay"),
    "cpprb": ("cpprb", "replay"),
    "sb3": ("sb3", "replay", 0),
    "sb3 compact": ("sb3", "replay", 1),
}


def sampler(capacity: int) -> Callable[[], float]:
    """Makes a function that draws one batch from a full replay and returns 1."""
    spec = types.Spec(shape=(4, 84, 84), dtype=np.uint8, num_actions=6, frame_stack=4)
    config = replay.Config(capacity=capacity, min_replay_size=min(1_000, capacity))
    store = replay.host(spec, config, NUM_ENVS)
    state = store.init()
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 256, (NUM_ENVS, 4, 84, 84), np.uint8)
    ones = np.ones(NUM_ENVS, np.float32)
    for t in range(capacity // NUM_ENVS + 100):
        last = rng.random(NUM_ENVS) < 1 / EPISODE
        step_type = np.where(last, types.LAST, types.MID).astype(np.int8)
        timestep = types.TimeStep(step_type, ones, 1 - ones * last, stack, stack)
        state = store.add(state, stack, np.full(NUM_ENVS, t % 6, np.int32), timestep)

    def work() -> float:
        store.sample(state, rng)
        return 1

    work()
    return work


def run(budget: timing.Budget, run_peer: peer.Peer, capacity: int = CAPACITY) -> list[rows.Row]:
    """Measures ours beside a bare ring of frames, cpprb, and both layouts of Stable-Baselines3."""
    platform.keep_freed_memory()
    ours = timing.rates({"ours": sampler(capacity)}, budget.seconds)

    def theirs() -> dict[str, float]:
        rates = {}
        for name, program, *more in PEERS.values():
            rates.update(run_peer(name, program, budget.seconds, capacity, *more))
        return rates

    best = timing.interleave([ours, theirs], budget.rounds)
    return [
        rows.Row(
            name=f"replay batches, beside {name}",
            ours=best["ours"],
            unit="batches/s",
            **rows.of_peer(best, name),
            target=8_000,
        )
        for name in PEERS
    ]

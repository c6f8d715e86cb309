"""One gradient step on Atari frames, alone: 32 pairs of 84 x 84 x 4 bytes, six actions."""

import functools
import unittest.mock
from collections.abc import Callable

import jax
import numpy as np

from kullback import agents
from kullback.core import convolution, platform, types
from kullback.experiments.benchmarks import flops, machine, peer, rows, timing

BATCH, ACTIONS = 32, 6
XLA = "XLA's convolutions"  # On a TPU these are ours.
FORWARDS = {"m-dqn": 3, "dqn": 2}  # Passes: online at s, target at s', and M-DQN's target at s.


def stepper(name: str) -> Callable[[], float]:
    """Makes a function that does one learner step, compiled as in the host loop, and returns 1."""
    spec = types.Spec(shape=(4, 84, 84), dtype=np.uint8, num_actions=ACTIONS, frame_stack=4)
    entry = agents.AGENTS[name]
    agent = entry.make(None, spec, entry.presets("atari"))
    return stepping(agent, batch_of(BATCH, 0.99))


def batch_of(size: int, discount: float) -> types.Batch:
    """Makes a batch of random frames, and of rewards of 1."""
    rng = np.random.default_rng(0)

    def frames() -> np.ndarray:
        return rng.integers(0, 256, (size, 4, 84, 84), np.uint8)

    ones = np.ones(size, np.float32)
    actions = rng.integers(0, ACTIONS, size, np.int32)
    data = types.Transition(frames(), actions, ones, np.float32(discount) * ones, frames())
    return types.Batch(data, np.zeros(size, np.int32), ones / size, ones)


def stepping(agent: types.Agent, batch: types.Batch) -> Callable[[], float]:
    """Makes a function that does one learner step on a batch, and returns 1."""
    step = jax.jit(agent.learner.step, donate_argnums=0)
    state = jax.jit(agent.learner.init)(jax.random.key(0))

    def work() -> float:
        nonlocal state
        state, _ = step(state, batch, types.NO_CONSTANTS)
        jax.block_until_ready(state.params)
        return 1

    work()
    return work


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures M-DQN and DQN beside torch's faster layout, XLA's convolutions, and sgemm."""
    platform.keep_freed_memory()
    steppers = {name: stepper(name) for name in FORWARDS}
    with unittest.mock.patch.object(convolution, "prefers_product", lambda: False):
        steppers |= {f"{name}, {XLA}": stepper(name) for name in FORWARDS}
    ours = timing.rates(steppers, budget.seconds)
    theirs = functools.partial(run_peer, "torch", "gradient_step", budget.seconds)
    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    results = []
    for name, forwards in FORWARDS.items():
        layouts = [key for key in best if key.startswith(f"{name} ")]
        fastest = max(layouts, key=best.__getitem__, default=None)
        cost = flops.gradient_step(flops.nature(ACTIONS), BATCH, forwards)
        wanted = name == "m-dqn"
        results.append(
            rows.Row(
                name=f"gradient step, {name}",
                ours=best[name],
                unit="steps/s",
                peer=f"torch {fastest.partition(' ')[2]}" if fastest else "",
                peer_value=best[fastest] if fastest else None,
                target_ratio=1.2 if wanted else None,
                limit_share=best[name] * cost / best["sgemm"],
                target_limit_share=0.5 if wanted else None,
                details={**{key: best[key] for key in layouts}, "sgemm_flops": best["sgemm"]},
            )
        )
        results.append(
            rows.Row(
                name=f"gradient step, {name}",
                ours=best[name],
                unit="steps/s",
                peer=XLA,
                peer_value=best[f"{name}, {XLA}"],
                target_ratio=1.0,
            )
        )
    return results

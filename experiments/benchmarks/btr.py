"""One learner step of BTR on Atari frames, alone: 256 items of 84 x 84 x 4 bytes, six actions.

Beside the same step in torch, our own form of it, and beside XLA's convolutions. On CPUs a step
takes seconds. btr_atari.py has the loop around it.
"""

import functools
import unittest.mock
from collections.abc import Callable

import jax
import numpy as np

from kullback import agents
from kullback.core import convolution, platform, types
from kullback.experiments.benchmarks import flops, gradient_step, machine, peer, rows, timing
from kullback.experiments.runs import settings

BATCH, ACTIONS = 256, gradient_step.ACTIONS
QUANTILES, COSINES, HIDDEN, FEATURES = 8, 64, 512, 36 * 64
# Passes of the torso: online at s, whose gradient is taken, and target at s'.
FORWARDS = 2
NUM_PARAMETERS = 2_902_695  # Of the network, means of noisy layers alone.


def torso() -> tuple[flops.Layer, ...]:
    """Returns the layers of the torso, twice as wide as IMPALA's, for 4 frames of 84 x 84."""
    return flops.impala(4, 84, [(32, True), (64, True), (64, True)])


def head() -> tuple[flops.Layer, ...]:
    """Returns the layers of one quantile: its embedding, and two streams."""
    return (
        flops.Layer(FEATURES, COSINES),
        flops.Layer(2 * HIDDEN, FEATURES),
        flops.Layer(ACTIONS + 1, HIDDEN),
    )


def cost(batch_size: int) -> int:
    """Counts the operations of a learner step.

    Quantiles are asked of the online network for the loss, with their gradient, and for the bonus,
    and of the target network.
    """
    of_head = flops.gradient_step(head(), QUANTILES * batch_size, forwards=3)
    return flops.gradient_step(torso(), batch_size, FORWARDS) + of_head


def stepper(batch_size: int = BATCH, assignments: tuple[str, ...] = ()) -> Callable[[], float]:
    """Makes a function that does one learner step, compiled as in the host loop, and returns 1.

    Args:
      batch_size: items of the batch.
      assignments: changes of the presets for Atari, as of `--set`.
    """
    spec = types.Spec(shape=(4, 84, 84), dtype=np.uint8, num_actions=ACTIONS, frame_stack=4)
    entry = agents.AGENTS["btr"]
    agent = entry.make(None, spec, settings.apply(entry.presets("atari"), assignments))
    batch = gradient_step.batch_of(batch_size, 0.997**3)
    return gradient_step.stepping(agent, jax.device_put(batch))  # The transfer is the loop's.


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures a learner step beside torch's faster layout, XLA's convolutions, and sgemm."""
    platform.keep_freed_memory()
    steppers = {"ours": stepper()}
    with unittest.mock.patch.object(convolution, "prefers_product", lambda: False):
        steppers[gradient_step.XLA] = stepper()
    ours = timing.rates(steppers, budget.seconds)
    theirs = functools.partial(run_peer, "torch", "btr", budget.seconds, BATCH)
    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    layouts = {name: rate for name, rate in best.items() if name.startswith("torch ")}
    if layouts and best["parameters"] != NUM_PARAMETERS:
        raise peer.PeerError(f"torch's network has {best['parameters']:.0f} parameters")
    fastest = max(layouts, key=layouts.__getitem__, default="")
    return [
        rows.Row(
            name="learner step, btr",
            ours=best["ours"],
            unit="steps/s",
            **rows.of_peer(layouts, fastest),
            target_ratio=1.0,
            limit_share=best["ours"] * cost(BATCH) / best["sgemm"],
            details={**layouts, "sgemm_flops": best["sgemm"]},
        ),
        rows.Row(
            name="learner step, btr",
            ours=best["ours"],
            unit="steps/s",
            **rows.of_peer(best, gradient_step.XLA),
            target_ratio=1.0,
        ),
    ]

"""Losses of labels and their gradients: 4,096 rows of 8,192 logits, float32."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import platform, regularizers
from kullback.experiments.benchmarks import machine, peer, rows, timing

NUM_ROWS, VOCABULARY = 4_096, 8_192
SCALE = 2.0  # Standard deviation of the logits, about that of a language model.
# Divergence, peer, wanted ratio. Cross-entropy is what a sparse loss takes the place of. entmax
# sorts all logits, or the largest first, as its loss does if not told otherwise.
COMPARED = (
    ("kl", "torch cross-entropy", None),
    ("alpha-1.5", "entmax exact", 8.0),
    ("alpha-1.5", "entmax exact, largest first", None),
    ("alpha-1.5", "entmax bisection", 40.0),
    ("alpha-1.5", "torch cross-entropy", 0.25),
)


def differentiator(name: str, num_rows: int = NUM_ROWS) -> Callable[[], float]:
    """Makes a function that computes the mean loss and its gradient and returns 1."""
    divergence = regularizers.named(name)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(SCALE * rng.standard_normal((num_rows, VOCABULARY), np.float32))
    labels = jnp.asarray(rng.integers(0, VOCABULARY, num_rows, np.int32))

    @jax.jit
    def differentiate(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        def mean(logits: jax.Array) -> jax.Array:
            return jnp.mean(regularizers.loss(logits, labels, divergence))

        return jax.value_and_grad(mean)(logits)

    def work() -> float:
        jax.block_until_ready(differentiate(logits))
        return 1

    work()
    return work


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside torch and entmax, and beside the traffic of logits and gradient."""
    platform.keep_freed_memory()
    ours = timing.rates({name: differentiator(name) for name, _, _ in COMPARED}, budget.seconds)
    theirs = functools.partial(
        run_peer, "entmax", "operators", budget.seconds, NUM_ROWS, VOCABULARY, SCALE
    )
    moved = 2 * 4 * NUM_ROWS * VOCABULARY  # Bytes: logits in, gradient out.
    copy = machine.bandwidth(moved // 2)
    best = timing.interleave([copy, ours, theirs], budget.rounds)
    return [
        rows.Row(
            name=f"loss and gradient of {name}, beside {other}",
            ours=best[name],
            unit="calls/s",
            **rows.of_peer(best, other),
            target_ratio=target,
            limit_share=best[name] * moved / best["bandwidth"],
            details={"bandwidth": best["bandwidth"]},
        )
        for name, other, target in COMPARED
    ]

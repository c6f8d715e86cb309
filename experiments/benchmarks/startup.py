"""Seconds that a person waits: for the first learning step, for help, for the list."""

import os
import subprocess
import tempfile
import time

from kullback.experiments.benchmarks import commands, peer, rows, timing


def seconds_of(*arguments: str) -> float:
    """Measures the wall time of one call of the command, nothing compiled before."""
    command = commands.path()
    cold = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    start = time.perf_counter()
    subprocess.run([command, *arguments], check=True, capture_output=True, env=cold)
    return time.perf_counter() - start


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures the command's start, the best of the rounds; it has no peer."""
    del run_peer
    with tempfile.TemporaryDirectory() as folder:
        learning = min(
            # 5,000 steps of warm-up, the first learner steps, two checkpoints and a picture.
            seconds_of(
                *("train", "m-dqn", "minatar/breakout", "--steps", "5040"),
                *("--out", f"{folder}/{number}"),
            )
            for number in range(budget.rounds)
        )
    return [
        rows.Row(
            name="a run on minatar/breakout up to its tenth learning step",
            ours=learning,
            unit="s",
            lower_is_better=True,
            target=15,
        ),
        *(
            rows.Row(
                name=f"kullback {what}",
                ours=min(seconds_of(what) for _ in range(3)),
                unit="s",
                lower_is_better=True,
                target=0.5,
            )
            for what in ("--help", "list")
        ),
    ]

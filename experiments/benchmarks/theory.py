"""Planning: 1,000 Garnets solved in one call, one process of 100,000 states in little memory."""

import functools
import json
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from kullback.core import platform
from kullback.experiments.benchmarks import machine, peer, rows, timing
from kullback.theory import garnet, solve
from kullback.theory.mdp import MDP

NUM_PROCESSES = 1_000
SMALL = garnet.Config(num_states=50, num_actions=4, branching=4, discount=0.99)
LARGE = garnet.Config(num_states=100_000, num_actions=4, branching=4, discount=0.99)
TOLERANCE = 1e-8  # Error of the values, supremum norm, certified by the span of the residual.
PEER = "quantecon"
TARGETS = {"value_iteration": 20.0, "policy_iteration": 5.0}  # Times the peer's rate.
SOLVERS: dict[str, Callable[[MDP], solve.Solution]] = {
    "value_iteration": functools.partial(solve.value_iteration, tolerance=TOLERANCE),
    "policy_iteration": functools.partial(solve.policy_iteration, tolerance=TOLERANCE),
    "modified_policy_iteration": functools.partial(
        solve.value_iteration, tolerance=TOLERANCE, num_sweeps=20
    ),
}
LARGE_SOLVERS = ("value_iteration", "modified_policy_iteration")
GIGABYTE = 1e9


def solver(method: str, num_processes: int = NUM_PROCESSES) -> Callable[[], float]:
    """Makes a function that solves all processes in one call and returns their number."""
    processes = garnet.make(jax.random.split(jax.random.key(0), num_processes), SMALL)

    def work() -> float:
        solution = SOLVERS[method](processes)
        worst = float(np.max(solution.error_bound))
        if not worst <= TOLERANCE:
            raise RuntimeError(f"{method} left an error of up to {worst:g}, above {TOLERANCE:g}")
        return num_processes

    work()
    return work


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside quantecon, which solves one process after the other."""
    platform.keep_freed_memory()
    ours = timing.rates({method: solver(method) for method in TARGETS}, budget.seconds)

    def theirs() -> dict[str, float]:
        sizes = SMALL.num_states, SMALL.num_actions, SMALL.branching, SMALL.discount
        rates = run_peer(PEER, "planning", budget.seconds, *sizes, TOLERANCE)
        return {f"{PEER} {method}": rate for method, rate in rates.items()}

    best = timing.interleave([ours, theirs], budget.rounds)
    compared = [
        rows.Row(
            name=f"Garnets of 50 states solved to 1e-8 by {method.replace('_', ' ')}",
            ours=best[method],
            unit="processes/s",
            **rows.of_peer(best, f"{PEER} {method}", PEER),
            target_ratio=target,
        )
        for method, target in TARGETS.items()
    ]
    return [*compared, *(_large(method) for method in LARGE_SOLVERS)]


def _large(method: str) -> rows.Row:
    measured = peer.ours("theory", method)  # In a process of its own, whose memory it is.
    return rows.Row(
        name=f"memory to solve 100,000 states to 1e-8 by {method.replace('_', ' ')}",
        ours=measured["peak_bytes"] / GIGABYTE,
        unit="GB",
        lower_is_better=True,
        target=1.0,
        details=measured,
    )


def main() -> None:
    """Solves the large process and prints what it took."""
    process = garnet.make(jax.random.key(0), LARGE)
    start = time.perf_counter()
    solution = SOLVERS[sys.argv[1]](process)
    seconds = time.perf_counter() - start  # Compiling is part of solving one.
    if not float(solution.error_bound) <= TOLERANCE:
        raise RuntimeError(f"left an error of up to {float(solution.error_bound):g}")
    figures = {
        "peak_bytes": machine.peak_memory(),
        "seconds": seconds,
        "iterations": int(solution.num_iterations),
        "error_bound": float(solution.error_bound),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

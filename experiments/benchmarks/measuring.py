"""One benchmark, in this process or in one of its own."""

import concurrent.futures
import importlib
import multiprocessing
from collections.abc import Callable

from kullback.experiments.benchmarks import peer, rows, timing

# (name, budget, whether peers run too) -> what was measured.
Measure = Callable[[str, timing.Budget, bool], list[rows.Row]]


def here(name: str, budget: timing.Budget, with_peers: bool) -> list[rows.Row]:
    """Runs a benchmark, MODULE or MODULE/CASE, in this process."""
    name, *case = name.split("/")
    module = importlib.import_module(f"{__package__}.{name}")
    return module.run(budget, peer.run if with_peers else peer.none, *case)


def apart(name: str, budget: timing.Budget, with_peers: bool) -> list[rows.Row]:
    """Runs a benchmark in a new process.

    How JAX dispatches and malloc keeps memory is settled when JAX is first used, and a benchmark
    wants both as the command has them that it stands for.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
        return process.submit(here, name, budget, with_peers).result()

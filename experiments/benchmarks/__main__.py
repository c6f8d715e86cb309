"""`python -m kullback.experiments.benchmarks [NAME ...]`: all of them, or those named."""

import argparse
import concurrent.futures
import datetime
import pathlib
import sys
from collections.abc import Sequence

import psutil
import rich.console

from kullback.core import names
from kullback.experiments.benchmarks import machine, measuring, peer, rows, timing

BENCHMARKS = (
    *("gradient_step", "atari", "minatar", "replay", "startup"),
    *("agents", "generation", "tuning", "reinforce", "entailment", "merging"),
    *("operators", "theory"),
)
RESULTS = pathlib.Path("results") / "benchmarks"


def main(
    arguments: Sequence[str] | None = None, measure: measuring.Measure = measuring.apart
) -> int:
    """Prints the table and keeps it; exit status 0, 1 if a peer failed, 2 for a wrong request."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--list", action="store_true", help="their names")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, in turn")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--out", type=pathlib.Path, help="JSON; default: dated, in results/")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(BENCHMARKS))
        return 0
    try:
        for name in options.names:
            if name not in BENCHMARKS:
                raise ValueError(names.unknown("benchmark", name, BENCHMARKS, show_all=True))
        budget = timing.Budget(seconds=options.seconds, rounds=options.rounds)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    load_average = psutil.getloadavg()[0]  # First: before ours adds to it.
    console, results = rich.console.Console(), []
    if not console.is_terminal:
        console.width = 140  # A file has room.
    try:
        for name in options.names or BENCHMARKS:
            console.print(f"{name} ...", highlight=False)
            results += measure(name, budget, not options.no_peers)
    except (peer.PeerError, concurrent.futures.BrokenExecutor) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    console.print(rows.table(results))
    now = datetime.datetime.now()
    out = options.out or RESULTS / f"{now:%Y-%m-%d-%H%M%S}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    described = machine.describe() | {"load_average": load_average}
    rows.write(out, results, date=now.isoformat(timespec="seconds"), **described)
    print(f"kept in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

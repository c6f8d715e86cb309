"""`python -m kullback.experiments.benchmarks [NAME ...]`: all of them, or those named."""

import argparse
import concurrent.futures
import dataclasses
import datetime
import pathlib
import sys
import traceback
from collections.abc import Sequence

import psutil
import rich.console

from kullback.core import names
from kullback.experiments.benchmarks import machine, measuring, peer, rows, timing

PUBLISHED = (
    *("generation-1", "generation-8", "generation-32", "prefill", "sft", "lora", "rloo"),
    *("generate", "train-sft", "train-rlhf"),
    *("train-sft-lora", "train-gkd-lora", "train-rlhf-lora"),
)
POST_TRAINING = ("grpo", "ppo", "dpo")
BENCHMARKS = (
    *("gradient_step", "atari", "minatar", "btr", "btr_atari", "replay", "startup", "score"),
    *("agents", "generation", "tuning", "reinforce", "entailment", "merging", "sight"),
    *("operators", "theory", "workers", "processes"),
    *(f"post_training/{case}" for case in POST_TRAINING),
    *(f"published/{case}" for case in PUBLISHED),
)
RESULTS = pathlib.Path("results") / "benchmarks"


def main(
    arguments: Sequence[str] | None = None, measure: measuring.Measure = measuring.apart
) -> int:
    """Prints the table and keeps it; exit status 0, 1 if a peer failed, 2 for a wrong request."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; or before a /"
    )
    parser.add_argument("--list", action="store_true", help="their names")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, in turn")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--out", type=pathlib.Path, help="JSON; default: dated, in results/")
    parser.add_argument(
        "--resume", action="store_true", help="measure what --out does not have whole already"
    )
    parser.add_argument(
        "--show", type=pathlib.Path, metavar="FILE", help="print a kept JSON as a Markdown table"
    )
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(BENCHMARKS))
        return 0
    try:
        if options.show is not None:
            print(rows.markdown(rows.read(options.show)), end="")
            return 0
        chosen = select(options.names)
        budget = timing.Budget(seconds=options.seconds, rounds=options.rounds)
        results = _earlier(options.out) if options.resume else []
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    now = datetime.datetime.now()
    # The load first: before ours adds to it.
    described = {"load_average": psutil.getloadavg()[0], "date": now.isoformat(timespec="seconds")}
    described = machine.describe() | described
    out = options.out or RESULTS / f"{now:%Y-%m-%d-%H%M%S}.json"
    console, failures = rich.console.Console(), list[str]()
    if not console.is_terminal:
        console.width = 140  # A file has room.
    done = {row.benchmark for row in results}
    for name in chosen:
        if name in done:
            continue
        console.print(f"{name} ...", highlight=False)
        measured, said = _measure(measure, name, budget, not options.no_peers)
        failures += said
        if measured:  # Kept at once: whatever comes next may be killed.
            results += measured
            out.parent.mkdir(parents=True, exist_ok=True)
            rows.write(out, results, **described)
    console.print(rows.table(results))
    if results:
        print(f"kept in {out}")
    return 1 if failures else 0


def select(wanted: Sequence[str]) -> list[str]:
    """Returns the benchmarks that are named, or whose names begin so before a /; none is all.

    Raises:
      ValueError: for an unknown name.
    """
    chosen = []
    for name in wanted or BENCHMARKS:
        matching = [x for x in BENCHMARKS if x == name or x.startswith(f"{name}/")]
        if not matching:
            raise ValueError(names.unknown("benchmark", name, BENCHMARKS, show_all=True))
        chosen += [x for x in matching if x not in chosen]
    return chosen


def _earlier(out: pathlib.Path | None) -> list[rows.Row]:
    """Reads the rows of an earlier call, but for benchmarks of which a peer failed."""
    if out is None:
        raise ValueError("--resume goes with --out FILE, the file of the call that it goes on with")
    earlier = rows.read(out) if out.is_file() else []
    failed = {row.benchmark for row in earlier if row.failure}
    return [row for row in earlier if row.benchmark not in failed]


def _measure(
    measure: measuring.Measure, name: str, budget: timing.Budget, with_peers: bool
) -> tuple[list[rows.Row], list[str]]:
    """Returns the rows of a benchmark, and a line for each failure, which is printed."""
    try:
        measured = measure(name, budget, with_peers)
    except rows.Skipped as reason:
        print(f"{name} is skipped: {reason}")
        return [], []
    except (peer.PeerError, concurrent.futures.BrokenExecutor) as error:
        measured, failures = [], [str(error)]
    except Exception as error:  # The others are measured all the same.
        traceback.print_exception(error)
        measured, failures = [], [f"{name}: {error}"]
    else:
        failures = list(dict.fromkeys(row.failure for row in measured if row.failure))
    for failure in failures:
        print(f"benchmarks: {failure}", file=sys.stderr)
    return [dataclasses.replace(row, benchmark=name) for row in measured], failures


if __name__ == "__main__":
    sys.exit(main())

"""Tries what breaks programs on every command, a piece at a time.

    make soak MINUTES=10 SEED=3
    python -m tests.soak --minutes 10 --seed 3 --only kills files

Commands run in processes of their own. Each attempt is a function of the seed and its number, and a
fault prints the line that repeats it alone. What came of each stands in a file, and the next piece
goes on behind it, until all of a seed are done. Ends with a table; exit status 1 if there is a
fault among them.
"""

import argparse
import fcntl
import hashlib
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from tests.soak import commands, disks, files, kills, server, signals, trials, writers

ROOT = pathlib.Path(__file__).parent.parent.parent
CACHE = ROOT / ".cache" / "soak"  # Git ignores it.
PACKAGES = ("core", "agents", "environments", "lm", "theory", "experiments", "tests/soak")
CATEGORIES = {
    category.name: category
    for category in (
        kills.CATEGORY,
        files.CATEGORY,
        commands.CATEGORY,
        signals.CATEGORY,
        writers.CATEGORY,
        disks.FULL,
        disks.READ_ONLY,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a piece of a soak."""
    options = _parser().parse_args(arguments)
    revision = _revision()
    workshop = _workshop(revision)
    ledger = trials.Ledger(options.results, options.seed, revision)
    begun = time.monotonic()
    for name, number in _order(options.only, options.number):
        if options.number is None and ledger.has(name, number):
            continue
        if time.monotonic() - begun > 60 * options.minutes:
            break
        random = np.random.default_rng([options.seed, *name.encode(), number])
        try:
            attempt = CATEGORIES[name].attempt(workshop, random, number)
        except trials.Untried as error:
            attempt = trials.Attempt(what=f"{name} {number}", fault="untried", said=str(error))
        except trials.Failed as error:  # What it was to be compared with.
            attempt = trials.Attempt(what=f"{name} {number}", fault="lost", said=str(error))
        ledger.add(name, number, attempt)
        if attempt.fault in trials.FAULTS:
            again = f"--seed {options.seed} --only {name} --number {number}"
            print(f"{attempt.fault}: {attempt.what}\n  {attempt.said}")
            print(f"  python -m tests.soak {again}", flush=True)
        elif options.verbose:
            print(f"{name} {number}: {attempt.fault or 'right'}: {attempt.what}", flush=True)
    table = ledger.counts(options.only)
    print(trials.shown(table, {name: CATEGORIES[name].count for name in table}))
    if ledger.revisions > 1:
        print(f"of {ledger.revisions} states of the sources; --results names a new file")
    return int(any(counts[fault] for counts in table.values() for fault in trials.FAULTS))


def _workshop(revision: str) -> trials.Workshop:
    """Prepares the cache, which one soak owns at a time, and the server."""
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = os.open(CACHE / "lock", os.O_RDWR | os.O_CREAT)  # Held until this process ends.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another soak is under way in this checkout")
    for old in CACHE.glob("of-*"):
        if old.name != f"of-{revision}":  # Made by other sources, which may compute otherwise.
            shutil.rmtree(old, ignore_errors=True)
    workshop = trials.Workshop(CACHE / f"of-{revision}", CACHE / "jax")
    workshop.home.mkdir(exist_ok=True)
    server.start_server(
        {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(workshop.compiled),
            "KULLBACK_CACHE": str(workshop.home / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    )
    return workshop


def _order(names: Sequence[str], number: int | None) -> Iterator[tuple[str, int]]:
    """Yields all attempts, those of each kind spread evenly over the whole; or one of each."""
    if number is not None:
        yield from ((name, number) for name in names)
        return
    counts = {name: CATEGORIES[name].count for name in names}
    places = [((i + 0.5) / counts[name], name, i) for name in names for i in range(counts[name])]
    yield from ((name, i) for _, name, i in sorted(places))


def _revision() -> str:
    """Returns a name for the sources as they are."""
    digest = hashlib.sha256()
    for file in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="default: until all is done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(CATEGORIES), default=list(CATEGORIES))
    parser.add_argument("--number", type=int, help="this attempt alone, again")
    parser.add_argument("--results", type=pathlib.Path, default=CACHE / "results.jsonl")
    parser.add_argument("--verbose", action="store_true", help="says what was right, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())

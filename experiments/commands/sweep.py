"""`kullback sweep`: all runs that a TOML file asks for."""

import argparse
from typing import Any

from kullback.experiments import limits
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "sweep",
        help="train agents x environments x seeds x any field",
        description="Checks and lists all runs, then does them side by side, a folder each. The "
        "same command goes on where it was interrupted, and adds what is new in FILE.",
    )
    flag(sub, "file FILE.toml", arguments.path, "see examples/sweep.toml")
    flag(sub, "--out DIR", arguments.path, "folder of the sweep; default: FILE's out")
    jobs = "runs at a time; default: what the cores are enough for, or one an accelerator"
    flag(sub, "--jobs N", arguments.whole(1, limits.JOBS), jobs)
    flag(
        *(sub, "--ray ADDRESS", arguments.name),
        help="of a Ray cluster that does the runs (auto, HOST:PORT); DIR must be on a file system "
        "that its machines share",
    )
    again = "do runs again that have diverged; else they are left as they are"
    flag(sub, "--retry-diverged", help=again)
    flag(sub, "--dry-run", help="list the runs, and do none")
    arguments.add_trust_code(sub)
    sub.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Does the sweep."""
    from kullback.experiments.sweeps import sweeping

    folders = sweeping.sweep(
        options.file,
        out=options.out,
        jobs=options.jobs,
        ray=options.ray,
        dry_run=options.dry_run,
        trust_code=options.trust_code,
        retry_diverged=options.retry_diverged,
    )
    if not options.dry_run:
        print(f"{len(folders)} runs: {folders[0].parent}")
    return 0

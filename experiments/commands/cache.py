"""`kullback cache`: what is kept on disk so that commands start sooner."""

import argparse
from typing import Any

from kullback.core import files
from kullback.experiments import cache
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "cache",
        help="list or clear what is kept between commands",
        description="Converted models, compiled programs, and which terms were shown. All of it "
        "is made again when it is needed. The folder is $KULLBACK_CACHE, else "
        "$XDG_CACHE_HOME/kullback, else ~/.cache/kullback.",
    )
    flag(
        *(sub, "--clear NAME", arguments.name),
        help="delete this entry of the list; without NAME, all of them",
        nargs="?",
        const=True,  # All of it.
    )
    sub.set_defaults(command=_cache)


def _cache(options: argparse.Namespace) -> int:
    if options.clear is not None:
        for entry in cache.clear(None if options.clear is True else options.clear):
            print(f"cleared: {entry.path} ({files.size(entry.num_bytes)})")
        return 0
    entries = cache.entries()
    print(f"{cache.root()}: {files.size(sum(entry.num_bytes for entry in entries))}")
    for name, _, num_bytes, description in entries:
        print(f"  {name:<32}{files.size(num_bytes):>10}  {description}")
    return 0

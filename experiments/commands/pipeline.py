"""`kullback pipeline`: stages of one TOML file that take each other's outputs."""

import argparse
from typing import Any

from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "pipeline",
        help="train, merge, quantize, ... in stages that take each other's outputs",
        description="Checks and lists all stages, then does them one after another. The same "
        "command goes on where it was interrupted; a stage whose fields have changed is done anew, "
        "with those that depend on it and no others.",
    )
    flag(sub, "file FILE.toml", arguments.path, "see examples/gemma3_post.toml")
    flag(sub, "--out DIR", arguments.path, "folder of the pipeline; default: FILE's out")
    left_out = "leave a stage out; what it began with takes its place. May be given several times"
    arguments.several(sub, "--without STAGE", "without", arguments.name, left_out)
    flag(sub, "--dry-run", help="list the stages, and do none")
    arguments.add_trust_code(sub)
    sub.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Does the pipeline."""
    from kullback.experiments.pipelines import running

    folder = running.run(
        options.file,
        out=options.out,
        without=options.without,
        dry_run=options.dry_run,
        trust_code=options.trust_code,
    )
    if not options.dry_run:
        print(f"pipeline: {folder}")
    return 0

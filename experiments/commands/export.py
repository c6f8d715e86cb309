"""`kullback export`: parameters, or a whole model, out of a run."""

import argparse
from typing import Any

from kullback.experiments.commands import arguments


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "export", help="write a run's parameters as safetensors, or its model"
    )
    sub.add_argument("run", metavar="DIR", type=arguments.path)
    sub.add_argument("--seed", metavar="S", type=arguments.seed, help="which of the run's seeds")
    sub.add_argument("--out", metavar="PATH", type=arguments.path, required=True, help="new")
    arguments.add_trust_code(sub)
    sub.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from kullback.core import files

    files.check_new_file(options.out)
    from kullback.experiments.runs import opened

    run = opened.open(options.run, trust_code=options.trust_code)
    if run.kind != "games":
        from kullback.experiments.runs import models

        models.export(run, options.out, options.seed)
        print(f"model: {options.out}")
        return 0
    from kullback.experiments.runs import acting

    acting.of_run(run, seed=options.seed).export(options.out)
    print(f"parameters: {options.out}")
    return 0

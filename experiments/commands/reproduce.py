"""`kullback reproduce`: a paper's claim, run again."""

import argparse
from typing import Any

from kullback.core import names
from kullback.experiments import catalog
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "reproduce",
        help="run a paper's claim again, small, and say whether it held",
        description="Writes the data as CSV, the picture and the verdict. What was interrupted "
        "goes on when the same command is given again.",
    )
    flag(sub, "name NAME", help="see kullback list")
    flag(sub, "--out DIR", arguments.path)
    arguments.add_settings(sub)
    flag(sub, "--mdp FILE", arguments.name, "of theory: your own process, as .npz")
    flag(sub, "--full", help="the paper's size, where there is one")
    keep = "copy CSV, pictures and verdict into results/reproduce/NAME of the checkout, in which "
    flag(sub, "--keep", help=f"{keep}nothing may be changed")
    again = "run nothing: judge the tables of such a folder anew, and write its verdict.json"
    flag(sub, "--judge DIR", arguments.path, again)
    sub.set_defaults(command=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    if options.name not in catalog.REPRODUCTIONS:
        raise ValueError(
            names.unknown("reproduction", options.name, catalog.REPRODUCTIONS, show_all=True)
        )
    from kullback.experiments import reproduce
    from kullback.experiments.runs import settings

    if options.judge:
        given = {"--out": options.out, "--set": options.settings, "--mdp": options.mdp}
        given |= {"--full": options.full, "--keep": options.keep, "--fields": options.fields}
        if refused := [name for name, value in given.items() if value]:
            raise ValueError(f"--judge takes the settings of its folder; leave {refused[0]} out")
        reproduce.judge_again(options.name, options.judge)
        return 0
    config = reproduce.load(options.name).config
    if options.fields:
        arguments.print_fields(settings.fields(config))
        return 0
    offered = {name.split(".")[-1] for name, _, _ in settings.fields(config)}
    assignments = list(options.settings)
    if options.mdp:
        if "mdp" not in offered:
            raise ValueError(
                f"{options.name} is of no process that could be yours; --mdp goes with the "
                "reproductions of theory, such as momentum-theory"
            )
        assignments.append(f"mdp={options.mdp}")
    if options.full:
        if "full" not in offered:
            raise ValueError(
                f"{options.name} has one size; leave --full out, and change its size by --set "
                "(--fields lists what there is)"
            )
        assignments.append("full=True")
    reproduce.reproduce(options.name, options.out, assignments, keep=options.keep)
    return 0

"""`kullback list` and `kullback fields`: what there is, and what `--set` takes."""

import argparse
from typing import Any

from kullback.core import files
from kullback.experiments import catalog
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser("list", help="agents, environments and models")
    sub.set_defaults(command=_list, prints_only=True)

    sub = commands.add_parser("fields", help="the fields that --set takes, with their values")
    flag(sub, "agent AGENT")
    flag(sub, "family FAMILY", ("atari", "minatar", "gym", "toy", "tokens"))
    sub.set_defaults(command=_fields, prints_only=True)


def _list(options: argparse.Namespace) -> int:
    print("agents")
    for name, what in catalog.AGENTS.items():
        print(f"  {name:<24}{what}")
    print("\nlanguage models")
    for name, what in {**catalog.ALGORITHMS, **catalog.TASKS}.items():
        print(f"  {name:<24}{what}")
    print(f"\n{'models':<26}{'parameters':>12}{'context':>10}{'float32':>10}")
    for model in catalog.models():
        count = f"{model.num_parameters / 1e6:,.1f} M"
        sizes = f"{count:>12}{model.context:>10,}{files.size(model.num_bytes):>10}"
        print(f"  {model.name:<24}{sizes}  {model.description}")
    print("\nreproductions")
    for name, what in catalog.REPRODUCTIONS.items():
        print(f"  {name:<24}{what}")
    print(f"\n{'environments':<26}{'actions':>8}{'human':>12}{'random':>12}")
    for row in catalog.ENVIRONMENTS:
        human = "n/a" if row.human is None else f"{row.human:,.1f}"
        score = "n/a" if row.random is None else f"{row.random:,.1f}"
        print(f"  {row.name:<24}{row.num_actions:>8}{human:>12}{score:>12}")
    return 0


def _fields(options: argparse.Namespace) -> int:
    catalog.check_agent(options.agent)
    from kullback import agents, lm
    from kullback.experiments.runs import settings

    if (options.agent in catalog.ALGORITHMS) != (options.family == "tokens"):
        raise ValueError(f"{options.agent} has no presets for {options.family}; see kullback list")
    entry = {**agents.AGENTS, **lm.ALGORITHMS}[options.agent]
    arguments.print_fields(settings.fields(entry.presets(options.family)))
    return 0

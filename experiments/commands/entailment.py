"""`kullback entailment`: trains a model of whether a document entails a text."""

import argparse
import pathlib
from typing import Any

from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

KINDS = ("encoder", "embeddings")  # The same as in experiments/entailment.py.


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "entailment",
        help="train a judge of whether a document entails a text",
        description="Learns from pairs of real documents (the package aclsum), half of them made "
        "wrong by rules, and is judged on pairs of other papers. encoder: MiniLM, its upper layers "
        "tuned, reads both texts together; embeddings: a head on MiniLM's vectors of their "
        "sentences. --reward entailment:DIR rewards by it.",
    )
    flag(sub, "--kind", KINDS, "default: encoder")
    flag(sub, "--seed S", arguments.seed, "of pairs, order and head; default: 0")
    flag(sub, "--out DIR", arguments.path, "folder of the model, new")
    arguments.add_settings(sub)
    sub.set_defaults(command=_entailment)


def _entailment(options: argparse.Namespace) -> int:
    out: pathlib.Path | None = options.out
    if out is None and not options.fields:
        raise ValueError("expected --out DIR, a new folder, or --fields")
    from kullback.experiments import entailment
    from kullback.experiments.runs import settings

    if out is None or options.fields:
        arguments.print_fields(settings.fields(entailment.Config()))
        return 0
    given = [f"{n}={v}" for n in ("kind", "seed") if (v := getattr(options, n)) is not None]
    config = settings.apply(entailment.Config(), [*given, *options.settings])
    report = entailment.train(out, config)
    print(entailment.show(report))
    print(f"model: {out} (--reward entailment:{out})")
    return 0

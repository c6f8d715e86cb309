"""`kullback report`: its options; what writes the page is imported when it is asked for."""

import argparse
from typing import Any

from kullback.experiments.commands import arguments


def add_parser(commands: Any) -> None:
    """Adds the command to the `commands` of argparse's `add_subparsers`."""
    sub = commands.add_parser(
        "report",
        help="one page about many runs",
        description="Writes index.html, which opens from disk, and the PNGs and CSVs that are in "
        "it. Unfinished runs are used up to where they are.",
    )
    sub.add_argument(
        "runs", nargs="+", metavar="RUNS", type=arguments.path, help="runs, or folders of runs"
    )
    sub.add_argument(
        "--out", metavar="DIR", type=arguments.path, help="folder, new or of an old report"
    )
    sub.add_argument(
        "--baseline",
        metavar="AGENT",
        type=arguments.name,
        help="the agent that others are compared with",
    )
    sub.add_argument(
        "--denominator",
        choices=("baseline", "human", "largest"),
        default="baseline",
        help="of improvements: baseline - random, human - random, or the larger; default: baseline",
    )
    sub.add_argument(
        "--score",
        choices=("training", "evaluation"),
        default="training",
        help="returns of the last 100 training episodes, or of the latest evaluation",
    )
    sub.add_argument(
        "--steps",
        metavar="N",
        type=arguments.steps,
        help="where to compare; default: where all have come",
    )
    sub.add_argument(
        "--published", action="store_true", help="adds a table of the published aggregates"
    )
    sub.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Writes the report; 0, or an exception as `kullback.experiments.report.write` raises it."""
    from kullback.experiments import report

    report.write(
        options.runs,
        options.out,
        baseline=options.baseline,
        denominator=options.denominator,
        score=options.score,
        steps=options.steps,
        with_published=options.published,
    )
    return 0

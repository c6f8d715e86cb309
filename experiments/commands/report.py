"""`kullback report`: its options; what writes the page is imported when it is asked for."""

import argparse
from typing import Any

from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag


def add_parser(commands: Any) -> None:
    """Adds the command to the `commands` of argparse's `add_subparsers`."""
    sub = commands.add_parser(
        "report",
        help="one page about many runs",
        description="Writes index.html, which opens from disk, and the PNGs and CSVs that are in "
        "it. Unfinished runs are used up to where they are.",
    )
    flag(sub, "runs RUNS", arguments.path, "runs, or folders of runs", nargs="+")
    flag(sub, "--out DIR", arguments.path, "folder, new or of an old report")
    flag(sub, "--baseline AGENT", arguments.name, "the agent that others are compared with")
    flag(
        *(sub, "--denominator", ("baseline", "human", "largest")),
        help="of improvements: baseline - random, human - random, or the larger; default: baseline",
        default="baseline",
    )
    score = "returns of the last 100 training episodes, of the last tenth of the steps, or of the "
    score += "latest evaluation"
    flag(sub, "--score", ("training", "last-tenth", "evaluation"), score, default="training")
    flag(sub, "--steps N", arguments.steps, "where to compare; default: where all have come")
    pair = "two agents, such as m-dqn:dqn, over the games of both; may be given again"
    flag(sub, "--compare AGENT:AGENT", arguments.name, pair, action="append", default=[])
    names = ("munchausen", "dopamine", "btr")
    beside = f"draws published results beside ours, of {', '.join(names)}; may be given again"
    flag(sub, "--published NAME", names, beside, action="append", default=[])
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
        compare=options.compare,
        with_published=options.published,
    )
    return 0

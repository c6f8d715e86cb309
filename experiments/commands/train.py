"""`kullback train`."""

import argparse
from typing import Any

from kullback.experiments import catalog
from kullback.experiments.commands import arguments
from kullback.experiments.runs import plans

AGAIN = ("accept_changes", "empty_replay")  # Options that go with --resume.
LENGTH = ("steps", "epochs")  # Options that may.


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "train",
        help="train an agent, or go on with a run",
        description="Steps are agent steps over all environments. kullback train AGENT "
        "ENVIRONMENT starts a run; kullback train --resume DIR [--steps N | --epochs N] goes on "
        "with one.",
    )
    sub.add_argument("agent", nargs="?", metavar="AGENT", help="e.g. m-dqn; see kullback list")
    sub.add_argument("environment", nargs="?", metavar="ENVIRONMENT", help="e.g. atari/pong")
    sub.add_argument("--resume", metavar="DIR", type=arguments.path, help="the run to go on with")
    sub.add_argument("--out", metavar="DIR", type=arguments.path, help="folder of the run, new")
    for field, flag in plans.FLAGS.items():
        if field == "control_tokens":
            arguments.add_control_tokens(sub, flag.default)
        else:
            options = {"dest": field, "metavar": flag.metavar, "help": flag.help}
            sub.add_argument(f"--{flag.name}", **options, **_reading(field, flag))
    sub.add_argument(
        "--overlong",
        choices=("drop", "truncate-left", "error"),
        help="what becomes of an example that is too long; default: error",
    )
    arguments.add_trust_code(sub)
    again = sub.add_argument_group("with --resume")
    again.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although config.json or the record is not as it was saved; says what differs",
    )
    again.add_argument(
        "--empty-replay",
        action="store_true",
        help="go on without the transitions of a replay that is damaged",
    )
    sub.set_defaults(command=_train)


def _reading(field: str, flag: plans.Flag) -> dict[str, Any]:
    """Returns the options by which `argparse` reads the values of a flag."""
    if isinstance(flag.default, tuple):
        return {"action": "append"}
    if isinstance(flag.default, str):
        return {"type": arguments.name}
    # 0 stands for a default, which a user leaves out.
    return {"type": arguments.whole(0 if field == "seed" else 1, flag.most)}


def _train(options: argparse.Namespace) -> int:
    given = {
        name: value
        for name, value in vars(options).items()
        if name not in ("command", "resume", *LENGTH, "trust_code", *AGAIN) and value is not None
    }
    again = [name for name in AGAIN if getattr(options, name)]
    if options.resume is not None:
        if given:
            names = ", ".join(sorted(given))
            raise ValueError(
                f"--resume takes --steps or --epochs alone; a run cannot change its {names}"
            )
        from kullback.experiments.runs import training

        path = training.resume(
            options.resume,
            steps=options.steps,
            epochs=options.epochs,
            trust_code=options.trust_code,
            accept_changes=options.accept_changes,
            empty_replay=options.empty_replay,
        )
    else:
        if again:
            raise ValueError(f"--{again[0].replace('_', '-')} goes with --resume DIR")
        if options.agent is None or options.environment is None:
            raise ValueError("expected AGENT ENVIRONMENT (see kullback list), or --resume DIR")
        catalog.check(options.agent, options.environment)
        from kullback.experiments.runs import training

        given |= {name: value for name in LENGTH if (value := getattr(options, name)) is not None}
        if overlong := given.pop("overlong", None):
            given["settings"] = [*given.get("settings", ()), f"overlong={overlong}"]
        path = training.train(given.pop("agent"), given.pop("environment"), **given)
    print(f"run: {path}\nlearning curve: {path / 'learning_curve.png'}")
    for file in sorted((*path.glob("samples.jsonl"), *path.glob("seed_*/samples.jsonl"))):
        print(f"samples: {file}")
    return 0

"""`kullback train`."""

import argparse
from typing import Any

from kullback.experiments import catalog
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag
from kullback.experiments.runs import plans

AGAIN = ("accept_changes", "empty_replay", "base")  # Options that go with --resume.
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
    flag(sub, "agent AGENT", help="e.g. m-dqn; see kullback list", nargs="?")
    flag(sub, "environment ENVIRONMENT", help="e.g. atari/pong", nargs="?")
    flag(sub, "--resume DIR", arguments.path, "the run to go on with")
    flag(sub, "--out DIR", arguments.path, "folder of the run, new")
    for field, entry in plans.FLAGS.items():
        if field == "control_tokens":
            arguments.add_control_tokens(sub, entry.default)
        else:
            spelled = f"--{entry.name} {entry.metavar}"
            flag(sub, spelled, help=entry.help, dest=field, **_reading(field, entry))
    arguments.add_overlong(sub, "error")
    arguments.add_trust_code(sub)
    adapter = "of --model: adapters as peft writes them, which are merged into it"
    flag(sub, "--adapter DIR", arguments.path, adapter)
    again = sub.add_argument_group("with --resume")
    changes = "go on although config.json or the record is not as it was saved; says what differs"
    flag(again, "--accept-changes", help=changes)
    damaged = "go on without the transitions of a replay that is damaged"
    flag(again, "--empty-replay", help=damaged)
    arguments.add_adapters(again, adapter=False)
    sub.set_defaults(command=_train)


def _reading(field: str, entry: plans.Flag) -> dict[str, Any]:
    """Returns the options by which `argparse` reads the values of a flag."""
    if isinstance(entry.default, tuple):
        return {"action": "append"}
    if isinstance(entry.default, str):
        return {"type": arguments.name}
    # 0 stands for a default, which a user leaves out.
    return {"type": arguments.whole(0 if field == "seed" else 1, entry.most)}


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
            base=options.base or "",
        )
    else:
        if again:
            raise ValueError(f"--{again[0].replace('_', '-')} goes with --resume DIR")
        if options.agent is None or options.environment is None:
            raise ValueError("expected AGENT ENVIRONMENT (see kullback list), or --resume DIR")
        catalog.check(options.agent, options.environment)
        from kullback.experiments.runs import training

        given |= {name: value for name in LENGTH if (value := getattr(options, name)) is not None}
        if (adapter := given.pop("adapter", None)) is not None:
            if "model" not in given:
                raise ValueError(f"--adapter {adapter} goes with --model, which it was trained for")
            given["model"] = arguments.with_adapter(given["model"], adapter)
        if overlong := given.pop("overlong", None):
            given["settings"] = [*given.get("settings", ()), f"overlong={overlong}"]
        path = training.train(given.pop("agent"), given.pop("environment"), **given)
    print(f"run: {path}\nlearning curve: {path / 'learning_curve.png'}")
    for file in sorted((*path.glob("samples.jsonl"), *path.glob("seed_*/samples.jsonl"))):
        print(f"samples: {file}")
    return 0

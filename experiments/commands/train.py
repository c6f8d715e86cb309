"""`kullback train`."""

import argparse
from typing import Any

from kullback.experiments import catalog, limits
from kullback.experiments.commands import arguments

AGAIN = ("accept_changes", "empty_replay")  # Options that go with --resume.


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "train",
        help="train an agent, or go on with a run",
        description="Steps are agent steps over all environments. kullback train AGENT "
        "ENVIRONMENT starts a run; kullback train --resume DIR [--steps N] goes on with one.",
    )
    sub.add_argument("agent", nargs="?", metavar="AGENT", help="e.g. m-dqn; see kullback list")
    sub.add_argument("environment", nargs="?", metavar="ENVIRONMENT", help="e.g. atari/pong")
    sub.add_argument("--resume", metavar="DIR", type=arguments.path, help="the run to go on with")
    sub.add_argument("--steps", metavar="N", type=arguments.steps)
    sub.add_argument("--seed", metavar="S", type=arguments.seed)
    sub.add_argument(
        "--num-seeds",
        metavar="K",
        type=arguments.whole(1, limits.NUM_SEEDS),
        help="seeds S to S+K-1; one program if compiled",
    )
    sub.add_argument(
        "--num-envs",
        metavar="E",
        type=arguments.whole(1, limits.ROWS),
        help="environments side by side",
    )
    sub.add_argument("--out", metavar="DIR", type=arguments.path, help="folder of the run, new")
    sub.add_argument(
        "--eval-every", metavar="N", type=arguments.period, help="agent steps; default: never"
    )
    sub.add_argument("--eval-episodes", metavar="M", type=arguments.episodes)
    sub.add_argument(
        "--eval-max-steps",
        metavar="N",
        type=arguments.steps,
        help="agent steps after which an episode of evaluation is cut; default: 27,000, or the "
        "environment's own limit if that is longer",
    )
    sub.add_argument("--log-every", metavar="N", type=arguments.period, help="agent steps")
    sub.add_argument("--checkpoint-every", metavar="N", type=arguments.period, help="agent steps")
    sub.add_argument(
        "--set",
        metavar="field=value",
        action="append",
        dest="settings",
        help="a field of the agent's configuration, bare or dotted; see kullback fields",
    )
    sub.add_argument(
        "--environment-flag",
        metavar="flag=value",
        action="append",
        dest="environment_flags",
        help="of the environment, e.g. protocol=classic for Atari",
    )
    sub.add_argument(
        "--model",
        metavar="MODEL",
        type=arguments.name,
        help="of a language model: a folder, a run, or a preset",
    )
    sub.add_argument(
        "--model-flag",
        metavar="field=value",
        action="append",
        dest="model_flags",
        help="of a preset that is made on the spot, e.g. num_layers=4",
    )
    sub.add_argument(
        "--tokenizer",
        metavar="DIR",
        type=arguments.name,
        help="of a preset; default: the teacher's, or a BPE of the data",
    )
    sub.add_argument(
        "--overlong",
        choices=("drop", "truncate-left", "error"),
        help="what becomes of an example that is too long; default: error",
    )
    sub.add_argument(
        "--teacher", metavar="DIR", type=arguments.name, help="of distillation: a folder, or a run"
    )
    sub.add_argument(
        "--reward",
        metavar="NAME",
        type=arguments.name,
        help="of reinforcement learning: exact, length, reward-model:DIR, entailment:DIR, "
        'python:MODULE:FUNCTION, or a sum of them, "0.8*exact-0.01*length"; default: exact',
    )
    sub.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        type=arguments.name,
        help="devices of a language model, all there are: a batch's rows over DATA of them, "
        "weights over MODEL; e.g. 4x2; default: one device",
    )
    arguments.add_control_tokens(sub, "text")
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


def _train(options: argparse.Namespace) -> int:
    given = {
        name: value
        for name, value in vars(options).items()
        if name not in ("command", "resume", "steps", "trust_code", *AGAIN) and value is not None
    }
    again = [name for name in AGAIN if getattr(options, name)]
    if options.resume is not None:
        if given:
            names = ", ".join(sorted(given))
            raise ValueError(f"--resume takes --steps alone; a run cannot change its {names}")
        from kullback.experiments.runs import training

        path = training.resume(
            options.resume,
            steps=options.steps,
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

        if options.steps is not None:
            given["steps"] = options.steps
        if overlong := given.pop("overlong", None):
            given["settings"] = [*given.get("settings", ()), f"overlong={overlong}"]
        path = training.train(given.pop("agent"), given.pop("environment"), **given)
    print(f"run: {path}\nlearning curve: {path / 'learning_curve.png'}")
    for file in sorted((*path.glob("samples.jsonl"), *path.glob("seed_*/samples.jsonl"))):
        print(f"samples: {file}")
    return 0

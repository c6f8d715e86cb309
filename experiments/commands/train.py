"""`kullback train`."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from kullback.experiments import catalog, interrupts, limits
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag
from kullback.experiments.runs import plans

AGAIN = ("accept_changes", "empty_replay", "base")  # Options that go with --resume.
LENGTH = ("steps", "epochs")  # Options that may.
STAFF = ("workers", "ray")  # Options of who acts.
JOINED = ("coordinator", "num_processes", "process_id", "distributed")
GANG = ("ray", "processes")


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
            spelled = f"--{entry.name} {entry.metavar}".rstrip()
            flag(sub, spelled, help=entry.help, dest=field, **_reading(field, entry))
    arguments.add_overlong(sub, "error")
    arguments.add_trust_code(sub)
    adapter = "of --model: adapters as peft writes them, which are merged into it"
    flag(sub, "--adapter DIR", arguments.path, adapter)
    acts = (
        "processes that act for a game on the host, or write texts ahead (lag=1); default: threads"
    )
    flag(sub, "--workers N", arguments.whole(1, limits.JOBS), acts)
    cluster = "of a Ray cluster: has --workers N, or starts --processes N, all anew if one ends"
    flag(sub, "--ray ADDRESS", arguments.name, cluster)
    together = sub.add_argument_group(
        "over several processes",
        "of a language model with --mesh; each is started with the same command, and its own id",
    )
    listens = "where process 0 listens, an address of its machine that the others reach"
    flag(together, "--coordinator HOST:PORT", arguments.name, listens)
    flag(together, "--num-processes N", arguments.whole(2, limits.JOBS), "processes of the run")
    number = arguments.whole(0, limits.JOBS - 1)
    flag(together, "--process-id I", number, "of this process, 0 to N-1; 0 writes the folder")
    flag(together, "--distributed", help="take all three from the cluster: SLURM, MPI, GKE")
    flag(together, "--processes N", arguments.whole(2, limits.JOBS), "with --ray; one a GPU")
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
    if isinstance(entry.default, bool):
        return {"default": None}
    if isinstance(entry.default, str):
        return {"type": arguments.name}
    # 0 stands for a default, which a user leaves out.
    return {"type": arguments.whole(0 if field == "seed" else 1, entry.most)}


@contextlib.contextmanager
def _joined(options: argparse.Namespace) -> Iterator[bool]:
    """Joins the processes that the options name; yields whether this is the first.

    Raises:
      ValueError: for options that do not fit, or processes that do not meet.
      interrupts.Failure: if another process ends, so that this one cannot go on.
    """
    given = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and all(x is None for x in given):
        yield True
        return
    if options.distributed and any(x is not None for x in given):
        raise ValueError("--distributed asks the cluster: leave the other flags of processes out")
    if not options.distributed and any(x is None for x in given):
        raise ValueError("--coordinator, --num-processes and --process-id go together")
    from kullback.core import processes  # Which imports JAX.

    try:
        with processes.joined(*given):
            yield processes.is_first()
    except processes.Gone as error:
        raise interrupts.Failure(str(error)) from error


def _train(options: argparse.Namespace) -> int:
    if options.processes is not None or (options.ray is not None and options.workers is None):
        return _gang(options)
    with _joined(options) as is_first:
        return _trained(options, is_first)


def _gang(options: argparse.Namespace) -> int:
    """Has a Ray cluster start the processes of a language run.

    Raises:
      ValueError: for options that do not fit, or a plan that processes cannot run together.
    """
    if options.ray is None or options.processes is None:
        raise ValueError(
            "--ray ADDRESS goes with --processes N, of a language run over a mesh, or with "
            "--workers N, which act for a game or write for a language run (--set lag=1)"
        )
    if options.workers is not None:
        raise ValueError(
            "--workers act for games or write texts, and --processes learn together: name one"
        )
    if any(getattr(options, name) for name in JOINED):
        raise ValueError("--ray starts the processes: leave the other flags of processes out")
    if options.resume is None and not options.mesh:
        raise ValueError(
            f"--processes {options.processes} run one language model over a mesh of all their "
            f"devices: add --mesh, such as {options.processes}x1 for one device each"
        )
    from kullback.experiments import gang_ray
    from kullback.experiments.runs import run_folder

    path = options.resume or options.out
    if path is None:
        path = run_folder.default_path(options.agent, options.environment)
    if options.resume is None:
        run_folder.check_free(path)
    place = ["--resume", str(path)] if options.resume else [f"--out={path}"]
    again = f"kullback train --resume {path} --ray {options.ray} --processes {options.processes}"
    gang_ray.run(options.ray, options.processes, _words(options, place), path, again)
    print(f"run: {path}")
    return 0


def _words(options: argparse.Namespace, place: list[str]) -> list[str]:
    """Returns the words of the command of one process, without the flags of all together."""
    positional = ("agent", "environment")
    command = ["train", *(word for name in positional if (word := getattr(options, name)))]
    left_out = (*positional, "command", "resume", "out", *JOINED, *GANG)
    for name, value in vars(options).items():
        if name in left_out or value is None or value is False:
            continue
        spelled = plans.FLAGS[name].name if name in plans.FLAGS else name.replace("_", "-")
        values = value if isinstance(value, list) else [value]
        command += [f"--{spelled}" if x is True else f"--{spelled}={x}" for x in values]
    return [*command, *place]


def _trained(options: argparse.Namespace, is_first: bool) -> int:
    left_out = ("command", "resume", *LENGTH, "trust_code", *AGAIN, *STAFF, *JOINED, *GANG)
    given = {
        name: value
        for name, value in vars(options).items()
        if name not in left_out and value is not None
    }
    staff = {name: value for name in STAFF if (value := getattr(options, name)) is not None}
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
            **staff,
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
        path = training.train(given.pop("agent"), given.pop("environment"), **given, **staff)
    if not is_first:
        return 0
    print(f"run: {path}\nlearning curve: {path / 'learning_curve.png'}")
    for file in sorted((*path.glob("samples.jsonl"), *path.glob("seed_*/samples.jsonl"))):
        print(f"samples: {file}")
    return 0

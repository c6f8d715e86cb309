"""The `kullback` command. Nothing heavy is imported before it is known that there is work."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from kullback.core import names
from kullback.experiments import catalog

LENGTHS = ("max_prompt_length", "max_new_tokens", "overlong")  # Of a language model's examples.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; exit status 0, 1 if a run failed, 2 for what was asked wrongly."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except BrokenPipeError:  # The reader of a pipe has seen enough.
        return 0
    except (ValueError, OSError) as error:
        return _fail(str(error), 2)
    except ArithmeticError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 130)


def _fail(message: str, status: int) -> int:
    print(f"kullback: {' '.join(message.split())}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One line, as all errors of this command are."""
        self.exit(2, f"kullback: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kullback",
        description="Deep reinforcement learning as regularised policy updates.",
        epilog="Each command has its own --help.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    sub = commands.add_parser("list", help="agents and environments")
    sub.set_defaults(command=_list)

    sub = commands.add_parser(
        "train",
        help="train an agent, or go on with a run",
        description="Steps are agent steps over all environments. kullback train AGENT "
        "ENVIRONMENT starts a run; kullback train --resume DIR [--steps N] goes on with one.",
    )
    sub.add_argument("agent", nargs="?", metavar="AGENT", help="e.g. m-dqn; see kullback list")
    sub.add_argument("environment", nargs="?", metavar="ENVIRONMENT", help="e.g. atari/pong")
    sub.add_argument("--resume", metavar="DIR", type=pathlib.Path, help="the run to go on with")
    sub.add_argument("--steps", metavar="N", type=_count)
    sub.add_argument("--seed", metavar="S", type=int)
    sub.add_argument(
        "--num-seeds", metavar="K", type=_count, help="seeds S to S+K-1; one program if compiled"
    )
    sub.add_argument("--num-envs", metavar="E", type=_count, help="environments side by side")
    sub.add_argument("--out", metavar="DIR", type=pathlib.Path, help="folder of the run, new")
    sub.add_argument("--eval-every", metavar="N", type=_count, help="agent steps; default: never")
    sub.add_argument("--eval-episodes", metavar="M", type=_count)
    sub.add_argument("--log-every", metavar="N", type=_count, help="agent steps")
    sub.add_argument("--checkpoint-every", metavar="N", type=_count, help="agent steps")
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
        "--model", metavar="MODEL", help="of a language model: a folder, a run, or a preset"
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
        help="of a preset; default: the teacher's, or a BPE of the data",
    )
    sub.add_argument(
        "--overlong",
        choices=("drop", "truncate-left", "error"),
        help="what becomes of an example that is too long; default: error",
    )
    sub.add_argument("--teacher", metavar="DIR", help="of distillation: a folder, or a run")
    sub.add_argument(
        "--mesh",
        metavar="DATAxMODEL",
        help="devices of a language model, all there are: a batch's rows over DATA of them, "
        "weights over MODEL; e.g. 4x2; default: one device",
    )
    sub.set_defaults(command=_train)

    sub = commands.add_parser("fields", help="the fields that --set takes, with their values")
    sub.add_argument("agent", metavar="AGENT")
    sub.add_argument(
        "family", metavar="FAMILY", choices=("atari", "minatar", "gym", "toy", "tokens")
    )
    sub.set_defaults(command=_fields)

    sub = commands.add_parser(
        "evaluate",
        help="play with a trained agent, or judge a language model",
        description="A language model, a run or a folder of weights, is judged on held-out "
        "examples of TASK (of weights required; default: the run's own).",
    )
    sub.add_argument("run", metavar="DIR", type=pathlib.Path)
    sub.add_argument("task", nargs="?", metavar="TASK", help="of a language model: tokens/...")
    sub.add_argument(
        "--episodes", metavar="N", type=_count, default=10, help="or held-out examples"
    )
    sub.add_argument("--seed", metavar="S", type=int, help="which of the run's seeds")
    sub.add_argument("--best", action="store_true", help="the best checkpoint, not the newest")
    sub.add_argument("--video", metavar="FILE", type=pathlib.Path, help=".gif or .mp4, new")
    language = sub.add_argument_group("of a language model")
    language.add_argument(
        "--samples", metavar="K", type=_count, help="answers at temperature 1 to each; default: 4"
    )
    language.add_argument(
        "--out",
        metavar="FILE",
        type=pathlib.Path,
        help="what it wrote, JSONL, new; default: in the run's folder, of weights nowhere",
    )
    language.add_argument(
        "--max-prompt-length", metavar="N", type=_count, help="tokens; default: the run's"
    )
    language.add_argument(
        "--max-new-tokens", metavar="N", type=_count, help="of an answer; default: the run's"
    )
    language.add_argument(
        "--overlong",
        choices=("drop", "truncate-left", "error"),
        help="what becomes of an example that is too long; default: the run's",
    )
    sub.set_defaults(command=_evaluate)

    sub = commands.add_parser("generate", help="text from a language model")
    sub.add_argument("--model", metavar="DIR", required=True, help="a folder, or a run")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT")
    what.add_argument("--prompts", metavar="FILE", type=pathlib.Path, help="JSONL of {prompt}")
    sub.add_argument("--max-new-tokens", metavar="N", type=_count, default=256)
    sub.add_argument("--temperature", metavar="T", type=float, default=1.0, help="0 is greedy")
    sub.add_argument("--top-k", metavar="K", type=int, default=0, help="0 is all tokens")
    sub.add_argument("--top-p", metavar="P", type=float, default=1.0)
    sub.add_argument("--seed", metavar="S", type=int, default=0)
    sub.add_argument("--stop-token", metavar="ID", type=int, action="append", default=[])
    sub.add_argument("--chat", action="store_true", help="TEXT is the user's turn, in a template")
    sub.set_defaults(command=_generate)

    sub = commands.add_parser(
        "export", help="write a run's parameters as safetensors, or its model"
    )
    sub.add_argument("run", metavar="DIR", type=pathlib.Path)
    sub.add_argument("--seed", metavar="S", type=int, help="which of the run's seeds")
    sub.add_argument("--out", metavar="PATH", type=pathlib.Path, required=True, help="new")
    sub.set_defaults(command=_export)

    sub = commands.add_parser(
        "reproduce",
        help="run a paper's claim again, small, and say whether it held",
        description="Writes the data as CSV, the picture and the verdict. What was interrupted "
        "goes on when the same command is given again.",
    )
    sub.add_argument("name", metavar="NAME", help="see kullback list")
    sub.add_argument("--out", metavar="DIR", type=pathlib.Path)
    sub.add_argument("--set", metavar="field=value", action="append", dest="settings", default=[])
    sub.add_argument("--mdp", metavar="FILE", help="of theory: your own process, as .npz")
    sub.add_argument("--fields", action="store_true", help="the fields that --set takes; no run")
    sub.set_defaults(command=_reproduce)
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    if options.name not in catalog.REPRODUCTIONS:
        raise ValueError(
            names.unknown("reproduction", options.name, catalog.REPRODUCTIONS, show_all=True)
        )
    from kullback.experiments import reproduce, settings

    if options.fields:
        _print_fields(settings.fields(reproduce.load(options.name).config))
        return 0
    assignments = [*options.settings, *([f"mdp={options.mdp}"] if options.mdp else [])]
    reproduce.reproduce(options.name, options.out, assignments)
    return 0


def _count(text: str) -> int:
    """A whole number of at least 1; 50_000 and 5e4 too."""
    with contextlib.suppress(ValueError, OverflowError):  # The latter for inf.
        number = float(text.replace("_", ""))
        if number == int(number) and number >= 1:
            return int(number)
    raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")


def _list(options: argparse.Namespace) -> int:
    print("agents")
    for name, what in catalog.AGENTS.items():
        print(f"  {name:<24}{what}")
    print("\nlanguage models")
    for name, what in {**catalog.ALGORITHMS, **catalog.TASKS}.items():
        print(f"  {name:<24}{what}")
    print("\nreproductions")
    for name, what in catalog.REPRODUCTIONS.items():
        print(f"  {name:<24}{what}")
    print(f"\n{'environments':<26}{'actions':>8}{'human':>12}{'random':>12}")
    for row in catalog.ENVIRONMENTS:
        human = "n/a" if row.human is None else f"{row.human:,.1f}"
        score = "n/a" if row.random is None else f"{row.random:,.1f}"
        print(f"  {row.name:<24}{row.num_actions:>8}{human:>12}{score:>12}")
    return 0


def _train(options: argparse.Namespace) -> int:
    given = {
        name: value
        for name, value in vars(options).items()
        if name not in ("command", "resume", "steps") and value is not None
    }
    if options.resume is not None:
        if given:
            names = ", ".join(sorted(given))
            raise ValueError(f"--resume takes --steps alone; a run cannot change its {names}")
        from kullback.experiments import training

        path = training.resume(options.resume, steps=options.steps)
    else:
        if options.agent is None or options.environment is None:
            raise ValueError("expected AGENT ENVIRONMENT (see kullback list), or --resume DIR")
        catalog.check(options.agent, options.environment)
        from kullback.experiments import training

        if options.steps is not None:
            given["steps"] = options.steps
        if overlong := given.pop("overlong", None):
            given["settings"] = [*given.get("settings", ()), f"overlong={overlong}"]
        path = training.train(given.pop("agent"), given.pop("environment"), **given)
    print(f"run: {path}\nlearning curve: {path / 'learning_curve.png'}")
    for file in sorted((*path.glob("samples.jsonl"), *path.glob("seed_*/samples.jsonl"))):
        print(f"samples: {file}")
    return 0


def _fields(options: argparse.Namespace) -> int:
    catalog.check_agent(options.agent)
    from kullback import agents, lm
    from kullback.experiments import settings

    if (options.agent in catalog.ALGORITHMS) != (options.family == "tokens"):
        raise ValueError(f"{options.agent} has no presets for {options.family}; see kullback list")
    entry = {**agents.AGENTS, **lm.ALGORITHMS}[options.agent]
    _print_fields(settings.fields(entry.presets(options.family)))
    return 0


def _print_fields(fields: Iterable[tuple[str, Any, Any]]) -> None:
    from kullback.experiments import settings

    for name, hint, value in fields:
        print(f"{name:<44}{value!s:<12}{settings.describe(hint)}")


def _evaluate(options: argparse.Namespace) -> int:
    if (options.run / "model.json").is_file() or any(options.run.glob("*.safetensors")):
        return _evaluate_language(options)
    given = ["TASK"] if options.task is not None else []
    of_language = ("samples", "out", *LENGTHS)
    given += [f"--{n.replace('_', '-')}" for n in of_language if getattr(options, n) is not None]
    if given:
        raise ValueError(f"{given[0]} is for language models, and {options.run} is none")
    from kullback.experiments import runs, video

    if options.video is not None:
        video.check(options.video)
    run = runs.load(options.run, seed=options.seed, best=options.best)
    scores = run.evaluate(options.episodes)
    chance = run.evaluate_random(options.episodes)
    print(
        f"{run.plan.agent} on {run.plan.environment}, seed {run.seed}, after {run.env_steps:,} "
        f"steps: mean return {scores.mean():.2f} (min {scores.min():g}, max {scores.max():g}) "
        f"over {len(scores)} episodes; a random policy: {chance.mean():.2f}"
    )
    print(f"learning curve: {run.path / 'learning_curve.png'}")
    if options.video is not None:
        count = video.write(run.frames(), options.video)
        print(f"video: {options.video} ({count} frames)")
    return 0


def _evaluate_language(options: argparse.Namespace) -> int:
    from kullback.experiments import evaluation

    if options.video is not None:
        raise ValueError("--video is for games; a language model's text goes to --out")
    lengths = {n: getattr(options, n) for n in LENGTHS if getattr(options, n) is not None}
    report, out = evaluation.run(
        options.run,
        options.task or "",
        count=options.episodes,
        num_samples=options.samples or 4,
        seed=options.seed,
        best=options.best,
        out=options.out,
        **lengths,
    )
    print(evaluation.show(report))
    if out is not None:
        print(f"texts: {out}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from kullback.core import sampling
    from kullback.experiments import generate, models
    from kullback.lm import chat, data

    settings = sampling.Sampling(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
    )
    checkpoint = models.load(options.model)
    words = checkpoint.tokenizer
    is_one = options.prompt is not None
    if not is_one:
        prompts = data.read_prompts(options.prompts, words)
    elif options.chat:
        messages = [{"role": "user", "content": options.prompt}]
        segments = chat.chat(messages, words, add_generation_prompt=True)
        prompts = [tuple(i for segment in segments for i in segment.ids)]
    else:
        prompts = [(words.bos_id, *words.encode(options.prompt))]
    made = generate.generate(
        checkpoint,
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=settings,
        seed=options.seed,
        stop_tokens=options.stop_token,
        # One text is shown as it comes; of several the lines would mix.
        on_text=lambda row, text: print(text, end="", flush=True) if is_one else None,
        on_cache=lambda count: print(
            f"keys and values of {len(prompts)} texts: {count / 1e6:.3g} MB", file=sys.stderr
        ),
    )
    if is_one:
        print()
        return 0
    for prompt, row in zip(prompts, made, strict=True):
        line = {"prompt": words.decode(prompt), "completion": row.text, "done": row.is_complete}
        print(json.dumps(line, ensure_ascii=False))
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise ValueError(f"{options.out} exists; nothing is overwritten: choose another --out")
    if (options.run / "model.json").is_file():
        from kullback.experiments import models

        models.export(options.run, options.out, options.seed)
        print(f"model: {options.out}")
        return 0
    from kullback.experiments import runs

    runs.load(options.run, seed=options.seed).export(options.out)
    print(f"parameters: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

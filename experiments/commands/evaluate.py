"""`kullback evaluate`: plays episodes with a trained agent, or evaluates a language model."""

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from kullback.experiments import limits
from kullback.experiments.commands import arguments

if TYPE_CHECKING:
    from kullback.experiments.runs import opened

LENGTHS = (
    "max_prompt_length",
    "max_new_tokens",
    "overlong",
)  # Options for a language model's examples.


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "evaluate",
        help="play with a trained agent, or judge a language model",
        description="A language model, a run, a folder of weights, a .gguf file or "
        "pretrained:NAME, is judged on held-out examples of TASK (of weights required; default: "
        "the run's own).",
    )
    sub.add_argument("run", metavar="DIR", type=arguments.path)
    sub.add_argument("task", nargs="?", metavar="TASK", help="of a language model: tokens/...")
    sub.add_argument(
        "--episodes", metavar="N", type=arguments.episodes, default=10, help="or held-out examples"
    )
    sub.add_argument("--seed", metavar="S", type=arguments.seed, help="which of the run's seeds")
    sub.add_argument("--best", action="store_true", help="the best checkpoint, not the newest")
    sub.add_argument(
        "--max-steps",
        metavar="N",
        type=arguments.steps,
        help="agent steps after which an episode is cut; default: the run's --eval-max-steps",
    )
    sub.add_argument("--video", metavar="FILE", type=arguments.path, help=".gif or .mp4, new")
    arguments.add_trust_code(sub)
    language = sub.add_argument_group("of a language model")
    language.add_argument(
        "--samples",
        metavar="K",
        type=arguments.whole(1, limits.SAMPLES),
        help="answers at temperature 1 to each; default: 4",
    )
    language.add_argument(
        "--best-of",
        metavar="N",
        type=arguments.whole(1, limits.SAMPLES),
        help="judge the best of N answers too, by --reward",
    )
    language.add_argument(
        "--reward",
        metavar="NAME",
        type=arguments.name,
        help="of --best-of, as for kullback train; default: exact",
    )
    language.add_argument(
        "--out",
        metavar="FILE",
        type=arguments.path,
        help="what it wrote, JSONL, new; default: in the run's folder, of weights nowhere",
    )
    language.add_argument(
        "--max-prompt-length", metavar="N", type=arguments.tokens, help="tokens; default: the run's"
    )
    language.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=arguments.tokens,
        help="of an answer; default: the run's",
    )
    language.add_argument(
        "--overlong",
        choices=("drop", "truncate-left", "error"),
        help="what becomes of an example that is too long; default: the run's",
    )
    arguments.add_model_flag(language)
    arguments.add_control_tokens(language, "the run's, of weights text")
    sub.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from kullback.experiments.runs import opened

    run = opened.find(options.run, trust_code=options.trust_code)
    if _has_weights(options.run) if run is None else run.kind != "games":
        return _evaluate_language(options, run)
    given = ["TASK"] if options.task is not None else []
    language_only = ("samples", "best_of", "reward", "out", "control_tokens", *LENGTHS)
    given += [f"--{n.replace('_', '-')}" for n in language_only if getattr(options, n) is not None]
    given += ["--model-flag"] if options.model_flags else []
    if given:
        raise ValueError(f"{given[0]} is for language models, and {options.run} is none")
    from kullback.experiments import video
    from kullback.experiments.runs import acting

    if options.video is not None:
        video.check(options.video)
    run = opened.open(options.run) if run is None else run  # Raises for what is no run.
    trained = acting.of_run(run, seed=options.seed, best=options.best)
    played = trained.play(options.episodes, options.max_steps or 0)
    chance = trained.play_random(options.episodes, options.max_steps or 0)
    scores = played.returns
    print(
        f"{trained.plan.agent} on {trained.plan.environment}, seed {trained.seed}, after "
        f"{trained.env_steps:,} steps: mean return {scores.mean():.2f} (min {scores.min():g}, "
        f"max {scores.max():g}) over {len(scores)} episodes; a random policy: "
        f"{chance.returns.mean():.2f}"
    )
    for whose, episodes in (("", played), (" of the random policy", chance)):
        if episodes.num_cut:
            print(
                f"{episodes.num_cut} of {len(episodes.cut)} episodes{whose} were cut at their "
                "limit of steps, and count as far as they went; --max-steps N sets it"
            )
    print(f"learning curve: {trained.path / 'learning_curve.png'}")
    if options.video is not None:
        count = video.write(trained.frames(), options.video)
        print(f"video: {options.video} ({count} frames)")
    return 0


def _has_weights(path: pathlib.Path) -> bool:
    """Returns whether a path names a language model that is no run."""
    from kullback.experiments.runs.converted import is_converted

    return is_converted(path) or any(path.glob("*.safetensors"))


def _evaluate_language(options: argparse.Namespace, run: "opened.Opened | None") -> int:
    from kullback.experiments.evaluate import evaluation, reports

    if options.video is not None:
        raise ValueError("--video is for games; a language model's text goes to --out")
    if options.max_steps is not None:
        raise ValueError("--max-steps is for games; of a text it is --max-new-tokens")
    if options.reward is not None and options.best_of is None:
        raise ValueError("--reward goes with --best-of N, which chooses by it")
    lengths = {n: getattr(options, n) for n in LENGTHS if getattr(options, n) is not None}
    report, out = evaluation.run(
        options.run,
        run,
        options.task or "",
        count=options.episodes,
        num_samples=options.samples or 4,
        seed=options.seed,
        best=options.best,
        out=options.out,
        num_candidates=options.best_of or 0,
        reward=options.reward or "",
        control_tokens=options.control_tokens,
        model_flags=options.model_flags,
        **lengths,
    )
    print(reports.show(report))
    if out is not None:
        print(f"texts: {out}")
    return 0

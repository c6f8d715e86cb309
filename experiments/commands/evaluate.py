"""`kullback evaluate`: plays episodes with a trained agent, or evaluates a language model."""

import argparse
from typing import TYPE_CHECKING, Any

from kullback.experiments import limits
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

if TYPE_CHECKING:
    from kullback.experiments.runs import opened

# Options for a language model's examples.
LENGTHS = ("max_prompt_length", "max_new_tokens", "overlong")


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "evaluate",
        help="play with a trained agent, or judge a language model",
        description="A language model, a run, a folder of weights, a .gguf file or "
        "pretrained:NAME, is judged on held-out examples of TASK (of weights required; default: "
        "the run's own).",
    )
    flag(sub, "run DIR", arguments.path)
    flag(sub, "task TASK", help="of a language model: tokens/...", nargs="?")
    flag(sub, "--episodes N", arguments.episodes, "or held-out examples", default=10)
    flag(sub, "--seed S", arguments.seed, "which of the run's seeds")
    flag(sub, "--best", help="the best checkpoint, not the newest")
    limit = "agent steps after which an episode is cut; default: the run's --eval-max-steps"
    flag(sub, "--max-steps N", arguments.steps, limit)
    flag(sub, "--video FILE", arguments.path, ".gif or .mp4, new")
    arguments.add_trust_code(sub)
    language = sub.add_argument_group("of a language model")
    answers = arguments.whole(1, limits.SAMPLES)
    flag(language, "--samples K", answers, "answers at temperature 1 to each; default: 4")
    flag(language, "--best-of N", answers, "judge the best of N answers too, by --reward")
    chooser = "of --best-of, as for kullback train; default: exact"
    flag(language, "--reward NAME", arguments.name, chooser)
    out = "what it wrote, JSONL, new; default: in the run's folder, of weights nowhere"
    flag(language, "--out FILE", arguments.path, out)
    flag(language, "--max-prompt-length N", arguments.tokens, "tokens; default: the run's")
    flag(language, "--max-new-tokens N", arguments.tokens, "of an answer; default: the run's")
    arguments.add_overlong(language, "the run's")
    seen = "read the images that rows name, as a run that learnt with --images does"
    flag(language, "--images", help=seen)
    arguments.add_pan_and_scan(language)
    arguments.add_model_flag(language)
    arguments.add_adapters(language)
    arguments.add_control_tokens(language, "the run's, of weights text")
    sub.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from kullback.experiments.runs import opened

    run = opened.find(options.run, trust_code=options.trust_code)
    if run is None:
        from kullback.experiments.runs import models

        is_language = models.find(options.run) is not None
    else:
        is_language = run.kind != "games"
    if is_language:
        return _evaluate_language(options, run)
    given = ["TASK"] if options.task is not None else []
    language_only = (
        "samples",
        "best_of",
        "reward",
        "out",
        "control_tokens",
        "pan_and_scan",
        *LENGTHS,
    )
    given += [f"--{n.replace('_', '-')}" for n in language_only if getattr(options, n) is not None]
    given += ["--images"] if options.images else []
    given += ["--model-flag"] if options.model_flags else []
    given += ["--base"] if options.base else ["--adapter"] if options.adapter else []
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


def _evaluate_language(options: argparse.Namespace, run: "opened.Opened | None") -> int:
    from kullback.experiments.evaluate import evaluation, reports, subjects

    if options.video is not None:
        raise ValueError("--video is for games; a language model's text goes to --out")
    if options.max_steps is not None:
        raise ValueError("--max-steps is for games; of a text it is --max-new-tokens")
    if options.reward is not None and options.best_of is None:
        raise ValueError("--reward goes with --best-of N, which chooses by it")
    run = arguments.beside_base(run, options.run, options)
    subject = subjects.Subject(
        path=arguments.with_adapter(options.run, options.adapter),
        run=run,
        task_name=options.task or "",
        seed=options.seed,
        best=options.best,
        control_tokens=options.control_tokens,
        images=options.images,
        crops=arguments.crops(options),
        model_flags=options.model_flags,
        lengths={n: value for n in LENGTHS if (value := getattr(options, n)) is not None},
    )
    report, out = evaluation.run(
        subject,
        count=options.episodes,
        num_samples=options.samples or 4,
        out=options.out,
        num_candidates=options.best_of or 0,
        reward=options.reward or "",
    )
    print(reports.show(report))
    if out is not None:
        print(f"texts: {out}")
    return 0

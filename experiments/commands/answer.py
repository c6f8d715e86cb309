"""`kullback answer`: answers to questions from many samples of a language model."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kullback.experiments import limits
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

if TYPE_CHECKING:
    from kullback.experiments.evaluate import answer_report, answering, subjects

MOST_SAMPLES = 1_024  # Of a question: they are written side by side.
PROGRESS_SECONDS = 10.0  # Between two lines.


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "answer",
        help="answers to questions from many samples: votes, routing, best of N",
        description="MODEL is a run, a folder of weights, a .gguf file or pretrained:NAME; "
        "QUESTIONS a JSONL file of {prompt, completion}, the completion being the reference, or a "
        "task, tokens/..., whose held-out examples are asked. Ctrl-C keeps what is done, and the "
        "same command goes on.",
    )
    flag(sub, "model MODEL", arguments.path)
    flag(sub, "questions QUESTIONS", arguments.name)
    many = arguments.whole(1, MOST_SAMPLES)
    flag(sub, "--samples K", many, "of each question; default: 32", default=32)
    route = "auto chooses the threshold of agreement on --validation, a number is one, none is none"
    flag(sub, "--route R", _route, f"{route}; default: auto with --validation, else none")
    validation = "questions like QUESTIONS; of the same task those that come after"
    flag(sub, "--validation VAL", arguments.name, validation)
    flag(sub, "--reward NAME", arguments.name, "of best of N, as for kullback train")
    kinds = "what is compared: the number of an answer, exactly, or its text; default: number"
    flag(sub, "--answers KIND", ("number", "text"), kinds, default="number")
    flag(sub, "--limit N", arguments.episodes, "questions of each file or task; default: all")
    out = "a folder, new or of the same command; default: answers/MODEL-QUESTIONS"
    flag(sub, "--out DIR", arguments.path, out)
    flag(sub, "--seed S", arguments.seed, "of the samples; default: 0", default=0)
    flag(sub, "--run-seed S", arguments.seed, "which of the run's seeds")
    flag(sub, "--best", help="the best checkpoint, not the newest")
    rows = "questions that are answered side by side; default: 8"
    flag(sub, "--batch-size N", arguments.whole(1, limits.ROWS), rows, default=8)
    flag(sub, "--temperature T", arguments.number, "of samples; default: 1", default=1.0)
    ids = arguments.whole(0, limits.IDS)
    flag(sub, "--top-k N", ids, "of samples; 0 is all tokens", default=0)
    mass = "of samples: the most probable tokens, that hold this mass; 1 is all"
    flag(sub, "--top-p P", arguments.number, mass, default=1.0)
    flag(sub, "--max-new-tokens N", arguments.tokens, "of an answer; default: the run's")
    thought = "comes after a prompt that is sampled, to ask for a chain of thought"
    flag(sub, "--thought TEXT", help=thought, default="")
    direct = "comes after a prompt that is answered greedily, to ask for the answer alone"
    flag(sub, "--direct TEXT", help=direct, default="")
    arguments.add_model_flag(sub)
    arguments.add_adapters(sub)
    arguments.add_control_tokens(sub, "the run's, of weights text")
    arguments.add_trust_code(sub)
    sub.set_defaults(command=_answer)


def _route(text: str) -> str | float:
    if text in ("auto", "none"):
        return text
    threshold = arguments.number(text)
    if not 0 <= threshold <= 2:
        raise argparse.ArgumentTypeError(
            f"expected auto, none, or a number from 0 (the majority) to 2, got {text}"
        )
    return threshold


def _answer(options: argparse.Namespace) -> int:
    from kullback.experiments import programs
    from kullback.experiments.evaluate import answer_report, answering, reports

    route = options.route or ("none" if options.validation is None else "auto")
    if (route == "auto") != (options.validation is not None):
        raise ValueError(
            f"--validation chooses the threshold of --route auto, and goes with it alone, got "
            f"--route {route} and --validation {options.validation}"
        )
    settings = _settings(options)
    programs.keep()
    subject = _subject(options)
    sets = _questions(options, subject)
    respondents = [
        answering.Respondent(subject=subject, settings=settings, questions=x) for x in sets
    ]
    for respondent in respondents:  # Raises before any work.
        respondent.check_references(options.answers)
        respondent.reward  # noqa: B018
    folder = options.out or answering.default_folder(options.model, options.questions)
    for notice in dict.fromkeys(notice for x in sets for notice in x.notices):
        print(notice, file=sys.stderr)
    collected = answering.collect(respondents, folder, on_part=_progress())
    responses, *validation = collected
    tables = [answer_report.table(x, options.answers) for x in collected]
    analysis = answer_report.Analysis(
        questions=tables[0],
        validation=tables[1] if validation else None,
        threshold=route if isinstance(route, float) else None,
        has_reward=bool(options.reward),
    )
    title = (
        f"{options.questions}, {len(responses)} questions, {settings.samples} samples of each at "
        f"temperature {settings.sampling.temperature:g}; [95% intervals over questions]"
    )
    rows = _write(options, folder, analysis, responses)
    notes = []
    if validation:
        tau = analysis.thresholds[settings.samples]
        notes.append(f"the threshold {tau:g} is of {len(validation[0])} validation questions")
    print(reports.show(analysis.report(title, rows, notes)))
    print(f"answers: {folder}")
    return 0


def _write(
    options: argparse.Namespace,
    folder: Any,
    analysis: "answer_report.Analysis",
    responses: "list[answering.Responses]",
) -> list[dict[str, Any]]:
    """Writes answers, table, threshold and picture; returns the rows of the table."""
    from kullback.core import files
    from kullback.experiments.evaluate import answer_report

    rows = analysis.rows()
    lines = analysis.lines(responses, options.answers)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files.atomic_write_bytes(folder / "answers.jsonl", text.encode("utf-8", "backslashreplace"))
    files.write_csv(folder / "accuracy.csv", rows)
    if analysis.thresholds:
        content = {
            "threshold_by_samples": analysis.thresholds,
            "temperature": options.temperature,
            "validation": options.validation,
        }
        files.atomic_write_text(folder / "threshold.json", json.dumps(content, indent=2) + "\n")
    answer_report.draw(rows, folder / "accuracy.png", options.questions)
    return rows


def _settings(options: argparse.Namespace) -> "answering.Settings":
    from kullback.core.sampling import Sampling
    from kullback.experiments.evaluate import answering

    sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    if sampling.temperature == 0 and options.samples > 1:
        raise ValueError(
            f"--temperature 0 gives {options.samples} equal samples; take one above 0, or "
            "--samples 1"
        )
    return answering.Settings(
        samples=options.samples,
        sampling=sampling,
        seed=options.seed,
        batch_size=options.batch_size,
        thought=options.thought,
        direct=options.direct,
        reward=options.reward or "",
    )


def _subject(options: argparse.Namespace) -> "subjects.Subject":
    from kullback.experiments.evaluate import subjects
    from kullback.experiments.runs import opened

    run = opened.find(options.model, trust_code=options.trust_code)
    if run is not None and run.kind != "language":
        raise ValueError(f"{options.model} is no run of a language model, which answers questions")
    run = arguments.beside_base(run, options.model, options)
    new_tokens = options.max_new_tokens
    return subjects.Subject(
        path=arguments.with_adapter(options.model, options.adapter),
        run=run,
        seed=options.run_seed,
        best=options.best,
        control_tokens=options.control_tokens,
        model_flags=options.model_flags,
        lengths={} if new_tokens is None else {"max_new_tokens": new_tokens},
    )


def _questions(
    options: argparse.Namespace, subject: "subjects.Subject"
) -> "list[answering.Questions]":
    """Returns the questions, and those of validation if there are any, which differ."""
    from kullback.experiments.evaluate import answering

    questions = answering.questions(options.questions, subject, options.limit)
    if options.validation is None:
        return [questions]
    skip = 0
    if options.validation == options.questions:
        if options.limit is None:
            raise ValueError(
                f"--validation is of other questions than QUESTIONS, and both are "
                f"{options.questions}: --limit N takes the first N, and the next N to validate"
            )
        skip = options.limit
    validation = answering.questions(options.validation, subject, options.limit, skip=skip)
    prompts = {example.prompt for example in questions.examples}
    shared = sum(example.prompt in prompts for example in validation.examples)
    if shared:
        raise ValueError(
            f"{shared} questions of --validation {options.validation} are asked too, so that the "
            "threshold would be chosen on what it is judged by; leave them out"
        )
    return [questions, validation]


def _progress() -> Callable[[str, int, int], None]:
    """Returns what prints how far a set of questions is, now and then."""
    last = time.monotonic()

    def say(name: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"{name}: {done:,} of {total:,} questions", file=sys.stderr)

    return say

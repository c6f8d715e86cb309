"""`kullback label`: pairs of a model's answers, of which a reward chooses one."""

import argparse
from typing import Any

from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "label",
        help="preferences of a reward between a model's own answers",
        description="Two answers to each of N training prompts of TASK (of weights required; "
        "default: the run's own) are sampled at temperature 1; that of the higher reward is "
        "chosen. FILE is what tokens/preferences:FILE reads, for a model with the same tokenizer.",
    )
    flag(sub, "model MODEL", arguments.path, "a run, a folder, a .gguf file or pretrained:NAME")
    flag(sub, "task TASK", help="tokens/...", nargs="?")
    flag(sub, "--reward NAME", arguments.name, "as for kullback train; default: exact")
    flag(sub, "--out FILE", arguments.path, "JSONL, new", required=True)
    flag(sub, "--prompts N", arguments.episodes, "default: 1,000", default=1_000)
    wrong = "share of the labels that are wrong on purpose; default: 0"
    flag(sub, "--swapped P", arguments.number, wrong, default=0.0)
    flag(sub, "--earlier FILE", arguments.path, "pairs that come before the new ones")
    flag(sub, "--seed S", arguments.seed, "of prompts, answers and wrong labels", default=0)
    flag(sub, "--max-prompt-length N", arguments.tokens, "tokens; default: the run's")
    flag(sub, "--max-new-tokens N", arguments.tokens, "of an answer; default: the run's")
    arguments.add_trust_code(sub)
    sub.set_defaults(command=_label)


def _label(options: argparse.Namespace) -> int:
    from kullback.experiments.evaluate import labelling, subjects
    from kullback.experiments.runs import opened

    run = opened.find(options.model, trust_code=options.trust_code)
    if run is not None and run.kind != "language":
        raise ValueError(f"{options.model} is a run of {run.plan.agent}, which answers nothing")
    lengths = ("max_prompt_length", "max_new_tokens")
    subject = subjects.Subject(
        path=options.model,
        run=run,
        task_name=options.task or "",
        lengths={name: value for name in lengths if (value := getattr(options, name)) is not None},
    )
    labelled = labelling.label(
        subject,
        options.reward or "",
        options.out,
        count=options.prompts,
        swapped=options.swapped,
        seed=options.seed,
        earlier=options.earlier,
    )
    left_out = labelled.prompts - labelled.pairs
    print(
        f"pairs: {options.out} ({labelled.pairs:,} of {labelled.prompts:,} prompts"
        + (f", {left_out:,} left out" if left_out else "")
        + (f", {labelled.swapped:,} labels wrong on purpose" if labelled.swapped else "")
        + (f", after {labelled.earlier:,} earlier ones" if labelled.earlier else "")
        + ")"
    )
    return 0

"""`kullback quantize`: a language model in few bits, its bytes, and what that costs."""

import argparse
from typing import Any

from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

# Those of `lm/quantisation.py`, which is read when there is work.
FORMATS = ("int8", "int4", "q8_0", "q4_0", "sfp8", "bfloat16")


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "quantize",
        help="a language model in 4 to 16 bits: bytes, error, perplexity",
        description="MODEL is a run, a folder of weights, a .gguf file or pretrained:NAME. Its "
        "matrices are put into a format and read again; with a TASK (default: a run's own), the "
        "perplexity of held-out completions is measured before and after. On CPUs few bits save "
        "memory and disk, and are no faster.",
    )
    flag(sub, "model MODEL", arguments.path)
    flag(sub, "task TASK", help="tokens/...", nargs="?")
    flag(sub, "--format F", FORMATS, "one of " + ", ".join(FORMATS), required=True)
    table = "of the table of tokens, or none; default: that of --format"
    flag(sub, "--table F", ("none", *FORMATS), table)
    flag(sub, "--episodes N", arguments.episodes, "held-out examples; default: 64", default=64)
    flag(sub, "--seed S", arguments.seed, "which of the run's seeds")
    flag(sub, "--report FILE", arguments.path, "CSV of all matrices, new")
    out = "a new folder, as Hugging Face has it, with the numbers that the format holds, in float32"
    flag(sub, "--out DIR", arguments.path, out)
    arguments.add_trust_code(sub)
    sub.set_defaults(command=_quantize)


def _quantize(options: argparse.Namespace) -> int:
    from kullback.core import files, trees
    from kullback.experiments.evaluate import quantised, reports, subjects
    from kullback.experiments.runs import exports, opened
    from kullback.lm import quantisation

    if options.report is not None:
        files.check_new_file(options.report, "--report")
    if options.out is not None:
        files.check_new_folder(options.out)
    run = opened.find(options.model, trust_code=options.trust_code)
    if run is not None and run.kind == "preferences":
        raise ValueError(f"{options.model} is a run of a reward model, which writes no texts")
    if run is not None and options.out is not None:
        exports.check_deaf(run.path, run.plan.modality)
    subject = subjects.Subject(
        path=options.model, run=run, task_name=options.task or "", seed=options.seed
    )
    has_task = run is not None or options.task is not None
    evaluator = quantised.evaluator_of(subject) if has_task else None  # Raises before any work.
    params = subject.checkpoint.params
    scheme = quantisation.Scheme(options.format, options.table or options.format)
    result = quantised.quantise(params, scheme)
    worst = quantised.worst(result)
    before, after = files.size(trees.num_bytes(params)), files.size(result.num_bytes)
    print(f"{options.format}: {after} in place of {before}")
    print(f"largest relative error of a matrix: {worst.relative_error:.4f}, {worst.tensor}")
    if options.report is not None:
        files.write_csv(options.report, quantised.rows(result))
        print(f"matrices: {options.report}")
    if evaluator is not None:
        report = quantised.report(evaluator, params, result, options.format, count=options.episodes)
        print(reports.show(report))
    if options.out is not None:
        exports.write_checkpoint(subject.checkpoint._replace(params=result.params), options.out)
        print(f"model: {options.out}")
    return 0

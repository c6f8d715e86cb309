"""`kullback merge`: several models of one shape become one. Nothing heavy is imported before."""

import argparse
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kullback.experiments import limits
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

if TYPE_CHECKING:
    from kullback.experiments.runs import opened
    from kullback.lm import merging

METHODS = ("mean", "ema", "slerp", "liti")
GROUPS = ("layer", "tensor", "all")


def add_parser(commands: Any) -> None:
    """Adds the command to those of a parser, `argparse.ArgumentParser.add_subparsers()`."""
    sub = commands.add_parser(
        "merge",
        help="average models of one shape into one",
        description="MODELS are folders as Hugging Face has them, runs of language models, .gguf "
        "files, or pretrained:NAME. "
        "mean: by --weights; ema: a moving average in the order given; slerp: spherical "
        "interpolation of their differences to --base (WARP), or without one of themselves; "
        "liti: from --base toward their mean. Runs of adapters beside one base know it; --base "
        "says where it is if it has moved. MODELS that are all folders of adapters as peft has "
        "them become one such folder, by the same methods; their base is no option.",
    )
    flag(sub, "models MODEL", arguments.path, nargs="+")
    flag(sub, "--method", METHODS, required=True)
    base = "what the models were trained from; of runs of adapters, where their base is now"
    flag(sub, "--base DIR", arguments.path, base)
    flag(sub, "--out DIR", arguments.path, "new", required=True)
    weights = "of mean and liti: one a model, of any sum; default: uniform"
    flag(sub, "--weights W", arguments.number, weights, nargs="+")
    flag(sub, "--rate MU", arguments.number, "of ema: what the newest counts, in (0, 1]")
    between = "of slerp of two models: from 0, the first, to 1; default: 1/M, recursively"
    flag(sub, "--t T", arguments.number, between)
    end = "of slerp and liti: from 0, the base, to 1, the merge; default: 1; WARP has 0.3"
    flag(sub, "--interpolation ETA", arguments.number, end)
    flag(sub, "--group", GROUPS, "of slerp: what has an angle of its own; default: layer")
    rank = "of adapters: the most columns of the result; what is lost is said; default: exact"
    flag(sub, "--rank R", arguments.whole(1, limits.ROWS), rank)
    force = "merge models whose configurations or tokenizers differ; what differs is printed"
    flag(sub, "--force", help=force)
    sub.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Merges models, and prints where the result is and how far apart they were.

    Raises:
      ValueError: if options do not fit each other, or models differ.
    """
    if options.method == "liti" and options.interpolation is None:
        raise ValueError("liti needs --interpolation; the paper uses 0.3")
    from kullback.experiments.runs.converted import is_converted
    from kullback.lm import merging

    config = merging.Config(
        method=options.method,
        weights=None if options.weights is None else tuple(options.weights),
        rate=options.rate,
        t=options.t,
        interpolation=1.0 if options.interpolation is None else options.interpolation,
        group=options.group,
    )
    if any((path / "adapter_config.json").is_file() for path in options.models):
        return _merge_adapters(options, config)
    if options.rank is not None:
        raise ValueError("--rank is of adapters, folders with adapter_config.json")
    beside = _runs_of_adapters(options.models)
    base_path = options.base
    if options.method in ("slerp", "liti"):
        base_path = base_path or _base_of_adapters(options.models, beside)
    elif beside:
        base_path = None  # Updates are merged into it, and no difference is taken from it.
    config.check(len(options.models), has_base=base_path is not None)
    given = [*options.models, *([] if base_path is None else [base_path])]
    # Runs are exported first, and files converted, which takes a while.
    folders = [path for path in given if not is_converted(path)]
    merging.check_places(options.out, folders)
    moved = "" if options.base is None else str(options.base)
    with contextlib.ExitStack() as stack:
        models = [
            _folder(path, options.out, stack, moved if path in beside else "")
            for path in options.models
        ]
        base = None if base_path is None else _folder(base_path, options.out, stack)
        report = merging.merge(
            models,
            options.out,
            config,
            base,
            on_bytes=stack.enter_context(_progress()),
            force=options.force,
            names=[str(path) for path in given],
        )
    for line in report.overridden:
        print(f"overridden: {line}")
    if base_path is not None and options.base is None:
        print(f"base: {base_path}, of all of these adapters")
    if report.left_out:
        print(f"not copied, as it is code: {', '.join(report.left_out)}")
    print(
        f"model: {options.out} ({report.num_tensors} tensors, {report.num_bytes / 1e9:.3g} GB, of "
        f"{len(models)} model{'s' if models[1:] else ''})"
    )
    if report.grams:
        print(_angles(report.grams))
    return 0


def _merge_adapters(options: argparse.Namespace, config: "merging.Config") -> int:
    """Merges folders of adapters, and prints where the result is and what of it is lost."""
    from kullback.lm import adapter_merging

    if options.base is not None:
        raise ValueError(
            f"--base is of whole models, and adapters are beside theirs: {options.base}"
        )
    report = adapter_merging.merge(
        options.models, options.out, config, rank=options.rank, force=options.force
    )
    if report.lost:
        print(
            f"truncated to rank {report.rank}: {report.lost:.2%} of the updates' squared norm is "
            f"lost, and {report.worst:.2%} of that of {report.worst_at}"
        )
    print(
        f"adapters: {options.out} ({report.num_matrices} matrices, rank {report.rank}, of "
        f"{len(options.models)} folders)"
    )
    return 0


def _runs_of_adapters(paths: Sequence[pathlib.Path]) -> "dict[pathlib.Path, opened.Opened]":
    """Returns those models, by path, that are runs of adapters."""
    from kullback.experiments.runs import learnt, opened

    runs = {path: run for path in paths if (run := opened.find(path)) is not None}
    return {path: run for path, run in runs.items() if learnt.adapters_of(run)}


def _base_of_adapters(
    paths: Sequence[pathlib.Path], beside: "dict[pathlib.Path, opened.Opened]"
) -> pathlib.Path | None:
    """Returns the base of runs of adapters, if all models were trained beside one; else None.

    That it still is what it was is checked when the runs are read.

    Args:
      paths: of the models.
      beside: those of them that are runs of adapters.

    Raises:
      ValueError: if it is no model now.
    """
    from kullback.experiments.runs import models, run_folder

    if len({run.config.get(run_folder.BASE) for run in beside.values()}) != 1:
        return None
    if any(path not in beside for path in paths):
        return None
    base = pathlib.Path(beside[paths[0]].plan.model)
    if models.find(base) is None:
        raise ValueError(
            f"{base}, the base of these adapters, is no model: --base says where it is"
        )
    return base


def _folder(
    path: pathlib.Path, out: pathlib.Path, stack: contextlib.ExitStack, moved: str = ""
) -> pathlib.Path:
    """Returns the folder of a model.

    Of a run, a GGUF file or a published model, it is written beside `out` until the stack ends.
    `moved` is where the base of a run of adapters is now, if it has moved.
    """
    from kullback.core import files
    from kullback.experiments.runs import exports, models

    place = models.find(path)
    if place is None or place.form == "folder":
        return path
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    scratch = stack.enter_context(
        tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=out.absolute().parent)
    )
    home = pathlib.Path(scratch) / path.name
    exports.write_folder(path, home, base=moved)
    return home


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Shows a bar of bytes on a terminal, nothing elsewhere."""
    import rich.console
    import rich.progress

    console = rich.console.Console(file=sys.stderr)
    columns = (
        rich.progress.TextColumn("merging"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    hidden = not (console.is_terminal or console.is_jupyter)
    with rich.progress.Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task("merging", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _angles(grams: dict[str, Any]) -> str:
    """Describes the range of cosines between models, over groups; near 0 they share nothing."""
    import numpy as np

    from kullback.core import averaging

    pairs = [averaging.cosine(gram)[np.triu_indices(len(gram), 1)] for gram in grams.values()]
    cosines = np.concatenate(pairs)
    cosines = cosines[~np.isnan(cosines)]
    if not cosines.size:
        return "the models are the base: there are no angles"
    return (
        f"cosines in {len(grams)} group{'s' if len(grams) > 1 else ''}: "
        f"{cosines.min():.3f} to {cosines.max():.3f}, mean {cosines.mean():.3f}"
    )

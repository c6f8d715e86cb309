"""`kullback reproduce NAME`: a paper's claim, run small, with the data and the picture behind it.

A reproduction is one module of `reproductions/` that ends in its `STUDY`. It computes parts (an arm
of a comparison, with one seed), each kept as soon as it is there, so that what was interrupted goes
on from its last part; then it judges.
"""

import dataclasses
import importlib
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from kullback.core import files, json_files, names
from kullback.experiments import catalog, checkout, interrupts, plots, progress
from kullback.experiments.benchmarks import machine
from kullback.experiments.reproductions import study
from kullback.experiments.runs import settings

FORMATS = ("png", "svg")


def load(name: str) -> study.Study:
    """Loads the reproduction `name`.

    Raises:
      ValueError: for an unknown name, with the nearest.
    """
    if name not in catalog.REPRODUCTIONS:
        raise ValueError(names.unknown("reproduction", name, catalog.REPRODUCTIONS, show_all=True))
    module = f"kullback.experiments.reproductions.{name.replace('-', '_')}"
    return importlib.import_module(module).STUDY


def reproduce(
    name: str,
    out: pathlib.Path | None = None,
    assignments: Sequence[str] = (),
    say: Callable[[str], None] = print,
    keep: bool = False,
) -> list[study.Check]:
    """Runs a reproduction and writes its tables, figures and verdict.

    Args:
      name: of `catalog.REPRODUCTIONS`.
      out: folder; where one of the same reproduction and settings was interrupted, it goes on.
        None is runs/reproduce-NAME, with a number if that is taken by other settings.
      assignments: "field=value" of its configuration.
      say: takes each line of what is printed.
      keep: whether tables, figures and verdict are copied into results/reproduce/NAME of the
        checkout, in which nothing may be changed.

    Raises:
      ValueError: for an unknown name or field, a refused value, a folder of something else, or a
        damaged one; to keep, for a checkout with changes, or none.
    """
    entry = load(name)
    kept_in = checkout.clean_root() / "results" / "reproduce" / name if keep else None
    revision = checkout.revision()
    config = settings.apply(entry.config, assignments)
    described = {"reproduction": name, "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    folder = _folder(name, out, described)
    say(f"claim: {entry.claim} ({entry.source})")
    say(f"cost: about {_duration(entry.seconds(config))} on 2 CPU cores; into {folder}")
    files.atomic_write_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
    try:
        with progress.Progress(name, 0, entry.steps(config)) as bar:
            results = entry.run(config, study.Work(folder / "parts", bar))
    except KeyboardInterrupt as error:
        kept = f"interrupted; its whole parts are in {folder}: the same command goes on from there"
        raise interrupts.as_interrupted(error, kept) from error
    for table, rows in results.tables.items():
        files.write_csv(folder / f"{table}.csv", rows)
    for title, drawn in results.figures.items():
        for suffix in FORMATS:
            plots.save(drawn, folder / f"{title}.{suffix}")
    lines = [_verdict(check) for check in results.checks]
    checks = [check._asdict() for check in results.checks]
    verdict = {**described, "checks": checks, "machine": machine.describe()}
    files.atomic_write_text(folder / "verdict.json", json.dumps(verdict, indent=2) + "\n")
    for line in lines:
        say(line)
    for written in (*(f"{n}.csv" for n in results.tables), *(f"{n}.png" for n in results.figures)):
        say(f"written: {folder / written}")
    if kept_in:
        if checkout.revision() != revision:
            raise ValueError(
                f"the checkout has changed while {name} ran, so nothing is kept; the results are "
                f"in {folder}"
            )
        _keep(folder, results, kept_in)
        say(f"kept: {kept_in}")
    return list(results.checks)


def _keep(folder: pathlib.Path, results: study.Results, kept_in: pathlib.Path) -> None:
    """Copies what a reproduction left behind, in place of what an earlier one did."""
    files.remove(kept_in)
    kept_in.mkdir(parents=True)
    figures = (f"{title}.{suffix}" for title in results.figures for suffix in FORMATS)
    tables = (f"{table}.csv" for table in results.tables)
    for written in (*tables, *figures, "config.json", "verdict.json"):
        shutil.copyfile(folder / written, kept_in / written)


def _verdict(check: study.Check) -> str:
    word = {True: "held", False: "DID NOT HOLD", None: "reported"}[check.held]
    return f"{word}: {check.claim}: {check.evidence}"


def _folder(name: str, out: pathlib.Path | None, described: dict[str, Any]) -> pathlib.Path:
    """Returns the folder to write to: a new one, or one in which the same work was begun."""

    def is_ours(path: pathlib.Path) -> bool:
        saved = path / "config.json"
        return saved.is_file() and dict(json_files.read(saved, nan=True).items()) == described

    if out is not None:
        files.check_writable(out / "config.json")
        if not (is_ours(out) or files.is_unused(out)):
            raise ValueError(
                f"{out} exists and is no {name} with these settings; choose another --out"
            )
        return out
    number, path = 1, pathlib.Path("runs") / f"reproduce-{name}"
    while not (is_ours(path) or files.is_unused(path)):
        number += 1
        path = pathlib.Path("runs") / f"reproduce-{name}-{number}"
    return path


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"

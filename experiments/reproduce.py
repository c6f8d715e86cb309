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
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kullback.core import files, json_files, names, typed
from kullback.experiments import catalog, checkout, interrupts, plots, progress
from kullback.experiments.benchmarks import machine
from kullback.experiments.reproductions import judging, study
from kullback.experiments.runs import settings

FORMATS = ("png", "svg")
CONFIG, VERDICT = "config.json", "verdict.json"  # Files of a reproduction's folder.


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
) -> list[judging.Check]:
    """Runs a reproduction and writes its tables, figures, films and verdict.

    Args:
      name: of `catalog.REPRODUCTIONS`.
      out: folder; where one of the same reproduction and settings was interrupted, it goes on.
        None is runs/reproduce-NAME, with a number if that is taken by other settings.
      assignments: "field=value" of its configuration.
      say: takes each line of what is printed.
      keep: whether tables, figures and verdict are copied into results/reproduce/NAME of the
        checkout, in which nothing may be changed.

    Raises:
      ValueError: for an unknown name or field, a refused value, something that it needs and that is
        not there, a folder of something else, or a damaged one; to keep, for a checkout with
        changes, or none.
    """
    entry = load(name)
    kept_in = checkout.clean_root() / "results" / "reproduce" / name if keep else None
    revision = checkout.revision()
    config = settings.apply(entry.config, assignments)
    described = {"reproduction": name, "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    prepared = [*entry.before(config)]
    folder = _folder(name, out, described)
    say(f"claim: {entry.claim} ({entry.source})")
    say(f"cost: about {_duration(entry.seconds(config))} on 2 CPU cores; into {folder}")
    for line in prepared:
        say(line)
    files.atomic_write_text(folder / CONFIG, json.dumps(described, indent=2) + "\n")
    try:
        with progress.Progress(name, 0, entry.steps(config)) as bar:
            results = entry.run(config, study.Journal(folder / "parts", bar))
    except KeyboardInterrupt as error:
        kept = f"interrupted; its whole parts are in {folder}: the same command goes on from there"
        raise interrupts.as_interrupted(error, kept) from error
    for table, rows in results.tables.items():
        files.write_csv(folder / f"{table}.csv", rows)
    for title, drawn in results.figures.items():
        for suffix in FORMATS:
            plots.save(drawn, folder / f"{title}.{suffix}")
    for title, film in results.films.items():
        files.atomic_write_bytes(folder / f"{title}.gif", film.read_bytes())
    _write_verdict(folder, {**described, "machine": machine.describe()}, results.checks)
    _tell(results.checks, say)
    pictures = *(f"{n}.png" for n in results.figures), *(f"{n}.gif" for n in results.films)
    for written in (*(f"{n}.csv" for n in results.tables), *pictures):
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


def judge_again(
    name: str, folder: pathlib.Path, say: Callable[[str], None] = print
) -> list[judging.Check]:
    """Judges a reproduction's tables by today's claims, and writes its verdict.json anew.

    Nothing is run. The settings are those of its config.json; `study.EARLIER` has what a field was
    before there was one. The verdict keeps the machine of the run, and says which revision judged.

    Args:
      name: of `catalog.REPRODUCTIONS`.
      folder: of that reproduction, whole.
      say: takes each line of what is printed; a verdict that has changed says so.

    Raises:
      ValueError: for a folder of something else, or a damaged one, or tables that lack what the
        claims need.
    """
    entry = load(name)
    record = json_files.read(folder / CONFIG, nan=True)
    if (ran := record.get("reproduction", str)) != name:
        raise ValueError(f"{folder} is of {ran}, not of {name}")
    config = _recorded(entry.config, record)
    tables = {path.stem: files.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    try:
        checks = list(entry.claims(config, tables))
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{folder}: its tables are not what today's claims of {name} need ({error!r}); run it "
            "again"
        ) from error
    before = json_files.read(folder / VERDICT, nan=True)
    verdicts = [judging.from_json(check) for check in before.records("checks")]
    described = {key: value for key, value in before.items() if key != "checks"}
    _write_verdict(folder, {**described, "judged_by": checkout.revision()}, checks)
    _tell(checks, say, {check.claim: check.verdict for check in verdicts})
    return checks


def _recorded(config: Any, record: json_files.Record) -> Any:
    """Returns the configuration that a config.json has."""
    hints = {name: hint for name, hint, _ in settings.fields(config)}
    saved = dict(json_files.leaves(record.get("config", dict), hints.keys()))
    if unknown := sorted(set(saved) - set(hints)):
        raise ValueError(f"{record.file}: this version does not know {', '.join(unknown)}")
    values = {
        name: typed.check(f"{record.file}: config.{name}", hint, saved[name])
        for name, hint in hints.items()
        if name in saved
    }
    earlier = {name: x for name, x in study.EARLIER.items() if name in hints}
    return settings.replace(config, earlier | values)


def _write_verdict(
    folder: pathlib.Path, described: dict[str, Any], checks: Sequence[judging.Check]
) -> None:
    verdict = {**described, "checks": [check._asdict() for check in checks]}
    files.atomic_write_text(folder / VERDICT, json.dumps(verdict, indent=2) + "\n")


def _tell(
    checks: Sequence[judging.Check],
    say: Callable[[str], None],
    before: Mapping[str, judging.Verdict] = types.MappingProxyType({}),
) -> None:
    """Says each verdict, headlines first and contradicted ones before others, and their counts."""
    order = [(not check.is_headline, judging.ORDER.index(check.verdict)) for check in checks]
    for n in sorted(range(len(checks)), key=order.__getitem__):
        check = checks[n]
        word = "CONTRADICTED" if check.verdict == "contradicted" else check.verdict
        is_other = before.get(check.claim, check.verdict) != check.verdict
        was = f" (it was {before[check.claim]})" if is_other else ""
        kind = "headline, " if check.is_headline else ""
        say(f"{kind}{word}{was}: {check.claim}: {check.evidence}")
    say(f"of {len(checks)}: {judging.counts(checks)}")


def _keep(folder: pathlib.Path, results: study.Results, kept_in: pathlib.Path) -> None:
    """Copies what a reproduction left behind, in place of what an earlier one did."""
    files.remove(kept_in)
    kept_in.mkdir(parents=True)
    figures = (f"{title}.{suffix}" for title in results.figures for suffix in FORMATS)
    tables = (f"{table}.csv" for table in results.tables)
    films = (f"{title}.gif" for title in results.films)
    for written in (*tables, *figures, *films, CONFIG, VERDICT):
        shutil.copyfile(folder / written, kept_in / written)


def _folder(name: str, out: pathlib.Path | None, described: dict[str, Any]) -> pathlib.Path:
    """Returns the folder to write to: a new one, or one in which the same work was begun."""

    def is_ours(path: pathlib.Path) -> bool:
        if not (path / CONFIG).is_file():
            return False
        saved = dict(json_files.read(path / CONFIG, nan=True).items())
        config = saved.get("config")
        if isinstance(config, dict):  # What it was before there was a field.
            earlier = {k: x for k, x in study.EARLIER.items() if k in described["config"]}
            saved["config"] = earlier | config
        return saved == described

    if out is not None:
        files.check_writable(out / CONFIG)
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

"""The report on a pipeline: what each stage gave, in reward, distance, length, diversity and texts.

It has what was done with all stages, and beside it each of the pipelines from which a stage was
left out, as far as they were run in the same folder.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kullback.core import files, json_files
from kullback.experiments import plots, statistics
from kullback.experiments.pipelines import measures, outputs, stages
from kullback.experiments.report import page

VARIANTS = "variants.json"  # Beside the records: files of measures, by what was left out.
REPORT = "report"


def settings(pipeline: stages.Pipeline, *, trust_code: bool) -> measures.Settings | None:
    """Returns the settings of the report; None if there is none.

    Raises:
      ValueError: for unknown fields, values of another type, or code that is not trusted.
    """
    if not pipeline.report:
        return None
    try:
        given = measures.Settings(**pipeline.report)
        for reward in (given.reward, given.gold):
            stages.check_trust(reward, trust_code=trust_code)
    except (TypeError, ValueError) as error:
        raise ValueError(f"report: {error}") from error
    return given


def write(
    planned: Mapping[str, outputs.Planned],
    left_out: Sequence[str],
    given: measures.Settings | None,
    out: pathlib.Path,
    *,
    say: Callable[[str], Any],
) -> None:
    """Measures each finished model that was not measured before, and writes the report's page.

    Args:
      planned: stages, all finished.
      left_out: stages that this pipeline goes without.
      given: settings; None writes none.
      out: the pipeline's folder.
      say: prints a line.
    """
    if given is None:
        return
    by_stage = _measured(planned, given, out, say)
    if not by_stage:
        say("no report: no stage has made a language model")
        return
    records = out / outputs.RECORDS
    variants = _variants(records)
    variants[_label(left_out)] = {name: file.name for name, file in by_stage.items()}
    files.atomic_write_text(records / VARIANTS, json.dumps(variants, indent=2) + "\n")
    folder = out / REPORT
    page.check_folder(folder)
    measured = read(out, left_out)
    with page.replaced(folder) as temporary, plots.plain_text():
        written = page.Page(temporary, f"Pipeline {out.name}, {_label(left_out)}", say)
        _stages(written, planned, measured, given)
        _gains(written, planned, measured)
        _picture(written, measured, bool(given.gold))
        _left_out(written, records, variants)
        _texts(written, measured)
        written.write()
    say(f"report: {folder / page.INDEX}")


def read(out: pathlib.Path, left_out: Sequence[str] = ()) -> dict[str, measures.Measured]:
    """Returns measures by stage of a pipeline that was run, in the order of its stages.

    Args:
      out: the pipeline's folder.
      left_out: stages that it went without.

    Raises:
      ValueError: if it was not run, or has no report.
    """
    records, label = out / outputs.RECORDS, _label(left_out)
    variants = _variants(records)
    if label not in variants:
        raise ValueError(f"{out} has no report of a pipeline with {label}")
    return {name: measures.read(records / file) for name, file in variants[label].items()}


def _measured(
    planned: Mapping[str, outputs.Planned],
    given: measures.Settings,
    out: pathlib.Path,
    say: Callable[[str], Any],
) -> dict[str, pathlib.Path]:
    """Returns files of measures by stage, of the stages that have made a language model."""
    subjects = {
        name: subject
        for name, one in planned.items()
        if one.stage.command in ("train", "merge", "quantize")
        and (subject := measures.subject(one.path, given)) is not None
    }
    if not subjects:
        return {}

    given = dataclasses.replace(given, start=given.start or f"{{{next(iter(subjects))}}}")

    def with_stages(place: Callable[[str], str]) -> measures.Settings:
        names = {x: stages.filled(getattr(given, x), place) for x in ("reward", "gold", "start")}
        return dataclasses.replace(given, **names)

    keyed = dataclasses.asdict(with_stages(lambda name: planned[name].key))
    digest = hashlib.sha256(json.dumps(keyed).encode()).hexdigest()[:8]
    filled = with_stages(lambda name: str(planned[name].path))
    start_subject = measures.subject(pathlib.Path(filled.start), filled)
    if start_subject is None:
        raise ValueError(f"report: start must be a language model, got {filled.start}")
    measured: dict[str, pathlib.Path] = {}
    for name, subject in subjects.items():
        file = out / outputs.RECORDS / f"{planned[name].label}.measures-{digest}.json"
        if not file.is_file():
            say(f"measuring {planned[name].label}")
            measures.write(file, measures.measure(subject, start_subject.checkpoint, filled))
        measured[name] = file
    return measured


def _variants(records: pathlib.Path) -> dict[str, dict[str, str]]:
    file = records / VARIANTS
    if not file.is_file():
        return {}
    saved = json_files.read(file)
    return {label: saved.record(label).each(str) for label in saved.values}


def _label(left_out: Sequence[str]) -> str:
    return f"without {', '.join(sorted(left_out))}" if left_out else "all stages"


def _estimates(measured: measures.Measured) -> dict[str, statistics.Estimate]:
    """Estimates the columns that are known."""
    return {
        name: statistics.ratio(measured.columns[name])
        for name in measures.COLUMNS
        if not np.all(np.isnan(measured.columns[name]))
    }


def _even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with the same keys each; an estimate that a row lacks is not known, NaN."""
    keys = dict.fromkeys(key for row in rows for key in row)
    unknown = statistics.Estimate(math.nan)
    return [{key: row.get(key, unknown) for key in keys} for row in rows]


def _stages(
    out: page.Page,
    planned: Mapping[str, outputs.Planned],
    by_stage: Mapping[str, measures.Measured],
    given: measures.Settings,
) -> None:
    out.section("Stages")
    rows = []
    for name, one in planned.items():
        record = outputs.read(one)
        row = {
            "stage": name,
            "command": " ".join(one.stage.arguments(lambda n: f"{{{n}}}", one.path.name)),
            "made of": ", ".join(one.parents),
            "seconds": 0.0 if record is None else record.seconds,
        }
        rows.append({**row, **(_estimates(by_stage[name]) if name in by_stage else {})})
    gold = f"; gold is {given.gold}" if given.gold else ""
    out.table(
        "stages",
        _even(rows),
        f"{given.samples} answers at temperature 1 to each of at most {given.episodes} held-out "
        f"prompts of {given.task}; 95% intervals over prompts. The reward is "
        f"{given.reward or 'exact'}{gold}; kl_start is in nats of a text, diversity the share of "
        "distinct bigrams among the answers to a prompt.",
    )


def _gains(
    out: page.Page,
    planned: Mapping[str, outputs.Planned],
    by_stage: Mapping[str, measures.Measured],
) -> None:
    """Adds the differences of each stage to the one that it began with, prompt by prompt."""
    rows = []
    for name, measured in by_stage.items():
        parent = _measured_before(planned[name], by_stage)
        if parent is None:
            continue
        before = by_stage[parent]
        gains = {
            column: statistics.ratio(measured.columns[column] - before.columns[column])
            for column in measures.COLUMNS
            if not np.all(np.isnan(measured.columns[column] - before.columns[column]))
        }
        rows.append({"stage": name, "beyond": parent, **gains})
    if rows:
        out.section("What each stage gave")
        caption = "Differences on the same prompts, with the same random numbers; 95% intervals."
        out.table("gains", _even(rows), caption)


def _measured_before(
    planned: outputs.Planned, by_stage: Mapping[str, measures.Measured]
) -> str | None:
    """Returns the nearest stage with measures of those that a stage began with, or None."""
    for name in stages.references(planned.stage.begins_with)[:1]:
        if name in by_stage:
            return name
        return _measured_before(planned.parents[name], by_stage)
    return None


def _picture(out: page.Page, by_stage: Mapping[str, measures.Measured], has_gold: bool) -> None:
    columns = ("reward", "gold") if has_gold else ("reward",)
    figure = plots.grid(len(columns), 1)
    for axes, column in zip(figure.axes, columns, strict=True):
        for number, (name, measured) in enumerate(by_stage.items()):
            x, y = _estimates(measured).get("kl_start"), statistics.ratio(measured.columns[column])
            if x is None:
                continue
            axes.errorbar(
                x.mean,
                y.mean,
                xerr=[[x.mean - x.low], [x.high - x.mean]],
                yerr=[[y.mean - y.low], [y.high - y.mean]],
                fmt="o",
                color=f"C{number % 10}",
                capsize=2,
                label=name,
            )
        axes.set_xlabel("KL to the start (nats of a text)")
        axes.set_ylabel(column)
        axes.legend(fontsize="small")
    out.section("Reward and distance")
    out.figure("front", figure, "Means over held-out prompts by stage, with 95% intervals.")


def _left_out(
    out: page.Page, records: pathlib.Path, variants: Mapping[str, Mapping[str, str]]
) -> None:
    """Adds the last model of each pipeline that was run here, beside that with all stages."""
    present = {
        label: measures.read(records / by_stage[last])
        for label, by_stage in variants.items()
        if by_stage and (records / by_stage[last := list(by_stage)[-1]]).is_file()
    }
    if len(present) < 2:
        return
    rows: list[dict[str, Any]] = []
    whole = present.get(_label(()))
    for label, measured in present.items():
        row: dict[str, Any] = {"pipeline": label, **_estimates(measured)}
        for column in ("reward", "gold"):
            if whole is not None and measured is not whole and column in row:
                difference = whole.columns[column] - measured.columns[column]
                row[f"{column} that was lost"] = statistics.ratio(difference)
        rows.append(row)
    out.section("Stages left out")
    out.table(
        "left-out",
        _even(rows),
        "The last model of each pipeline that was run in this folder; what was lost is that of all "
        "stages less this one's, prompt by prompt.",
    )


def _texts(out: page.Page, by_stage: Mapping[str, measures.Measured]) -> None:
    out.section("Answers side by side")
    firsts = next(iter(by_stage.values())).texts
    rows = [
        {
            "prompt": text["prompt"],
            "target": text["target"],
            **{name: measured.texts[n]["answer"] for name, measured in by_stage.items()},
        }
        for n, text in enumerate(firsts)
    ]
    out.table("texts", rows, "Greedy answers to the first held-out prompts.")

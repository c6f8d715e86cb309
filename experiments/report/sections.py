"""The sections that every report has: environments one by one, speed, settings, seeds."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from kullback.experiments import plots, statistics
from kullback.experiments.report import collect, figures, page, scores
from kullback.experiments.report.chapters import Chapter
from kullback.experiments.runs import inputs

CURVE_RESAMPLES = 2_000


def seeds(out: page.Page, family: collect.Family) -> None:
    """Adds what is missing, unfinished or has diverged."""
    missing = [
        f"{row.label} on {row.environment}: "
        + (f"seeds {collect.spans(row.missing)}" if row.present else "no run")
        for row in family.seeds
        if row.missing
    ]
    unfinished = [
        f"seed {seed.seed} of {seed.label} on {seed.environment}: {seed.last:,} of "
        f"{seed.run.plan.steps:,} steps"
        for seed in family.series
        if seed.last < seed.run.plan.steps and seed.seed not in seed.run.diverged
    ]
    diverged = [
        f"seed {seed} of {label} on {run.plan.environment}: {reason}"
        for label in family.labels
        for run in family.runs[label]
        for seed, reason in run.diverged.items()
    ]
    if missing:
        out.warning("Seeds are missing; the rest is used.", missing, "missing")
    if unfinished:
        text = "Some runs are not finished, and used up to where they are."
        out.warning(text, unfinished, "unfinished")
    if diverged:
        text = "Some runs have diverged, and are used up to where they did."
        out.warning(text, diverged, "diverged")


def seed_table(out: page.Page, family: collect.Family) -> None:
    """Adds a table of the seeds, a row an agent and environment."""
    rows = [
        {
            "agent": row.label,
            "environment": row.environment,
            "found": collect.spans(row.present),
            "missing": collect.spans(row.missing),
        }
        for row in family.seeds
    ]
    out.heading("Seeds")
    out.table(
        f"{family.name}-seeds", rows, "Seeds found; expected are those of any run of this family."
    )


def curves(
    series: Sequence[collect.Series], column: str, share: float = 0.0
) -> dict[str, figures.Curve]:
    """Averages a column over seeds, by agent, up to the step that all its seeds have reached."""
    curves_by_label = {}
    for label in sorted({seed.label for seed in series}):
        seeds = [seed for seed in series if seed.label == label]
        steps = scores.checkpoints(seeds)
        values = scores.curve(seeds, steps, column, share)  # [G, N]
        known = np.isfinite(values).all(axis=-1)
        if known.any():
            mean = statistics.stratified(
                statistics.mean, [values[known]], resamples=CURVE_RESAMPLES
            )
            thin = [(seed.steps, seed.columns[column]) for seed in seeds]
            curves_by_label[label] = figures.Curve(steps[known], mean, thin)
    return curves_by_label


def environment_curves(chapter: Chapter) -> None:
    """Adds a learning curve of each environment, all agents in it."""
    out, family, kind = chapter.out, chapter.family, chapter.kind
    has_texts = family.traits.has_texts
    labels = ("score", plots.TEXTS.x) if has_texts else (kind.short, plots.GAMES.x)
    by_environment = {
        environment: curves(
            [s for s in family.series if s.environment == environment], kind.column, kind.share
        )
        for environment in family.environments
    }
    if not any(by_environment.values()):  # Language models that sample nothing have losses only.
        return
    out.heading("Learning curves")
    with out.figures():
        for environment, curves_by_label in by_environment.items():
            if not curves_by_label:
                continue
            counts = ", ".join(f"{len(one.seeds)} of {k}" for k, one in curves_by_label.items())
            out.figure(
                f"{environment}-curve",
                figures.curves(curves_by_label, chapter.colour, environment, *labels),
                f"{environment}, {kind.meaning}, raw: mean over seeds with a 95% bootstrap band, "
                f"seeds thin. Seeds: {counts}.",
                figures.rows(curves_by_label, "score"),
            )


def score_table(out: page.Page, family: str, compared: Sequence[scores.Comparison]) -> None:
    """Adds the scores of each agent on each environment, raw and beside published ones."""
    rows: list[dict[str, Any]] = []
    for comparison in compared:
        for label, environment in itertools.product(comparison.labels, _games(comparison)):
            if environment in comparison.scores[label]:
                rows.append(_score_row(comparison, label, environment))
    rows.sort(key=lambda row: (row["environment"], row["agent"]))
    human = any(scores.has(row["environment"], human=True) for row in rows)
    for row in rows:
        if human:
            del row["score - random"]
        elif not any(scores.has(other["environment"]) for other in rows):
            del row["random"], row["score - random"]
        if not human:
            del row["human"], row["human-normalised"]
    if rows:
        out.heading("Scores")
        name = scores.KINDS[compared[0].kind].meaning
        out.table(
            f"{family}-scores",
            rows,
            f"Score: {name}, mean over seeds with its 95% bootstrap interval (none of one seed).",
        )


def _score_row(compared: scores.Comparison, label: str, environment: str) -> dict[str, Any]:
    raw = compared.scores[label][environment]
    estimate = statistics.stratified(statistics.mean, [raw])
    known = scores.KNOWN.get(environment)
    random = known.random if known is not None and known.random is not None else float("nan")
    human = known.human if known is not None and known.human is not None else float("nan")
    normalised = statistics.Estimate(float("nan"), float("nan"), float("nan"))
    if scores.has(environment, human=True):
        normalised = statistics.Estimate(
            *(float(scores.human_normalised(environment, value)) for value in estimate)
        )
    return {
        "environment": environment,
        "agent": label,
        "score": estimate,
        "seeds": raw.size,
        "steps": compared.steps,
        "lowest": float(raw.min()),
        "highest": float(raw.max()),
        "random": random,
        "human": human,
        "human-normalised": normalised,
        "score - random": statistics.Estimate(*(value - random for value in estimate)),
    }


def speed(out: page.Page, family: collect.Family) -> None:
    """Adds steps per second, a row an agent and environment."""
    by_environment: dict[tuple[str, str], list[collect.Series]] = {}
    for seed in family.series:
        if seed.columns.get("wall_seconds", np.zeros(1))[-1] > 0:
            by_environment.setdefault((seed.environment, seed.label), []).append(seed)
    rows = []
    for (environment, label), series in sorted(by_environment.items()):
        seconds = np.array([seed.columns["wall_seconds"][-1] for seed in series])
        steps = np.array([seed.last for seed in series])
        # Host runs have a program a seed, compiled ones a program for all.
        together = {
            seed.run.plan.num_seeds if seed.run.config.get("loop") == "compiled" else 1
            for seed in series
        }
        frames = max(seed.run.frames_per_step for seed in series)
        rate = float(np.median(steps / seconds))
        rows.append(
            {
                "environment": environment,
                "agent": label,
                "steps per second": rate,
                "frames per second": rate * frames,
                "hours": float(np.median(seconds)) / 3600,
                "seeds": len(series),
                "seeds in a program": collect.spans(sorted(together)),
            }
        )
    if rows:
        out.heading("Speed")
        out.table(
            f"{family.name}-speed",
            rows,
            "Steps of one seed by wall time of its run, compilation and evaluations in it: medians "
            "over seeds. Machines and their load are those of the runs.",
        )


def settings(out: page.Page, family: collect.Family) -> None:
    """Adds the differences between runs: settings, versions, machines."""
    facts = {
        label: [
            {
                **run.settings,
                "steps": str(run.plan.steps),
                "environment_flags": _flags(run),
                "input_rules": str(run.config.get("spec", {}).get(inputs.RULES, 1)),
                **{name: str(run.config.get(name)) for name in ("loop", "git_revision", "machine")},
                **{f"version of {k}": str(v) for k, v in run.config.get("versions", {}).items()},
            }
            for run in runs
        ]
        for label, runs in family.runs.items()
    }
    keys = collect.varying(list(itertools.chain.from_iterable(facts.values())))
    rows = [
        {
            "setting": key,
            **{
                label: " | ".join(dict.fromkeys(one.get(key, "-") for one in facts[label]))
                for label in family.labels
            },
        }
        for key in keys
    ]
    out.heading("Settings that differ")
    if rows:
        out.table(f"{family.name}-settings", rows, "All other settings are equal in all runs.")
    else:
        out.paragraph("All settings are equal in all runs.")


def _flags(run: collect.Run) -> str:
    return " ".join(f"{k}={v}" for k, v in collect.protocol(run).items()) or "none"


def _games(compared: scores.Comparison) -> list[str]:
    return sorted({name for games in compared.scores.values() for name in games})

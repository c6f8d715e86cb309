"""`kullback report RUNS...`: one page about many runs, with the pictures and tables beside it."""

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from kullback import agents
from kullback.core import names
from kullback.experiments import plots
from kullback.experiments.report import (
    aggregates,
    chapters,
    collect,
    comparisons,
    language,
    page,
    published,
    published_curves,
    scores,
    sections,
    standing,
)
from kullback.experiments.runs import run_folder

__all__ = ["PUBLICATIONS", "write"]

# What `--published` takes: a table of aggregates, and curves.
PUBLICATIONS = (published.NAME, *published_curves.SOURCES)


def write(
    runs: Sequence[str | pathlib.Path],
    out: str | pathlib.Path | None = None,
    *,
    baseline: str | None = None,
    denominator: str = "baseline",
    score: str = "training",
    steps: int | None = None,
    compare: Sequence[str] = (),
    with_published: Sequence[str] = (),
    say: Callable[[str], Any] = print,
) -> pathlib.Path:
    """Writes index.html, self-contained, with its PNGs and CSVs, and returns its path.

    Args:
      runs: folders of runs, or folders of such; unfinished runs are used as far as they go.
      out: folder, new or of an old report, which is then replaced; None is the next free one
        under runs/.
      baseline: the agent that others are compared with, by its name in the report.
      denominator: what improvements are measured in: "baseline" is |b - random|, "human"
        |human - random|, "largest" the larger of both.
      score: "training", returns of the last 100 training episodes; "last-tenth", those of the last
        tenth of the steps; or "evaluation".
      steps: number at which agents are compared; None is the fewest that a run has done, over all
        games in Atari and MinAtar, else for each environment.
      compare: pairs of agents, each "AGENT:AGENT", which are compared over the games of both,
        beside all others over the baseline.
      with_published: of PUBLICATIONS: "munchausen" adds its aggregates, in a table; "dopamine" and
        "btr" have curves, which are drawn beside ours on Atari.
      say: prints a line.

    Raises:
      ValueError: if there is no run, runs have different rules, a seed is there twice, the
        baseline or an agent that is compared is unknown, or `out` holds something else.
    """
    folder = run_folder.next_free(pathlib.Path("runs/report")) if out is None else pathlib.Path(out)
    page.check_folder(folder)
    paths = [pathlib.Path(path) for path in runs]
    families = collect.families(paths)
    to_come = [line for path in paths for line in collect.not_begun(path)]
    labels = sorted({label for family in families for label in family.runs})
    if baseline is not None and baseline not in labels:
        raise ValueError(names.unknown("baseline", baseline, labels, show_all=True))
    declared = [comparisons.parse(text) for text in compare]
    for label in itertools.chain.from_iterable(declared):
        if label not in labels and label not in agents.AGENTS:  # Its runs may be to come.
            raise ValueError(names.unknown("agent to compare", label, labels, show_all=True))
    for publication in with_published:
        if publication not in PUBLICATIONS:
            raise ValueError(names.unknown("publication", publication, PUBLICATIONS, show_all=True))
    if denominator not in scores.DENOMINATORS:
        raise ValueError(
            f"denominator must be one of {', '.join(scores.DENOMINATORS)}, got {denominator!r}"
        )
    compared = {family.name: _comparisons(family, score, steps) for family in families}
    all_compared = list(itertools.chain.from_iterable(compared.values()))
    if steps is not None and not any(comparison.used for comparison in all_compared):
        reasons = [line for comparison in all_compared for line in comparison.left_out]
        raise ValueError(f"nothing can be compared after {steps:,} steps: {reasons[0]}")
    with page.replaced(folder) as temporary, plots.plain_text():
        written = page.Page(temporary, _title(families), say)
        _introduction(written, families, labels, score)
        if to_come:
            written.warning("Some runs of a sweep are not begun.", to_come, "not begun")
        if changed := [line for x in families for run in x.all_runs for line in run.changed]:
            written.warning("Some runs are not as they were saved.", changed, "changed")
        ours: list[dict[str, Any]] = []
        for family in families:
            chapter = chapters.Chapter(
                out=written,
                family=family,
                score=score,
                baseline=baseline,
                denominator=denominator,
            )
            rows = _write(chapter, compared[family.name], declared, steps)
            if family.name == "atari":
                _stand(chapter, [x for x in published_curves.SOURCES if x in with_published])
            ours.extend(_beside_published(family, compared[family.name], rows))
        if published.NAME in with_published:
            written.section("Published results")
            written.table(
                "published",
                published.rows(ours),
                f"As published: {published.WHERE}. Sets of games, seeds and frames differ from "
                "ours where the table says so: such numbers cannot be compared.",
            )
        written.write()
    say(f"report: {folder / page.INDEX}")
    return folder / page.INDEX


def _title(families: Sequence[collect.Family]) -> str:
    count = sum(len(family.all_runs) for family in families)
    return f"Report on {count} run{'s' * (count != 1)}"


def _introduction(
    out: page.Page, families: Sequence[collect.Family], labels: Sequence[str], kind: str
) -> None:
    where = sorted({name for family in families for name in family.environments})
    out.paragraph(f"Agents: {', '.join(labels)}. Environments: {', '.join(where)}.")
    out.paragraph(
        f"The score of a run after t steps is the {scores.KINDS[kind].meaning} that it had by "
        "then. Every figure names the games that it is of."
    )


def _comparisons(family: collect.Family, kind: str, steps: int | None) -> list[scores.Comparison]:
    """Compares agents over all games of a family that is aggregated, else on each environment."""
    if not family.series:
        return []
    if family.traits.is_aggregated:
        return [scores.compare(family.series, kind, steps)]
    series = [[s for s in family.series if s.environment == e] for e in family.environments]
    return [scores.compare(seeds, kind, steps) for seeds in series if seeds]


def _write(
    chapter: chapters.Chapter,
    compared: Sequence[scores.Comparison],
    declared: Sequence[comparisons.Pair],
    steps: int | None,
) -> list[dict[str, Any]]:
    """Adds a family's section; returns rows of human-normalised aggregates.

    Args:
      chapter: of the family.
      compared: over all its games, or on each.
      declared: pairs of agents.
      steps: at which agents are compared, if they were given, and not found.
    """
    is_asked = steps is not None
    out, family = chapter.out, chapter.family
    out.section(family.traits.title)
    sections.seeds(out, family)
    for comparison in compared:
        cut = [s for s in comparison.used if s.last > comparison.steps]
        if cut:
            where = "" if family.traits.is_aggregated else f" on {cut[0].environment}"
            reason = "as asked for" if is_asked else "the most that all have done"
            text = f"scores{where} are read after {comparison.steps:,} steps, {reason}"
            out.say(f"cut: {text}")
            later = " --steps N reads them later, and leaves out what has done less."
            out.warning(
                f"Of runs of different lengths, {text}.{'' if is_asked else later}",
                _lengths(comparison.used),
            )
        if comparison.left_out:
            out.warning("Some seeds are not among the scores.", comparison.left_out, "left out")
    rows: list[dict[str, Any]] = []
    if family.traits.is_aggregated:
        for comparison in compared:
            rows = aggregates.write(chapter, comparison)
        comparisons.write(chapter, declared, steps)
    else:
        out.paragraph("Scores are raw, each environment by itself: none are put together.")
    sections.environment_curves(chapter)
    sections.score_table(out, family.name, compared)
    if family.traits.has_texts:
        language.write(chapter)
    sections.speed(out, family)
    sections.settings(out, family)
    sections.seed_table(out, family)
    return rows


def _stand(chapter: chapters.Chapter, drawn: Sequence[str]) -> None:
    """Adds where runs on Atari stand beside published curves, which are drawn if asked for."""
    for source in drawn or list(published_curves.SOURCES)[:1]:
        standing.write(chapter, source, is_drawn=bool(drawn))


def _lengths(series: Sequence[collect.Series]) -> list[str]:
    return [f"seed {s.seed} of {s.label} on {s.environment}: {s.last:,} steps" for s in series]


def _beside_published(
    family: collect.Family,
    compared: Sequence[scores.Comparison],
    rows: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Turns our aggregates into rows of the published table."""
    if not rows:
        return []
    (comparison,) = compared
    games = [name for name in comparison.shared() if scores.has(name, human=True)]
    rules = collect.protocol(comparison.used[0].run)
    flags = ", ".join(f"{k}={v}" for k, v in rules.items()) or "sticky actions"
    frames = comparison.used[0].run.frames_per_step
    which = aggregates.set_of(games, family.traits.title)
    return [
        {
            "agent": row["agent"],
            "source": "this report",
            "games": f"{which}; {flags}, {row['runs']} runs",
            "frames": comparison.steps * frames,
            "human-normalised mean, %": 100 * float(row["mean"].mean),
            "human-normalised median, %": 100 * float(row["median"].mean),
        }
        for row in rows
    ]

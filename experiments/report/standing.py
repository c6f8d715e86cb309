"""The part of a report that says where runs on Atari stand beside published curves.

Published figures are of whole tens of millions of frames, means over seeds. Ours are read at the
same frames: the last published point that all seeds of an agent on a game have reached, or, before
the first, where they are. Whatever is put together over games is over those that both have.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kullback import environments
from kullback.core import typed
from kullback.experiments import statistics
from kullback.experiments.report import (
    aggregates,
    collect,
    figures,
    published_curves,
    scores,
    sections,
)
from kullback.experiments.report.chapters import Chapter
from kullback.experiments.report.published_curves import Curve, Source

# Published torsos by the names of ours; all others are compared with "cnn".
TORSOS = {"impala": "impala", "impala_small": "impala"}
# Over games, each of which counts once: published figures have no runs.
OVER_GAMES = {
    "median": statistics.median,
    "IQM": lambda *games: statistics.interquartile_mean(
        *(game.mean(axis=-1, keepdims=True) for game in games)
    ),
    "mean": statistics.mean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """An agent of ours on a game, and the published curves beside it."""

    label: str
    environment: str
    series: tuple[collect.Series, ...]  # Its seeds, which have a score.
    frames: int  # That all seeds have done.
    published: tuple[Curve, ...]

    @property
    def read(self) -> int:
        """The frames at which our score is read."""
        return self.frames // published_curves.EVERY * published_curves.EVERY or self.frames

    @property
    def compared(self) -> int:
        """The frames of the published figures."""
        return max(self.read, published_curves.EVERY)


def write(chapter: Chapter, source: str, *, is_drawn: bool) -> None:
    """Adds where the runs stand, and what differs between their protocols.

    Args:
      chapter: of Atari.
      source: of `published_curves.SOURCES`.
      is_drawn: whether curves and aggregates over games are added too.
    """
    out, about = chapter.out, published_curves.SOURCES[source]
    stand = list(_standings(chapter, published_curves.load(source)))
    out.heading(f"Beside published curves: {about.title}")
    if not stand:
        out.paragraph(f"No run has a score on a game of {about.title}.")
        return
    labels = sorted({curve.label for one in stand for curve in one.published})
    out.table(
        f"atari-published-{source}",
        [_row(chapter, one, labels) for one in stand],
        f"Published: {about.meaning}; {about.where} ({about.licence}). Ours: "
        f"{chapter.kind.meaning}, mean over seeds with a 95% bootstrap interval, read at the same "
        'frames; "had first by" is the published curve that was the first to have our score.',
    )
    if early := [one for one in stand if one.frames < published_curves.EVERY]:
        out.warning(
            "Some runs are shorter than what is published begins: their scores stand beside "
            f"figures of {published_curves.EVERY:,} frames.",
            [f"{one.label} on {one.environment}: {one.frames:,} frames" for one in early],
        )
    out.heading(f"What differs from the protocol of {about.title}")
    differences = _differences(chapter, about, stand)
    out.table(
        f"atari-published-{source}-protocol",
        differences,
        "Rules of the games, and settings of agents of the same name; what is not here is equal, "
        "or not published.",
    )
    if is_drawn:
        _curves(chapter, source, stand)
        _aggregates(chapter, source)


def _standings(chapter: Chapter, published: Mapping[str, Sequence[Curve]]) -> Iterator[Standing]:
    kind = chapter.kind
    for environment in chapter.family.environments:
        for label in chapter.family.labels:
            series = tuple(
                s
                for s in chapter.family.series
                if (s.label, s.environment) == (label, environment)
                and np.isfinite(s.columns.get(kind.column, np.array([]))).any()
            )
            if not series or environment not in published:
                continue
            torso = torso_of(series[0].run)
            on_game = published[environment]
            curves = [curve for curve in on_game if curve.torso == torso] or on_game
            one = Standing(
                label=label,
                environment=environment,
                series=series,
                frames=min(s.last for s in series) * published_curves.FRAMES_PER_STEP,
                published=tuple(curves),
            )
            if np.isfinite(_scores(chapter, one)).all():  # Evaluations may be later.
                yield one


def torso_of(run: collect.Run) -> str:
    """Returns the published torso that is like that of a run."""
    named = [value for name, value in run.settings.items() if name.split(".")[-1] == "torso"]
    return TORSOS.get(named[0], "cnn") if named else "cnn"


def _scores(chapter: Chapter, one: Standing) -> np.ndarray:
    """Returns a score a seed, [N], where they are read; NaN where there is none by then."""
    kind, steps = chapter.kind, np.array([one.read // published_curves.FRAMES_PER_STEP])
    return scores.curve(one.series, steps, kind.column, kind.share)[0]


def _row(chapter: Chapter, one: Standing, labels: Sequence[str]) -> dict[str, Any]:
    values = _scores(chapter, one)
    score = statistics.stratified(statistics.mean, [values])
    there = {curve.label: curve.at(one.compared) for curve in one.published}
    return {
        "environment": one.environment,
        "agent": one.label,
        "seeds": len(values),
        "frames": one.read,
        "score": score,
        "published at": one.compared,
        **{label: there.get(label, float("nan")) for label in labels},
        "above": f"{sum(score.mean > figure for figure in there.values())} of {len(there)}",
        "had first by": _first(one.published, float(score.mean)),
    }


def _first(published: Sequence[Curve], score: float) -> str:
    """Returns the published curve that had a score first, and when."""
    reached = [(c.first_at_least(score), c.label) for c in published]
    frames, label = min(((f, k) for f, k in reached if f is not None), default=(0, ""))
    return f"{label} by {frames / 1e6:.0f}M" if label else "none"


def _differences(
    chapter: Chapter, about: Source, stand: Sequence[Standing]
) -> list[dict[str, str]]:
    """Returns what differs: the score, rules of the games, settings of agents of the same name."""
    rows = [_difference("the score", "", chapter.kind.meaning, about.meaning)]
    if chapter.score == "evaluation":
        epsilons = sorted({_setting(one.series[0].run, "epsilon_evaluate") for one in stand})
        rows[0]["ours"] += f", at an epsilon of {' or '.join(epsilons)}"
    run, name = stand[0].series[0].run, stand[0].environment  # All are of one protocol.
    defaults = {k: known.default for k, known in environments.parameters(name).items()}
    usual = {k: str(v).lower() for k, v in environments.complete(name, defaults).items()}
    ours, theirs = {**usual, **collect.protocol(run)}, {**usual, **about.flags}
    rows += [_difference(k, "", ours[k], theirs[k]) for k in ours if ours[k] != theirs.get(k)]
    for one in {one.label: one for one in stand}.values():
        run = one.series[0].run
        like, described = about.torsos[one.published[0].torso]
        torso = _setting(run, "torso")
        if torso != like:
            rows.append(_difference("torso", one.label, torso, described))
        rows += [
            _difference(key, one.label, mine, f"{value:g}")
            for key, value in about.settings.get(run.plan.agent, {}).items()
            if (mine := _setting(run, key)) and not _equal(mine, value)
        ]
    return rows


def _difference(what: str, agent: str, ours: str, published: str) -> dict[str, str]:
    return {"what": what, "agent": agent, "ours": ours, "published": published}


def _setting(run: collect.Run, key: str) -> str:
    """Returns a setting by bare name as text, "" where a run has none."""
    return next((v for k, v in run.settings.items() if k.split(".")[-1] == key), "")


def _equal(mine: str, published: float) -> bool:
    return typed.is_number(mine) and float(mine) == published


def _curves(chapter: Chapter, source: str, stand: Sequence[Standing]) -> None:
    """Draws our curves over the published ones, a figure a game, against frames."""
    out, kind, about = chapter.out, chapter.kind, published_curves.SOURCES[source]
    by_game: dict[str, list[Standing]] = {}
    for one in stand:
        by_game.setdefault(one.environment, []).append(one)
    with out.figures():
        for environment, on_game in by_game.items():
            series = [s for one in on_game for s in one.series]
            ours = {
                label: figures.Curve(curve.steps * published_curves.FRAMES_PER_STEP, curve.estimate)
                for label, curve in sections.curves(series, kind.column, kind.share).items()
            }
            theirs = {curve.label: curve for one in on_game for curve in one.published}
            drawn = {f"{label}, published": (c.frames, c.means) for label, c in theirs.items()}
            out.figure(
                f"{environment}-published-{source}",
                figures.beside(ours, drawn, chapter.colour, environment, kind.short),
                f"{environment}: solid, ours, {kind.meaning}; dashed, published by {about.title}, "
                f"{about.meaning} ({about.where}, {about.licence}).",
                [
                    *({**row, "source": "this report"} for row in _points(ours)),
                    *(
                        {"agent": c.label, "frames": int(f), "score": float(m), "source": source}
                        for c in theirs.values()
                        for f, m in zip(c.frames, c.means, strict=True)
                    ),
                ],
            )


def _points(ours: Mapping[str, figures.Curve]) -> Iterator[dict[str, Any]]:
    for row in figures.rows(ours, "score"):
        mean = row["score"].mean  # pyright: ignore[reportAttributeAccessIssue]  # An Estimate.
        yield {"agent": row["agent"], "frames": row["steps"], "score": float(mean)}


def _aggregates(chapter: Chapter, source: str) -> None:
    """Adds human-normalised aggregates over the games that all agents and the source have."""
    out, family = chapter.out, chapter.family
    published = published_curves.load(source)
    about = published_curves.SOURCES[source]
    every, per_step = published_curves.EVERY, published_curves.FRAMES_PER_STEP
    out.heading(f"Over games, beside {about.title}")
    compared = scores.compare(family.series, chapter.score)
    frames = compared.steps * per_step // every * every
    if not frames:
        out.paragraph(
            f"Nothing is put together over games: some runs have done {compared.steps * per_step:,}"
            f" frames, and what is published begins at {every:,}."
        )
        return
    compared = scores.compare(family.series, chapter.score, frames // per_step)
    games = tuple(
        game for game in compared.shared() if game in published and scores.has(game, human=True)
    )
    if not games:
        out.paragraph("No game has scores of all agents, published figures and human scores.")
        return
    torsos = sorted({torso_of(s.run) for s in compared.used})
    curves = {curve.label: curve for game in games for curve in published[game]}
    chosen = [k for k, c in curves.items() if c.torso in torsos] or list(curves)
    normalised = {
        (label, "this report"): [
            scores.human_normalised(game, compared.scores[label][game]) for game in games
        ]
        for label in compared.labels
    }
    for label in chosen:
        on_games = [c.at(frames) for g in games for c in published[g] if c.label == label]
        normalised[label, f"published, {source}"] = [
            np.array([scores.human_normalised(game, value)])
            for game, value in zip(games, on_games, strict=True)
        ]
    out.table(
        f"atari-published-{source}-aggregates",
        [
            {
                "agent": label,
                "source": where,
                "games": len(games),
                **{
                    name: statistics.stratified(statistic, values)
                    for name, statistic in OVER_GAMES.items()
                },
            }
            for (label, where), values in normalised.items()
        ],
        f"Human-normalised score after {frames:,} frames, each game counted once, "
        f"{aggregates.set_of(games, family.traits.title)}; 95% bootstrap intervals over our seeds, "
        f"none of what is published ({about.where}, {about.licence}).",
    )

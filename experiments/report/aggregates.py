"""The section on several games at once: normalised scores, and chances of improvement.

Every figure is over one set of games, which its title names: those on which each agent of the
report has a score.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kullback.experiments import statistics
from kullback.experiments.report import figures, scores
from kullback.experiments.report.chapters import Chapter

NAMED = 6  # Most games that a title names; of more it gives the number.
THRESHOLDS = 101  # Points of a performance profile.
CURVE_RESAMPLES = 2_000
MOST = 8.0  # Largest normalised score of a profile.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Scores of several games made comparable."""

    name: str  # For names of files.
    unit: str
    games: tuple[str, ...]
    normalise: Callable[[str, Any], Any]  # (environment, scores) -> normalised.
    note: str = ""  # On its intervals.


def counted(games: Sequence[str]) -> str:
    """Writes the number of games, "3 games"."""
    return f"{len(games)} game{'s' * (len(games) != 1)}"


def set_of(games: Sequence[str], family: str) -> str:
    """Names the games for a title."""
    count = f"{counted(games)} of {family}"
    if len(games) > NAMED:
        return count
    return f"{count}: {', '.join(game.split('/', 1)[-1] for game in games)}"


def scales(
    compared: scores.Comparison, games: Sequence[str], baseline: str | None
) -> Iterator[Scale]:
    """Yields normalisations of these games, if human scores or a baseline are known."""
    by_humans = tuple(game for game in games if scores.has(game, human=True))
    if by_humans:
        yield Scale(
            name="human",
            unit="Human-normalised score",
            games=by_humans,
            normalise=scores.human_normalised,
        )
    if baseline in compared.labels:
        means = {game: float(compared.scores[baseline][game].mean()) for game in games}
        over_random = {
            game: scores.denominator(game, means[game]) for game in games if scores.has(game)
        }
        usable = tuple(game for game, value in over_random.items() if value > 0)
        if usable:
            yield Scale(
                name=f"by-{baseline}",
                unit=f"Score normalised by {baseline}",
                games=usable,
                note=f"; the mean of {baseline} is held fixed",
                normalise=lambda game, score: (
                    (score - scores.KNOWN[game].random) / over_random[game]
                ),
            )


def write(chapter: Chapter, compared: scores.Comparison) -> list[dict[str, Any]]:
    """Adds the section's parts; returns rows for the table of published results."""
    out, family, baseline = chapter.out, chapter.family, chapter.baseline
    games = compared.shared()
    others = [name for name in family.environments if name not in games]
    if not games:
        out.warning("No game has scores of all agents, so nothing is put together over games.")
        return []
    if others:
        out.warning(
            f"Aggregates are over the {len(games)} of {len(family.environments)} games on which "
            "every agent has a score.",
            [f"left out: {name}" for name in others],
        )
    counts = {compared.scores[label][game].size for label in compared.labels for game in games}
    if len(counts) > 1:
        out.warning(
            f"Games have {min(counts)} to {max(counts)} seeds: means and medians weigh games "
            "equally, the IQM weighs runs equally."
        )
    usable = list(scales(compared, games, baseline))
    if not usable:
        out.paragraph(
            "Scores are not put together over games: no human scores are published for these. "
            "--baseline AGENT normalises by an agent of this report."
        )
    lacking = [game for game in games if not scores.has(game, human=True)]
    if lacking and family.traits.has_human_scores:
        out.paragraph(f"Human scores are not published of {', '.join(lacking)}.")
    human_normalised: list[dict[str, Any]] = []
    for scale in usable:
        rows = _scale(chapter, compared, scale)
        if scale.name == "human":
            human_normalised = rows
    _chances(chapter, compared, games)
    if baseline in compared.labels:
        _improvements(chapter, compared, games, baseline)
    return human_normalised


def _scale(chapter: Chapter, compared: scores.Comparison, scale: Scale) -> list[dict[str, Any]]:
    """Adds statistics, profile and sample efficiency on one scale; returns the table's rows."""
    out, colour, games = chapter.out, chapter.colour, scale.games
    stem = f"{chapter.family.name}-{scale.name}"
    unit = scale.unit[0].lower() + scale.unit[1:]  # Within a line.
    which = set_of(games, chapter.family.traits.title)
    normalised = {
        label: [scale.normalise(game, compared.scores[label][game]) for game in games]
        for label in compared.labels
    }
    aggregates = {
        name: {
            label: statistics.stratified(statistic, values) for label, values in normalised.items()
        }
        for name, statistic in statistics.AGGREGATES.items()
    }
    out.heading(f"{scale.unit}, {counted(games)}")
    if len(games) > NAMED:
        out.folded(which, ", ".join(games))
    where = f"{scale.unit} after {compared.steps:,} steps, {which}"
    rows = [
        {
            "agent": label,
            "games": len(games),
            "runs": sum(game.size for game in normalised[label]),
            **{name: aggregates[name][label] for name in aggregates},
        }
        for label in normalised
    ]
    note = (
        f"95% stratified bootstrap intervals over seeds, none where each game has one{scale.note}"
    )
    out.table(f"{stem}-aggregates", rows, f"{where}; {note}.")
    with out.figures():
        out.figure(
            f"{stem}-aggregates",
            figures.intervals(aggregates, colour, which, scale.unit),
            f"{where}; {note}.",
        )
        thresholds = _thresholds(normalised)
        profiles = {k: statistics.profile(values, thresholds) for k, values in normalised.items()}
        out.figure(
            f"{stem}-profile",
            figures.profiles(thresholds, profiles, colour, which, unit),
            f"Performance profile: fraction of runs above a threshold. {where}.",
            [
                {"agent": label, "threshold": t, "fraction": statistics.Estimate(*estimate)}
                for label, profile in profiles.items()
                for t, *estimate in zip(thresholds, *profile, strict=True)
            ],
        )
        if curves := _sample_efficiency(compared, scale):
            out.figure(
                f"{stem}-sample-efficiency",
                figures.curves(curves, colour, which, f"IQM, {unit}", "agent steps"),
                f"Sample efficiency: IQM at each checkpoint. {scale.unit}, {which}.",
                figures.rows(curves, "IQM"),
            )
    return rows


def _thresholds(normalised: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    pooled = np.concatenate([game for games in normalised.values() for game in games])
    low, high = min(0.0, float(pooled.min())), max(1.0, float(pooled.max()))
    return np.linspace(low, min(MOST, high * 1.02), THRESHOLDS)


def _sample_efficiency(compared: scores.Comparison, scale: Scale) -> dict[str, figures.Curve]:
    """Computes the IQM at each checkpoint at which every run has a score."""
    kind = scores.KINDS[compared.kind]
    steps = scores.checkpoints(compared.used, compared.steps)
    curves = {
        label: [
            scale.normalise(game, scores.curve(seeds, steps, kind.column, kind.share))
            for game in scale.games
            if (seeds := [s for s in compared.used if (s.label, s.environment) == (label, game)])
        ]
        for label in compared.labels
    }
    known = np.all(
        [np.isfinite(game).all(axis=-1) for games in curves.values() for game in games], axis=0
    )  # [G]
    return {
        label: figures.Curve(
            steps[known],
            statistics.stratified(
                statistics.interquartile_mean,
                [game[known] for game in games],
                resamples=CURVE_RESAMPLES,
            ),
        )
        for label, games in curves.items()
        if known.any()
    }


def _chances(chapter: Chapter, compared: scores.Comparison, games: Sequence[str]) -> None:
    """Adds the probability of improvement of raw scores, which needs no normalisation."""
    out, name, baseline = chapter.out, f"{chapter.family.name}-improvement", chapter.baseline
    labels = compared.labels
    pairs = [(x, y) for x, y in itertools.permutations(labels, 2) if y == baseline]
    pairs = pairs or list(itertools.combinations(labels, 2))
    if not pairs:
        return
    chances = {
        (x, y): statistics.improvement(compared.per_game(x, games), compared.per_game(y, games))
        for x, y in pairs
    }
    which = set_of(games, chapter.family.traits.title)
    caption = (
        f"Probability that a run of one agent scores more than a run of the other, mean over "
        f"games, after {compared.steps:,} steps; {which}."
    )
    out.heading(f"Probability of improvement, {counted(games)}")
    out.figure(name, figures.chances(chances, chapter.colour, which), caption)
    rows = [
        {"agent": x, "over": y, "probability": estimate} for (x, y), estimate in chances.items()
    ]
    out.table(name, rows, "The same, as numbers.")


def _improvements(
    chapter: Chapter, compared: scores.Comparison, games: Sequence[str], baseline: str
) -> None:
    """Draws the improvement over a baseline as bars, as in the Munchausen paper."""
    out, name, denominator = chapter.out, chapter.family.name, chapter.denominator
    means = {game: float(compared.scores[baseline][game].mean()) for game in games}
    units = {
        game: scores.denominator(game, means[game], denominator)
        for game in games
        if scores.has(game, human=denominator != "baseline")
    }
    usable = [game for game, unit in units.items() if unit > 0]
    out.heading(f"Improvement over {baseline}")
    measure = {
        "baseline": f"|{baseline} - random|",
        "human": "|human - random|",
        "largest": f"max(|human - random|, |{baseline} - random|)",
    }[denominator]
    if not usable:
        out.paragraph(f"No game has the scores that {measure} takes.")
        return
    which = set_of(usable, chapter.family.traits.title)
    table: dict[str, dict[str, Any]] = {game: {"game": game} for game in usable}
    with out.figures():
        for label in compared.labels:
            if label == baseline:
                continue
            improvements = {
                game: 100 * float(compared.scores[label][game].mean() - means[game]) / units[game]
                for game in usable
            }
            values = list(improvements.values())
            wins = sum(value > 0 for value in values)
            out.figure(
                f"{name}-{label}-over-{baseline}",
                figures.bars(improvements, f"{label} over {baseline}\n{which}", f"% of {measure}"),
                f"({label} - {baseline}) / {measure} after {compared.steps:,} steps: better on "
                f"{wins} of {len(values)}, mean {np.mean(values):+.1f}%, median "
                f"{np.median(values):+.1f}%; {which}.",
            )
            for game, value in improvements.items():
                table[game][f"{label}, %"] = value
    left = [game for game in games if game not in usable]
    note = f" Left out, for {measure} is unknown or 0: {', '.join(left)}." if left else ""
    out.table(
        f"{name}-over-{baseline}",
        list(table.values()),
        f"Improvement over {baseline}.{note}",
    )

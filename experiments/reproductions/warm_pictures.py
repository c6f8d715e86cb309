"""Pictures of `kullback reproduce warm`, and how its tables are read; see warm.py.

Rows have a seed, and the name of a reward model: "single-3", "ensemble", "average", or of gold.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kullback.experiments.reproductions import charts, curves, study
from kullback.lm import best_of_n

MODELS = ("single", "ensemble", "average")
KINDS = {
    "corrupted": "wrong labels",
    "clean": "right labels",
    "near": "held out, near",
    "far": "held out, far",
}
COLORS = {
    "single": "C7",
    "ensemble": "C1",
    "average": "C0",
    "gold": "C2",
    "average-held-back": "C4",
}
LABELS = {
    "single": "one member",
    "ensemble": "mean of predictions",
    "average": "mean of weights",
    "gold": "gold itself",
    "average-held-back": "mean of weights, with a KL penalty",
}


def kind_of(name: str) -> str:
    """Returns single of single-3, and any other name as it is."""
    return "single" if name.startswith("single-") else name


def values(rows: study.Rows, model: str, value: str, column: str = "model") -> np.ndarray:
    """Returns a value by seed, [seeds]; of "single" the mean over members."""
    of_model = [row for row in rows if kind_of(row[column]) == model]
    return study.by_seed(of_model, value).mean(1)


class Ways(NamedTuple):
    """Ways up a reward, at each record, [seeds, n]."""

    kl: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray


def climbs(rows: study.Rows, *kinds: str) -> dict[str, Ways]:
    """Returns the ways up rewards of these kinds, by name."""
    names = [name for name in study.distinct(rows, "reward") if kind_of(name) in kinds]
    return {n: Ways(*(study.by_seed(rows, c, reward=n) for c in Ways._fields)) for n in names}


def along(ways: Sequence[Ways], most: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns KL up to where all ways go, at most `most`, [n], and mean gold there, [seeds, n]."""
    reach = min(most, *(kl.max() for way in ways for kl in way.kl))
    at = np.linspace(0, reach, 100)
    gold = [
        [[curves.value_at(*x, k) for k in at] for x in zip(way.kl, way.gold, strict=True)]
        for way in ways
    ]
    return at, np.mean(gold, 0)


def bars(rows: study.Rows, world: str, share: float) -> charts.Panel:
    """Returns accuracies by kind of pair, with a share of wrong labels."""
    kinds = [kind for kind in KINDS if share or kind != "corrupted"]
    places = np.arange(len(kinds))
    marks = [
        charts.SeedBars(
            places + 0.26 * (number - 1),
            [values(rows, model, kind) for kind in kinds],
            LABELS[model],
            {"width": 0.24, "color": COLORS[model], "alpha": 0.8},
        )
        for number, model in enumerate(MODELS)
    ]
    axes = {"xticks": places, "xticklabels": [KINDS[kind] for kind in kinds]}
    axes |= {"ylabel": "accuracy", "title": f"{world}: {share:.0%} of labels wrong"}
    return charts.Panel(
        marks=marks, axes={**axes, "ylim": (0, 1.02)}, legend={"fontsize": 7, "loc": "lower right"}
    )


def models(tables: study.Tables, of_toy: float, of_letters: Sequence[float]) -> charts.Grid:
    """Returns accuracies by kind of pair, between two members, and by share of wrong labels.

    Args:
      tables: by name.
      of_toy: share of wrong labels.
      of_letters: shares of them.
    """
    letters, most, points = tables["letters_accuracies"], max(of_letters), {"markersize": 4}
    path = study.where(tables["toy_path"], pairs="far")
    between = [
        charts.Line(
            study.distinct(path, "share"),
            study.by_seed(path, column).mean(0),
            label,
            {"marker": "o", "color": COLORS[model], **points},
        )
        for column, label, model in (
            ("weights", LABELS["average"], "average"),
            ("predictions", LABELS["ensemble"], "ensemble"),
            ("mean_accuracy", "mean of accuracies", "single"),
        )
    ]
    memory: list[charts.Mark] = []
    for kind, line in (("corrupted", "--"), ("near", "-")):
        shares = [share for share in sorted(of_letters) if share or kind != "corrupted"]
        for model in MODELS:
            of_share = [study.where(letters, corruption=share) for share in shares]
            means = [values(rows, model, kind).mean() for rows in of_share]
            style = {"marker": "o", "ls": line, "color": COLORS[model], **points}
            memory.append(charts.Line(shares, means, f"{LABELS[model]}, {KINDS[kind]}", style))
    xlabel, ylabel = "share of the second member", "accuracy, held out, far"
    axes = {"xlabel": "share of wrong labels", "ylabel": "accuracy", "title": "letters: by noise"}
    panels = [
        bars(tables["toy_accuracies"], "toy", of_toy),
        charts.Panel(
            marks=between,
            axes={"xlabel": xlabel, "ylabel": ylabel, "title": "toy: between two members"},
            legend={"fontsize": 7},
        ),
        bars(study.where(letters, corruption=most), "letters", most),
        charts.Panel(marks=memory, axes=axes, legend={"fontsize": 6}),
    ]
    return charts.Grid(panels=panels, columns=2, width=5.2, height=3.6, title_size=10)


def ways(tables: study.Tables, most: float) -> charts.Grid:
    """Returns gold over KL, of policy gradients and of best of N; a world a row.

    Args:
      tables: by name.
      most: nats up to which the toy's climbs are shown, whose gold falls without end.
    """
    panels = [panel for world in ("toy", "letters") for panel in _ways(tables, world, most)]
    return charts.Grid(panels=panels, columns=2, width=5.2, height=3.8, title_size=10)


def _ways(tables: study.Tables, world: str, most: float) -> Iterator[charts.Panel]:
    steps: list[charts.Mark] = []
    for kind in ("single", "average-held-back", "ensemble", "average", "gold"):
        by_name = climbs(tables[f"{world}_climbs"], kind)
        if by_name:
            label = f"{LABELS[kind]}{' (mean over members)' if kind == 'single' else ''}"
            at, gold = along([*by_name.values()], most)
            styles = {"color": COLORS[kind]}, {"lw": 0.6, "alpha": 0.35}
            steps.append(charts.Seeds(at, gold, label, *styles))
    rows = tables[f"{world}_best_of"]
    counts = sorted(study.distinct(rows, "n"))
    kl = [best_of_n.kl_bound(n) for n in counts]
    best: list[charts.Mark] = []
    for kind in (*MODELS, "gold"):
        gold = [values(study.where(rows, n=n), kind, "gold", "reward") for n in counts]
        styles = {"color": COLORS[kind]}, {"lw": 0.6, "alpha": 0.5}
        thick = {"lw": None, "marker": "o", "markersize": 3}
        best.append(charts.Seeds(kl, np.transpose(gold), LABELS[kind], *styles, thick))
    for marks, title, xlabel in (
        (steps, "policy gradients; thin lines are seeds", "KL to the supervised policy, nats"),
        (best, f"best of {counts[0]} to {counts[-1]}", "KL: log N - (N - 1) / N, nats"),
    ):
        axes = {"xlabel": xlabel, "ylabel": "gold reward", "title": f"{world}: {title}"}
        yield charts.Panel(marks=marks, axes=axes, legend={"fontsize": 7, "framealpha": 0.5})

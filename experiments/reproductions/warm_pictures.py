"""Pictures of `kullback reproduce warm`, and how its tables are read; see warm.py.

Rows have a seed, and the name of a reward model: "single-3", "ensemble", "average", or of gold.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from kullback.experiments import reproduce
from kullback.experiments.reproductions import curves
from kullback.lm import best_of_n

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
WORDS = {
    "single": "one member",
    "ensemble": "mean of predictions",
    "average": "mean of weights",
    "gold": "gold itself",
    "average-held-back": "mean of weights, with a KL penalty",
}


def values(rows: reproduce.Rows, column: str, name: str, value: str) -> np.ndarray:
    """A value by seed, [seeds]; of "single" the mean over members."""
    own = [row for row in rows if kind_of(row[column]) == name]
    seeds = sorted({row["seed"] for row in own})
    return np.array([np.mean([r[value] for r in own if r["seed"] == s]) for s in seeds])


def kind_of(name: str) -> str:
    """What a name is of: single, of single-3; else the name itself."""
    return "single" if name.startswith("single-") else name


def seeds_of(rows: reproduce.Rows) -> list[int]:
    """Those of a table."""
    return sorted({row["seed"] for row in rows})


def climbed(rows: reproduce.Rows, *kinds: str) -> list[str]:
    """Names of the rewards that were climbed, of these kinds."""
    return [n for n in dict.fromkeys(row["reward"] for row in rows) if kind_of(n) in kinds]


def climb(rows: reproduce.Rows, seed: int, name: str) -> dict[str, np.ndarray]:
    """KL, proxy and gold of a way up, [records] each."""
    own = [row for row in rows if row["seed"] == seed and row["reward"] == name]
    return {column: np.array([row[column] for row in own]) for column in ("kl", "proxy", "gold")}


def peaks(rows: reproduce.Rows, kind: str) -> np.ndarray:
    """The peak of gold by seed, [seeds]; of "single" the mean over members."""
    names = climbed(rows, kind)
    found = [[max(climb(rows, s, n)["gold"]) for n in names] for s in seeds_of(rows)]
    return np.mean(found, 1)


def along(rows: reproduce.Rows, kind: str, most: float) -> tuple[np.ndarray, np.ndarray]:
    """KL up to where all climbs of a kind go, at most `most`, [n], and gold there, [seeds, n]."""
    ways = [[climb(rows, s, n) for n in climbed(rows, kind)] for s in seeds_of(rows)]
    reach = min(most, *(max(way["kl"]) for of_seed in ways for way in of_seed))
    at = np.linspace(0, reach, 100)
    found = [
        np.mean([[curves.value_at(w["kl"], w["gold"], k) for k in at] for w in of_seed], 0)
        for of_seed in ways
    ]
    return at, np.array(found)


def draw_models(
    tables: dict[str, reproduce.Rows], of_toy: float, of_letters: Sequence[float]
) -> Figure:
    """Accuracies by kind of pair, by share of wrong labels, and between two members.

    Args:
      tables: by name.
      of_toy: share of wrong labels.
      of_letters: shares of them.
    """
    drawn = reproduce.figure(2, 2, width=5.2, height=3.6)
    bars, path, bars_of_letters, memory = drawn.axes
    most = max(of_letters)
    letters = tables["letters_accuracies"]
    worlds = (
        (bars, "toy", of_toy, tables["toy_accuracies"]),
        (bars_of_letters, "letters", most, [r for r in letters if r["corruption"] == most]),
    )
    for axes, world, share, rows in worlds:
        kinds = [kind for kind in KINDS if share or kind != "corrupted"]
        for number, model in enumerate(("single", "ensemble", "average")):
            means = [values(rows, "model", model, kind) for kind in kinds]
            at = np.arange(len(kinds)) + 0.26 * (number - 1)
            height, style = [x.mean() for x in means], {"color": COLORS[model], "alpha": 0.8}
            axes.bar(at, height, 0.24, label=WORDS[model], **style)
            for place, x in zip(at, means, strict=True):
                axes.plot(np.full(len(x), place), x, "k.", markersize=3)
        axes.set_xticks(np.arange(len(kinds)), [KINDS[kind] for kind in kinds])
        axes.set(ylabel="accuracy", title=f"{world}: {share:.0%} of labels wrong", ylim=(0, 1.02))
        axes.legend(fontsize=7, loc="lower right")
    rows = [row for row in tables["toy_path"] if row["pairs"] == "far"]
    shares = sorted({row["share"] for row in rows})
    for column, label, color in (
        ("weights", WORDS["average"], COLORS["average"]),
        ("predictions", WORDS["ensemble"], COLORS["ensemble"]),
        ("mean_accuracy", "mean of accuracies", COLORS["single"]),
    ):
        means = [np.mean([r[column] for r in rows if r["share"] == s]) for s in shares]
        path.plot(shares, means, "o-", color=color, label=label, markersize=4)
    path.set(xlabel="share of the second member", ylabel="accuracy, held out, far")
    path.set_title("toy: between two members")
    path.legend(fontsize=7)
    shares = sorted(of_letters)
    for kind, line in (("corrupted", "o--"), ("near", "o-")):
        for model in ("single", "ensemble", "average"):
            at, means = [], []
            for share in shares:
                own = [row for row in letters if row["corruption"] == share]
                if share or kind != "corrupted":
                    at.append(share)
                    means.append(values(own, "model", model, kind).mean())
            label = f"{WORDS[model]}, {KINDS[kind]}"
            memory.plot(at, means, line, color=COLORS[model], markersize=4, label=label)
    memory.set(xlabel="share of wrong labels", ylabel="accuracy", title="letters: by noise")
    memory.legend(fontsize=6)
    for axes in drawn.axes:
        axes.title.set_fontsize(10)
    return drawn


def draw_climbs(tables: dict[str, reproduce.Rows], most: float) -> Figure:
    """Gold over KL, of policy gradients and of best of N; a world a row.

    Args:
      tables: by name.
      most: nats up to which the toy's climbs are shown, whose gold falls without end.
    """
    drawn = reproduce.figure(2, 2, width=5.2, height=3.8)
    for number, world in enumerate(("toy", "letters")):
        steps, best = drawn.axes[2 * number : 2 * number + 2]
        rows = tables[f"{world}_climbs"]
        for kind in ("single", "average-held-back", "ensemble", "average", "gold"):
            if not climbed(rows, kind):
                continue
            at, values_at = along(rows, kind, most)
            steps.plot(at, values_at.T, color=COLORS[kind], lw=0.6, alpha=0.35)
            label = f"{WORDS[kind]}{' (mean over members)' if kind == 'single' else ''}"
            steps.plot(at, values_at.mean(0), color=COLORS[kind], lw=1.8, label=label)
        rows = tables[f"{world}_best_of"]
        counts = sorted({row["n"] for row in rows})
        kl = [best_of_n.kl_bound(n) for n in counts]
        for kind in ("single", "ensemble", "average", "gold"):
            means = np.array(
                [values([r for r in rows if r["n"] == n], "reward", kind, "gold") for n in counts]
            )
            best.plot(kl, means, color=COLORS[kind], lw=0.6, alpha=0.5)
            best.plot(kl, means.mean(1), "o-", color=COLORS[kind], label=WORDS[kind], markersize=3)
        steps.set_title(f"{world}: policy gradients; thin lines are seeds", fontsize=10)
        best.set_title(f"{world}: best of {counts[0]} to {counts[-1]}", fontsize=10)
        steps.set(xlabel="KL to the supervised policy, nats", ylabel="gold reward")
        best.set(xlabel="KL: log N - (N - 1) / N, nats", ylabel="gold reward")
        for axes in (steps, best):
            axes.legend(fontsize=7, framealpha=0.5)
    return drawn

"""The part of a report on language models: curves of all metrics, and texts with their images."""

import contextlib
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from kullback.core import json_files
from kullback.experiments.report import collect, figures, page, sections
from kullback.experiments.report.chapters import Chapter
from kullback.lm import pictures

SHOWN = 12  # Texts of an agent on a task.
LONGEST = 4_000  # Characters of a text that are shown.
PICTURES, SIDE = (
    4,
    192,
)  # Images of a text that are shown, and pixels of their longer side, at most.
# Columns that count, repeat the score, or say how fast it went; all others are curves.
NO_CURVES = (
    *("frames", "episodes", "return_mean", "return_min", "return_max", "recent_return"),
    *("epsilon", "evaluation", "steps_per_second", "wall_seconds"),
)


def write(chapter: Chapter) -> None:
    """Adds a curve of each column that some run has, and the newest texts of each agent."""
    out, family = chapter.out, chapter.family
    for task in family.environments:
        series = [seed for seed in family.series if seed.environment == task]
        columns = dict.fromkeys(name for seed in series for name in seed.columns)
        out.heading(f"Measures of {task}")
        with out.figures():
            for column in sorted(set(columns) - set(NO_CURVES)):
                some = [seed for seed in series if column in seed.columns]
                if curves := sections.curves(some, column):
                    name = column.replace("_", " ")
                    out.figure(
                        f"{task}-{column}",
                        figures.curves(curves, chapter.colour, task, name, "learner steps"),
                        f"{name}, {task}: mean over seeds with a 95% bootstrap band, seeds thin.",
                        figures.rows(curves, column),
                    )
        for label in family.labels:
            runs = [run for run in family.runs[label] if run.plan.environment == task]
            _texts(out, label, task, runs)


def _texts(out: page.Page, label: str, task: str, runs: Sequence[collect.Run]) -> None:
    lines = next((texts for run in runs if (texts := newest(run.folder))), [])
    if not lines:
        return
    out.heading(f"Texts of {label} on {task}")
    for line in lines:
        known = {key: line[key] for key in ("seed", "step", "score") if key in line}
        how = "greedy" if line.get("greedy") else "sampled"
        facts = ", ".join([how, *(f"{key} {value}" for key, value in known.items())])
        first = " ".join(str(line.get("prompt", "")).split())[:60]
        rest = {k: v for k, v in line.items() if k not in (*known, "greedy")}
        whole = "\n\n".join(f"{key}:\n{_cut(str(value))}" for key, value in rest.items())
        out.folded(f"{first} ({facts})", whole, thumbnails(line.get("images")))


def thumbnails(named: Any) -> dict[str, bytes]:
    """Returns the first images of a text as small PNGs by their paths.

    Those that are no longer there, or were replaced by what is no image, are left out: their paths
    are in the text.
    """
    small: dict[str, bytes] = {}
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    for name in names[:PICTURES]:
        with contextlib.suppress(OSError, ValueError):
            image = Image.fromarray(pictures.read(name).pixels)
            image.thumbnail((SIDE, SIDE))
            image.save(written := io.BytesIO(), format="PNG")
            small[name] = written.getvalue()
    return small


def newest(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the last texts that a run wrote, of its first seed that wrote any, or none.

    Raises:
      ValueError: if a line of them is damaged.
    """
    for path in (*folder.glob("samples.jsonl"), *sorted(folder.glob("seed_*/samples.jsonl"))):
        *whole, _ = path.read_bytes().split(b"\n")  # A line that is being written has no end.
        first = max(0, len(whole) - SHOWN)
        if whole:
            return [
                dict(json_files.parse(line, f"{path}, line {number}", nan=True).items())
                for number, line in enumerate(whole[first:], first + 1)
            ]
    return []


def _cut(text: str) -> str:
    left = len(text) - LONGEST
    return text if left <= 0 else f"{text[:LONGEST]} ... ({left:,} more characters)"

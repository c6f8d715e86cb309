"""Tasks that are mixtures of others, whose weights may change over a run (lm/mixtures.py).

A JSON file names the tasks, paths relative to its own folder, and their weights; the last ones hold
from learner step `steps` on, and in between they move on a line. Without an `end` a weight stays.

    {"tasks": [{"task": "tokens/jsonl:captions", "start": 3, "end": 1},
               {"task": "tokens/arithmetic", "start": 1}],
     "steps": 1000}
"""

import math
import pathlib
from collections.abc import Callable, Sequence

from kullback.core import files, json_files
from kullback.lm import data, media_rows, mixtures
from kullback.lm.task_files import JSONL, PREFERENCES, Split, Task
from kullback.lm.tokenizer import Tokenizer

MIXTURE = "tokens/mixture:"


def read(path: files.Path) -> mixtures.Mixed:
    """Reads the file of a mixture.

    Raises:
      ValueError: with file and key, if it is damaged, names no task or a mixture, has a weight that
        is negative or not finite, weights whose sum is 0 or not finite, an `end` without `steps`,
        or a key that is not known.
    """
    record = json_files.read(path)
    record.refuse_unknown(("tasks", "steps"))
    folder, parts = pathlib.Path(path).parent, list[mixtures.Part]()
    for part in record.records("tasks"):
        part.refuse_unknown(("task", "start", "end"))
        name, start = part.get("task", str), part.get("start", float)
        if name.startswith(MIXTURE):
            raise part.error("task", "a task that is no mixture")
        for prefix in (JSONL, PREFERENCES):
            if name.startswith(prefix):
                name = f"{prefix}{folder / name.removeprefix(prefix)}"
        end = part.get("end", float, start)
        for key, weight in (("start", start), ("end", end)):
            if not 0 <= weight < math.inf:
                raise part.error(key, "a finite weight >= 0")
        parts.append(mixtures.Part(name, start, end))
    changes = any(part.start != part.end for part in parts)
    steps = record.get("steps", int) if changes else record.get("steps", int, 1)
    if steps < 1:
        raise record.error("steps", "a number of learner steps >= 1")
    sums = [sum(part.start for part in parts), sum(part.end for part in parts)]
    if not all(0 < total < math.inf for total in sums):
        raise record.error("tasks", "at least one task, and weights whose sums are finite and > 0")
    return mixtures.Mixed(tuple(parts), steps)


def mixture(path: files.Path, make: Callable[[str], Task]) -> Task:
    """Returns the task of a mixture's file; `make` gives those that it names.

    Its held-out examples take turns, so that the first few are of all tasks. It has a score if all
    of them have the same.

    Raises:
      ValueError: as `read` and `make` do.
    """
    mixed = read(path)
    tasks = [make(part.task) for part in mixed.parts]

    def examples(
        split: Split,
        tokenizer: Tokenizer,
        limits: data.Limits | None = None,
        media: media_rows.Settings | None = None,
    ) -> tuple[list[data.Example], data.Report]:
        of_tasks, reports = zip(
            *(task.examples(split, tokenizer, limits, media) for task in tasks), strict=True
        )
        marked = [
            [example._replace(source=n) for example in of_task]
            for n, of_task in enumerate(of_tasks)
        ]
        return _joined(marked, in_turn=split == "test"), data.joined(reports)

    def texts(split: Split) -> list[str]:
        return [text for task in tasks for text in task.texts(split)]

    def of(example: data.Example) -> Task:
        return tasks[example.source]

    scores = {task.score for task in tasks}
    score = scores.pop() if len(scores) == 1 else None
    task = Task(f"{MIXTURE}{path}", texts, examples, score, mixed=mixed)
    return task._replace(document=lambda example, prompt: of(example).document(example, prompt))


def _joined(lists: Sequence[list[data.Example]], *, in_turn: bool) -> list[data.Example]:
    """Returns the examples of all lists, one list after the other, or one of each in turn."""
    if not in_turn:
        return [example for of_task in lists for example in of_task]
    longest = max(map(len, lists))
    return [of_task[n] for n in range(longest) for of_task in lists if n < len(of_task)]

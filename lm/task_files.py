"""Tasks of files: examples or pairs in a JSONL file, or in a folder's train.jsonl and test.jsonl.

`lm/tasks.py` has tasks by name. Where a model sees or hears, rows may name media, which lie beside
the file (lm/media_rows.py).
"""

import pathlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from kullback.core import files, folders
from kullback.lm import data, forms, media_rows, mixtures, preferences, read_once, splits
from kullback.lm.tokenizer import Tokenizer

JSONL, PREFERENCES = "tokens/jsonl:", "tokens/preferences:"
Split = Literal["train", "test"]
Row = tuple[str, Mapping[str, Any]]  # Place, for messages, and record of `lm/data.py`.
# Rows of a split; without a tokenizer those whose prompts are ids are left out.
Rows = Callable[[Split, Tokenizer | None], list[Row]]
# The same of a file or folder: the third argument is the kind of media that are read, if any are.
FileRows = Callable[[Split, Tokenizer | None, forms.Modality | None], list[Row]]
Item = TypeVar("Item")


class Reads(Protocol[Item]):
    """A function that reads the items of a split, with the media that they name if it is told how.

    Without `media` rows are read as text alone.
    """

    def __call__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        limits: data.Limits | None = None,
        media: media_rows.Settings | None = None,
        /,
    ) -> tuple[list[Item], data.Report]:
        """Reads them, and reports what was left out."""
        ...


class Task(NamedTuple):
    """A data set, and the measures of answers to it."""

    name: str
    texts: Callable[[Split], list[str]]  # Prompt and completion of each example, joined.
    examples: Reads[data.Example]
    # (generated text, target text) -> score in [0, 1]; None if there is no rule for a score.
    score: Callable[[str, str], float] | None
    # Pairs of a chosen and a rejected answer; None if each prompt has one answer.
    pairs: Reads[preferences.Pair] | None = None
    # (example, its prompt as text) -> document to which an answer should be faithful.
    document: Callable[[data.Example, str], str] = lambda example, prompt: (
        example.document or prompt
    )
    mixed: mixtures.Mixed | None = None  # Tasks that it is a mixture of; None: it is none.


def jsonl(path: files.Path, rule: int = splits.RULE) -> Task:
    """Returns the task of a JSONL file, or a folder with train.jsonl and test.jsonl.

    Records are those of `lm/data.py`. One in ten of a file is in "test", by `lm/splits.py`.

    Raises:
      ValueError: for a folder without both files, or in which one is a link out of it; for neither
        file nor folder.
    """
    return of_path(f"{JSONL}{path}", path, rows_of(path, JSONL, rule), rule)


def preference_pairs(path: files.Path, rule: int = splits.RULE) -> Task:
    """Returns the task of pairs of answers, in a JSONL file or folder; see `lm/preferences.py`.

    Its examples are the chosen answers, for supervised fine-tuning.

    Raises:
      ValueError: as `jsonl` does.
    """
    rows = rows_of(path, PREFERENCES, rule)

    def chosen(
        split: Split, tokenizer: Tokenizer | None, modality: forms.Modality | None
    ) -> list[Row]:
        return [*preferences.chosen_rows(rows(split, tokenizer, modality), modality=modality)]

    def texts(split: Split) -> list[str]:
        return ["\n".join(forms.texts_of_pair(record)) for _, record in rows(split, None, None)]

    def pairs(
        split: Split,
        tokenizer: Tokenizer,
        limits: data.Limits | None = None,
        media: media_rows.Settings | None = None,
    ) -> tuple[list[preferences.Pair], data.Report]:
        key = ("pairs", *_read_by(path, rule, split, tokenizer, limits, media))

        def read() -> tuple[list[preferences.Pair], data.Report]:
            given = rows(split, tokenizer, None if media is None else media.modality)
            return preferences.from_rows(given, tokenizer, limits, _reader(path, media))

        return read_once.once(key, read)

    task = of_path(f"{PREFERENCES}{path}", path, chosen, rule)
    return task._replace(texts=texts, pairs=pairs)


def of_path(name: str, path: files.Path, rows: FileRows, rule: int) -> Task:
    """Returns the task of a file or folder for runs of a rule.

    Rule 1 takes documents as in `summaries`.
    """
    task = of_rows(
        name,
        rows,
        stamp=lambda: (read_once.stamp(path), rule),
        reader=lambda media: _reader(path, media),
    )
    if rule > 1:
        return task
    return task._replace(document=lambda example, prompt: example.document or lead(prompt))


def of_rows(
    name: str,
    rows: FileRows,
    *,
    stamp: Callable[[], Hashable],
    reader: Callable[[media_rows.Settings | None], media_rows.Reader | None],
) -> Task:
    """Returns a task without a score; as long as its stamp is the same, so are its rows.

    Args:
      name: of the task.
      rows: of a split.
      stamp: () -> what the rows depend on.
      reader: of the media that rows may name, for settings of them; None reads none.
    """

    def examples(
        split: Split,
        tokenizer: Tokenizer,
        limits: data.Limits | None = None,
        media: media_rows.Settings | None = None,
    ) -> tuple[list[data.Example], data.Report]:
        key = (name, stamp(), split, read_once.reading(tokenizer), limits, media)

        def read() -> tuple[list[data.Example], data.Report]:
            given = rows(split, tokenizer, None if media is None else media.modality)
            return data.from_rows(given, tokenizer, limits, reader(media))

        check_split(split)
        return read_once.once(key, read)

    def texts(split: Split) -> list[str]:
        return [text_of(record) for _, record in rows(split, None, None)]

    return Task(name, texts, examples, None)


def lead(prompt: str) -> str:
    """Returns the text before the last empty line, or all of it if there is none."""
    return prompt.rpartition("\n\n")[0] or prompt


def rows_of(path: files.Path, prefix: str, rule: int) -> FileRows:
    """Returns the function of a file's or folder's rows.

    Raises:
      ValueError: if they do not exist.
    """
    path = pathlib.Path(path)
    for name in ("train.jsonl", "test.jsonl") if path.is_dir() else ():
        if not (path / name).is_file():
            raise ValueError(f"folder {path} lacks {name}; it needs train.jsonl and test.jsonl")
        folders.inside(path, name)  # A stranger's folder leads only into itself.
    if not path.exists():
        raise ValueError(f"no file or folder at {path}, which {prefix}PATH names")

    def rows(
        split: Split, tokenizer: Tokenizer | None, modality: forms.Modality | None
    ) -> list[Row]:
        check_split(split)
        if path.is_dir():
            return [*data.read_rows(folders.inside(path, f"{split}.jsonl"))]
        chosen: list[Row] = [
            row
            for row in data.read_rows(path)
            if splits.is_on(row[1], split, tokenizer, rule, modality=modality)
        ]
        if not chosen:
            raise ValueError(
                f"{path} has no row in {split}, which gets about one in ten or the others; use a "
                "folder with train.jsonl and test.jsonl"
            )
        return chosen

    return rows


def check_split(split: Split) -> None:
    """Raises ValueError for what is no split."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")


def text_of(record: Mapping[str, Any]) -> str:
    """Returns the whole text of a record, without ids."""
    values = [record[key] for key in ("text", "prompt", "completion", "target") if key in record]
    if isinstance(record.get("messages"), list):
        values = [record["messages"]]
    between = "\n" if any(map(forms.is_messages, values)) else ""
    return between.join(text for value in values for text in forms.texts(value))


def _read_by(
    path: files.Path, rule: int, split: Split, tokenizer: Tokenizer, *how: Hashable
) -> tuple:
    """Returns all that the items of a file or folder depend on, but for the files of media."""
    return read_once.stamp(path), rule, split, read_once.reading(tokenizer), *how


def _reader(path: files.Path, media: media_rows.Settings | None) -> media_rows.Reader | None:
    """Returns the reader of the media that rows of a file or folder name."""
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    return None if media is None else media_rows.Reader(folder=folder, settings=media)

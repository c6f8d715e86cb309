"""Data sets by name: `tokens/arithmetic`, `tokens/summaries`, `tokens/jsonl:PATH`.

And `tokens/preferences:PATH`, of pairs of answers to a prompt, of which one was preferred.
A task gives texts to train a tokenizer on, examples of its splits, and maybe a score of what was
generated. Nothing of a "test" split is in "train".
"""

import dataclasses
import importlib.util
import operator
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from kullback.core import files, json_files, names
from kullback.lm import batches, data, preferences, splits
from kullback.lm.tokenizer import Tokenizer

Split = Literal["train", "test"]
Row = tuple[str, Mapping[str, Any]]  # Where it is from, for messages, and what it says.
# Rows of a split; a tokenizer reads prompts that are ids, without one those rows are left out.
Rows = Callable[[Split, Tokenizer | None], list[Row]]
_JSONL = "tokens/jsonl:"
_PREFERENCES = "tokens/preferences:"


class Task(NamedTuple):
    """A data set and how answers to it are judged."""

    name: str
    texts: Callable[[Split], list[str]]  # Prompt and completion of each example, joined.
    examples: Callable[
        [Split, Tokenizer, data.Limits | None], tuple[list[data.Example], data.Report]
    ]
    # (generated text, target text) -> the score in [0, 1]; None where no rule judges an answer.
    score: Callable[[str, str], float] | None
    # Of two answers to a prompt, which was preferred; None where there is one answer each.
    pairs: (
        Callable[[Split, Tokenizer, data.Limits | None], tuple[list[preferences.Pair], data.Report]]
        | None
    ) = None
    # (example, its prompt as text) -> the document that an answer is to be faithful to.
    document: Callable[[data.Example, str], str] = lambda example, prompt: (
        example.document or prompt
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Settings of `tokens/arithmetic`: "12+7=" is followed by "19"."""

    digits: int = 2  # The most that a number has, 1 to 9; numbers are uniform below 10^digits.
    operation: Literal["+", "-", "*"] = "+"
    num_train: int = 10_000  # Examples, or fewer where there are no more.
    num_test: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 9:
            raise ValueError(f"digits must lie in 1 to 9, got {self.digits}")
        if self.operation not in ("+", "-", "*"):
            raise ValueError(f"operation must be +, - or *, got {self.operation!r}")
        for name in ("num_train", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2^64), got {self.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summaries:
    """Settings of `tokens/summaries`: papers of the ACL and what experts wrote of them.

    Takeshita et al., "ACLSum: A New Dataset for Aspect-based Summarization of Scientific
    Publications", NAACL 2024, https://arxiv.org/abs/2403.05303: 100 papers to train on, 50 to
    validate, 100 to test, each with three summaries. Its "val" is left to whoever tunes.
    """

    # Of "abstract", "introduction", "conclusion"; the summaries were written from all three,
    # which are some 1,500 words.
    sections: tuple[str, ...] = ("abstract",)
    aspects: tuple[str, ...] = ("challenge", "approach", "outcome")

    def __post_init__(self) -> None:
        known = {
            "sections": ("abstract", "introduction", "conclusion"),
            "aspects": ("challenge", "approach", "outcome"),
        }
        for name, allowed in known.items():
            value = getattr(self, name)
            if not value or set(value) - set(allowed):
                raise ValueError(f"{name} must be some of {allowed}, got {value}")


def make(name: str, config: Any = None, *, rule: int = splits.RULE) -> Task:
    """Returns the task of that name.

    Args:
      name: "tokens/...".
      config: an `Arithmetic` or a `Summaries`; None is its defaults.
      rule: by which files are split and read, of a run that began with another: `lm/splits.py`.

    Raises:
      ValueError: for an unknown name, or settings of another task.
    """
    for prefix, of_path in ((_JSONL, jsonl), (_PREFERENCES, of_preferences)):
        if name.startswith(prefix):
            if config is not None:
                raise ValueError(f"{name} has no settings, got {type(config).__name__}")
            return of_path(name.removeprefix(prefix), rule)
    known: dict[str, tuple[Callable[[Any], Task], type]] = {
        "tokens/arithmetic": (arithmetic, Arithmetic),
        "tokens/summaries": (summaries, Summaries),
    }
    if name not in known:
        everything = (*known, _JSONL + "PATH", _PREFERENCES + "PATH")
        raise ValueError(names.unknown("task", name, everything, show_all=True))
    function, config_type = known[name]
    config = config_type() if config is None else config
    if not isinstance(config, config_type):
        raise ValueError(
            f"{name} takes {config_type.__name__} as its settings, got {type(config).__name__}"
        )
    return function(config)


def names_path(name: str) -> bool:
    """Returns whether a task is of a user's file or folder."""
    return name.startswith((_JSONL, _PREFERENCES))


def names_folder(name: str) -> bool:
    """Returns whether a task is of a user's folder, which holds each split by itself."""
    return names_path(name) and pathlib.Path(name.partition(":")[2]).is_dir()


def arithmetic(config: Arithmetic) -> Task:
    """Sums, differences or products, with exact answers.

    Which split a problem is in follows from its two numbers, whatever their order: if 3+4 is in
    "train", 4+3 is not in "test". One in ten is in "test". All examples of a split differ.
    """
    compute = {"+": operator.add, "-": operator.sub, "*": operator.mul}[config.operation]
    counts = {"train": config.num_train, "test": config.num_test}

    def rows(split: Split, words: Tokenizer | None) -> list[Row]:
        del words  # Nothing is ids.
        a, b = _operands(config)
        is_test = _mix(np.minimum(a, b) * 10**config.digits + np.maximum(a, b)) % 10 == 0
        chosen = np.flatnonzero(is_test == (split == "test"))[: counts[split]]
        problems = [(int(a[i]), int(b[i])) for i in chosen]
        return [
            _row(f"problem {n}", f"{a}{config.operation}{b}=", str(compute(a, b)))
            for n, (a, b) in enumerate(problems)
        ]

    return _task("tokens/arithmetic", rows, exact_match)


def summaries(config: Summaries) -> Task:
    """Papers, and on request what they are up against, do, or find.

    A prompt ends with what is asked for, so that `overlong="truncate-left"` keeps it.

    Raises:
      ValueError: where the package `aclsum`, whose data this is, is not installed.
    """

    def rows(split: Split, words: Tokenizer | None) -> list[Row]:
        del words  # Nothing is ids.
        made = []
        for where, row in data.read_rows(_aclsum() / f"{split}.jsonl"):
            paper = json_files.Record(where, (), row)
            sections = paper.record("sentences")
            sentences = (s for section in config.sections for s in sections.list_of(section, str))
            document = f"{paper.get('title', str)}\n\n{' '.join(sentences)}"
            for aspect in config.aspects:
                prompt = f"{document}\n\nThe {aspect} in one sentence:\n"
                made.append(_row(where, prompt, paper.record("summary").get(aspect, str)))
        return made

    _aclsum()
    # What was asked stands after the last empty line; before it is what the model was shown of a
    # paper, which may have lost its beginning.
    return _task("tokens/summaries", rows, None)._replace(
        document=lambda example, prompt: _first(prompt)
    )


def jsonl(path: files.Path, rule: int = splits.RULE) -> Task:
    """A JSONL file, or a folder with train.jsonl and test.jsonl; `lm/data.py` says of what rows.

    Of a file, one row in ten is "test". Which one follows from what the model is shown, see
    `lm/splits.py`, so that a prompt and whatever comes to the same are on one side.

    Raises:
      ValueError: for a folder without both files, or neither file nor folder.
    """
    return _of_rule(_task(f"{_JSONL}{path}", _rows_of(path, _JSONL, rule), None), rule)


def of_preferences(path: files.Path, rule: int = splits.RULE) -> Task:
    """Pairs of answers, a JSONL file or a folder as of `jsonl`; see `lm/preferences.py`.

    Its examples are the answers that were chosen: supervised tuning learns from them.

    Raises:
      ValueError: as `jsonl` does.
    """
    rows = _rows_of(path, _PREFERENCES, rule)

    def chosen(split: Split, words: Tokenizer | None) -> list[Row]:
        return [*preferences.chosen_rows(rows(split, words))]

    def texts(split: Split) -> list[str]:
        return ["\n".join(preferences.texts(row)) for _, row in rows(split, None)]

    def pairs(
        split: Split, tokenizer: Tokenizer, limits: data.Limits | None = None
    ) -> tuple[list[preferences.Pair], data.Report]:
        return preferences.from_rows(rows(split, tokenizer), tokenizer, limits)

    task = _task(f"{_PREFERENCES}{path}", chosen, None)
    return _of_rule(task._replace(texts=texts, pairs=pairs), rule)


def exact_match(generated: str, target: str) -> float:
    """1 if the texts are equal but for white space around them, else 0."""
    return float(generated.strip() == target.strip())


def _task(name: str, rows: Rows, score: Callable[[str, str], float] | None) -> Task:
    def checked(split: Split, words: Tokenizer | None) -> list[Row]:
        _check_split(split)
        return rows(split, words)

    def examples(
        split: Split, tokenizer: Tokenizer, limits: data.Limits | None = None
    ) -> tuple[list[data.Example], data.Report]:
        return data.from_rows(checked(split, tokenizer), tokenizer, limits)

    return Task(
        name, lambda split: [_text(row) for _, row in checked(split, None)], examples, score
    )


def _of_rule(task: Task, rule: int) -> Task:
    """Returns the task as runs of a rule have it: the first took every task for summaries."""
    if rule > 1:
        return task
    return task._replace(document=lambda example, prompt: example.document or _first(prompt))


def _first(prompt: str) -> str:
    """Returns what stands before the last empty line, the whole where there is none."""
    return prompt.rpartition("\n\n")[0] or prompt


def _rows_of(path: files.Path, prefix: str, rule: int) -> Rows:
    """Rows of a split of a file or folder, whose absence is an error at once."""
    path = pathlib.Path(path)
    missing = [name for name in ("train.jsonl", "test.jsonl") if not (path / name).is_file()]
    if path.is_dir() and missing:
        raise ValueError(f"folder {path} lacks {missing[0]}; it needs train.jsonl and test.jsonl")
    if not path.exists():
        raise ValueError(f"no file or folder at {path}, which {prefix}PATH names")

    def rows(split: Split, words: Tokenizer | None) -> list[Row]:
        _check_split(split)
        if path.is_dir():
            return [*data.read_rows(path / f"{split}.jsonl")]
        chosen: list[Row] = [
            row for row in data.read_rows(path) if splits.is_on(row[1], split, words, rule)
        ]
        if not chosen:
            raise ValueError(
                f"{path} has no row in {split}, which gets about one in ten or the others; use a "
                "folder with train.jsonl and test.jsonl"
            )
        return chosen

    return rows


def _check_split(split: Split) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")


def _row(where: str, prompt: str, completion: str) -> Row:
    return where, {"prompt": prompt, "completion": completion}


def _text(row: Mapping[str, Any]) -> str:
    """What a row says, all of it; ids say nothing."""
    if isinstance(row.get("messages"), list):
        contents = (m.get("content") for m in row["messages"] if isinstance(m, Mapping))
        return "\n".join(text for text in contents if isinstance(text, str))
    parts = (row.get(key) for key in ("text", "prompt", "completion", "target"))
    return "".join(part for part in parts if isinstance(part, str))


def _operands(config: Arithmetic) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers in random order, none twice; int64."""
    base = 10**config.digits
    if config.digits <= 3:  # All pairs there are.
        pairs = batches.permutation(base**2, config.seed, 0)
        return pairs // base, pairs % base
    draws = 2 * config.num_train + 20 * config.num_test + 1_000
    bits = np.random.Philox(key=np.array([config.seed, 0], np.uint64)).random_raw(2 * draws)
    pairs = (bits % np.uint64(base)).astype(np.int64).reshape(draws, 2)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return tuple(pairs[np.sort(first)].T)


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of 64 bits, element by element: the finaliser of SplitMix64 (Steele et al., 2014)."""
    x = x.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _aclsum() -> pathlib.Path:
    """Folder of the data in `aclsum`, which is found and not imported: that needs more packages."""
    spec = importlib.util.find_spec("aclsum")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "tokens/summaries reads the data of the package aclsum, which is not installed; "
            "pip install aclsum"
        )
    return pathlib.Path(spec.submodule_search_locations[0]) / "dataset"

"""Data sets by name: `tokens/arithmetic`, `tokens/conversations`, `tokens/summaries`.

`tokens/jsonl:PATH` is a file of one's own, and `tokens/preferences:PATH` a data set of pairs of a
chosen and a rejected answer. A task has texts to train a tokenizer on, examples of its splits, and
maybe a score of generated answers. No example of the "test" split is in "train".
"""

import dataclasses
import importlib.util
import operator
import pathlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from kullback.core import files, folders, json_files, names
from kullback.lm import batches, data, forms, preferences, read_once, splits
from kullback.lm.tokenizer import Tokenizer

Split = Literal["train", "test"]
Row = tuple[str, Mapping[str, Any]]  # Place, for messages, and record of `lm/data.py`.
# Rows of a split; without a tokenizer those whose prompts are ids are left out.
Rows = Callable[[Split, Tokenizer | None], list[Row]]
_CONVERSATIONS = "tokens/conversations"
_JSONL = "tokens/jsonl:"
_PREFERENCES = "tokens/preferences:"


class Task(NamedTuple):
    """A data set, and the measures of answers to it."""

    name: str
    texts: Callable[[Split], list[str]]  # Prompt and completion of each example, joined.
    examples: Callable[
        [Split, Tokenizer, data.Limits | None], tuple[list[data.Example], data.Report]
    ]
    # (generated text, target text) -> score in [0, 1]; None if there is no rule for a score.
    score: Callable[[str, str], float] | None
    # Pairs of a chosen and a rejected answer; None if each prompt has one answer.
    pairs: (
        Callable[[Split, Tokenizer, data.Limits | None], tuple[list[preferences.Pair], data.Report]]
        | None
    ) = None
    # (example, its prompt as text) -> document to which an answer should be faithful.
    document: Callable[[data.Example, str], str] = lambda example, prompt: (
        example.document or prompt
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Settings of `tokens/arithmetic`: "12+7=" is followed by "19"."""

    digits: int = 2  # Most digits of a number, 1 to 9; numbers are uniform below 10^digits.
    operation: Literal["+", "-", "*"] = "+"
    num_train: int = 10_000  # Examples, as far as there are so many.
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
    """Settings of `tokens/summaries`: papers of the ACL, with experts' summaries.

    Takeshita et al., "ACLSum: A New Dataset for Aspect-based Summarization of Scientific
    Publications", NAACL 2024, https://arxiv.org/abs/2403.05303: 100 papers to train on, 50 to
    validate, 100 to test, each with three summaries. Its "val" is not used.
    """

    # Sections of a prompt, of "abstract", "introduction" and "conclusion"; the summaries were
    # written from all three, which have some 1,500 words.
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
      rule: by which files are split and read, see `lm/splits.py`; older runs have another.

    Raises:
      ValueError: for an unknown name, or settings of another task.
    """
    for prefix, make_task in ((_JSONL, jsonl), (_PREFERENCES, preference_pairs)):
        if name.startswith(prefix):
            if config is not None:
                raise ValueError(f"{name} has no settings, got {type(config).__name__}")
            return make_task(name.removeprefix(prefix), rule)
    if name == _CONVERSATIONS:
        if config is not None:
            raise ValueError(f"{name} has no settings, got {type(config).__name__}")
        return conversations(rule)
    known: dict[str, tuple[Callable[[Any], Task], type]] = {
        "tokens/arithmetic": (arithmetic, Arithmetic),
        "tokens/summaries": (summaries, Summaries),
    }
    if name not in known:
        everything = (*known, _CONVERSATIONS, _JSONL + "PATH", _PREFERENCES + "PATH")
        raise ValueError(names.unknown("task", name, everything, show_all=True))
    function, config_type = known[name]
    config = config_type() if config is None else config
    if not isinstance(config, config_type):
        raise ValueError(
            f"{name} takes {config_type.__name__} as its settings, got {type(config).__name__}"
        )
    return function(config)


def lengths(name: str) -> dict[str, int]:
    """Returns fields of `tuning.Config` that a task needs larger than their defaults."""
    if name != _CONVERSATIONS:
        return {}
    return {"max_prompt_length": 128, "max_new_tokens": 64}


def names_path(name: str) -> bool:
    """Returns whether a task's name has the path of a file or folder."""
    return name.startswith((_JSONL, _PREFERENCES))


def names_folder(name: str) -> bool:
    """Returns whether a task's name has the path of a folder, with a file for each split."""
    return names_path(name) and pathlib.Path(name.partition(":")[2]).is_dir()


def arithmetic(config: Arithmetic) -> Task:
    """Returns the task of sums, differences or products, with exact answers.

    The split of a problem follows from its two numbers, in either order: if 3+4 is in "train", 4+3
    is not in "test". One in ten is in "test". All examples of a split differ.
    """
    compute = {"+": operator.add, "-": operator.sub, "*": operator.mul}[config.operation]
    counts = {"train": config.num_train, "test": config.num_test}

    def rows(split: Split, tokenizer: Tokenizer | None) -> list[Row]:
        del tokenizer  # No prompt is given as ids.
        a, b = _operands(config)
        is_test = _mix(np.minimum(a, b) * 10**config.digits + np.maximum(a, b)) % 10 == 0
        chosen = np.flatnonzero(is_test == (split == "test"))[: counts[split]]
        problems = [(int(a[i]), int(b[i])) for i in chosen]
        return [
            _row(f"problem {n}", f"{a}{config.operation}{b}=", str(compute(a, b)))
            for n, (a, b) in enumerate(problems)
        ]

    return _task("tokens/arithmetic", rows, exact_match, lambda: (config,))


def summaries(config: Summaries) -> Task:
    """Returns the task of summarising the challenge, approach or outcome of a paper.

    A prompt ends with the aspect to summarise, so that `overlong="truncate-left"` keeps it.

    Raises:
      ValueError: if the package `aclsum`, which has the data, is not installed.
    """

    def rows(split: Split, tokenizer: Tokenizer | None) -> list[Row]:
        del tokenizer  # No prompt is given as ids.
        examples = []
        for where, record in data.read_rows(_aclsum() / f"{split}.jsonl"):
            paper = json_files.Record(where, (), record)
            sections = paper.record("sentences")
            sentences = (s for section in config.sections for s in sections.list_of(section, str))
            document = f"{paper.get('title', str)}\n\n{' '.join(sentences)}"
            for aspect in config.aspects:
                prompt = f"{document}\n\nThe {aspect} in one sentence:\n"
                examples.append(_row(where, prompt, paper.record("summary").get(aspect, str)))
        return examples

    _aclsum()

    # Before the last empty line is the text of the paper that the model was shown, which may have
    # lost its beginning; after it the aspect.
    def stamp() -> Hashable:
        return (
            config,
            *(read_once.stamp(_aclsum() / f"{split}.jsonl") for split in ("train", "test")),
        )

    return _task("tokens/summaries", rows, None, stamp)._replace(
        document=lambda example, prompt: _first(prompt)
    )


def conversations(rule: int = splits.RULE) -> Task:
    """Returns the task of short conversations in English, written for Kullback.

    They have one to three turns: greetings, sums, meanings of a word, rewriting, facts, advice, and
    requests that cannot be met. With them a base model learns the template of a conversation, and
    not much else.
    """
    path = pathlib.Path(__file__).with_name("conversations.jsonl")
    return _of_path(_CONVERSATIONS, path, _rows_of(path, _JSONL, rule), rule)


def jsonl(path: files.Path, rule: int = splits.RULE) -> Task:
    """Returns the task of a JSONL file, or a folder with train.jsonl and test.jsonl.

    Records are those of `lm/data.py`. One in ten of a file is in "test", by `lm/splits.py`.

    Raises:
      ValueError: for a folder without both files, or in which one is a link out of it; for neither
        file nor folder.
    """
    return _of_path(f"{_JSONL}{path}", path, _rows_of(path, _JSONL, rule), rule)


def preference_pairs(path: files.Path, rule: int = splits.RULE) -> Task:
    """Returns the task of pairs of answers, in a JSONL file or folder; see `lm/preferences.py`.

    Its examples are the chosen answers, for supervised fine-tuning.

    Raises:
      ValueError: as `jsonl` does.
    """
    rows = _rows_of(path, _PREFERENCES, rule)

    def chosen(split: Split, tokenizer: Tokenizer | None) -> list[Row]:
        return [*preferences.chosen_rows(rows(split, tokenizer))]

    def texts(split: Split) -> list[str]:
        return ["\n".join(forms.texts_of_pair(record)) for _, record in rows(split, None)]

    def pairs(
        split: Split, tokenizer: Tokenizer, limits: data.Limits | None = None
    ) -> tuple[list[preferences.Pair], data.Report]:
        key = ("pairs", read_once.stamp(path), rule, split, read_once.reading(tokenizer), limits)
        return read_once.once(
            key, lambda: preferences.from_rows(rows(split, tokenizer), tokenizer, limits)
        )

    task = _of_path(f"{_PREFERENCES}{path}", path, chosen, rule)
    return task._replace(texts=texts, pairs=pairs)


def exact_match(generated: str, target: str) -> float:
    """Returns 1 if the texts are equal but for white space around them, else 0."""
    return float(generated.strip() == target.strip())


def _task(
    name: str,
    rows: Rows,
    score: Callable[[str, str], float] | None,
    stamp: Callable[[], Hashable],
) -> Task:
    """Returns a task; as long as its stamp is the same, so are its rows."""

    def checked(split: Split, tokenizer: Tokenizer | None) -> list[Row]:
        _check_split(split)
        return rows(split, tokenizer)

    def examples(
        split: Split, tokenizer: Tokenizer, limits: data.Limits | None = None
    ) -> tuple[list[data.Example], data.Report]:
        key = (name, stamp(), split, read_once.reading(tokenizer), limits)
        return read_once.once(
            key, lambda: data.from_rows(checked(split, tokenizer), tokenizer, limits)
        )

    return Task(
        name, lambda split: [_text(record) for _, record in checked(split, None)], examples, score
    )


def _of_path(name: str, path: files.Path, rows: Rows, rule: int) -> Task:
    """Returns the task of a file or folder for runs of a rule.

    Rule 1 takes documents as in `summaries`.
    """
    task = _task(name, rows, None, lambda: (rule, read_once.stamp(path)))
    if rule > 1:
        return task
    return task._replace(document=lambda example, prompt: example.document or _first(prompt))


def _first(prompt: str) -> str:
    """Returns the text before the last empty line, or all of it if there is none."""
    return prompt.rpartition("\n\n")[0] or prompt


def _rows_of(path: files.Path, prefix: str, rule: int) -> Rows:
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

    def rows(split: Split, tokenizer: Tokenizer | None) -> list[Row]:
        _check_split(split)
        if path.is_dir():
            return [*data.read_rows(folders.inside(path, f"{split}.jsonl"))]
        chosen: list[Row] = [
            row for row in data.read_rows(path) if splits.is_on(row[1], split, tokenizer, rule)
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


def _text(record: Mapping[str, Any]) -> str:
    """Returns the whole text of a record, without ids."""
    values = [record[key] for key in ("text", "prompt", "completion", "target") if key in record]
    if isinstance(record.get("messages"), list):
        values = [record["messages"]]
    between = "\n" if any(map(forms.is_messages, values)) else ""
    return between.join(text for value in values for text in forms.texts(value))


def _operands(config: Arithmetic) -> tuple[np.ndarray, np.ndarray]:
    """Returns different pairs of numbers in random order, int64, [n] each."""
    base = 10**config.digits
    if config.digits <= 3:  # All pairs.
        pairs = batches.permutation(base**2, config.seed, 0)
        return pairs // base, pairs % base
    draws = 2 * config.num_train + 20 * config.num_test + 1_000
    bits = np.random.Philox(key=np.array([config.seed, 0], np.uint64)).random_raw(2 * draws)
    pairs = (bits % np.uint64(base)).astype(np.int64).reshape(draws, 2)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return tuple(pairs[np.sort(first)].T)


def _mix(x: np.ndarray) -> np.ndarray:
    """Hashes each element to 64 bits by the finaliser of SplitMix64 (Steele et al., 2014)."""
    x = x.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _aclsum() -> pathlib.Path:
    """Returns the folder of `aclsum`'s data; importing it would need more packages."""
    spec = importlib.util.find_spec("aclsum")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "tokens/summaries reads the data of the package aclsum, which is not installed; "
            "pip install aclsum"
        )
    return pathlib.Path(spec.submodule_search_locations[0]) / "dataset"

"""Data sets by name: `tokens/arithmetic`, `tokens/conversations`, `tokens/summaries`.

`tokens/jsonl:PATH` is a file of one's own, `tokens/preferences:PATH` a data set of pairs of a
chosen and a rejected answer, and `tokens/mixture:FILE` a mixture of such (lm/task_mixtures.py). A
task has texts to train a tokenizer on, examples of its splits, and maybe a score of generated
answers. No example of the "test" split is in "train".
"""

import dataclasses
import functools
import importlib.util
import operator
import pathlib
from collections.abc import Callable, Hashable
from typing import Any, Literal

import numpy as np

from kullback.core import json_files, names, ranges
from kullback.lm import data, epochs, forms, read_once, splits, task_files, task_mixtures
from kullback.lm.task_files import JSONL, PREFERENCES, Row, Rows
from kullback.lm.task_files import Split as Split
from kullback.lm.task_files import Task as Task
from kullback.lm.task_files import jsonl as jsonl
from kullback.lm.task_files import preference_pairs as preference_pairs
from kullback.lm.task_mixtures import MIXTURE
from kullback.lm.tokenizer import Tokenizer

_CONVERSATIONS = "tokens/conversations"


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
        ranges.at_least(1, self, "num_train", "num_test")
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
    if config is not None and (name == _CONVERSATIONS or names_path(name)):
        raise ValueError(f"{name} has no settings, got {type(config).__name__}")
    for prefix, make_task in ((JSONL, jsonl), (PREFERENCES, preference_pairs)):
        if name.startswith(prefix):
            return make_task(name.removeprefix(prefix), rule)
    if name.startswith(MIXTURE):
        parts = functools.partial(make, rule=rule)
        return task_mixtures.mixture(name.removeprefix(MIXTURE), parts)
    if name == _CONVERSATIONS:
        return conversations(rule)
    known: dict[str, tuple[Callable[[Any], Task], type]] = {
        "tokens/arithmetic": (arithmetic, Arithmetic),
        "tokens/summaries": (summaries, Summaries),
    }
    if name not in known:
        everything = (
            *known,
            _CONVERSATIONS,
            JSONL + "PATH",
            PREFERENCES + "PATH",
            MIXTURE + "FILE",
        )
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
    return name.startswith((JSONL, PREFERENCES, MIXTURE))


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
        document=lambda example, prompt: task_files.lead(prompt)
    )


def conversations(rule: int = splits.RULE) -> Task:
    """Returns the task of short conversations in English, written for Kullback.

    They have one to three turns: greetings, sums, meanings of a word, rewriting, facts, advice, and
    requests that cannot be met. With them a base model learns the template of a conversation, and
    not much else.
    """
    path = pathlib.Path(__file__).with_name("conversations.jsonl")
    return task_files.of_path(_CONVERSATIONS, path, task_files.rows_of(path, JSONL, rule), rule)


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

    def checked(
        split: Split, tokenizer: Tokenizer | None, modality: forms.Modality | None
    ) -> list[Row]:
        del modality  # Rows that are no file's name none.
        task_files.check_split(split)
        return rows(split, tokenizer)

    task = task_files.of_rows(name, checked, stamp=stamp, reader=lambda media: None)
    return task._replace(score=score)


def _row(where: str, prompt: str, completion: str) -> Row:
    return where, {"prompt": prompt, "completion": completion}


def _operands(config: Arithmetic) -> tuple[np.ndarray, np.ndarray]:
    """Returns different pairs of numbers in random order, int64, [n] each."""
    base = 10**config.digits
    if config.digits <= 3:  # All pairs.
        pairs = epochs.permutation(base**2, config.seed, 0)
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

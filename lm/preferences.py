"""Preferences: pairs of answers to one prompt of which one was chosen, and JSONL files of them.

A row is one JSON object: {prompt, chosen, rejected} (strings, or lists of ids), or {chosen,
rejected} of messages that are the same up to the model's last turn. A row that does not say what
it should is an error with its file and line, never a guess; so is a pair of equal answers.

Shape letters: B pairs, T tokens of a row, N pairs of a data set.
"""

import collections
import fractions
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.core import files
from kullback.lm import batches, data
from kullback.lm.tokenizer import Tokenizer

_KNOWN = {"prompt", "chosen", "rejected"}
_CORRUPTION = 2**62  # Keeps this permutation apart from those of epochs and of sorted batches.


class Pair(NamedTuple):
    """Two answers to one prompt, as examples that begin alike."""

    chosen: data.Example
    rejected: data.Example

    @property
    def length(self) -> int:
        """Tokens of the longer one, prompt included."""
        return max(self.chosen.length, self.rejected.length)


class Pairs(NamedTuple):
    """A batch of pairs: row b of one was preferred to row b of the other."""

    chosen: batches.Sequences  # [B, T].
    rejected: batches.Sequences  # [B, T].


def read_jsonl(
    path: files.Path, tokenizer: Tokenizer, limits: data.Limits | None = None
) -> tuple[list[Pair], data.Report]:
    """Pairs of a JSONL file, in its order, and a report of what was left out.

    Raises:
      ValueError: with file and line, for a row that is no pair, as `data.read_jsonl` does for an
        answer that is no completion, and for equal answers.
    """
    return from_rows(data.read_rows(path), tokenizer, limits)


def from_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    tokenizer: Tokenizer,
    limits: data.Limits | None = None,
) -> tuple[list[Pair], data.Report]:
    """Pairs of rows, each with the name that its errors bear; as `read_jsonl` otherwise.

    A pair of which one answer is too long is dropped, or the prompt of both shortened alike.
    """
    limits = limits or data.Limits()
    anything = data.Limits(vocab_size=limits.vocab_size)  # Both are fitted together, below.
    pairs: list[Pair] = []
    ignored: collections.Counter[str] = collections.Counter()
    num_rows = dropped = truncated = spelled = 0
    first_spelled = ""
    for where, row in rows:
        num_rows += 1
        answers = _answers(where, row)
        named = [(f"{where}, {name}", answer) for name, answer in answers.items()]
        made, report = data.from_rows(named, tokenizer, anything)
        pair = Pair(*made)
        if pair.chosen.prompt != pair.rejected.prompt:
            raise ValueError(
                f"{where}: the messages of chosen and rejected must be the same but for the last; "
                "they differ in an earlier one"
            )
        if pair.chosen.completion[:-1] == pair.rejected.completion[:-1]:
            raise ValueError(
                f"{where}: chosen and rejected are equal but for their end at most, and say "
                "nothing of a preference; leave the row out"
            )
        if report.spelled:
            spelled += 1
            first_spelled = first_spelled or report.first_spelled
        ignored.update(row.keys() - _KNOWN - {"document"})
        try:
            fitted = data.fit(max(pair, key=lambda example: example.length), limits)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if fitted is None:
            dropped += 1
            continue
        truncated += len(fitted.prompt) < len(pair.chosen.prompt)
        same = {"prompt": fitted.prompt, "answers": fitted.answers}
        pairs.append(Pair(pair.chosen._replace(**same), pair.rejected._replace(**same)))
    tokens = sum(example.length for pair in pairs for example in pair)
    found = dict(ignored)
    return pairs, data.Report(num_rows, dropped, truncated, found, tokens, spelled, first_spelled)


def chosen_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Rows of `lm/data.py`: the answers that were chosen, to be learnt by supervised tuning."""
    for where, row in rows:
        yield where, _answers(where, row)["chosen"]


def texts(row: Mapping[str, Any]) -> list[str]:
    """What a row says, with the prompt once; ids say nothing."""
    parts: list[Any] = [row.get("prompt")]
    for n, name in enumerate(("chosen", "rejected")):
        answer = row.get(name)
        if isinstance(answer, list) and all(isinstance(part, Mapping) for part in answer):
            parts += [message.get("content") for message in (answer[-1:] if n else answer)]
        else:
            parts.append(answer)
    return [part for part in parts if isinstance(part, str)]


def given(row: Mapping[str, Any]) -> Any:
    """What a row's answers answer: its prompt, or the messages before the last."""
    messages = row.get("chosen")
    if "prompt" not in row and isinstance(messages, list):
        return messages[:-1]
    return row.get("prompt")


def is_swapped(num_pairs: int, fraction: float, seed: int) -> np.ndarray:
    """Which pairs `corrupt` swaps: exactly floor(fraction N) of them, bool [N].

    Args:
      num_pairs: N >= 0.
      fraction: in [0, 1], taken as it is written: 0.29 of 100 are 29.
      seed: of the choice, >= 0.

    Raises:
      ValueError: if the fraction is out of range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction of pairs to swap must lie in [0, 1], got {fraction}")
    count = math.floor(fractions.Fraction(str(float(fraction))) * num_pairs)
    found = np.zeros(num_pairs, bool)
    found[batches.permutation(num_pairs, seed, _CORRUPTION)[:count]] = True
    return found


def corrupt(pairs: Sequence[Pair], fraction: float, seed: int) -> list[Pair]:
    """The pairs, some with their label wrong, to see what a reward model makes of noise.

    Which ones follows from `seed`; doing it twice gives the pairs back. Where a share e of all
    labels is wrong and no more can be known, the difference of rewards that minimises the
    Bradley-Terry loss is ln((1 - e) / e).

    Raises:
      ValueError: as `is_swapped` does.
    """
    swapped = is_swapped(len(pairs), fraction, seed)
    return [Pair(*pair[::-1]) if swap else pair for pair, swap in zip(pairs, swapped, strict=True)]


def pad(pairs: Sequence[Pair], length: int, pad_id: int) -> Pairs:
    """A pair a row, [B, length] each, padded on the right; ValueError for one that is longer."""
    chosen, rejected = zip(*pairs, strict=True)
    return Pairs(batches.pad(chosen, length, pad_id), batches.pad(rejected, length, pad_id))


def sampler(pairs: Sequence[Pair], config: batches.Config, pad_id: int) -> Callable[[int], Pairs]:
    """Training batches by step, which counts from 0; drawn as those of `batches.make`.

    Args:
      pairs: N >= 1 of them.
      config: shapes and order; nothing is packed, for a reward is of a row.
      pad_id: what stands in the padding.

    Raises:
      ValueError: without pairs, for one longer than every length, or for rows to be packed.
    """
    if not pairs:
        raise ValueError("no pairs to make batches of; was everything dropped?")
    if config.pack:
        raise ValueError("a reward is of a whole row: preferences take pack=False")
    longest = max(pair.length for pair in pairs)
    lengths = config.lengths or batches.powers_of_two(longest)
    if longest > lengths[-1]:
        raise ValueError(
            f"a pair has {longest} tokens, more than the greatest of lengths={lengths}; add a "
            "length, or drop or truncate what is longer"
        )
    sizes = np.array([pair.length for pair in pairs])
    draw = functools.partial(
        batches.indices,
        num_items=len(pairs),
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=sizes if config.batches_per_sort > 1 else None,
        batches_per_sort=config.batches_per_sort,
    )

    def sample(step: int) -> Pairs:
        chosen = [pairs[i] for i in draw(step)]
        width = max(pair.length for pair in chosen)
        return pad(chosen, next(n for n in lengths if n >= width), pad_id)

    return sample


def _answers(where: str, row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Both answers as rows of `lm/data.py`."""
    keys = row.keys() & _KNOWN
    common = {key: row[key] for key in ("document",) if key in row}
    if keys == _KNOWN:
        return {
            name: {"prompt": row["prompt"], "completion": row[name], **common}
            for name in ("chosen", "rejected")
        }
    if keys != {"chosen", "rejected"}:
        raise ValueError(
            f"{where}: keys {sorted(row)}; expected prompt, chosen and rejected, or chosen and "
            "rejected of messages"
        )
    chosen, rejected = row["chosen"], row["rejected"]
    for name in ("chosen", "rejected"):
        if not isinstance(row[name], list):
            raise ValueError(
                f"{where}: without a prompt {name} must be a list of messages, got "
                f"{type(row[name]).__name__}"
            )
    if len(chosen) != len(rejected):
        raise ValueError(
            f"{where}: the messages of chosen and rejected must be the same but for the last; "
            f"they differ in number ({len(chosen)} and {len(rejected)})"
        )
    return {
        "chosen": {"messages": chosen, **common},
        "rejected": {"messages": rejected, **common},
    }

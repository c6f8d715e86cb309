"""Preferences: pairs of a chosen and a rejected answer to one prompt, and JSONL files of them.

A record is one JSON object in a form of `lm/forms.py`: {prompt, chosen, rejected}, or {chosen,
rejected} of messages, or of dialogues, that are the same up to the model's last turn. A malformed
record is an error with its file and line, and so is a pair of equal answers.

Shape letters: B pairs, T tokens of a row, N pairs of a data set.
"""

import fractions
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.core import files
from kullback.lm import batches, data, epochs, forms, media_rows
from kullback.lm.tokenizer import Tokenizer

_LEAVE_OUT = "leave the row out, or all such rows by unusable=drop"
_CORRUPTION = 2**62  # Number of a permutation that neither epochs nor sorted batches have.


class Pair(NamedTuple):
    """Two answers to one prompt, as examples with equal prompts."""

    chosen: data.Example
    rejected: data.Example

    @property
    def length(self) -> int:
        """Tokens of the longer answer and the prompt."""
        return max(self.chosen.length, self.rejected.length)

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the prompt and of both completions."""
        return self.chosen.prompt, self.chosen.completion, self.rejected.completion


class Pairs(NamedTuple):
    """A batch of pairs: row b of `chosen` was preferred to row b of `rejected`."""

    chosen: batches.Sequences  # [B, T].
    rejected: batches.Sequences  # [B, T].


def read_jsonl(
    path: files.Path,
    tokenizer: Tokenizer,
    limits: data.Limits | None = None,
    media: media_rows.Reader | None = None,
) -> tuple[list[Pair], data.Report]:
    """Reads the pairs of a JSONL file, in order, and reports what was left out.

    Raises:
      ValueError: with file and line, for a record that is no pair, as `data.read_jsonl` does for an
        answer that is no completion, and for equal answers.
    """
    return from_rows(data.read_rows(path), tokenizer, limits, media)


def from_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    tokenizer: Tokenizer,
    limits: data.Limits | None = None,
    media: media_rows.Reader | None = None,
) -> tuple[list[Pair], data.Report]:
    """Makes pairs of records, as `read_jsonl` does.

    If one answer of a pair is too long, the pair is dropped, or both prompts are shortened alike,
    unless they would lose an image or a clip.

    Args:
      rows: (place, record) each; errors begin with the place.
      tokenizer: of the model.
      limits: of the examples; None has none.
      media: those that rows may name; None reads text alone.

    Raises:
      ValueError: as `read_jsonl` does.
    """
    limits = limits or data.Limits()
    no_length = data.Limits(vocab_size=limits.vocab_size)  # Both are fitted together, below.
    pairs: list[Pair] = []
    tally = data.Tally()
    for where, record in rows:
        tally.rows += 1
        try:
            pair, report = _pair(where, record, tokenizer, no_length, media)
        except ValueError as error:
            tally.leave_out(error, limits)
            continue
        if report.spelled:
            tally.note_spelled(report.first_spelled)
        read = {forms.DOCUMENT, *(media.settings.modality.keys if media else ())}
        tally.ignored.update(record.keys() - forms.COMPARED - read)
        longer = max(pair, key=lambda example: example.length)
        with data.located(where):
            fitted = data.fit(longer, limits)
        if fitted is None or data.cuts_media(longer, fitted, tokenizer):
            tally.dropped += 1
            continue
        tally.truncated += len(fitted.prompt) < len(pair.chosen.prompt)
        same = {"prompt": fitted.prompt, "answers": fitted.answers}
        pairs.append(Pair(pair.chosen._replace(**same), pair.rejected._replace(**same)))
    return pairs, tally.report(example for pair in pairs for example in pair)


def chosen_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], *, modality: forms.Modality | None = None
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields the chosen answers as records of `lm/data.py`, for supervised fine-tuning.

    Args:
      rows: (place, record) each.
      modality: kind of the media that they keep.
    """
    for where, record in rows:
        yield where, _answers(where, record, modality)["chosen"]


def is_swapped(num_pairs: int, fraction: float, seed: int) -> np.ndarray:
    """Returns which pairs `corrupt` swaps: exactly floor(fraction N) of them, bool [N].

    Args:
      num_pairs: N >= 0.
      fraction: in [0, 1], in decimal notation: 0.29 of 100 are 29.
      seed: of the choice, >= 0.

    Raises:
      ValueError: if the fraction is out of range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction of pairs to swap must lie in [0, 1], got {fraction}")
    count = math.floor(fractions.Fraction(str(float(fraction))) * num_pairs)
    swapped = np.zeros(num_pairs, bool)
    swapped[epochs.permutation(num_pairs, seed, _CORRUPTION)[:count]] = True
    return swapped


def corrupt(pairs: Sequence[Pair], fraction: float, seed: int) -> list[Pair]:
    """Swaps the labels of a fraction of the pairs: label noise, to test robustness.

    The choice follows from `seed`; applied twice, it gives the original pairs. If a share e of
    otherwise certain labels is wrong, the difference of rewards that minimises the Bradley-Terry
    loss is ln((1 - e) / e).

    Raises:
      ValueError: as `is_swapped` does.
    """
    swapped = is_swapped(len(pairs), fraction, seed)
    return [Pair(*pair[::-1]) if swap else pair for pair, swap in zip(pairs, swapped, strict=True)]


def pad(
    pairs: Sequence[Pair], length: int, pad_id: int, features: batches.Features | None = None
) -> Pairs:
    """Pads pairs on the right to rows, [B, length] each.

    Args:
      pairs: whose answers are to one prompt each, with its images.
      length: of the rows.
      pad_id: id of the padding.
      features: of media; None of pairs of text, and where no pair of a data set has media.

    Raises:
      ValueError: for a pair longer than `length`.
    """
    chosen, rejected = zip(*pairs, strict=True)
    padded = Pairs(batches.pad(chosen, length, pad_id), batches.pad(rejected, length, pad_id))
    if features is None:
        return padded
    sensed = batches.pad_features([example.media for example in chosen], features)
    return Pairs(*(sequences._replace(sensed=sensed) for sequences in padded))


class Batched(NamedTuple):
    """Batches of a data set of pairs."""

    indices: Callable[[int], np.ndarray]  # Step, from 0 -> numbers of its pairs, [B].
    padded: Callable[[np.ndarray], Pairs]  # Numbers of pairs, [B] -> their rows.


def batched(
    pairs: Sequence[Pair],
    config: batches.Config,
    pad_id: int,
    features: batches.Features | None = None,
) -> Batched:
    """Returns training batches, drawn as those of `batches.make`.

    Args:
      pairs: N >= 1 of them.
      config: shapes and order, without packing, as a pair is of whole rows.
      pad_id: id of the padding.
      features: of media, where pairs have some.

    Raises:
      ValueError: without pairs, for one longer than every length, with packing, and for media
        without `features`.
    """
    if not pairs:
        raise ValueError("no pairs to make batches of; was everything dropped?")
    features = batches.of_media([pair.chosen for pair in pairs], features)
    if config.pack:
        raise ValueError("a reward is of a whole row: preferences take pack=False")
    longest = max(pair.length for pair in pairs)
    lengths = config.lengths or batches.static_lengths(longest, config.widths)
    if longest > lengths[-1]:
        raise ValueError(
            f"a pair has {longest} tokens, more than the greatest of lengths={lengths}; add a "
            "length, or drop or truncate what is longer"
        )
    sizes = np.array([pair.length for pair in pairs])
    draw = functools.partial(
        epochs.indices,
        num_items=len(pairs),
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=sizes if config.batches_per_sort > 1 else None,
        batches_per_sort=config.batches_per_sort,
    )

    def padded(indices: np.ndarray) -> Pairs:
        chosen = [pairs[i] for i in indices]
        width = max(pair.length for pair in chosen)
        return pad(chosen, next(n for n in lengths if n >= width), pad_id, features)

    return Batched(draw, padded)


def sampler(
    pairs: Sequence[Pair],
    config: batches.Config,
    pad_id: int,
    features: batches.Features | None = None,
) -> Callable[[int], Pairs]:
    """Returns (step, from 0) -> training batch; arguments and errors are those of `batched`."""
    stored = batched(pairs, config, pad_id, features)
    return lambda step: stored.padded(stored.indices(step))


def _pair(
    where: str,
    record: Mapping[str, Any],
    tokenizer: Tokenizer,
    limits: data.Limits,
    media: media_rows.Reader | None,
) -> tuple[Pair, data.Report]:
    """Returns the pair of a record, of any length, and the report on its two answers."""
    answers = _answers(where, record, None if media is None else media.settings.modality)
    count = {name: len(answer.get("messages", ())) for name, answer in answers.items()}
    if count["chosen"] != count["rejected"]:
        raise ValueError(
            f"{where}: the messages of chosen and rejected must be the same but for the last; they "
            f"differ in number ({count['chosen']} and {count['rejected']}); {_LEAVE_OUT}"
        )
    named = [(f"{where}, {name}", answer) for name, answer in answers.items()]
    examples, report = data.from_rows(named, tokenizer, limits, media)
    pair = Pair(*examples)
    if (pair.chosen.prompt, pair.chosen.media) != (pair.rejected.prompt, pair.rejected.media):
        raise ValueError(
            f"{where}: the messages of chosen and rejected must be the same but for the last; they "
            f"differ in an earlier one; {_LEAVE_OUT}"
        )
    if pair.chosen.completion[:-1] == pair.rejected.completion[:-1]:
        raise ValueError(
            f"{where}: chosen and rejected are equal but for their end at most, and say nothing of "
            f"a preference; {_LEAVE_OUT}"
        )
    return pair, report


def _answers(
    where: str, record: Mapping[str, Any], modality: forms.Modality | None = None
) -> dict[str, dict[str, Any]]:
    """Returns the chosen and the rejected answer as records of `lm/data.py`."""
    with data.located(where):
        return forms.answers(record, modality=modality)

"""JSONL files of examples for language models, read strictly, and fitted to a model's lengths.

A record is one JSON object in a form of `lm/forms.py`: {prompt, completion}, {text} (all of it is
learnt), {messages} (the model's turns are learnt). Each may give the `document` that its prompt is
about, for rewards that compare answers with it, and name media (lm/media_rows.py); an example that
is too long is dropped, not shortened, where it would lose one. A malformed record is an error with
its file and line; nothing is guessed.
"""

import codecs
import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from kullback.core import files, folders, json_files
from kullback.lm import blocks, forms, interleaved, media_rows
from kullback.lm.examples import Example as Example
from kullback.lm.examples import Question, encode, question_of, spelled_in
from kullback.lm.examples import prompt_of as prompt_of
from kullback.lm.tokenizer import Tokenizer

Overlong = Literal["drop", "truncate-left", "error"]
Unusable = Literal["drop", "error"]


def is_conversation(example: Example, tokenizer: Tokenizer) -> bool:
    """Returns whether an example has turns, whichever form its record has."""
    start = tokenizer.start_of_turn_id
    return start is not None and (start in example.prompt or start in example.completion)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of an example's length and ids; None is no limit."""

    max_length: int | None = None  # Tokens of prompt and completion: the model's context.
    max_prompt_length: int | None = None  # Tokens of the prompt alone, BOS included.
    # Treatment of a longer example: it is dropped; the oldest tokens after BOS, of the prompt or of
    # a text, are dropped; or it is an error.
    overlong: Overlong = "error"
    # Treatment of a record of which nothing can be learnt: one of no form, without an answer, or a
    # pair whose answers are equal or of different prompts.
    unusable: Unusable = "error"
    vocab_size: int | None = None  # Rows of the model's embedding, if fewer than the tokenizer's V.

    def __post_init__(self) -> None:
        for name in ("max_length", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be >= 2 tokens or None, got {value}")
        if self.overlong not in ("drop", "truncate-left", "error"):
            raise ValueError(
                f"overlong must be drop, truncate-left or error, got {self.overlong!r}"
            )
        if self.unusable not in ("drop", "error"):
            raise ValueError(f"unusable must be drop or error, got {self.unusable!r}")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"vocab_size must be >= 1 or None, got {self.vocab_size}")


class Report(NamedTuple):
    """Counts of a data set's records, as they were read."""

    rows: int  # Records in all.
    dropped: int  # Records left out, as they were too long.
    truncated: int  # Records shortened on the left.
    ignored_keys: Mapping[str, int]  # Number of records with each key that is not read.
    tokens: int  # Tokens of the examples that were kept.
    spelled: int = 0  # Records whose text spells control tokens, as a template writes them.
    first_spelled: str = ""  # "FILE:LINE: TOKEN" of the first of these.
    unusable: int = 0  # Records left out, as nothing can be learnt of them.
    first_unusable: str = ""  # "FILE:LINE: what is wrong" of the first of these.


def joined(reports: Sequence[Report]) -> Report:
    """Returns one report on the records of several data sets."""
    ignored: collections.Counter[str] = collections.Counter()
    for report in reports:
        ignored.update(report.ignored_keys)
    return Report(
        rows=sum(report.rows for report in reports),
        dropped=sum(report.dropped for report in reports),
        truncated=sum(report.truncated for report in reports),
        ignored_keys=dict(ignored),
        tokens=sum(report.tokens for report in reports),
        spelled=sum(report.spelled for report in reports),
        first_spelled=next((x.first_spelled for x in reports if x.spelled), ""),
        unusable=sum(report.unusable for report in reports),
        first_unusable=next((x.first_unusable for x in reports if x.unusable), ""),
    )


@dataclasses.dataclass
class Tally:
    """The counts of a `Report` while its records are read."""

    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    spelled: int = 0
    first_spelled: str = ""
    unusable: int = 0
    first_unusable: str = ""

    def note_spelled(self, place: str) -> None:
        """Counts a record whose text spells control tokens, at "FILE:LINE: TOKEN"."""
        self.spelled += 1
        self.first_spelled = self.first_spelled or place

    def leave_out(self, error: ValueError, limits: Limits) -> None:
        """Counts a record of which nothing can be learnt; raises the error if that is not to be."""
        if limits.unusable == "error":
            raise error
        self.unusable += 1
        self.first_unusable = self.first_unusable or str(error)

    def report(self, examples: Iterable[Example]) -> Report:
        """Returns the report on all records, of which these examples were kept."""
        return Report(
            rows=self.rows,
            dropped=self.dropped,
            truncated=self.truncated,
            ignored_keys=dict(self.ignored),
            tokens=sum(example.length for example in examples),
            spelled=self.spelled,
            first_spelled=self.first_spelled,
            unusable=self.unusable,
            first_unusable=self.first_unusable,
        )


def read_jsonl(
    path: files.Path,
    tokenizer: Tokenizer,
    limits: Limits | None = None,
    media: media_rows.Reader | None = None,
) -> tuple[list[Example], Report]:
    """Reads the examples of a JSONL file, in order, and reports what was left out.

    Raises:
      ValueError: with file and line, for a record that is not UTF-8, no JSON object, has a key
        twice, not the keys of exactly one form, values of another type, nothing to learn, an id
        outside the vocabulary, an end of sequence within a completion, an image or a clip that
        cannot be read, or too many tokens; unless `limits` say otherwise. For a file without
        records.
    """
    return from_rows(read_rows(path), tokenizer, limits, media)


def read_rows(path: files.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields place ("FILE:LINE") and object of each record of a JSONL file, but for empty lines.

    Raises:
      ValueError: with file and line, for a record that is not UTF-8, no JSON object, or has a key
        twice; for a file without records.
    """
    is_empty = True
    folders.check_regular(path)
    with open(path, "rb") as file:
        for line, content in enumerate(file, 1):
            if line == 1:
                content = content.removeprefix(codecs.BOM_UTF8)
            if not content.strip():
                continue
            is_empty = False
            # Values that nobody reads may be NaN, which Python writes.
            record = json_files.parse(content, f"{path}:{line}", nan=True)
            yield f"{path}:{line}", dict(record.items())
    if is_empty:
        raise ValueError(f"{path} has no rows; expected one JSON object a line")


def from_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    tokenizer: Tokenizer,
    limits: Limits | None = None,
    media: media_rows.Reader | None = None,
) -> tuple[list[Example], Report]:
    """Makes examples of records, as `read_jsonl` does.

    Args:
      rows: (place, record) each; errors begin with the place.
      tokenizer: of the model.
      limits: of the examples; None has none.
      media: those that rows may name; None reads text alone.

    Raises:
      ValueError: as `read_jsonl` does.
    """
    limits = limits or Limits()
    vocab_size = min(tokenizer.vocab_size, limits.vocab_size or tokenizer.vocab_size)
    modality = None if media is None else media.settings.modality
    examples: list[Example] = []
    tally = Tally()
    for where, record in rows:
        tally.rows += 1
        try:
            with located(where):
                record, shown = _shown(record, media)
                demonstration = forms.demonstration(record, modality=modality)
                example = encode(demonstration, tokenizer, shown)
                soft_ids = _soft_ids(example.media, tokenizer)
                _check_ids((*example.prompt, *example.completion), vocab_size, soft_ids)
        except ValueError as error:
            tally.leave_out(error, limits)
            continue
        tally.ignored.update(record.keys() - forms.LEARNT - {forms.DOCUMENT})
        said = [text for part in demonstration[:2] for text in forms.texts(part)]
        if (name := spelled_in(said, tokenizer)) is not None:
            tally.note_spelled(f"{where}: {name}")
        with located(where):
            fitted = fit(example, limits, is_text=demonstration.prompt is None)
            if fitted is not None and cuts_media(example, fitted, tokenizer):
                fitted = None
        tally.dropped += fitted is None
        if fitted is not None:
            tally.truncated += fitted.length < example.length
            examples.append(fitted)
    return examples, tally.report(examples)


def notices(reports: Mapping[str, Report]) -> Iterator[str]:
    """Yields a warning if records were left out, and one if some spell control tokens."""
    first = next((report.first_unusable for report in reports.values() if report.unusable), "")
    if first:
        count = sum(report.unusable for report in reports.values())
        num_rows = sum(report.rows for report in reports.values())
        yield f"warning: {count:,} of {num_rows:,} rows are left out, first {first}"
    if concerned := [report for report in reports.values() if report.spelled]:
        num_more = sum(report.spelled for report in concerned) - 1
        where, _, name = concerned[0].first_spelled.rpartition(": ")
        yield spelled_notice(where, name, num_more)


def spelled_notice(where: str, name: str, num_more: int = 0) -> str:
    """Returns the warning that a text, and `num_more` other ones, spell control tokens.

    Args:
      where: place of the text.
      name: of its control token.
      num_more: number of other such texts.
    """
    more = f" (and {num_more:,} more)" if num_more else ""
    return (
        f"warning: {where}{more} spells {name}, which is read as the letters that it is; if a chat "
        "template has rendered the text, --control-tokens parse reads the tokens"
    )


def read_questions(
    path: files.Path,
    tokenizer: Tokenizer,
    max_prompt_length: int | None = None,
    *,
    media: media_rows.Reader | None = None,
    vocab_size: int | None = None,
    as_turns: bool = False,
    on_spelled: Callable[[str, str], Any] = lambda where, name: None,
) -> list[Question]:
    """Reads the prompts of a JSONL file: {prompt}, {messages} or pairs, other keys ignored.

    After a last message of the user the model's turn is opened; a last message of the model is left
    out. Of a .txt file each line that is not blank is a prompt.

    Args:
      path: of the file.
      tokenizer: of the model.
      max_prompt_length: most tokens of a prompt; None is no limit.
      media: reads those that rows name; None: they name none.
      vocab_size: rows of the model's embedding, if fewer than the tokenizer's V.
      as_turns: whether the text of a {prompt} is a turn of the user's, in the chat template.
      on_spelled: called with place and name of each control token that a text spells.

    Raises:
      ValueError: as `read_jsonl` does, and always for a prompt that is too long.
    """
    modality = None if media is None else media.settings.modality
    most = min(tokenizer.vocab_size, vocab_size or tokenizer.vocab_size)
    questions = []
    is_text = pathlib.Path(path).suffix == ".txt"
    for where, record in _lines(path) if is_text else read_rows(path):
        with located(where):
            record, shown = _shown(record, media)
            value = forms.unanswered(record, modality=modality)
            if as_turns and not forms.is_messages(value):
                forms.check_string("prompt", value)
                value = [{"role": "user", "content": value}]
            question = question_of(value, tokenizer, shown)
            _check_ids(question.ids, most, _soft_ids(question.media, tokenizer))
            if (name := spelled_in(forms.texts(value), tokenizer)) is not None:
                on_spelled(where, name)
            length = len(question.ids)
            if max_prompt_length is not None and length > max_prompt_length:
                raise ValueError(
                    f"the prompt has {length} tokens, more than max_prompt_length="
                    f"{max_prompt_length}; shorten it"
                )
        questions.append(question)
    return questions


def _lines(path: files.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields place and record of each line of a file of text, but for blank ones."""
    is_empty = True
    folders.check_regular(path)
    with open(path, "rb") as file:
        for line, content in enumerate(file, 1):
            with located(f"{path}:{line}"):
                text = content.decode("utf-8-sig" if line == 1 else "utf-8").rstrip("\r\n")
            if text.strip():
                is_empty = False
                yield f"{path}:{line}", {"prompt": text}
    if is_empty:
        raise ValueError(f"{path} has no lines; expected a prompt in each")


def fit(example: Example, limits: Limits, *, is_text: bool = False) -> Example | None:
    """Returns the example, shortened if need be to fit the limits, or None if it is dropped.

    Args:
      example: of any length.
      limits: of lengths; `overlong` is the treatment of a longer one.
      is_text: whether the prompt is BOS alone, so that the completion may be shortened.

    Raises:
      ValueError: if it is too long and `overlong` is "error", or its completion leaves no room
        for BOS and one token of its prompt and `overlong` is "truncate-left".
    """
    excess = max(
        0 if limits.max_length is None else example.length - limits.max_length,
        0 if limits.max_prompt_length is None else len(example.prompt) - limits.max_prompt_length,
    )
    if excess <= 0:
        return example
    lengths = (
        f"prompt and completion have {len(example.prompt)} and {len(example.completion)} tokens, "
        f"more than max_length={limits.max_length} or max_prompt_length={limits.max_prompt_length}"
    )
    if limits.overlong == "drop":
        return None
    if limits.overlong == "error":
        raise ValueError(f"{lengths}; shorten it, or set overlong to drop or truncate-left")
    if is_text:
        if len(example.completion) - excess < 2:
            raise ValueError(
                f"{lengths}, and nothing of a text but its end would be left to learn; raise "
                "max_length, or set overlong to drop"
            )
        return example._replace(completion=example.completion[excess:])
    if len(example.prompt) - excess < 2:
        raise ValueError(f"{lengths}, even without its prompt; shorten it, or set overlong to drop")
    prompt = example.prompt[:1] + example.prompt[1 + excess :]
    spans = ((max(1, begin - excess), end - excess) for begin, end in example.answers)
    answers = tuple((begin, end) for begin, end in spans if begin < end)
    return example._replace(prompt=prompt, answers=answers)


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Prefixes a ValueError with the place where it was raised."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _shown(
    record: Mapping[str, Any], media: media_rows.Reader | None
) -> tuple[Mapping[str, Any], list[interleaved.Shown]]:
    """Returns a record whose items of media name no file, and these media, read once."""
    if media is None:
        return record, []
    separated = media_rows.separate(record, media.settings.modality)
    return separated.record, [media.segment(name) for name in separated.names]


def cuts_media(whole: Example, fitted: Example, tokenizer: Tokenizer) -> bool:
    """Returns whether an image or a clip was lost, in part or whole, as `fit` shortened an example.

    Args:
      whole: before.
      fitted: after.
      tokenizer: of both.
    """
    if not whole.media or len(fitted.prompt) == len(whole.prompt):
        return False
    cut = 1 + len(whole.prompt) - len(fitted.prompt)
    return blocks.find(whole.prompt, blocks.markers_of(tokenizer))[0].begin < cut


def _check_ids(ids: Iterable[int], vocab_size: int, soft_ids: frozenset[int]) -> None:
    """Refuses ids that no table has, but for soft ones, which are never looked up."""
    for i in ids:
        if not 0 <= i < vocab_size and i not in soft_ids:
            raise ValueError(f"token id {i} lies outside the vocabulary, [0, {vocab_size})")


def _soft_ids(media: Sequence[interleaved.Medium], tokenizer: Tokenizer) -> frozenset[int]:
    kinds = blocks.markers_of(tokenizer).kinds if media else ()
    return frozenset(kind.soft for kind in kinds)

"""Texts as a BERT or a RoBERTa takes them: tokenizers, pairs, and batches of few shapes.

Pairs are joined from ids here, not by the library, so that a long first text can be cut into
windows; a special token's name inside a text is plain text. BERT reads [CLS] first [SEP] second
[SEP], RoBERTa <s> first </s></s> second </s>.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from kullback.core import files, folders, json_files
from kullback.lm.entailment import bert
from kullback.lm.formats import vocabulary

_TOKENIZER, _VOCABULARY, _SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
_COMPANIONS = (_VOCABULARY, _SETTINGS, "special_tokens_map.json")
# A program is compiled for each length of rows that occurs, so there are few.
LENGTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512)


class Rows(NamedTuple):
    """Arguments of `bert.Model`, [B, T] each."""

    token_ids: np.ndarray  # int32.
    mask: np.ndarray  # bool; False is padding, on the right.
    token_types: np.ndarray  # int32.


Text = tuple[Sequence[int], ...]  # Plain ids of one text, or of a first and a second.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairTokenizer:
    """A tokenizer of pairs."""

    encode: Callable[[Sequence[str]], list[list[int]]] = dataclasses.field(repr=False)  # Plain ids.
    first_id: int  # Begins a row.
    end_id: int  # Ends each text; RoBERTa puts it twice between two.
    pad_id: int
    kind: str  # As of `bert.Config`.
    num_types: int  # As of `bert.Config`: segments that the model tells apart.
    sources: Mapping[str, bytes] = dataclasses.field(repr=False)  # Files, by name.

    @property
    def num_special(self) -> int:
        """Number of special tokens in a pair."""
        return 4 if self.kind == "roberta" else 3

    def check_pairs(self) -> None:
        """Raises ValueError unless the model reads two texts in a row."""
        if self.kind == "bert" and self.num_types < 2:
            raise ValueError(
                f"a BERT of type_vocab_size={self.num_types} has no second text in a row: take one "
                "of 2, or a RoBERTa, to judge pairs"
            )

    def rows(self, texts: Sequence[Text], length: int) -> Rows:
        """Pads texts of ids to rows of `length`; pairs are (first, second), single texts (first,).

        The first text of a row that is too long loses its end; the second one is kept whole.

        Raises:
          ValueError: if a second text alone is too long, or the model takes none.
        """
        if any(len(text) > 1 for text in texts):
            self.check_pairs()
        rows = Rows(
            np.full((len(texts), length), self.pad_id, np.int32),
            np.zeros((len(texts), length), bool),
            np.zeros((len(texts), length), np.int32),
        )
        for n, (first, *second) in enumerate(texts):
            rest = (
                [*[self.end_id] * (self.num_special - 3), *second[0], self.end_id] if second else []
            )
            room = length - 2 - len(rest)
            if room < 0:
                raise ValueError(
                    f"a second text of {len(second[0])} tokens does not fit rows of {length}; "
                    "cut it in pieces"
                )
            left = [self.first_id, *first[:room], self.end_id]
            whole = [*left, *rest]
            rows.token_ids[n, : len(whole)] = whole
            rows.mask[n, : len(whole)] = True
            if self.kind == "bert":
                rows.token_types[n, len(left) : len(whole)] = 1
        return rows


def in_batches(
    program: Callable[[Rows], Any],
    tokenizer: PairTokenizer,
    texts: Sequence[Text],
    *,
    max_length: int,
    batch_size: int = 32,
) -> np.ndarray:
    """Runs a program on batches of texts and returns its results in their order, [n, ...].

    Texts are grouped by their padded length, one of LENGTHS; the last batch of a group is filled up
    to a quarter of a batch or a whole one. So a program is compiled for few shapes.

    Args:
      program: rows -> [B, ...], which may depend on no other row.
      tokenizer: makes the rows.
      texts: at least one; where a row exceeds `max_length`, the first text loses its end.
      max_length: tokens of a row, special ones included.
      batch_size: rows at once, a multiple of 4.
    """
    sizes = [*(n for n in LENGTHS if n < max_length), max_length]
    by_size: dict[int, list[int]] = {}
    for n, text in enumerate(texts):
        needed = sum(map(len, text)) + (tokenizer.num_special if len(text) > 1 else 2)
        size = next((size for size in sizes if size >= needed), max_length)
        by_size.setdefault(size, []).append(n)
    results: list[Any] = [None] * len(texts)
    for size, members in by_size.items():
        for begin in range(0, len(members), batch_size):
            part = members[begin : begin + batch_size]
            count = batch_size // 4 if len(part) <= batch_size // 4 else batch_size
            filled = [texts[n] for n in part] + [texts[part[0]]] * (count - len(part))
            out = np.asarray(program(tokenizer.rows(filled, size)))
            for n, row in zip(part, out, strict=False):
                results[n] = row
    return np.stack(results)


def read(folder: files.Path, config: bert.Config) -> PairTokenizer:
    """Reads the tokenizer of a folder.

    Raises:
      ValueError: if there is none, or it lacks the special tokens of its kind.
    """
    folder = pathlib.Path(folder)
    inner, file, has_expression = _tokenizer(folder, config.kind)
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True  # "[SEP]" in a text is text: no text can end itself.
    names = ("[CLS]", "[SEP]", "[PAD]") if config.kind == "bert" else ("<s>", "</s>", "<pad>")
    ids = {name: inner.token_to_id(name) for name in names}
    if missing := [name for name, number in ids.items() if number is None]:
        raise ValueError(f"{folder}: its tokenizer has no {missing[0]}")
    first_id, end_id, pad_id = (number for number in ids.values() if number is not None)
    # Ids may have gaps, so that their number does not tell the greatest.
    greatest = max(inner.get_vocab().values())
    if pad_id != config.pad_id or greatest >= config.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has ids up to {greatest} and pads with {pad_id}, its model "
            f"has ids below {config.vocab_size} and pads with {config.pad_id}"
        )
    companions = folders.present(folder, _COMPANIONS)
    sources = {name: path.read_bytes() for name, path in companions.items()}
    sources[_TOKENIZER] = inner.to_str().encode()

    guarded = vocabulary.guarded(inner, file, has_expression)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        if has_expression:  # The library may give up on a text: one by one, so that it is named.
            return [guarded(text).ids for text in texts]
        encodings = inner.encode_batch([*texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return PairTokenizer(
        encode=encode,
        first_id=first_id,
        end_id=end_id,
        pad_id=pad_id,
        kind=config.kind,
        num_types=config.num_types,
        sources=sources,
    )


def _tokenizer(folder: pathlib.Path, kind: str) -> tuple[Any, str, bool]:
    """Returns the library's tokenizer, its file, and whether that brings a regular expression."""
    paths = folders.present(folder, (_TOKENIZER, _VOCABULARY, _SETTINGS))
    if _TOKENIZER in paths:
        file = str(paths[_TOKENIZER])
        data = paths[_TOKENIZER].read_bytes()
        record = json_files.parse(data, file)
        return vocabulary.read_library(record, data), file, vocabulary.has_expression(record)
    if kind != "bert" or _VOCABULARY not in paths:
        also = f" nor {_VOCABULARY}" if kind == "bert" else ""
        raise ValueError(f"{folder} has no {_TOKENIZER}{also}")
    fields = json_files.Record(_SETTINGS, (), {})
    if _SETTINGS in paths:
        fields = json_files.read(paths[_SETTINGS])
    options = {
        "lowercase": fields.get("do_lower_case", bool, True),
        "strip_accents": fields.get("strip_accents", bool, None),
        "handle_chinese_chars": fields.get("tokenize_chinese_chars", bool, True),
    }
    try:
        tokenizer = tokenizers.BertWordPieceTokenizer(str(paths[_VOCABULARY]), **options)
    except Exception as error:  # The library raises plain ones.
        raise ValueError(
            f"{paths[_VOCABULARY]} is no vocabulary, a piece a line: {error}"
        ) from None
    return tokenizers.Tokenizer.from_str(tokenizer.to_str()), str(paths[_VOCABULARY]), False

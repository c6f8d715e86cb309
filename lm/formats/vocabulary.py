"""Vocabularies in files: `tokenizer.json`, and `tokenizer.model` with `added_tokens.json`.

A file may be a stranger's or damaged. Its claims (an id decides how long a list is) are compared
with its own length first, and errors of the libraries, even panics, become one line.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import sentencepiece
import tokenizers

from kullback.core import json_files
from kullback.lm import control_tokens

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space.


class Vocabulary(NamedTuple):
    """Pieces of text by id, V of them, and how text falls into them."""

    encode: control_tokens.Encode  # Maybe with control tokens: see `control_tokens.as_text`.
    spans: control_tokens.Spans
    names: list[str | None]  # [V]; None for an id that nothing has.
    pieces: list[bytes]  # [V]; b"" for a special id.
    unk_id: int | None  # Replaces text that no piece can write.
    defaults: dict[str, str | None]  # Special tokens by role, as the file alone has them.


def from_json(data: bytes, file: str) -> Vocabulary:
    """Reads a tokenizer.json: byte-level BPE, or Gemma's pieces with byte fallback.

    Args:
      data: the file's bytes.
      file: its name, for messages.

    Raises:
      ValueError: if it is none, or its pieces cannot be decoded in chunks.
    """
    record = json_files.parse(data, file)
    to_bytes = _piece_decoder(record.record("decoder", None), file)
    inner = read_library(record, data)
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True  # That is: "<bos>" in a text is text.
    added = inner.get_added_tokens_decoder()
    vocabulary = inner.get_vocab()
    if not vocabulary:
        raise ValueError(f"{file}: its vocabulary is empty")
    names: list[str | None] = [None] * (max(vocabulary.values()) + 1)
    for name, i in vocabulary.items():
        names[i] = name
    pieces = []
    for i, name in enumerate(names):
        if i in added:
            pieces.append(b"" if added[i].special else added[i].content.encode())
        else:
            pieces.append(b"" if name is None else to_bytes(name))
    run = guarded(inner, file, has_expression(record))
    unknown = model_of(record).get("unk_token", str, None)
    return Vocabulary(
        encode=lambda text: run(text).ids,
        spans=lambda text: run(text).offsets,
        names=names,
        pieces=pieces,
        unk_id=None if unknown is None else vocabulary.get(unknown),
        defaults={role: f"<{role}>" for role in ("bos", "eos", "pad")},
    )


def read_library(record: json_files.Record, data: bytes) -> Any:
    """Returns the tokenizers library's object for a tokenizer.json.

    Args:
      record: the parsed file.
      data: the file's bytes.

    Raises:
      ValueError: if the library refuses it, or it names ids that the file has no room for.
    """
    file = record.file
    _check_ids(model_of(record), record, len(data))
    try:
        with _quietly():
            return tokenizers.Tokenizer.from_str(data.decode("utf-8-sig"))
    except BaseException as error:  # The library raises plain ones, and its panics are no others.
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        message = " ".join(str(error).split())
        raise ValueError(f"{file}: the tokenizers library cannot read it ({message})") from None


def model_of(record: json_files.Record) -> json_files.Record:
    """Returns the model of a tokenizer.json, which may be absent."""
    return record.record("model", json_files.Record(record.file, ("model",), {}))


def from_sentencepiece(data: bytes, file: str) -> Vocabulary:
    """Reads a tokenizer.model; otherwise as `from_json`."""
    if data.startswith(json_files.LFS.encode()):
        raise ValueError(f"{file} is a git-lfs pointer, not the file; fetch it by git lfs pull")
    inner: Any = sentencepiece.SentencePieceProcessor()
    try:
        inner.LoadFromSerializedProto(data)
        size = inner.vocab_size()
    except Exception as error:  # The library raises several kinds.
        message = str(error) if str(error).isprintable() else ascii(str(error))
        raise ValueError(f"{file}: the sentencepiece library cannot read it ({message})") from None
    if not size:
        raise ValueError(f"{file}: its vocabulary is empty")
    if inner.encode("a", out_type=str)[:1] and inner.encode("a", out_type=str)[0][0] == _SPACE:
        raise ValueError(
            f"{file}: it puts a space before every text, so a prompt and its completion would not "
            "join; train it with add_dummy_prefix=False"
        )
    names = [inner.id_to_piece(i) for i in range(size)]
    pieces = []
    unknown = inner.unk_id()  # There is one, or -1.
    for i, name in enumerate(names):
        if inner.is_control(i) or inner.is_unused(i):
            pieces.append(b"")
        elif i == unknown:
            pieces.append(inner.decode([i]).encode())
        else:
            pieces.append(_fallback_bytes(name))

    def spans(text: str) -> list[tuple[int, int]]:
        # Their offsets are those of bytes; the surfaces join to the text.
        ends = [0]
        for piece in inner.encode(text, return_type="proto").pieces:
            ends.append(ends[-1] + len(piece.surface))
        return [*itertools.pairwise(ends)]

    roles = {"bos": inner.bos_id(), "eos": inner.eos_id(), "pad": inner.pad_id()}
    return Vocabulary(
        encode=inner.encode,
        spans=spans,
        names=names,
        pieces=pieces,
        unk_id=unknown,
        defaults={role: names[i] if i >= 0 else None for role, i in roles.items()},
    )


def with_added(
    vocabulary: Vocabulary, added: json_files.Record, size: int, special: Iterable[str]
) -> Vocabulary:
    """Returns a vocabulary with the tokens of an added_tokens.json, {name: id}.

    Args:
      vocabulary: of a tokenizer.model, which lacks them.
      added: the parsed file.
      size: its bytes.
      special: names of control tokens, which have no text and are not made from text.

    Raises:
      ValueError: for an id that another piece has, or so great that the file is damaged.
    """
    names, pieces, special = [*vocabulary.names], [*vocabulary.pieces], frozenset(special)
    ids = {name: i for i, name in enumerate(names) if name is not None}
    ids_by_text: dict[str, int] = {}
    for name, i in added.each(int).items():
        if ids.get(name) == i:
            continue
        if not name or name in ids or not 0 <= i < len(vocabulary.names) + size:
            raise added.error(name, "the id of a token that the vocabulary has not, right after it")
        names += [None] * (i + 1 - len(names))
        pieces += [b""] * (i + 1 - len(pieces))
        if names[i] is not None:
            raise added.error(name, f"an id of its own, and {i} is {names[i]!r}")
        names[i], pieces[i] = name, b"" if name in special else name.encode()
        if name not in special:
            ids_by_text[name] = i
    if not ids_by_text:
        return vocabulary._replace(names=names, pieces=pieces)
    longest_first = sorted(ids_by_text, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def encode(text: str) -> list[int]:
        parts = enumerate(pattern.split(text))
        return [i for n, p in parts for i in ([ids_by_text[p]] if n % 2 else vocabulary.encode(p))]

    def spans(text: str) -> list[tuple[int, int]]:
        all_spans: list[tuple[int, int]] = []
        begin = 0
        for n, part in enumerate(pattern.split(text)):
            of_part = [(0, len(part))] if n % 2 else vocabulary.spans(part)
            all_spans += [(begin + a, begin + b) for a, b in of_part]
            begin += len(part)
        return all_spans

    return vocabulary._replace(encode=encode, spans=spans, names=names, pieces=pieces)


def _check_ids(model: json_files.Record, record: json_files.Record, size: int) -> None:
    """Refuses ids that a file of `size` bytes cannot have: each of them takes some."""
    pieces = model.get("vocab", (dict, list), {})
    ids: list[tuple[Any, Any]] = [*pieces.items()] if isinstance(pieces, dict) else []
    ids += [(e.get("content", str), e.get("id", int)) for e in record.records("added_tokens", [])]
    for name, i in ids:
        if type(i) is not int or not 0 <= i < size:
            raise ValueError(
                f"{record.file}: token {json_files.shown(name)} must have an id in [0, {size}), "
                f"the bytes of the file, got {json_files.shown(i)}; it is damaged"
            )


def _piece_decoder(decoder: json_files.Record | None, file: str) -> Callable[[str], bytes]:
    """Returns the function from pieces to bytes of a tokenizer.json's `decoder`."""
    steps = [] if decoder is None else [decoder]
    if decoder is not None and decoder.get("type", str, None) == "Sequence":
        steps = decoder.records("decoders")
    kinds = {step.get("type", str, None) for step in steps}
    if kinds == {"ByteLevel"}:
        # Each byte is written as a character that can be seen; the others follow from 256 on.
        seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in seen]
        table = {chr(byte): byte for byte in seen}
        table |= {chr(256 + n): byte for n, byte in enumerate(hidden)}

        def to_bytes(piece: str) -> bytes:
            # A piece of other characters is itself, as in the library.
            is_known = all(c in table for c in piece)
            return bytes(table[c] for c in piece) if is_known else piece.encode()

        return to_bytes
    spaces = any(step.values.get("pattern") == {"String": _SPACE} for step in steps)
    if kinds == {"Replace", "ByteFallback", "Fuse"} and spaces:
        return _fallback_bytes
    shown = ", ".join(sorted(map(str, kinds))) or "none"
    raise ValueError(
        f"{file}: decoder ({shown}) is not one that decodes piece by piece; expected ByteLevel, or "
        "Gemma's Replace, ByteFallback and Fuse"
    )


def _fallback_bytes(piece: str) -> bytes:
    if piece.startswith("<0x") and (match := re.fullmatch("<0x([0-9A-F]{2})>", piece)):
        return bytes.fromhex(match[1])
    return piece.replace(_SPACE, " ").encode()


def has_expression(record: json_files.Record) -> bool:
    """Returns whether a tokenizer.json brings a regular expression of its own."""
    pending = [record.values.get(key) for key in ("normalizer", "pre_tokenizer")]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "Regex" in value:
                return True
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return False


def guarded(inner: Any, file: str, is_quiet: bool) -> Callable[[str], Any]:
    """Returns the library's encoding of a text, whose panics are one line.

    The library gives up a regular expression that backtracks without end, and panics.

    Args:
      inner: the library's tokenizer.
      file: its file's name, for messages.
      is_quiet: whether to hold back what the library prints, for one that may panic.
    """

    def run(text: str) -> Any:
        try:
            with _quietly() if is_quiet else contextlib.nullcontext():
                return inner.encode(text, add_special_tokens=False)
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise ValueError(
                f"{file}: it cannot encode a text that begins with {text[:40]!r} ({error}); does "
                "one of its regular expressions backtrack without end?"
            ) from None

    return run


def _is_panic(error: BaseException) -> bool:
    """Returns whether a library in Rust has panicked, which no class of ours can name."""
    return type(error).__module__ == "pyo3_runtime"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps what a panic writes, by itself, from standard error: it is raised, too."""
    try:
        kept = os.dup(2)
    except OSError:  # It is closed.
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

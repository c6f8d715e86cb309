"""The tokenizer in a GGUF file, as the files that tokenizers are published in.

Pieces with scores ("llama") become a tokenizer.model of SentencePiece, whose algorithm llama.cpp
repeats and whose types of pieces have the same numbers. Byte-level BPE ("gpt2") becomes a
tokenizer.json. So whatever reads, saves and exports a tokenizer does so with these, too.

Ids are those of llama.cpp but for two kinds of text: names of control tokens, which stay text here
(it makes tokens of those that the file calls user-defined), and SentencePiece's own sign for a
space beside spaces or another one, which are one piece here, as in SentencePiece.
"""

import json
import struct
from collections.abc import Iterable
from typing import TypeVar

import tokenizers

from kullback.core import json_files
from kullback.lm import sizes
from kullback.lm.formats import gguf_files

T = TypeVar("T")

_KEY = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # Types of pieces.
_TYPES = range(1, 7)  # From normal to byte.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space.
# How byte-level BPE cuts text first, by llama.cpp's names: whether each digit stands alone.
_CUTS = {"gpt-2": False, **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), True)}
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # Ours -> the file's.
# Tuned Gemma's files name the end of a turn as the end. As in its folders, it is one beside <eos>.
_END, _END_OF_TURN = "<eos>", "<end_of_turn>"


def sources(file: gguf_files.File) -> dict[str, bytes]:
    """Returns the files of the tokenizer, by the names that they have in a folder.

    Raises:
      ValueError: for a tokenizer that is missing, damaged, or of a kind that we do not read.
    """
    fields = file.metadata
    model = fields.get(f"{_KEY}model", str)
    if model not in ("llama", "gpt2"):
        raise fields.error(f"{_KEY}model", "llama (pieces with scores) or gpt2 (byte-level BPE)")
    names = _list(fields, "tokens", str)
    if not 1 <= len(names) <= sizes.MOST["vocab_size"]:
        raise fields.error(f"{_KEY}tokens", f"of 1 to {sizes.MOST['vocab_size']} tokens")
    types = _as_many(fields, "token_type", int, len(names))
    if not set(types) <= {*_TYPES}:
        raise fields.error(f"{_KEY}token_type", f"of numbers in [1, {_TYPES[-1]}]")
    ids = {role: _id(fields, key, len(names)) for role, key in _ROLES.items()}
    if model == "llama":
        name, data = "tokenizer.model", _sentencepiece(fields, names, types, ids)
    else:
        name, data = "tokenizer.json", _byte_level(fields, names, types)
    special = {role: names[i] for role, i in ids.items() if i is not None}
    if special.get("eos") == _END_OF_TURN and _END in names:
        special["eos"] = _END
    config = {
        "tokenizer_class": "GemmaTokenizer" if model == "llama" else "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in special.items()},
    }
    result = {name: data, "tokenizer_config.json": json.dumps(config, indent=2).encode()}
    template = fields.get("tokenizer.chat_template", str, None)
    return result if template is None else {**result, "chat_template.jinja": template.encode()}


def _id(fields: json_files.Record, role: str, size: int) -> int | None:
    key = f"{_KEY}{role}_token_id"
    number = fields.get(key, int, None)
    if number is not None and not 0 <= number < size:
        raise fields.error(key, f"in [0, {size}), the tokens")
    return number


def _list(fields: json_files.Record, name: str, kind: type[T]) -> list[T]:
    """Returns a list, whose entries are of one type in such a file."""
    entries = fields.get(_KEY + name, list)
    if not all(type(entry) is kind for entry in entries[:1]):
        raise fields.error(_KEY + name, f"a list of type {kind.__name__}")
    return entries


def _as_many(fields: json_files.Record, name: str, kind: type[T], size: int) -> list[T]:
    numbers = _list(fields, name, kind)
    if len(numbers) != size:
        raise fields.error(_KEY + name, f"one number for each of {size} tokens")
    return numbers


def _sentencepiece(
    fields: json_files.Record, names: list[str], types: list[int], ids: dict[str, int | None]
) -> bytes:
    """Returns a tokenizer.model: a message of Protocol Buffers, `ModelProto` of SentencePiece."""
    scores = _as_many(fields, "scores", float, len(names))
    types = [*types]
    if (unknown := ids["unk"]) is not None:  # llama.cpp's converter calls it control.
        types[unknown] = _UNKNOWN
    kinds = [_field(3, kind) for kind in range(_TYPES.stop)]
    pieces = []
    for n, (name, score, kind) in enumerate(zip(names, scores, types, strict=True)):
        if not name:
            raise fields.error(f"{_KEY}tokens", f"of texts that are not empty, as number {n} is")
        # llama.cpp's converter writes spaces of these, and of no others, as spaces.
        piece = name.replace(" ", _SPACE) if kind == _USER_DEFINED else name
        try:
            number = struct.pack("<f", score)
        except OverflowError:
            raise fields.error(f"{_KEY}scores", "of numbers that float32 holds") from None
        pieces.append(_field(1, _field(1, piece.encode()) + b"\x15" + number + kinds[kind]))
    special = [
        _field(number, names[i].encode())
        for number, role in ((45, "unk"), (46, "bos"), (47, "eos"), (48, "pad"))
        if (i := ids[role]) is not None
    ]
    trainer = b"".join([_field(3, 2), _field(35, 1), *special])  # BPE, with bytes for the rest.
    prefix = fields.get(f"{_KEY}add_space_prefix", bool, True)
    normalizer = b"".join(
        # Only a space before every text, no spaces removed, each of them written as a sign.
        [_field(1, b"identity"), _field(3, int(prefix)), _field(4, 0), _field(5, 1)]
    )
    return b"".join([*pieces, _field(2, trainer), _field(3, normalizer)])


def _field(number: int, value: bytes | int) -> bytes:
    """Returns a field of a message: a length and bytes, or an integer >= 0."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _byte_level(fields: json_files.Record, names: list[str], types: list[int]) -> bytes:
    """Returns a tokenizer.json of byte-level BPE."""
    key = f"{_KEY}pre"
    cut = fields.get(key, str)
    if cut not in _CUTS:
        raise fields.error(key, f"one of {', '.join(_CUTS)}")
    vocabulary = {name: i for i, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise fields.error(f"{_KEY}tokens", "of tokens that differ")
    merges = [tuple(pair.split(" ")) for pair in _list(fields, "merges", str)]
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise fields.error(
                f"{_KEY}merges",
                f"of two tokens that make a third, and one is {json_files.shown(' '.join(pair))}",
            )
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if _CUTS[cut] else []
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*digits, byte_level])
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(_of_type(names, types, _CONTROL))
    inner.add_tokens(_of_type(names, types, _USER_DEFINED))
    return inner.to_str().encode()


def _of_type(names: list[str], types: Iterable[int], kind: int) -> list[str]:
    return [name for name, of in zip(names, types, strict=True) if of == kind and name]

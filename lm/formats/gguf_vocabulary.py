"""The tokenizer in a GGUF file, as the files that tokenizers are published in.

Pieces with scores ("llama") become a tokenizer.model of SentencePiece, whose algorithm llama.cpp
repeats and whose types of pieces have the same numbers. Byte-level BPE ("gpt2") becomes a
tokenizer.json. So whatever reads, saves and exports a tokenizer does so with these, too.

Ids are those of llama.cpp but for two kinds of text: names of control tokens, which stay text here
(it makes tokens of those that the file calls user-defined), and SentencePiece's own sign for a
space beside spaces or another one, which are one piece here, as in SentencePiece.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import tokenizers

from kullback.core import json_files
from kullback.lm import sizes
from kullback.lm.formats import gguf_files, messages

T = TypeVar("T")

KEY = "tokenizer.ggml."
# Types of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = _TYPES = range(1, 7)
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space.
# How byte-level BPE cuts text first, by llama.cpp's names: whether each digit stands alone.
CUTS = {"gpt-2": False, **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), True)}
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # Ours -> the file's.
# Tuned Gemma's files name the end of a turn as the end. As in its folders, it is one beside <eos>.
_END, _END_OF_TURN = "<eos>", "<end_of_turn>"


def sources(file: gguf_files.File) -> dict[str, bytes]:
    """Returns the files of the tokenizer, by the names that they have in a folder.

    Raises:
      ValueError: for a tokenizer that is missing, damaged, or of a kind that we do not read.
    """
    fields = file.metadata
    model = fields.get(f"{KEY}model", str)
    if model not in ("llama", "gpt2"):
        raise fields.error(f"{KEY}model", "llama (pieces with scores) or gpt2 (byte-level BPE)")
    names = _list(fields, "tokens", str)
    if not 1 <= len(names) <= sizes.MOST["vocab_size"]:
        raise fields.error(f"{KEY}tokens", f"of 1 to {sizes.MOST['vocab_size']} tokens")
    types = _as_many(fields, "token_type", int, len(names))
    if not set(types) <= {*_TYPES}:
        raise fields.error(f"{KEY}token_type", f"of numbers in [1, {_TYPES[-1]}]")
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
    key = f"{KEY}{role}_token_id"
    number = fields.get(key, int, None)
    if number is not None and not 0 <= number < size:
        raise fields.error(key, f"in [0, {size}), the tokens")
    return number


def _list(fields: json_files.Record, name: str, kind: type[T]) -> list[T]:
    """Returns a list, whose entries are of one type in such a file."""
    entries = fields.get(KEY + name, list)
    if not all(type(entry) is kind for entry in entries[:1]):
        raise fields.error(KEY + name, f"a list of type {kind.__name__}")
    return entries


def _as_many(fields: json_files.Record, name: str, kind: type[T], size: int) -> list[T]:
    numbers = _list(fields, name, kind)
    if len(numbers) != size:
        raise fields.error(KEY + name, f"one number for each of {size} tokens")
    return numbers


def _sentencepiece(
    fields: json_files.Record, names: list[str], types: list[int], ids: dict[str, int | None]
) -> bytes:
    """Returns a tokenizer.model: a message of Protocol Buffers, `ModelProto` of SentencePiece."""
    scores = _as_many(fields, "scores", float, len(names))
    types = [*types]
    if (unknown := ids["unk"]) is not None:  # llama.cpp's converter calls it control.
        types[unknown] = UNKNOWN
    kinds = [messages.field(3, kind) for kind in range(_TYPES.stop)]
    pieces = []
    for n, (name, score, kind) in enumerate(zip(names, scores, types, strict=True)):
        if not name:
            raise fields.error(f"{KEY}tokens", f"of texts that are not empty, as number {n} is")
        # llama.cpp's converter writes spaces of these, and of no others, as spaces.
        piece = name.replace(" ", SPACE) if kind == USER_DEFINED else name
        try:
            number = messages.field(2, float(score))
        except OverflowError:
            raise fields.error(f"{KEY}scores", "of numbers that float32 holds") from None
        text = messages.field(1, piece.encode())
        pieces.append(messages.field(1, text + number + kinds[kind]))
    special = [
        messages.field(number, names[i].encode())
        for number, role in ((45, "unk"), (46, "bos"), (47, "eos"), (48, "pad"))
        if (i := ids[role]) is not None
    ]
    # BPE, with bytes for what has no piece.
    trainer = b"".join([messages.field(3, 2), messages.field(35, 1), *special])
    prefix = fields.get(f"{KEY}add_space_prefix", bool, True)
    # Only a space before every text, no spaces removed, each of them written as a sign.
    spaces = {3: int(prefix), 4: 0, 5: 1}
    normalizer = messages.field(1, b"identity")
    normalizer += b"".join(messages.field(*setting) for setting in spaces.items())
    return b"".join([*pieces, messages.field(2, trainer), messages.field(3, normalizer)])


def _byte_level(fields: json_files.Record, names: list[str], types: list[int]) -> bytes:
    """Returns a tokenizer.json of byte-level BPE."""
    key = f"{KEY}pre"
    cut = fields.get(key, str)
    if cut not in CUTS:
        raise fields.error(key, f"one of {', '.join(CUTS)}")
    vocabulary = {name: i for i, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise fields.error(f"{KEY}tokens", "of tokens that differ")
    merges = [tuple(pair.split(" ")) for pair in _list(fields, "merges", str)]
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise fields.error(
                f"{KEY}merges",
                f"of two tokens that make a third, and one is {json_files.shown(' '.join(pair))}",
            )
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    inner.pre_tokenizer = _cutter(digits=CUTS[cut])
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(_of_type(names, types, CONTROL))
    inner.add_tokens(_of_type(names, types, USER_DEFINED))
    return inner.to_str().encode()


def cut_of(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns llama.cpp's name of how byte-level BPE cuts text first, None if it has none.

    Args:
      steps: of the pre_tokenizer of a tokenizer.json.
    """

    def plain(step: Mapping[str, Any]) -> dict[str, Any]:
        # Offsets change no token; where files are older, its expression is always used.
        return {"use_regex": True, **step, "trim_offsets": True}

    for name, digits in (("smollm", True), ("gpt-2", False)):
        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        inner.pre_tokenizer = _cutter(digits=digits)
        expected = json.loads(inner.to_str())["pre_tokenizer"]["pretokenizers"]
        if [*map(plain, steps)] == [*map(plain, expected)]:
            return name
    return None


def _cutter(*, digits: bool) -> Any:
    """Returns a pre_tokenizer, with each digit alone or not."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if digits else []
    return tokenizers.pre_tokenizers.Sequence([*first, byte_level])


def _of_type(names: list[str], types: Iterable[int], kind: int) -> list[str]:
    return [name for name, of in zip(names, types, strict=True) if of == kind and name]

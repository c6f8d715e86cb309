"""A tokenizer as metadata of a GGUF file, the way back of lm/formats/gguf_vocabulary.py.

llama.cpp has two kinds that ours fit: pieces with scores ("llama"), of a tokenizer.model of
SentencePiece or of Gemma's tokenizer.json, whose order of merges becomes scores; and byte-level BPE
("gpt2"). What is written is read again and compared with the tokenizer at texts of every sort.

V is the number of ids.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kullback.core import json_files
from kullback.lm import tokenizer
from kullback.lm.formats import gguf_files, gguf_vocabulary, messages, vocabulary
from kullback.lm.formats.gguf_vocabulary import (
    BYTE,
    CONTROL,
    KEY,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

# Texts by which what is written is compared: scripts, spaces, code, names of control tokens.
TEXTS = (
    *("", " ", "  a", " " * 33, "a\n\n\tb \r\n", "x  y   z", "e\u0301\u00a0\u200d\0", "<0x41>"),
    *("1234567890 3.14", "don't I'll WE'RE", "<h1>x</h1>", "https://example.com/a?b=c&d=%20#e"),
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A:\n\tpass\n",
    *("\U0001f642\U0001f44d\U0001f3fd", "日本語のテキスト。東京", "Это проверка", "مرحبا بالعالم"),
    "The quick brown fox jumps over the lazy dog.\n\nIt was 12 years old; 3 + 4 = 7.",
    "<bos><start_of_turn>user\nhi<end_of_turn>",
)
_ENDS = ("eos", "eot", "eom")  # Three ends have a key each.
_ADDED = (
    -1000.0
)  # Score of tokens that were added to a vocabulary, as llama.cpp's converter has it.
_BPE = 2  # Number of SentencePiece's algorithm.
_FIX = "keep to --format hugging-face"
# Settings of a BPE that llama.cpp has not, and what they are where they are not used.
_PLAIN = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}
_FLAGS = ("lstrip", "rstrip", "single_word")  # Of added tokens, as `tokenizers` has them.


class _Pieces(NamedTuple):
    """Tokens as a GGUF file lists them."""

    names: list[str]  # [V].
    types: list[int]  # [V].
    unk_id: int | None
    scores: Sequence[float] = ()  # [V], of pieces with scores.
    merges: Sequence[str] = ()  # Of byte-level BPE.
    cut: str = "default"  # How text is cut first, by llama.cpp's name.


def metadata(source: tokenizer.Tokenizer, num_rows: int, eos_ids: Iterable[int]) -> dict[str, Any]:
    """Returns the keys and values of a GGUF file that hold a tokenizer.

    Args:
      source: the tokenizer.
      num_rows: of the model's table; control tokens with ids beyond are left out.
      eos_ids: all ids that end a text.

    Raises:
      ValueError: naming the tokenizer, if llama.cpp has none of its kind.
    """
    file = str(source.path or "the tokenizer")
    pieces = _pieces(source, file)
    types = [*pieces.types]
    for i in source.controls.values():
        types[i] = CONTROL if i != pieces.unk_id else UNKNOWN
    num_ids = min(len(types), num_rows)
    if lost := [i for i in range(num_ids, len(types)) if types[i] not in (CONTROL, UNUSED)]:
        raise ValueError(
            f"{file} has token {lost[0]}, {json_files.shown(pieces.names[lost[0]])}, and the "
            f"model's table {num_rows} rows; take the tokenizer that it was trained with"
        )
    values: dict[str, Any] = {"model": "gpt2", "pre": pieces.cut, "merges": [*pieces.merges]}
    names = pieces.names[:num_ids]
    if pieces.scores:
        values = {"model": "llama", "pre": pieces.cut, "scores": [*pieces.scores[:num_ids]]}
        # As llama.cpp's converter has them.
        kinds = zip(names, types, strict=False)
        names = [n.replace(SPACE, " ") if kind == USER_DEFINED else n for n, kind in kinds]
    values |= {"tokens": names, "token_type": types[:num_ids]}
    values |= _special_ids(source, pieces.unk_id, eos_ids, num_ids, file)
    values |= {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": False}
    result = {f"{KEY}{name}": value for name, value in values.items()}
    if (template := _template(source)) is not None:
        result["tokenizer.chat_template"] = template
    _check_same(source, result, file)
    return result


def _special_ids(
    source: tokenizer.Tokenizer,
    unk_id: int | None,
    eos_ids: Iterable[int],
    num_ids: int,
    file: str,
) -> dict[str, int]:
    ends = [i for i in dict.fromkeys((*source.eos_ids, *eos_ids)) if i < num_ids]
    if len(ends) > len(_ENDS):
        raise ValueError(f"GGUF has keys for {len(_ENDS)} ends of a text, and {file} has {ends}")
    if max(source.bos_id, source.pad_id, source.eos_id) >= num_ids:
        raise ValueError(
            f"{file}: beginning, end and padding must be among the {num_ids} tokens of the model's "
            f"table, got {source.bos_id}, {source.eos_id} and {source.pad_id}"
        )
    ids = {"bos": source.bos_id, "padding": source.pad_id, "unknown": unk_id}
    ids |= dict(zip(_ENDS, ends, strict=False))
    return {f"{role}_token_id": i for role, i in ids.items() if i is not None}


def _template(source: tokenizer.Tokenizer) -> str | None:
    """Returns the chat template of a tokenizer's files, the default one if they have several."""
    if (data := source.sources.get(tokenizer.TEMPLATE_FILE)) is not None:
        return data.decode()
    if (data := source.sources.get(tokenizer.TOKENIZER_CONFIG)) is None:
        return None
    config = json_files.parse(data, tokenizer.TOKENIZER_CONFIG)
    if isinstance(config.get("chat_template", (str, list), ""), str):
        return config.get("chat_template", str, None)
    choices = {one.get("name", str): one for one in config.records("chat_template")}
    return choices["default"].get("template", str) if "default" in choices else None


def _check_same(source: tokenizer.Tokenizer, values: Mapping[str, Any], file: str) -> None:
    """Reads what is written, and compares ids of texts."""
    record = json_files.Record(file, (), values)
    read = tokenizer.from_gguf(gguf_files.File(record, {}))
    for text in TEXTS:
        if read.encode(text) != source.encode(text):
            raise ValueError(
                f"{file}: llama.cpp's tokenizer {values[f'{KEY}model']} makes other tokens of "
                f"{json_files.shown(text)} than it does; {_FIX}"
            )


def _pieces(source: tokenizer.Tokenizer, file: str) -> _Pieces:
    data, model = (source.sources.get(name) for name in ("tokenizer.json", "tokenizer.model"))
    if data is None:
        assert model is not None  # A tokenizer has one of them.
        pieces = _with_added(source, _of_sentencepiece(model, file))
    else:
        record = json_files.parse(data, file)
        pieces = _of_json(record)
        if _is_byte_level(record):
            return _byte_level(record, pieces)
        scored = None if model is None else _of_sentencepiece(model, file)
        if scored is not None and scored.names == pieces.names[: len(scored.names)]:
            # The scores from which the merges were made.
            more = slice(len(scored.names), None)
            scores = [*scored.scores, *(_ADDED for _ in pieces.names[more])]
            types = [*scored.types, *pieces.types[more]]
            pieces = pieces._replace(types=types, scores=scores)
        else:
            pieces = _with_scores(record, pieces)
    if pieces.types.count(BYTE) != 256:
        raise ValueError(
            f"{file} must have a piece for each of 256 bytes, as llama.cpp asks; {_FIX}"
        )
    return pieces


def _of_sentencepiece(data: bytes, file: str) -> _Pieces:
    """Returns the pieces of a tokenizer.model, which is a message, `ModelProto`."""
    names, types, scores = [], [], []
    settings: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for number, value in messages.fields(data):
        if number == 1:
            piece = dict(messages.fields(value))
            names.append(piece[1].decode())
            scores.append(piece.get(2, 0.0))
            types.append(piece.get(3, NORMAL))
        elif number in settings:
            settings[number] = dict(messages.fields(value))
    trainer, normalizer = settings.values()
    if trainer.get(3, 1) != _BPE:
        raise ValueError(f"{file} is no BPE, as llama.cpp's tokenizers with scores are; {_FIX}")
    if normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(5, 1):
        raise ValueError(
            f"{file} changes characters or spaces of a text, which llama.cpp does not; {_FIX}"
        )
    unk_id = types.index(UNKNOWN) if UNKNOWN in types else None
    return _Pieces(names, types, unk_id, scores)


def _with_added(source: tokenizer.Tokenizer, pieces: _Pieces) -> _Pieces:
    """Adds the tokens of an added_tokens.json."""
    name = "added_tokens.json"
    if name not in source.sources:
        return pieces
    added = json_files.parse(source.sources[name], name).each(int)
    num_more = source.vocab_size - len(pieces.names)
    first, more = len(pieces.names), range(len(pieces.names), source.vocab_size)
    names = [*pieces.names, *(f"[PAD{i}]" for i in more)]
    types = [*pieces.types, *(UNUSED for _ in more)]
    for token, i in added.items():
        if i >= first:
            # What has no text is a control token.
            names[i], types[i] = token, USER_DEFINED if source.pieces[i] else CONTROL
    return pieces._replace(names=names, types=types, scores=[*pieces.scores, *[_ADDED] * num_more])


def _of_json(record: json_files.Record) -> _Pieces:
    """Returns names and types of a tokenizer.json."""
    model = vocabulary.model_of(record)
    kind = model.get("type", str, "BPE")
    if kind != "BPE" or any(model.values.get(key) not in plain for key, plain in _PLAIN.items()):
        raise ValueError(
            f"{record.file} must be a BPE without {', '.join(_PLAIN)}, as llama.cpp's are; {_FIX}"
        )
    vocab: dict[str, int] = model.get("vocab", dict)
    added = record.records("added_tokens", [])
    size = 1 + max([*vocab.values(), *(token.get("id", int) for token in added)])
    names, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    falls_back = model.get("byte_fallback", bool, False)
    for name, i in vocab.items():
        is_byte = falls_back and re.fullmatch("<0x[0-9A-F]{2}>", name)
        names[i], types[i] = name, BYTE if is_byte else NORMAL
    for token in added:
        i, is_special = token.get("id", int), token.get("special", bool, False)
        names[i], types[i] = token.get("content", str), CONTROL if is_special else USER_DEFINED
        if not is_special and any(token.get(flag, bool, False) for flag in _FLAGS):
            raise token.error("content", f"of a token without {', '.join(_FLAGS)}; {_FIX}")
    unknown = model.get("unk_token", str, None)
    unk_id = vocab.get(unknown) if unknown is not None else None
    if unk_id is not None:
        types[unk_id] = UNKNOWN
    return _Pieces(names, types, unk_id)


def _is_byte_level(record: json_files.Record) -> bool:
    decoder = record.record("decoder", None)
    return decoder is not None and decoder.get("type", str, None) == "ByteLevel"


def _byte_level(record: json_files.Record, pieces: _Pieces) -> _Pieces:
    """Returns the pieces of byte-level BPE with its merges, and how it cuts text."""
    cut = gguf_vocabulary.cut_of(_steps(record))
    if cut is None or record.values.get("normalizer") is not None:
        raise ValueError(
            f"{record.file}: normalizer and pre_tokenizer must be those of a byte-level BPE that "
            f"llama.cpp has, {', '.join(gguf_vocabulary.CUTS)}; {_FIX}"
        )
    merges = _merges(record)
    if not merges:
        raise ValueError(f"{record.file} has no merges, and llama.cpp asks for some; {_FIX}")
    return pieces._replace(merges=[" ".join(pair) for pair in merges], cut=cut)


def _steps(record: json_files.Record) -> list[dict[str, Any]]:
    """Returns the parts of a pre_tokenizer."""
    step = record.record("pre_tokenizer", None)
    if step is None:
        return []
    is_several = step.get("type", str, None) == "Sequence"
    parts = step.records("pretokenizers") if is_several else [step]
    return [dict(part.items()) for part in parts]


def _merges(record: json_files.Record) -> list[tuple[str, str]]:
    pairs = vocabulary.model_of(record).get("merges", list)
    # Files before tokenizers 0.20 have one text for both.
    split = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]
    return [(first, second) for first, second in split]


def _with_scores(record: json_files.Record, pieces: _Pieces) -> _Pieces:
    """Returns pieces whose scores merge them in the order of Gemma's tokenizer.json.

    SentencePiece and llama.cpp merge whatever two neighbours make the piece of the highest score.
    So all merges to a piece must follow one another, and none may be missing.
    """
    if not _is_gemmas(record):
        raise ValueError(
            f"{record.file}: normalizer and pre_tokenizer must be Gemma's, a sign for each space; "
            f"{_FIX}"
        )
    merges = _merges(record)
    ranks: dict[str, int] = {}
    last = ""
    for rank, pair in enumerate(merges):
        if (whole := "".join(pair)) != last and whole in ranks:
            raise ValueError(_no_scores(record.file, whole))
        ranks.setdefault(whole, rank)
        last = whole
    types = [
        # Spaces in a text are no such token, but the sign is, and merges make it of them.
        NORMAL if kind == USER_DEFINED and SPACE in name and name in ranks else kind
        for name, kind in zip(pieces.names, pieces.types, strict=True)
    ]
    normal = {name for name, kind in zip(pieces.names, types, strict=True) if kind == NORMAL}
    listed = set(merges)
    for name in normal:
        for n in range(1, len(name)):
            if {name[:n], name[n:]} <= normal and (name[:n], name[n:]) not in listed:
                raise ValueError(_no_scores(record.file, name))
    scores = [-float(ranks.get(name, len(ranks))) for name in pieces.names]
    return pieces._replace(types=types, scores=scores)


def _no_scores(file: str, name: str) -> str:
    return (
        f"{file}: its merges to {json_files.shown(name)} are in no order that scores give, as "
        "llama.cpp asks; put the model's tokenizer.model beside it"
    )


def _is_gemmas(record: json_files.Record) -> bool:
    """Returns whether text is cut nowhere, and its spaces become signs."""
    sign = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    # After the signs are written, there is no space to split at.
    steps = [step for step in _steps(record) if step.get("pattern") != {"String": " "}]
    return record.values.get("normalizer") == sign and not steps

"""Text to token ids and back, for what ships with Gemma and what is trained on the spot.

Two file formats: `tokenizer.json` (byte-level BPE, or Gemma's pieces with byte fallback) and
`tokenizer.model` (SentencePiece). Ids are pieces of UTF-8, so text is the join of their bytes:
decoding in chunks gives the text that decoding at once does.

Text is text: "<bos>" inside a prompt becomes ordinary pieces. Special ids are put in by id only
(`lm/chat.py`, `lm/data.py`), so no prompt can open or close a turn.

V is the size of the vocabulary.
"""

import codecs
import dataclasses
import hashlib
import json
import operator
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import sentencepiece
import tokenizers

from kullback.core import files

# Gemma's order, without its <mask>: pad 0, eos 1, bos 2, unk 3.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_JSON, _MODEL, _CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
_COMPANIONS = (_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space so.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary and how text falls into it."""

    encode: Callable[[str], list[int]] = dataclasses.field(repr=False)  # No special id is added.
    pieces: tuple[bytes, ...] = dataclasses.field(repr=False)  # [V]; b"" for a special id.
    bos_id: int
    # What ends a text, and sampling: first the one that completions end with, then the end of a
    # turn where there is one.
    eos_ids: tuple[int, ...]
    pad_id: int  # Rows are masked by their lengths, so it may equal another id.
    start_of_turn_id: int | None
    end_of_turn_id: int | None
    # SHA-256 of each id's piece, the beginning and the ends; not of the padding, which no model
    # sees, nor of how text is cut: models that share ids may teach each other.
    fingerprint: str
    path: pathlib.Path | None  # Where it was loaded from.
    sources: Mapping[str, bytes] = dataclasses.field(repr=False)  # What `save` writes, by name.

    @property
    def vocab_size(self) -> int:
        """V, one more than the greatest id; a model's table may have more rows."""
        return len(self.pieces)

    @property
    def eos_id(self) -> int:
        """What a completion ends with."""
        return self.eos_ids[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: special ids are nothing, what is not UTF-8 is U+FFFD.

        Raises:
          ValueError: for an id outside [0, V).
        """
        return _bytes(self, ids).decode("utf-8", "replace")


class Stream(NamedTuple):
    """Where decoding in chunks stands."""

    held: bytes = b""  # The beginning of a character whose other bytes are still to come.


def decode_chunk(
    tokenizer: Tokenizer, ids: Iterable[int], stream: Stream, *, last: bool = False
) -> tuple[str, Stream]:
    """Text of the next ids and the stream after them; an incomplete character is held back.

    The texts of all chunks, the last one with `last`, join to `tokenizer.decode` of all ids.

    Args:
      tokenizer: what made the ids.
      ids: int, in [0, V); may be none.
      stream: `Stream()` for the first chunk, then what this function returned.
      last: nothing follows, so nothing is held back: half a character becomes U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.setstate((stream.held, 0))
    text = decoder.decode(_bytes(tokenizer, ids), last)
    return text, Stream(decoder.getstate()[0])


def load(path: files.Path) -> Tokenizer:
    """Reads a tokenizer, from a folder as models are published in or from one file.

    In a folder tokenizer.json goes before tokenizer.model. tokenizer_config.json beside it names
    the special tokens; without it they are called as Gemma's are.

    Raises:
      ValueError: naming the file, where there is none, or its format or special tokens are not
        such as we can decode in chunks.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        names = [name for name in (_JSON, _MODEL) if (path / name).is_file()]
        if not names:
            raise ValueError(f"{path} has neither {_JSON} nor {_MODEL}; name a folder with one")
        sources = {name: (path / name).read_bytes() for name in names}
        name, folder, companions = names[0], path, _COMPANIONS
    elif path.is_file() and path.suffix in (".json", ".model"):
        name = _JSON if path.suffix == ".json" else _MODEL
        sources = {name: path.read_bytes()}
        folder, companions = path.parent, (_CONFIG,)
    else:
        raise ValueError(f"no tokenizer at {path}; expected a folder, a .json or a .model file")
    sources |= {n: (folder / n).read_bytes() for n in companions if (folder / n).is_file()}
    where = path / name if path.is_dir() else path
    try:
        return _make(name, sources, path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Tokenizer:
    """A byte-level BPE trained on `texts`; digits stand alone, as in Gemma's vocabulary.

    Args:
      texts: what to learn the pieces from.
      vocab_size: the most V may be, at least 262 (six special tokens and each byte). Few texts
        give fewer pieces: `Tokenizer.vocab_size` says how many there are.
      min_frequency: how often two pieces must meet to become one.

    Raises:
      ValueError: where `vocab_size` leaves no room for the bytes.
    """
    least = len(SPECIAL_TOKENS) + 256
    if vocab_size < least:
        raise ValueError(
            f"vocab_size must be >= {least} (each byte and {len(SPECIAL_TOKENS)} special tokens), "
            f"got {vocab_size}"
        )
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    # Others who load the file get the beginning put in; we put it in ourselves.
    bos = ("<bos>", SPECIAL_TOKENS.index("<bos>"))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[bos]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
    }
    sources = {_JSON: inner.to_str().encode(), _CONFIG: json.dumps(config, indent=2).encode()}
    return _make(_JSON, sources, None)


def save(tokenizer: Tokenizer, folder: files.Path) -> tuple[pathlib.Path, ...]:
    """Writes the tokenizer's files, as they were read, into `folder`; returns their paths."""
    folder = pathlib.Path(folder)
    for name, data in tokenizer.sources.items():
        files.atomic_write_bytes(folder / name, data)
    return tuple(folder / name for name in tokenizer.sources)


def _bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    parts = []
    for i in ids:
        if not 0 <= i < tokenizer.vocab_size:
            raise ValueError(
                f"token id {i} lies outside the vocabulary, [0, {tokenizer.vocab_size})"
            )
        parts.append(tokenizer.pieces[operator.index(i)])
    return b"".join(parts)


class _Vocabulary(NamedTuple):
    encode: Callable[[str], list[int]]
    names: list[str | None]  # [V]; None for an id that nothing has.
    pieces: list[bytes]  # [V].
    defaults: dict[str, str | None]  # Special tokens by role, as the file alone has them.


def _make(name: str, sources: Mapping[str, bytes], path: pathlib.Path | None) -> Tokenizer:
    if name == _JSON:
        vocabulary = _from_json(sources[_JSON])
    else:
        vocabulary = _from_sentencepiece(sources[_MODEL])
    ids = {name: i for i, name in enumerate(vocabulary.names) if name is not None}
    config = json.loads(sources[_CONFIG]) if _CONFIG in sources else {}
    special = {role: _special_id(role, config, vocabulary, ids) for role in ("bos", "eos", "pad")}
    for role in ("bos", "eos"):
        if special[role] is None:
            raise ValueError(f"no {role} token; name one as {role}_token in {_CONFIG}")
    start_of_turn, end_of_turn = ids.get("<start_of_turn>"), ids.get("<end_of_turn>")
    eos_ids = tuple(dict.fromkeys(i for i in (special["eos"], end_of_turn) if i is not None))
    pieces = list(vocabulary.pieces)
    for i in (*special.values(), start_of_turn, end_of_turn):
        if i is not None:
            pieces[i] = b""
    digest = hashlib.sha256(json.dumps([vocabulary.names, special["bos"], eos_ids]).encode())
    return Tokenizer(
        encode=vocabulary.encode,
        pieces=tuple(pieces),
        bos_id=special["bos"],
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if special["pad"] is None else special["pad"],
        start_of_turn_id=start_of_turn,
        end_of_turn_id=end_of_turn,
        fingerprint=digest.hexdigest(),
        path=path,
        sources=dict(sources),
    )


def _special_id(
    role: str, config: Mapping[str, Any], vocabulary: _Vocabulary, ids: Mapping[str, int]
) -> Any:
    token = config.get(f"{role}_token")
    token = token["content"] if isinstance(token, dict) else token
    if token is None:
        return ids.get(vocabulary.defaults[role] or "")
    if token not in ids:
        raise ValueError(f"{role}_token {token!r} of {_CONFIG} is not in the vocabulary")
    return ids[token]


def _from_json(data: bytes) -> _Vocabulary:
    text = data.decode()
    inner = tokenizers.Tokenizer.from_str(text)
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True  # That is: "<bos>" in a text is text.
    added = inner.get_added_tokens_decoder()
    names: list[str | None] = [None] * (max(inner.get_vocab().values()) + 1)
    for name, i in inner.get_vocab().items():
        names[i] = name
    to_bytes = _piece_decoder(json.loads(text)["decoder"])
    pieces = []
    for i, name in enumerate(names):
        if i in added:
            pieces.append(b"" if added[i].special else added[i].content.encode())
        else:
            pieces.append(b"" if name is None else to_bytes(name))
    return _Vocabulary(
        encode=lambda text: inner.encode(text, add_special_tokens=False).ids,
        names=names,
        pieces=pieces,
        defaults={role: f"<{role}>" for role in ("bos", "eos", "pad")},
    )


def _piece_decoder(decoder: Any) -> Callable[[str], bytes]:
    """How pieces become bytes, from the `decoder` of a tokenizer.json."""
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder or {}]
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        # Each byte is written as a character that can be seen; the others follow from 256 on.
        seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in seen]
        table = {chr(byte): byte for byte in seen}
        table |= {chr(256 + n): byte for n, byte in enumerate(hidden)}
        return lambda piece: bytes(table[c] for c in piece)
    spaces = any(step.get("pattern") == {"String": _SPACE} for step in steps)
    if kinds == {"Replace", "ByteFallback", "Fuse"} and spaces:
        return _fallback_bytes
    raise ValueError(
        f"decoder {sorted(map(str, kinds))} is none that decodes piece by piece; expected "
        "ByteLevel, or Gemma's Replace, ByteFallback and Fuse"
    )


def _fallback_bytes(piece: str) -> bytes:
    if match := re.fullmatch("<0x([0-9A-F]{2})>", piece):
        return bytes.fromhex(match[1])
    return piece.replace(_SPACE, " ").encode()


def _from_sentencepiece(data: bytes) -> _Vocabulary:
    inner: Any = sentencepiece.SentencePieceProcessor()
    inner.LoadFromSerializedProto(data)
    if inner.encode("a", out_type=str)[0].startswith(_SPACE):
        raise ValueError(
            "it puts a space before every text, so a prompt and its completion would not join; "
            "train it with add_dummy_prefix=False"
        )
    names = [inner.id_to_piece(i) for i in range(inner.vocab_size())]
    pieces = []
    for i, name in enumerate(names):
        if inner.is_control(i) or inner.is_unused(i):
            pieces.append(b"")
        elif inner.is_unknown(i):
            pieces.append(inner.decode([i]).encode())
        else:
            pieces.append(_fallback_bytes(name))
    # A user-defined symbol is found in texts, unless one cuts it in two.
    inside = re.compile("(?<=<)(?=(?:start|end)_of_(?:turn|image)>)")
    roles = {"bos": inner.bos_id(), "eos": inner.eos_id(), "pad": inner.pad_id()}
    return _Vocabulary(
        encode=lambda text: [i for part in inside.split(text) for i in inner.encode(part)],
        names=names,
        pieces=pieces,
        defaults={role: names[i] if i >= 0 else None for role, i in roles.items()},
    )

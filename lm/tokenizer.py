"""Text to token ids and back, for what ships with Gemma and what is trained on the spot.

Two file formats: `tokenizer.json` (byte-level BPE, or Gemma's pieces with byte fallback) and
`tokenizer.model` (SentencePiece); what stands in a GGUF file becomes one of them. Ids are pieces of
UTF-8, so text is the join of their bytes: decoding in chunks gives the text that decoding at once
does.

Text is text: "<bos>" inside a prompt becomes ordinary pieces. Special ids are put in by id only
(`lm/chat.py`, `lm/data.py`), so no prompt can open or close a turn; `lm/control_tokens.py` sees to
that, and `reading` gives a tokenizer that reads them, for texts rendered by a template elsewhere.

V is the size of the vocabulary.
"""

import codecs
import dataclasses
import hashlib
import json
import operator
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import tokenizers

from kullback.core import files, folders, json_files
from kullback.lm import control_tokens
from kullback.lm.formats import gguf_files, gguf_vocabulary, vocabulary
from kullback.lm.formats.vocabulary import Vocabulary

# Gemma's order, without its <mask>: pad 0, eos 1, bos 2, unk 3.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_JSON, _MODEL, _CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
_ADDED = "added_tokens.json"
_COMPANIONS = (_CONFIG, "special_tokens_map.json", _ADDED, "chat_template.jinja")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary and how text falls into it."""

    # No special id is added, and none comes from text, but for a tokenizer of `reading`.
    encode: Callable[[str], list[int]] = dataclasses.field(repr=False)
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
    # {name: id} of what no text becomes: beginning, ends and padding, and what delimits turns and
    # images.
    controls: Mapping[str, int] = dataclasses.field(default_factory=dict, repr=False)
    reads_controls: bool = False  # Their names in a text stand for them after all.

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
    the special tokens; without it they are called as Gemma's are. A model's GGUF file has all.

    Raises:
      ValueError: naming the file, where there is none, it is damaged, or its format or special
        tokens are not such as we can decode in chunks.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        names, folder, companions = (_JSON, _MODEL), path, _COMPANIONS
    elif path.is_file() and path.suffix in (".json", ".model"):
        names, folder = (), path.parent
        companions = (_CONFIG,) if path.suffix == ".json" else (_CONFIG, _ADDED)
    elif path.is_file() and path.suffix == gguf_files.SUFFIX:
        return from_gguf(gguf_files.read(path))
    else:
        raise ValueError(
            f"no tokenizer at {path}; expected a folder, a .json, a .model or a .gguf file"
        )
    found = folders.present(folder, (*names, *companions))
    sources = {name: file.read_bytes() for name, file in found.items()}
    if path.is_file():
        name = _JSON if path.suffix == ".json" else _MODEL
        return _make({name: path.read_bytes(), **sources}, path, {name: str(path)})
    if not sources.keys() & set(names):
        raise ValueError(f"{path} has neither {_JSON} nor {_MODEL}; name a folder with one")
    return _make(sources, path, {name: str(file) for name, file in found.items()})


def from_gguf(file: gguf_files.File) -> Tokenizer:
    """Reads the tokenizer of a model in a GGUF file.

    Raises:
      ValueError: if it is missing, damaged, or of a kind that we do not read.
    """
    path, sources = file.metadata.file, gguf_vocabulary.sources(file)
    return _make(sources, pathlib.Path(path), {name: f"{path}, its {name}" for name in sources})


def reading(tokenizer: Tokenizer, how: control_tokens.Reading) -> Tokenizer:
    """Returns the tokenizer to whose `encode` control tokens in a text are what `how` says.

    Args:
      tokenizer: as loaded.
      how: "text", which no prompt escapes from; or "parse", for texts that a chat template has
        rendered: their names stand for the tokens.

    Raises:
      ValueError: if it is neither.
    """
    if how not in control_tokens.READINGS:
        raise ValueError(f"control tokens must be read as text or parse, got {how!r}")
    if how == "text" or tokenizer.reads_controls:
        return tokenizer
    encode = control_tokens.parser(tokenizer.encode, tokenizer.controls)
    return dataclasses.replace(tokenizer, encode=encode, reads_controls=True)


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
    return _make(sources, None, {})


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


def _make(
    sources: Mapping[str, bytes], path: pathlib.Path | None, places: Mapping[str, str]
) -> Tokenizer:
    """Returns the tokenizer of some files by name; `places` are their paths, for messages."""
    name = _JSON if _JSON in sources else _MODEL
    file = places.get(name, name)
    config = json_files.Record(_CONFIG, (), {})
    if _CONFIG in sources:
        config = json_files.parse(sources[_CONFIG], places.get(_CONFIG, _CONFIG))
    if name == _JSON:
        words = vocabulary.from_json(sources[name], file)
    else:
        words = vocabulary.from_sentencepiece(sources[name], file)
        if _ADDED in sources:
            added = json_files.parse(sources[_ADDED], places.get(_ADDED, _ADDED))
            special = {*control_tokens.NAMES, *_marked_special(config)}
            words = vocabulary.with_added(words, added, len(sources[_ADDED]), special)
    ids = {name: i for i, name in enumerate(words.names) if name is not None}
    special = {role: _special_id(role, config, words, ids, file) for role in ("bos", "eos", "pad")}
    bos, eos, pad = special.values()
    if bos is None or eos is None:
        role = "bos" if bos is None else "eos"
        raise ValueError(f"{file}: no {role} token; name one as {role}_token in {_CONFIG}")
    start_of_turn, end_of_turn = ids.get("<start_of_turn>"), ids.get("<end_of_turn>")
    eos_ids = tuple(dict.fromkeys(i for i in (eos, end_of_turn) if i is not None))
    pad_id = eos if pad is None else pad
    controls = {bos, *eos_ids, pad_id, *(ids[n] for n in control_tokens.NAMES if n in ids)}
    pieces = list(words.pieces)
    for i in controls:
        pieces[i] = b""
    if pad_id == words.unk_id:  # Text that no piece writes may well become the padding's id.
        controls.discard(pad_id)
    encode = control_tokens.as_text(words.encode, words.spans, controls)
    for role, i in special.items():
        if i in controls:
            _check_apart(role, i, words, encode, file)
    digest = hashlib.sha256(json.dumps([words.names, bos, eos_ids]).encode())
    return Tokenizer(
        encode=encode,
        pieces=tuple(pieces),
        bos_id=bos,
        eos_ids=eos_ids,
        pad_id=pad_id,
        start_of_turn_id=start_of_turn,
        end_of_turn_id=end_of_turn,
        fingerprint=digest.hexdigest(),
        path=path,
        sources=dict(sources),
        controls={name: i for name, i in ids.items() if i in controls},
    )


def _special_id(
    role: str, config: json_files.Record, words: Vocabulary, ids: Mapping[str, int], file: str
) -> int | None:
    key = f"{role}_token"
    token = config.get(key, (str, dict), None)
    if isinstance(token, dict):
        token = config.record(key).get("content", str)
    if token is None:
        return ids.get(words.defaults[role] or "")
    if token not in ids:
        raise ValueError(f"{file}: {key} {token!r} of {_CONFIG} is not in the vocabulary")
    return ids[token]


def _check_apart(
    role: str, i: int, words: Vocabulary, encode: control_tokens.Encode, file: str
) -> None:
    """Refuses a special token that is text which could not be written without it."""
    try:
        encode(words.pieces[i].decode("utf-8", "replace"))
    except ValueError as error:
        raise ValueError(
            f"{file}: {role}_token {words.names[i]!r} of {_CONFIG} must be a token apart from "
            f"text: {error}"
        ) from error


def _marked_special(config: json_files.Record) -> set[str]:
    """Returns the names that tokenizer_config.json marks as special among added tokens."""
    entries = config.record("added_tokens_decoder", None)
    if entries is None:
        return set()
    marked = (entries.record(key) for key, _ in entries.items())
    return {entry.get("content", str) for entry in marked if entry.get("special", bool, False)}

"""Tokenizers: text to token ids and back, loaded from Gemma's files or trained on texts.

Two file formats are read: `tokenizer.json` (byte-level BPE, or Gemma's pieces with byte fallback)
and `tokenizer.model` (SentencePiece); the tokenizer of a GGUF file is turned into one of them. Ids
are pieces of UTF-8, so text is the join of their bytes: decoding in chunks gives the same text as
decoding at once.

Names of special tokens have no meaning in a text: "<bos>" inside a prompt becomes ordinary pieces.
Special tokens are inserted by id (`lm/chat.py`, `lm/data.py`), so that no prompt can open or close
a turn (`lm/control_tokens.py`). `reading` returns a tokenizer that reads their names, for texts
that a template has rendered elsewhere.

V is the size of the vocabulary.
"""

import codecs
import dataclasses
import hashlib
import json
import operator
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import tokenizers

from kullback.core import files, folders, json_files
from kullback.lm import control_tokens
from kullback.lm.formats import gguf_files, gguf_vocabulary, vocabulary
from kullback.lm.formats.vocabulary import Vocabulary

# Gemma's order, without its <mask>: pad 0, eos 1, bos 2, unk 3.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TOKENIZER_CONFIG, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
_JSON, _MODEL, _CONFIG = "tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG
_ADDED = "added_tokens.json"
_COMPANIONS = (_CONFIG, "special_tokens_map.json", _ADDED, TEMPLATE_FILE)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary, and the function that encodes text in it."""

    # text -> ids, without special ids unless `reads_controls`.
    encode: Callable[[str], list[int]] = dataclasses.field(repr=False)
    pieces: tuple[bytes, ...] = dataclasses.field(repr=False)  # UTF-8, [V]; b"" for a special id.
    bos_id: int
    # Stop tokens: first the one that completions end with, then the end of a turn if there is one.
    eos_ids: tuple[int, ...]
    pad_id: int  # Id of padding; it may equal another id, as rows are masked by their lengths.
    start_of_turn_id: int | None
    end_of_turn_id: int | None
    # SHA-256 of each id's piece, the beginning and the stop tokens. It includes neither padding,
    # which no model sees, nor the encoding: models that share ids may teach each other.
    fingerprint: str
    path: pathlib.Path | None  # File or folder that it was loaded from.
    sources: Mapping[str, bytes] = dataclasses.field(repr=False)  # Files of `save`, by name.
    # {name: id} of control tokens: beginning, stop tokens, padding, delimiters of turns and images.
    controls: Mapping[str, int] = dataclasses.field(default_factory=dict, repr=False)
    reads_controls: bool = False  # Whether `encode` reads their names in a text as the tokens.

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, V; a model's embedding may have more rows."""
        return len(self.pieces)

    @property
    def eos_id(self) -> int:
        """Stop token at the end of completions."""
        return self.eos_ids[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids to text, without special ids, and with U+FFFD for invalid UTF-8.

        Raises:
          ValueError: for an id outside [0, V).
        """
        return _bytes(self, ids).decode("utf-8", "replace")


def id_of(tokenizer: Tokenizer, token: int | str) -> int:
    """Returns the id of a token by its text, of control tokens by their names; an id is itself.

    Raises:
      ValueError: for a text that is not one token, or an id outside [0, V).
    """
    if isinstance(token, int):
        if 0 <= token < tokenizer.vocab_size:
            return token
        raise ValueError(
            f"token id {token} lies outside the vocabulary, [0, {tokenizer.vocab_size})"
        )
    if token in tokenizer.controls:
        return tokenizer.controls[token]
    ids = tokenizer.encode(token)
    if len(ids) != 1:
        raise ValueError(
            f"{token!r} is {len(ids)} tokens of this vocabulary, with the ids {ids[:8]}; name one "
            f"token, or one of {', '.join(tokenizer.controls)}"
        )
    return ids[0]


class Stream(NamedTuple):
    """The state of decoding in chunks."""

    held: bytes = b""  # First bytes of a character whose other bytes are still to come.


def decode_chunk(
    tokenizer: Tokenizer, ids: Iterable[int], stream: Stream, *, last: bool = False
) -> tuple[str, Stream]:
    """Decodes the next ids; returns their text and the new state of the stream.

    An incomplete character is held back. The texts of all chunks, the last one with `last`, join to
    `tokenizer.decode` of all ids.

    Args:
      tokenizer: of the ids.
      ids: int, in [0, V), maybe none.
      stream: `Stream()` for the first chunk, then the state that was returned.
      last: whether no ids follow, so that an incomplete character becomes U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.setstate((stream.held, 0))
    text = decoder.decode(_bytes(tokenizer, ids), last)
    return text, Stream(decoder.getstate()[0])


def load(path: files.Path) -> Tokenizer:
    """Reads a tokenizer from the folder of a published model, or from one file.

    In a folder tokenizer.json has precedence over tokenizer.model. tokenizer_config.json beside it
    names the special tokens; without it they have Gemma's names. A model's GGUF file has all.

    Raises:
      ValueError: naming the file, if it is missing or damaged, or its format or special tokens
        cannot be decoded in chunks.
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
    present = folders.present(folder, (*names, *companions))
    sources = {name: file.read_bytes() for name, file in present.items()}
    if path.is_file():
        name = _JSON if path.suffix == ".json" else _MODEL
        return _make({name: path.read_bytes(), **sources}, path, {name: str(path)})
    if not sources.keys() & set(names):
        raise ValueError(f"{path} has neither {_JSON} nor {_MODEL}; name a folder with one")
    return _make(sources, path, {name: str(file) for name, file in present.items()})


def from_gguf(file: gguf_files.File) -> Tokenizer:
    """Reads the tokenizer of a model in a GGUF file.

    Raises:
      ValueError: if it is missing, damaged, or of a kind that we do not read.
    """
    path, sources = file.metadata.file, gguf_vocabulary.sources(file)
    return _make(sources, pathlib.Path(path), {name: f"{path}, its {name}" for name in sources})


def reading(tokenizer: Tokenizer, how: control_tokens.Reading) -> Tokenizer:
    """Returns the tokenizer with a reading of control tokens' names in texts.

    Args:
      tokenizer: as loaded.
      how: "text" encodes names as ordinary text, so that no prompt can insert control tokens;
        "parse" reads them as the tokens, for texts that a chat template has rendered.

    Raises:
      ValueError: for another reading.
    """
    if how not in control_tokens.READINGS:
        raise ValueError(f"control tokens must be read as text or parse, got {how!r}")
    if how == "text" or tokenizer.reads_controls:
        return tokenizer
    encode = control_tokens.parser(tokenizer.encode, tokenizer.controls)
    return dataclasses.replace(tokenizer, encode=encode, reads_controls=True)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    further_controls: Sequence[str] = (),
) -> Tokenizer:
    """Trains a byte-level BPE on `texts`; each digit is a token, as in Gemma's vocabulary.

    Args:
      texts: to learn the pieces from.
      vocab_size: largest V, at least 262 (six special tokens and each byte) and the further ones.
        Few texts give fewer pieces; see `Tokenizer.vocab_size`.
      min_frequency: number of times that two pieces must be adjacent to be merged.
      further_controls: control tokens beside SPECIAL_TOKENS, such as those of images
        (lm/blocks.py); they follow these.

    Raises:
      ValueError: if `vocab_size` leaves no room for the bytes.
    """
    special = [*SPECIAL_TOKENS, *further_controls]
    least = len(special) + 256
    if vocab_size < least:
        raise ValueError(
            f"vocab_size must be >= {least} (each byte and {len(special)} special tokens), "
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
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    # Other libraries insert the beginning by this post-processor; here `lm/data.py` does.
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
    pieces = []
    for i in ids:
        if not 0 <= i < tokenizer.vocab_size:
            raise ValueError(
                f"token id {i} lies outside the vocabulary, [0, {tokenizer.vocab_size})"
            )
        pieces.append(tokenizer.pieces[operator.index(i)])
    return b"".join(pieces)


def _make(
    sources: Mapping[str, bytes], path: pathlib.Path | None, places: Mapping[str, str]
) -> Tokenizer:
    """Makes the tokenizer of files, given by name; `places` are their paths, for messages."""
    name = _JSON if _JSON in sources else _MODEL
    file = places.get(name, name)
    config = json_files.Record(_CONFIG, (), {})
    if _CONFIG in sources:
        config = json_files.parse(sources[_CONFIG], places.get(_CONFIG, _CONFIG))
    if name == _JSON:
        vocab = vocabulary.from_json(sources[name], file)
    else:
        vocab = vocabulary.from_sentencepiece(sources[name], file)
        if _ADDED in sources:
            added = json_files.parse(sources[_ADDED], places.get(_ADDED, _ADDED))
            special = {*control_tokens.NAMES, *_marked_special(config)}
            vocab = vocabulary.with_added(vocab, added, len(sources[_ADDED]), special)
    ids = {name: i for i, name in enumerate(vocab.names) if name is not None}
    special = {role: _special_id(role, config, vocab, ids, file) for role in ("bos", "eos", "pad")}
    bos, eos, pad = special.values()
    if bos is None or eos is None:
        role = "bos" if bos is None else "eos"
        raise ValueError(f"{file}: no {role} token; name one as {role}_token in {_CONFIG}")
    start_of_turn, end_of_turn = ids.get("<start_of_turn>"), ids.get("<end_of_turn>")
    eos_ids = tuple(dict.fromkeys(i for i in (eos, end_of_turn) if i is not None))
    pad_id = eos if pad is None else pad
    controls = {bos, *eos_ids, pad_id, *(ids[n] for n in control_tokens.NAMES if n in ids)}
    pieces = list(vocab.pieces)
    for i in controls:
        pieces[i] = b""
    if pad_id == vocab.unk_id:  # Text without a piece may become the padding's id.
        controls.discard(pad_id)
    encode = control_tokens.as_text(vocab.encode, vocab.spans, controls)
    for role, i in special.items():
        if i in controls:
            _check_apart(role, i, vocab, encode, file)
    digest = hashlib.sha256(json.dumps([vocab.names, bos, eos_ids]).encode())
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
    role: str, config: json_files.Record, vocab: Vocabulary, ids: Mapping[str, int], file: str
) -> int | None:
    key = f"{role}_token"
    token = config.get(key, (str, dict), None)
    if isinstance(token, dict):
        token = config.record(key).get("content", str)
    if token is None:
        return ids.get(vocab.defaults[role] or "")
    if token not in ids:
        raise ValueError(f"{file}: {key} {token!r} of {_CONFIG} is not in the vocabulary")
    return ids[token]


def _check_apart(
    role: str, i: int, vocab: Vocabulary, encode: control_tokens.Encode, file: str
) -> None:
    """Raises ValueError if a special token's text cannot be encoded without it."""
    try:
        encode(vocab.pieces[i].decode("utf-8", "replace"))
    except ValueError as error:
        raise ValueError(
            f"{file}: {role}_token {vocab.names[i]!r} of {_CONFIG} must be a token apart from "
            f"text: {error}"
        ) from error


def _marked_special(config: json_files.Record) -> set[str]:
    """Returns the names that tokenizer_config.json marks as special among added tokens."""
    entries = config.record("added_tokens_decoder", None)
    if entries is None:
        return set()
    marked = (entries.record(key) for key, _ in entries.items())
    return {entry.get("content", str) for entry in marked if entry.get("special", bool, False)}

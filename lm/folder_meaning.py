"""What decides the function of a folder of weights beside its tensors: configuration, tokenizer.

Weights of the same shapes may mean different functions: of another window, scale or order of
tokens. Such models have no average.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kullback.core import folders, json_files, regularizers
from kullback.lm import chat, texts, tokenizer
from kullback.lm.formats import hugging_face_config

NOTES = "kullback"  # What we say of a model in the config.json that we export.
COMPUTE = ("dtype", "remat")  # Fields of `gemma.Config` that say how a model computes, not what.
# Keys of other models' config.json that say nothing of what a model computes.
IGNORED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", NOTES)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt")
CONFIG = "config.json"
_ABSENT = "absent"


class Field(NamedTuple):
    """A value that decides something, and where it is said."""

    value: Any
    file: str


def fields(folder: pathlib.Path) -> dict[str, Field]:
    """Returns what decides the function of a folder, by name.

    Of Gemma 3: every field of `gemma.Config` but how it computes, and tokens by their ids. Of other
    models: every key of config.json, and the files of the tokenizer by their hashes. Of all: the
    operator. What a folder does not have, a tokenizer say, is left out.

    Raises:
      ValueError: for a config.json or a tokenizer that cannot be read.
    """
    path = folders.present(folder, (CONFIG,)).get(CONFIG)
    if path is None:
        return {}
    found: dict[str, Any] = {"operator": operator(folder)}
    record = json_files.read(path)
    outer = dict(record.items())
    is_gemma = record.get("model_type", str, "").startswith("gemma3")
    if is_gemma:
        config, words = hugging_face_config.read(folder), _tokenizer(folder)
        if words is not None:
            config = texts.with_all_ends(config, words)  # As it is loaded.
        shape = dataclasses.asdict(config)
        found |= {name: value for name, value in shape.items() if name not in COMPUTE}
        found["eos_ids"] = tuple(sorted(set(shape["eos_ids"])))
        # Of a multimodal one, what is beside its text.
        outer = outer if "text_config" in outer else {}
    beside = {name: value for name, value in outer.items() if name not in ("text_config", *IGNORED)}
    found |= _flat(beside)
    said = {name: Field(value, str(path)) for name, value in found.items()}
    return said | (_tokens(folder) if is_gemma else _files(folder))


def operator(folder: pathlib.Path) -> str:
    """Returns the name of f of a folder's operator, as an export noted it; else softmax's, "kl".

    Raises:
      ValueError: for a note that is none, or names no divergence.
    """
    file = hugging_face_config.config_file(folder)
    name = json_files.read(file).record(NOTES, {}).get("divergence", str, "kl")
    try:
        return regularizers.named(name).name
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def differences(folders: Sequence[pathlib.Path], names: Sequence[str]) -> list[str]:
    """Returns what differs between the first folder and the others, a line each.

    Args:
      folders: two at least.
      names: what messages call them.

    Raises:
      ValueError: as `fields` does.
    """
    first, *others = [fields(folder) for folder in folders]
    found = []
    for folder, name, other in zip(folders[1:], names[1:], others, strict=True):
        for key in dict.fromkeys([*first, *other]):
            pair = [
                _shown(mine, where, called)
                for mine, where, called in (
                    (first.get(key), folders[0], names[0]),
                    (other.get(key), folder, name),
                )
            ]
            if _differs(key, first, other):
                found.append(f"{key}: {pair[0]}, {pair[1]}")
    return found


def has_same_tokens(folders: Sequence[pathlib.Path]) -> bool:
    """Returns whether all folders have a tokenizer, and each id means the same in all."""
    tokens = [fields(folder).get("tokenizer") for folder in folders]
    return all(one is not None and tokens[0] and one.value == tokens[0].value for one in tokens)


def _differs(key: str, one: Mapping[str, Field], other: Mapping[str, Field]) -> bool:
    a, b = one.get(key), other.get(key)
    if a is None or b is None:
        # Of a tokenizer that is not there nothing is known; a configuration has defaults.
        return not key.startswith("tokenizer") and bool(one) and bool(other)
    has_tokens = "tokenizer" in one and "tokenizer" in other
    if key == "vocab_size" and has_tokens:
        return False  # Rows beyond the tokens are padding.
    if key == "eos_ids":
        if not has_tokens:  # Ends that one lacks may be its tokenizer's, which is not there.
            return not (set(a.value) <= set(b.value) or set(b.value) <= set(a.value))
    return a.value != b.value


def _shown(field: Field | None, folder: pathlib.Path, name: str) -> str:
    file = str(folder / CONFIG) if field is None else field.file
    value = _ABSENT if field is None else field.value
    return f"{value!s:.60} in {file.replace(str(folder), name, 1)}"


def _tokenizer(folder: pathlib.Path) -> tokenizer.Tokenizer | None:
    return tokenizer.load(folder) if folders.present(folder, TOKENIZERS[:2]) else None


def _tokens(folder: pathlib.Path) -> dict[str, Field]:
    """Of a tokenizer that we read: which piece each id is, what ends a text, and turns."""
    words = _tokenizer(folder)
    if words is None:
        return {}
    found = {
        "tokenizer": words.fingerprint[:12],
        "tokenizer.vocab_size": words.vocab_size,
        "tokenizer.eos_ids": tuple(sorted(words.eos_ids)),
        "tokenizer.template": chat.template_fingerprint(words)[:12],
    }
    return {name: Field(value, str(folder)) for name, value in found.items()}


def _files(folder: pathlib.Path) -> dict[str, Field]:
    paths = folders.present(folder, TOKENIZERS).values()
    return {
        f"tokenizer ({path.name})": Field(
            hashlib.sha256(path.read_bytes()).hexdigest()[:12], str(path)
        )
        for path in paths
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; null is what is absent."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None and name not in IGNORED:
            found[prefix + name] = value
    return found

"""The meaning of a folder's weights: its configuration and tokenizer.

Weights of equal shapes may compute different functions, by another window, scale or order of
tokens. Such models must not be averaged.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kullback.core import folders, json_files, regularizers
from kullback.lm import chat, texts, tokenizer
from kullback.lm.formats import hugging_face_config

NOTES = "kullback"  # Key of our own notes in a config.json that we export.
# Fields of `gemma.Config` that change how it computes, not what.
COMPUTE = ("dtype", "storage", "cache", "remat")
# Keys of other models' config.json that do not change what a model computes.
IGNORED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", NOTES)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt")
CONFIG = "config.json"
_ABSENT = "absent"


class Field(NamedTuple):
    """A value that decides what a model computes, and its file."""

    value: Any
    file: str  # Path.


def fields(folder: pathlib.Path) -> dict[str, Field]:
    """Returns the values that decide what a folder's model computes, by name.

    For Gemma 3 these are the fields of `gemma.Config` but for COMPUTE, and the tokens by their ids;
    for other models the keys of config.json, and the tokenizer's files by their hashes. All have
    "operator", the f of softargmax_f. A missing part, such as a tokenizer, has no entry.

    Raises:
      ValueError: for a config.json or a tokenizer that cannot be read.
    """
    path = folders.present(folder, (CONFIG,)).get(CONFIG)
    if path is None:
        return {}
    values: dict[str, Any] = {"operator": output_divergence(folder)}
    record = json_files.read(path)
    outer = dict(record.items())
    is_gemma = record.get("model_type", str, "").startswith("gemma3")
    if is_gemma:
        config, loaded = hugging_face_config.read(folder), _tokenizer(folder)
        if loaded is not None:
            config = texts.with_all_ends(config, loaded)  # As it is loaded.
        shape = dataclasses.asdict(config)
        values |= {name: value for name, value in shape.items() if name not in COMPUTE}
        values["eos_ids"] = tuple(sorted(set(shape["eos_ids"])))
        # A multimodal model has keys outside of its text's configuration.
        outer = outer if "text_config" in outer else {}
    rest = {name: value for name, value in outer.items() if name not in ("text_config", *IGNORED)}
    values |= _flat(rest)
    config_fields = {name: Field(value, str(path)) for name, value in values.items()}
    return config_fields | (_tokens(folder) if is_gemma else _files(folder))


def output_divergence(folder: pathlib.Path) -> str:
    """Returns the name of f of a model's softargmax_f, as an export noted it; by default "kl".

    Raises:
      ValueError: for a malformed note, or an unknown divergence.
    """
    file = hugging_face_config.config_file(folder)
    name = json_files.read(file).record(NOTES, {}).get("divergence", str, "kl")
    try:
        return regularizers.named(name).name
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def differences(folders: Sequence[pathlib.Path], names: Sequence[str]) -> list[str]:
    """Returns the differences between the first folder and the others, a line each.

    Args:
      folders: two at least.
      names: of the folders, for messages.

    Raises:
      ValueError: as `fields` does.
    """
    first, *rest = [fields(folder) for folder in folders]
    lines = []
    for folder, name, other in zip(folders[1:], names[1:], rest, strict=True):
        for key in dict.fromkeys([*first, *other]):
            pair = [
                _shown(field, where, called)
                for field, where, called in (
                    (first.get(key), folders[0], names[0]),
                    (other.get(key), folder, name),
                )
            ]
            if _differs(key, first, other):
                lines.append(f"{key}: {pair[0]}, {pair[1]}")
    return lines


def has_same_tokens(folders: Sequence[pathlib.Path]) -> bool:
    """Returns whether all folders have a tokenizer, and each id means the same in all."""
    tokens = [fields(folder).get("tokenizer") for folder in folders]
    first = tokens[0]
    return first is not None and all(t is not None and t.value == first.value for t in tokens)


def _differs(key: str, first: Mapping[str, Field], other: Mapping[str, Field]) -> bool:
    a, b = first.get(key), other.get(key)
    if a is None or b is None:
        # A missing tokenizer may be any; a missing value of a configuration is its default.
        return not key.startswith("tokenizer") and bool(first) and bool(other)
    has_tokens = "tokenizer" in first and "tokenizer" in other
    if key == "vocab_size" and has_tokens:
        return False  # Rows beyond the tokens are padding.
    if key == "eos_ids":
        if not has_tokens:  # A missing tokenizer may add the stop tokens that one lacks.
            return not (set(a.value) <= set(b.value) or set(b.value) <= set(a.value))
    return a.value != b.value


def _shown(field: Field | None, folder: pathlib.Path, name: str) -> str:
    file = str(folder / CONFIG) if field is None else field.file
    value = _ABSENT if field is None else field.value
    return f"{value!s:.60} in {file.replace(str(folder), name, 1)}"


def _tokenizer(folder: pathlib.Path) -> tokenizer.Tokenizer | None:
    return tokenizer.load(folder) if folders.present(folder, TOKENIZERS[:2]) else None


def _tokens(folder: pathlib.Path) -> dict[str, Field]:
    """Returns the pieces, stop tokens and chat template of a folder's tokenizer, as hashes."""
    loaded = _tokenizer(folder)
    if loaded is None:
        return {}
    values = {
        "tokenizer": loaded.fingerprint[:12],
        "tokenizer.vocab_size": loaded.vocab_size,
        "tokenizer.eos_ids": tuple(sorted(loaded.eos_ids)),
        "tokenizer.template": chat.template_fingerprint(loaded)[:12],
    }
    return {name: Field(value, str(folder)) for name, value in values.items()}


def _files(folder: pathlib.Path) -> dict[str, Field]:
    paths = folders.present(folder, TOKENIZERS).values()
    return {
        f"tokenizer ({path.name})": Field(
            hashlib.sha256(path.read_bytes()).hexdigest()[:12], str(path)
        )
        for path in paths
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens {"a": {"b": 1}} to {"a.b": 1}; null values are left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None and name not in IGNORED:
            flat[prefix + name] = value
    return flat

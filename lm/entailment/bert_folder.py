"""BERT and RoBERTa classifiers as folders of Hugging Face: config, weights, tokenizer.

Their linear layers are [out, in], ours [in, out]; their tensors are one a layer, ours are stacked
along a layer axis (lm/entailment/bert.py).
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from kullback.core import files, finite, folders, json_files, trees, types, weights
from kullback.lm.entailment import bert, pair_tokenizer
from kullback.lm.formats import hugging_face_config

WEIGHTS = "model.safetensors"
ARCHITECTURES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
}
# Field of transformers -> (field of ours, transformers' default, for both kinds or by kind).
SIZES: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", {"bert": 30_522, "roberta": 50_265}),
    "num_hidden_layers": ("num_layers", 12),
    "hidden_size": ("embed_dim", 768),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("hidden_dim", 3072),
    "max_position_embeddings": ("num_positions", 512),
    "type_vocab_size": ("num_types", 2),
    "layer_norm_eps": ("norm_epsilon", 1e-12),
    "pad_token_id": ("pad_id", {"bert": 0, "roberta": 1}),
}
# Fields with one value that our model supports.
FIXED: dict[str, Any] = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
SINGLE_LABEL = "single_label_classification"
EMBEDDINGS = {
    "table/token": "word_embeddings.weight",
    "table/position": "position_embeddings.weight",
    "table/type": "token_type_embeddings.weight",
    "norm/scale": "LayerNorm.weight",
    "norm/offset": "LayerNorm.bias",
}
MODULES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention/norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "feed_forward/norm": "output.LayerNorm",
}
HEADS = {
    "bert": {"head/dense": "bert.pooler.dense", "head/output": "classifier"},
    "roberta": {"head/dense": "classifier.dense", "head/output": "classifier.out_proj"},
}
PARTS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
# Tensors of pre-training, which a classifier does not use, and tables of position ids.
IGNORED = ("cls.", "lm_head.", "roberta.pooler.", "roberta.embeddings.position_ids")
IGNORED += ("bert.embeddings.position_ids",)


class Classifier(NamedTuple):
    """A classifier and its tokenizer."""

    model: bert.Model
    params: types.Params
    tokenizer: pair_tokenizer.PairTokenizer


def load(folder: files.Path, labels: Sequence[str] | None = None) -> Classifier:
    """Reads a classifier, or an encoder that is to become one.

    Args:
      folder: with config.json, model.safetensors, and tokenizer.json or (BERT) vocab.txt.
      labels: names of the classes of a new head, for a folder without a classifier or in the place
        of it; its last layer is zeros.

    Raises:
      ValueError: if the folder is of another architecture, or a file or tensor is missing, unknown
        or of another shape; all of them are named.
      CorruptError: if the tensors cannot be read.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder, labels)
    model = bert.make(config)
    tensors = _tensors(folder, config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    makers: dict[str, Callable[[], np.ndarray]] = {}  # Called once all is checked.
    wrong = []
    for path, leaf in trees.named_leaves(shapes).items():
        names, transposed = _names(path, config)
        available = [tensors.pop(name, None) for name in names]
        stacked = path.startswith("layers/")
        shape = leaf.shape[1:] if stacked else leaf.shape
        shape = shape[::-1] if transposed else shape
        if labels is not None and path.startswith("head/"):
            if path.startswith("head/output") or available[0] is None:
                makers[path] = functools.partial(_new, path, leaf.shape)
                continue
        parts: list[weights.Tensor] = []
        for name, tensor in zip(names, available, strict=True):
            if tensor is None:
                wrong.append(f"{name} is missing")
            elif tensor.dtype not in weights.FLOATS:
                wrong.append(f"{name} is of {tensor.data.dtype}, expected floating numbers")
            elif tensor.shape != shape:
                wrong.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
            else:
                parts.append(tensor)
        makers[path] = functools.partial(_joined, parts, transposed=transposed, stacked=stacked)
    wrong += [f"{name} is unknown" for name in tensors]
    if wrong:
        rest = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{folder / WEIGHTS}: {'; '.join(wrong[:10])}{rest}")
    leaves = [jax.device_put(makers[path]()) for path in trees.named_leaves(shapes)]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return Classifier(model, params, pair_tokenizer.read(folder, config))


def save(
    folder: files.Path,
    classifier: Classifier,
    extra: Mapping[str, str | bytes] | None = None,
) -> None:
    """Writes a folder that transformers loads as a sequence classifier, whole or not at all.

    Args:
      folder: made here; it must not exist, or be empty.
      classifier: the model, its parameters and its tokenizer.
      extra: other files, by name.

    Raises:
      ValueError: if something is in the folder, or a parameter is not finite.
    """
    folder = pathlib.Path(folder)
    files.check_new_folder(folder)
    config = classifier.model.config
    tensors = {}
    for path, leaf in trees.named_leaves(classifier.params).items():
        names, transposed = _names(path, config)
        array = np.asarray(leaf, np.float32)
        for name, part in zip(names, array if path.startswith("layers/") else [array], strict=True):
            tensors[name] = np.ascontiguousarray(part.T if transposed else part)
    contents: dict[str, str | bytes] = {
        "config.json": json.dumps(to_json(config), indent=2) + "\n",
        **classifier.tokenizer.sources,
        **(extra or {}),
    }
    with files.atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, data in contents.items():
            (temporary / name).write_bytes(data.encode() if isinstance(data, str) else data)
        finite.check(tensors, folder / WEIGHTS)
        safetensors_numpy.save_file(tensors, temporary / WEIGHTS, {"format": "pt"})


def read_config(folder: files.Path, labels: Sequence[str] | None = None) -> bert.Config:
    """Reads the configuration of a folder; `labels` replace those of the file.

    Raises:
      ValueError: if the file is missing or no JSON, or our models do not support it.
    """
    path = hugging_face_config.config_file(folder)
    fields = json_files.read(path)
    kind = fields.get("model_type", str, None)
    if kind not in ARCHITECTURES:
        raise fields.error("model_type", f"one of {[*ARCHITECTURES]}")
    for name, value in FIXED.items():
        if (fields.values.get(name) or None) not in (value or None, None):
            raise fields.error(name, "null" if value is None else json.dumps(value))
    values: dict[str, Any] = {"kind": kind}
    for name, (ours, default) in SIZES.items():
        default = default[kind] if isinstance(default, dict) else default
        values[ours] = fields.get(
            name, (int, float) if isinstance(default, float) else int, default
        )
    names = _labels(fields) if labels is None else labels
    try:
        return bert.Config(labels=tuple(names), **values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _labels(fields: json_files.Record) -> list[str]:
    """Returns the names of the classes by number."""
    if fields.get("problem_type", str, None) not in (None, SINGLE_LABEL):
        raise fields.error("problem_type", f"{SINGLE_LABEL!r} (our classes exclude each other)")
    by_id = fields.record("id2label", None)
    if by_id is None or not by_id.values:
        return ["LABEL_0", "LABEL_1"]  # transformers' default.
    labels = by_id.each(str)
    for key in labels:
        if not (key.isascii() and key.isdecimal()):
            raise fields.error("id2label", f"an object whose keys are numbers, not {key!a}")
    return [labels[key] for key in sorted(labels, key=int)]


def to_json(config: bert.Config) -> dict[str, Any]:
    """Returns the fields of config.json."""
    values = {name: getattr(config, ours) for name, (ours, _) in SIZES.items()}
    return {
        "architectures": [ARCHITECTURES[config.kind]],
        "model_type": config.kind,
        **values,
        "hidden_act": FIXED["hidden_act"],
        "id2label": {str(i): name for i, name in enumerate(config.labels)},
        "label2id": {name: i for i, name in enumerate(config.labels)},
        "dtype": "float32",
    }


def _joined(parts: Sequence[weights.Tensor], *, transposed: bool, stacked: bool) -> np.ndarray:
    """Reads a parameter from its tensor, or stacks one tensor a layer."""
    arrays = [np.array(part.array.T if transposed else part.array, np.float32) for part in parts]
    return np.stack(arrays) if stacked else arrays[0]


def _new(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Initialises a parameter of a new head; a last layer of zeros makes all classes as likely."""
    if path == "head/dense/w":
        return np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    return np.zeros(shape, np.float32)


def _names(path: str, config: bert.Config) -> tuple[list[str], bool]:
    """Returns the names of a parameter's tensors, by layer, and whether they are transposed."""
    block, rest = path.split("/", 1)
    if block == "embeddings":
        return [f"{config.kind}.embeddings.{EMBEDDINGS[rest]}"], False
    module, part = path.rsplit("/", 1)
    if block == "head":
        return [f"{HEADS[config.kind][module]}.{PARTS[part]}"], part == "w"
    theirs = f"{MODULES[module.removeprefix('layers/')]}.{PARTS[part]}"
    layers = range(config.num_layers)
    return [f"{config.kind}.encoder.layer.{n}.{theirs}" for n in layers], part == "w"


def _tensors(folder: pathlib.Path, config: bert.Config) -> dict[str, weights.Tensor]:
    """Reads all tensors that matter, adding the model's prefix to names without it."""
    if not os.path.lexists(folder / WEIGHTS):
        raise ValueError(f"{folder / WEIGHTS} is missing; shards and pickles (.bin) are not read")
    tensors = weights.read(folders.inside(folder, WEIGHTS))
    prefixes = ("embeddings.", "encoder.", "pooler.")  # As of an encoder without a head.
    prefix = f"{config.kind}."
    named = {
        (prefix + name if name.startswith(prefixes) else name): tensor
        for name, tensor in tensors.items()
    }
    return {name: tensor for name, tensor in named.items() if not name.startswith(IGNORED)}

"""Adapters as peft keeps them: a folder of adapter_config.json and adapter_model.safetensors.

Of a matrix W [in, out] theirs are lora_A [r, in] = A^T and lora_B [out, r] = B^T, one a layer; ours
are stacked along a layer axis (lm/lora.py). Ranks and scales may differ from matrix to matrix: all
are read as adapters of the largest rank, with the quotient of the scales in B. Rows of the
embedding that learnt stand there whole, in place of the base's, with their ids in the settings.
"""

import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from kullback.core import files, finite, folders, json_files, types, weights
from kullback.lm import gemma, lora, terms
from kullback.lm.formats import stacked_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Every setting that is not ignored is refused by name, unless it is null, false, empty, or this.
_PLAIN = {"bias": "none"}
# Settings without an effect on a trained adapter, or that its tensors tell better.
_IGNORED = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path corda_config ensure_weight_tying "
    "eva_config exclude_modules inference_mode init_lora_weights layers_pattern "
    "layers_to_transform loftq_config lora_alpha lora_dropout megatron_config megatron_core "
    "peft_type peft_version qalora_group_size r rank_pattern revision runtime_config "
    "target_modules task_type trainable_token_indices use_rslora".split()
)
# Ways to begin that change the base's own weights, unless the adapter was converted.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq")
_PREFIXES = (
    "base_model.model.model.language_model.",
    "base_model.model.language_model.model.",
    "base_model.model.model.",
)
# Ids of rows that learnt, and the tensor of these, named a "delta", in whose place they stand.
_IDS, _TABLE, _ROWS = (
    *("trainable_token_indices", "embed_tokens"),
    "embed_tokens.token_adapter.trainable_tokens_delta",
)
_NAME = re.compile(r"layers\.(\d{1,5})\.([a-z_]+\.[a-z_]+)\.lora_(A|B)\.weight")
# Our names by theirs, "self_attn.q_proj" and "q_proj".
_OURS = {stacked_layers.LAYER[f"{module}/{name}"][0]: name for name, module in lora.TARGETS.items()}
_OURS_SHORT = {theirs.rpartition(".")[2]: name for theirs, name in _OURS.items()}
Scale = Callable[[str, int], float]  # (name of a matrix, its rank) -> s.


class Pair(NamedTuple):
    """The adapter of one matrix, as peft has it: W^T += scale b a."""

    a: np.ndarray  # float32, [r, in].
    b: np.ndarray  # float32, [out, r].
    scale: float = 1.0


Pairs = dict[tuple[int, str], Pair]  # By number of the layer and name of the matrix in it.
# Rows of the embedding that replace the base's, float32 [D], by their ids.
Rows = dict[int, np.ndarray]


class Contents(NamedTuple):
    """The contents of a folder of adapters, whatever their base."""

    pairs: Pairs
    rows: Rows


class Adapters(NamedTuple):
    """Adapters that were read."""

    settings: lora.Config  # Of a scale of 1.
    factors: types.Params  # As `lora.init` draws them, float32.
    rows: Rows

    def merged(self, config: gemma.Config, base: types.Params) -> types.Params:
        """Returns the parameters of a base with the adapters merged into it."""
        params = lora.merged(config, self.settings, base, self.factors)
        if not self.rows:
            return params
        table = jnp.asarray(params["embedding"])
        values = jnp.asarray(np.stack(list(self.rows.values())), table.dtype)
        return {**params, "embedding": table.at[np.asarray(list(self.rows))].set(values)}


def save(
    folder: files.Path,
    config: gemma.Config,
    settings: lora.Config,
    factors: types.Params,
    *,
    base: str,
    table: types.Array | None = None,
    notice: str | None = None,
) -> None:
    """Writes adapters as a folder that peft loads beside a model of text, whole or not at all.

    Args:
      folder: made here; it must not exist, or be empty.
      config: of the base.
      settings: of the adapters.
      factors: as `lora.init` draws them, with every A and the ids of rows.
      base: name of the base, for its reader.
      table: the embedding of the base, [V, D], if rows of it learn.
      notice: text of the file NOTICE, see `lm/terms.py`.

    Raises:
      ValueError: if something is in the folder, a number is not finite, or the table is missing.
    """
    pairs = {}
    for layer, block, j, p in _layers(config):
        for name in settings.targets:
            stacks = factors[block][f"layer_{j}"][f"{lora.TARGETS[name]}/{name}"]
            a, b = (np.asarray(stacks[kind])[p].T for kind in "ab")
            pairs[layer, name] = Pair(a, b, settings.scale)
    rows: Rows = {}
    if settings.train_tokens:
        if table is None:
            raise ValueError("rows of the embedding that learnt are written whole: give its table")
        learnt = {name: np.asarray(x) for name, x in factors[lora.ROWS].items()}
        base_rows = np.asarray(jnp.asarray(table)[learnt["ids"]], np.float32)
        whole = base_rows + np.float32(settings.scale) * learnt["update"]
        rows = dict(zip(learnt["ids"].tolist(), whole, strict=True))
    write(folder, Contents(pairs, rows), settings, base=base, notice=notice)


def write(
    folder: files.Path,
    contents: Contents,
    settings: lora.Config,
    *,
    base: str,
    notice: str | None = None,
) -> None:
    """Writes adapters of the rank, targets and scale of `settings`; otherwise as `save`."""
    folder = pathlib.Path(folder)
    files.check_new_folder(folder)
    tensors: dict[str, np.ndarray] = {}
    for (layer, name), pair in contents.pairs.items():
        for kind, array in (("A", pair.a), ("B", pair.b)):
            tensors[f"layers.{layer}.{_theirs(name)}.lora_{kind}.weight"] = array
    if contents.rows:
        tensors[_ROWS] = np.stack(list(contents.rows.values()))
    tensors = {_PREFIXES[-1] + name: np.ascontiguousarray(x) for name, x in tensors.items()}
    for name, array in tensors.items():
        if not finite.is_finite(array):
            raise ValueError(f"tensor {finite.describe(name, array)}: the adapters are not written")
    alpha = settings.alpha
    record = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": settings.rslora,
        "target_modules": [_theirs(name).rpartition(".")[2] for name in settings.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **({_IDS: list(contents.rows)} if contents.rows else {}),
    }
    with files.atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / CONFIG).write_text(json.dumps(record, indent=2) + "\n")
        safetensors_numpy.save_file(tensors, temporary / WEIGHTS, {"format": "pt"})
        terms.write(temporary, notice)


def read(folder: files.Path, config: gemma.Config) -> Adapters:
    """Reads the adapters of a folder, of a multimodal model's language part too.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      config: of the base.

    Raises:
      ValueError: for settings and tensors that are no LoRA of the base's matrices, each by name.
      CorruptError: if the file of tensors cannot be read.
    """
    (pairs, rows), sizes = read_any(folder), lora.sizes(config)
    for (layer, name), pair in pairs.items():
        num_in, num_out = sizes[name]
        if layer >= config.num_layers or (pair.a.shape[1], len(pair.b)) != (num_in, num_out):
            raise ValueError(
                f"{folder} adapts {_theirs(name)} [{len(pair.b)}, {pair.a.shape[1]}] of layer "
                f"{layer}; the base has {config.num_layers} layers, and it is [{num_out}, {num_in}]"
            )
    for i, row in rows.items():
        if i >= config.vocab_size or len(row) != config.embed_dim:
            raise ValueError(
                f"{folder} has row {i} of the embedding, [{len(row)}]; that of the base is "
                f"[{config.vocab_size}, {config.embed_dim}]"
            )
    rank = max(len(pair.a) for pair in pairs.values())
    targets = tuple(name for name in lora.TARGETS if any(name == at[1] for at in pairs))
    factors = lora.zeros(config, lora.Config(rank=rank, targets=targets))
    for layer, block, j, p in _layers(config):
        for name in targets:
            if (layer, name) in pairs:
                a, b, scale = pairs[layer, name]
                stacks = factors[block][f"layer_{j}"][f"{lora.TARGETS[name]}/{name}"]
                stacks["a"][p, :, : len(a)] = a.T
                stacks["b"][p, : len(a)] = scale * b.T
    return Adapters(lora.Config(rank=rank, alpha=float(rank), targets=targets), factors, rows)


def base_of(folder: files.Path) -> str:
    """Returns the name of the base that the adapters of a folder were trained beside, or ""."""
    record = json_files.read(folders.inside(folder, CONFIG))
    return record.get("base_model_name_or_path", str, None) or ""


def read_any(folder: files.Path) -> Contents:
    """Reads the adapters of a folder, whatever their base; raises as `read` does."""
    folder = pathlib.Path(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in folders.present(folder, (name,)):
            raise ValueError(f"{folder / name} is missing: expected a folder of adapters of peft")
    record = json_files.read(folders.inside(folder, CONFIG))
    scale, (halves, tensor) = _scale(record), _tensors(folder)
    rows, pairs = _rows(folder, record, tensor), _pairs(folder, halves)
    scaled = {at: pair._replace(scale=scale(at[1], len(pair.a))) for at, pair in pairs.items()}
    return Contents(scaled, rows)


def _theirs(name: str) -> str:
    return stacked_layers.LAYER[f"{lora.TARGETS[name]}/{name}"][0]


def _layers(config: gemma.Config) -> list[tuple[int, str, int, int]]:
    """Returns (number, block, place in the period, period) of each layer."""
    layers, first = [], 0
    for block, (length, depth) in config.blocks.items():
        layers += [
            (first + p * depth + j, block, j, p) for p in range(length) for j in range(depth)
        ]
        first += length * depth
    return layers


def _scale(record: json_files.Record) -> Scale:
    """Returns the scale of each adapter, by checked settings.

    Raises:
      ValueError: for a setting that we do not support, by name.
    """
    if record.get("peft_type", str) != "LORA":
        raise record.error("peft_type", "LORA, the one kind that is read")
    for key, value in record.items():
        is_plain = value is None or value is False or value in ([], {}, _PLAIN.get(key))
        if key not in _IGNORED and not is_plain:
            raise ValueError(
                f"{record.file}: {json_files.shown(key)} of {json_files.shown(value)} is not "
                "supported: plain LoRA is read; merge it with peft, and take the whole model"
            )
    begun = record.get("init_lora_weights", (bool, str), True)
    if isinstance(begun, str) and begun.lower().startswith(_CHANGE_BASE):
        raise record.error("init_lora_weights", "one that leaves the base's weights as they are")
    alphas = dict.fromkeys(lora.TARGETS, record.get("lora_alpha", float))
    patterns = record.record("alpha_pattern", {})
    for pattern, alpha in patterns.each(float).items():
        # Others are regular expressions, which a stranger's file is not trusted with.
        if pattern not in _OURS_SHORT:
            raise ValueError(
                f"{record.file}: alpha_pattern has {json_files.shown(pattern)}, and it is read by "
                f"names of matrices alone, {', '.join(_OURS_SHORT)}"
            )
        alphas[_OURS_SHORT[pattern]] = alpha
    is_root = record.get("use_rslora", bool, False)
    return lambda name, rank: alphas[name] / (math.sqrt(rank) if is_root else rank)


# A factor's tensor with its name, by the letter of the factor, by layer and matrix.
_Halves = dict[tuple[int, str], dict[str, tuple[str, weights.Tensor]]]


def _tensors(folder: pathlib.Path) -> tuple[_Halves, weights.Tensor | None]:
    """Returns the tensors of a folder: factors of matrices, and rows of the embedding.

    Raises:
      ValueError: for one of another part, or two of one place.
    """
    halves: _Halves = {}
    rows: tuple[str, weights.Tensor] | None = None
    for tensor, contents in weights.read(folders.inside(folder, WEIGHTS)).items():
        prefix = next((p for p in _PREFIXES if tensor.startswith(p)), None)
        name = tensor.removeprefix(prefix or "")
        match = _NAME.fullmatch(name)
        is_factor = match is not None and match[2] in _OURS
        if prefix is None or not (is_factor or name == _ROWS):
            raise ValueError(
                f"{folder / WEIGHTS} has {tensor}, which adapts no matrix of a layer of text: "
                f"{', '.join(_OURS)}"
            )
        before = rows
        if match is not None:
            half = halves.setdefault((int(match[1]), _OURS[match[2]]), {})
            before = half.get(match[3])
            half[match[3]] = tensor, contents
        else:
            rows = tensor, contents
        if before is not None:
            raise ValueError(f"{folder / WEIGHTS} has both {before[0]} and {tensor}")
    return halves, None if rows is None else rows[1]


def _rows(folder: pathlib.Path, record: json_files.Record, tensor: weights.Tensor | None) -> Rows:
    """Returns the rows of the embedding that replace the base's.

    Raises:
      ValueError: for ids without rows, rows without ids, or ids of another table.
    """
    ids = record.get(_IDS, (list, dict), None)
    if isinstance(ids, dict):
        if set(ids) != {_TABLE}:
            raise record.error(_IDS, f"ids of {_TABLE} alone, to which the head is tied")
        ids = ids[_TABLE]
    if not ids and tensor is None:
        return {}
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise record.error(_IDS, "a list of ids")
    rows = np.zeros((0, 0)) if tensor is None else _array(folder, _ROWS, tensor)
    if len(rows) != len(ids) or len(set(ids)) < len(ids):
        raise ValueError(
            f"{folder / WEIGHTS} has {len(rows)} rows of the embedding, and {CONFIG} names "
            f"{len(set(ids))} for them in {_IDS}"
        )
    return dict(zip(ids, rows, strict=True))


def _pairs(folder: pathlib.Path, halves: _Halves) -> Pairs:
    """Returns the factors of every matrix.

    Raises:
      ValueError: for a tensor that is alone, of another shape or not finite; if there is none.
    """
    if not halves:
        raise ValueError(f"{folder / WEIGHTS} has no tensor")
    pairs = {}
    for at, half in halves.items():
        if len(half) < 2:
            [(name, _)] = half.values()
            raise ValueError(f"{folder / WEIGHTS} has {name} without its twin")
        a, b = (_array(folder, *half[kind]) for kind in "AB")
        if not len(a) or len(a) != b.shape[1]:
            raise ValueError(
                f"{folder / WEIGHTS}: {half['A'][0]} and its twin are {list(a.shape)} and "
                f"{list(b.shape)}, expected [r, in] and [out, r]"
            )
        pairs[at] = Pair(a, b)
    return pairs


def _array(folder: pathlib.Path, name: str, tensor: weights.Tensor) -> np.ndarray:
    """Returns the numbers of a matrix in float32."""
    if tensor.dtype not in weights.FLOATS or len(tensor.shape) != 2:
        raise ValueError(f"{folder / WEIGHTS}: {name} is {tensor}, expected a matrix of floats")
    array = tensor.array.astype(np.float32)
    if not finite.is_finite(array):
        raise ValueError(f"{folder / WEIGHTS}: tensor {finite.describe(name, array)}")
    return array

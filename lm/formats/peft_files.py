"""Adapters as peft keeps them: a folder of adapter_config.json and adapter_model.safetensors.

Of a matrix W [in, out] theirs are lora_A [r, in] = A^T and lora_B [out, r] = B^T, one a layer; ours
are stacked along a layer axis (lm/lora.py). Ranks and scales may differ from matrix to matrix: all
are read as adapters of the largest rank, with the quotient of the scales in B.
"""

import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

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
    "target_modules task_type use_rslora".split()
)
# Ways to begin that change the base's own weights, unless the adapter was converted.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq")
_PREFIXES = (
    "base_model.model.model.language_model.",
    "base_model.model.language_model.model.",
    "base_model.model.model.",
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


class Adapters(NamedTuple):
    """Adapters that were read."""

    settings: lora.Config  # Of a scale of 1.
    factors: types.Params  # As `lora.init` draws them, float32.


def save(
    folder: files.Path,
    config: gemma.Config,
    settings: lora.Config,
    factors: types.Params,
    *,
    base: str,
    notice: str | None = None,
) -> None:
    """Writes adapters as a folder that peft loads beside a model of text, whole or not at all.

    Args:
      folder: made here; it must not exist, or be empty.
      config: of the base.
      settings: of the adapters.
      factors: as `lora.init` draws them, with every A.
      base: name of the base, for its reader.
      notice: text of the file NOTICE, see `lm/terms.py`.

    Raises:
      ValueError: if something is in the folder, or a number is not finite.
    """
    pairs = {}
    for layer, block, j, p in _layers(config):
        for name in settings.targets:
            stacks = factors[block][f"layer_{j}"][f"{lora.TARGETS[name]}/{name}"]
            a, b = (np.asarray(stacks[kind])[p].T for kind in "ab")
            pairs[layer, name] = Pair(a, b, settings.scale)
    write(folder, pairs, settings, base=base, notice=notice)


def write(
    folder: files.Path,
    pairs: Pairs,
    settings: lora.Config,
    *,
    base: str,
    notice: str | None = None,
) -> None:
    """Writes adapters of the rank, targets and scale of `settings`; otherwise as `save`."""
    folder = pathlib.Path(folder)
    files.check_new_folder(folder)
    tensors: dict[str, np.ndarray] = {}
    for (layer, name), pair in pairs.items():
        for kind, array in (("A", pair.a), ("B", pair.b)):
            tensor = f"{_PREFIXES[-1]}layers.{layer}.{_theirs(name)}.lora_{kind}.weight"
            if not finite.is_finite(array):
                raise ValueError(
                    f"tensor {finite.describe(tensor, array)}: the adapters are not written"
                )
            tensors[tensor] = np.ascontiguousarray(array)
    alpha = settings.alpha
    contents = {
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
    }
    with files.atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / CONFIG).write_text(json.dumps(contents, indent=2) + "\n")
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
    pairs, sizes = read_pairs(folder), lora.sizes(config)
    for (layer, name), pair in pairs.items():
        num_in, num_out = sizes[name]
        if layer >= config.num_layers or (pair.a.shape[1], len(pair.b)) != (num_in, num_out):
            raise ValueError(
                f"{folder} adapts {_theirs(name)} [{len(pair.b)}, {pair.a.shape[1]}] of layer "
                f"{layer}; the base has {config.num_layers} layers, and it is [{num_out}, {num_in}]"
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
    return Adapters(lora.Config(rank=rank, alpha=float(rank), targets=targets), factors)


def is_adapters(folder: files.Path) -> bool:
    """Returns whether a folder has the file by which peft knows adapters."""
    return (pathlib.Path(folder) / CONFIG).is_file()


def base_of(folder: files.Path) -> str:
    """Returns the name of the base that the adapters of a folder were trained beside, or ""."""
    record = json_files.read(folders.inside(folder, CONFIG))
    return record.get("base_model_name_or_path", str, None) or ""


def read_pairs(folder: files.Path) -> Pairs:
    """Reads the adapters of a folder, whatever their base; raises as `read` does."""
    folder = pathlib.Path(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in folders.present(folder, (name,)):
            raise ValueError(f"{folder / name} is missing: expected a folder of adapters of peft")
    scale = _scale(json_files.read(folders.inside(folder, CONFIG)))
    return {
        at: pair._replace(scale=scale(at[1], len(pair.a))) for at, pair in _pairs(folder).items()
    }


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


def _pairs(folder: pathlib.Path) -> Pairs:
    """Returns the factors of every matrix.

    Raises:
      ValueError: for a tensor that is unknown, alone, of another shape or not finite.
    """
    tensors = weights.read(folders.inside(folder, WEIGHTS))
    halves: dict[tuple[int, str], dict[str, str]] = {}
    for tensor in tensors:
        prefix = next((p for p in _PREFIXES if tensor.startswith(p)), "")
        match = _NAME.fullmatch(tensor.removeprefix(prefix)) if prefix else None
        if match is None or match[2] not in _OURS:
            raise ValueError(
                f"{folder / WEIGHTS} has {tensor}, which adapts no matrix of a layer of text: "
                f"{', '.join(_OURS)}"
            )
        half = halves.setdefault((int(match[1]), _OURS[match[2]]), {})
        if match[3] in half:
            raise ValueError(f"{folder / WEIGHTS} has both {half[match[3]]} and {tensor}")
        half[match[3]] = tensor
    if not halves:
        raise ValueError(f"{folder / WEIGHTS} has no tensor")
    pairs = {}
    for at, half in halves.items():
        if len(half) < 2:
            raise ValueError(f"{folder / WEIGHTS} has {next(iter(half.values()))} without its twin")
        a, b = (_array(folder, half[kind], tensors[half[kind]]) for kind in "AB")
        if not len(a) or len(a) != b.shape[1]:
            raise ValueError(
                f"{folder / WEIGHTS}: {half['A']} and its twin are {list(a.shape)} and "
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

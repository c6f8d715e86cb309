"""Gemma 3's config.json, as Hugging Face's transformers 4 and 5 write it, and `gemma.Config`.

transformers 4 says rope_theta, rope_local_base_freq, rope_scaling, sliding_window_pattern;
transformers 5 says rope_parameters and layer_types. We read both and write both into one file,
which either version takes. What is absent has the default of transformers' Gemma3TextConfig.
"""

import json
import os
import pathlib
from typing import Any

from kullback.core import files, folders
from kullback.lm import gemma

LOCAL, GLOBAL = "sliding_attention", "full_attention"
# Field of transformers -> (field of ours, default of transformers 5.24).
SIZES: dict[str, tuple[str, float]] = {
    "vocab_size": ("vocab_size", 262_208),
    "num_hidden_layers": ("num_layers", 26),
    "hidden_size": ("embed_dim", 2304),
    "num_attention_heads": ("num_heads", 8),
    "num_key_value_heads": ("num_kv_heads", 4),
    "head_dim": ("head_dim", 256),
    "intermediate_size": ("hidden_dim", 9216),
    "sliding_window": ("window", 4096),
    "query_pre_attn_scalar": ("query_scale", 256),
    "rms_norm_eps": ("rms_epsilon", 1e-6),
    "max_position_embeddings": ("context_length", 131_072),
}
REAL = ("query_pre_attn_scalar", "rms_norm_eps")  # The others are whole numbers.
# What our model does, whatever a file may ask for.
FIXED: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "quantization_config": None,
}


def read(folder: files.Path, dtype: str = "float32") -> gemma.Config:
    """The configuration of a folder.

    The tokens that end a text are those of generation_config.json if it names any, as in
    transformers: tuned models stop at the end of a turn too.

    Args:
      folder: with config.json, text only or with a nested text_config.
      dtype: of the computation, "float32" or "bfloat16".

    Raises:
      ValueError: if the file is missing or no JSON, or asks for what our Gemma 3 does not do.
    """
    path = config_file(folder)
    outer = read_json(path)
    text = outer.get("text_config") or outer
    for fields, expected in ((outer, ("gemma3", "gemma3_text")), (text, ("gemma3_text", "gemma3"))):
        kind = fields.get("model_type", "gemma3_text")
        if kind not in expected:
            raise ValueError(f"{path}: model_type must be one of {expected}, got {kind!r}")
    for name, value in FIXED.items():
        for fields in (outer, text):
            if (fields.get(name) or None) not in (value or None, None):
                raise ValueError(f"{path}: {name} must be {value!r}, got {fields[name]!r}")
    generation = folders.present(path.parent, ("generation_config.json",))
    sources = (*map(read_json, generation.values()), outer, text)
    values: dict[str, Any] = {
        ours: _number(path, text, name, default, name in REAL)
        for name, (ours, default) in SIZES.items()
    }
    values |= _rope(path, text)
    values["pattern"] = _pattern(path, text, values["num_layers"])
    eos = _first(sources, "eos_token_id", 1)
    try:
        return gemma.Config(
            **values,
            bos_id=_first(sources, "bos_token_id", 2),
            pad_id=_first(sources, "pad_token_id", 0),
            eos_ids=tuple(eos) if isinstance(eos, list) else (eos,),
            dtype=dtype,  # type: ignore[arg-type]  # Config checks it.
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def config_file(folder: files.Path) -> pathlib.Path:
    """Returns the path of a folder's config.json.

    Raises:
      ValueError: if it is missing, or a link out of the folder.
    """
    path = pathlib.Path(folder) / "config.json"
    if not os.path.lexists(path):
        raise ValueError(f"{path} is missing; expected a folder of Hugging Face")
    return folders.inside(folder, path.name)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: if there is no such file, or no object in it.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; expected a folder of Hugging Face") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, got {type(value).__name__}")
    return value


def to_json(config: gemma.Config, dtype: str) -> dict[str, Any]:
    """The fields of config.json for Gemma3ForCausalLM, in both dialects.

    Args:
      config: the model.
      dtype: of the weights beside it, "float32".

    Raises:
      ValueError: for what transformers would refuse to load.
    """
    if config.query_scale != int(config.query_scale):
        raise ValueError(
            f"query_scale must be a whole number, got {config.query_scale}; transformers takes "
            "no other"
        )
    if config.embed_dim % config.num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads, got {config.embed_dim} and "
            f"{config.num_heads}; transformers takes no other"
        )
    fields: dict[str, Any] = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    for name, (ours, default) in SIZES.items():
        value = getattr(config, ours)
        fields[name] = int(value) if isinstance(default, int) else value
    # transformers 5 fills in quantization_config where it finds one.
    fields |= {name: value for name, value in FIXED.items() if name != "quantization_config"}
    scaling = {"rope_type": "linear", "factor": float(config.global_rope_factor)}
    is_scaled = config.global_rope_factor != 1
    fields |= {
        "tie_word_embeddings": True,
        "sliding_window_pattern": config.pattern,
        "rope_theta": config.global_rope_theta,
        "rope_local_base_freq": config.local_rope_theta,
        "rope_scaling": scaling if is_scaled else None,
        "layer_types": [GLOBAL if config.is_global(i) else LOCAL for i in range(config.num_layers)],
        "rope_parameters": {
            GLOBAL: {
                "rope_theta": config.global_rope_theta,
                **(scaling if is_scaled else {"rope_type": "default"}),
            },
            LOCAL: {"rope_theta": config.local_rope_theta, "rope_type": "default"},
        },
    }
    return fields | generation_to_json(config)


def generation_to_json(config: gemma.Config) -> dict[str, Any]:
    """The fields of generation_config.json: the special tokens."""
    eos = list(config.eos_ids)
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos if len(eos) > 1 else eos[0],
        "pad_token_id": config.pad_id,
    }


def _number(
    path: pathlib.Path, fields: dict[str, Any], name: str, default: float, is_real: bool
) -> float:
    value = fields.get(name, default)
    kinds = (int, float) if is_real else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{path}: {name} must be a number, as {default}, got {value!r}")
    return value


def _first(sources: tuple[dict[str, Any], ...], name: str, default: Any) -> Any:
    """What the first of some objects that says anything says; null says nothing."""
    said = [fields[name] for fields in sources if fields.get(name) is not None]
    return said[0] if said else default


def _rope(path: pathlib.Path, text: dict[str, Any]) -> dict[str, float]:
    """Bases and factor of the rotary positions, of either dialect, which must not disagree."""
    parameters = text.get("rope_parameters") or {}
    if not set(parameters) <= {LOCAL, GLOBAL}:
        raise ValueError(
            f"{path}: rope_parameters must have the keys {GLOBAL} and {LOCAL}, "
            f"got {sorted(parameters)}"
        )
    far, near = (dict(parameters.get(kind) or {}) for kind in (GLOBAL, LOCAL))
    old, old_near = dict(text.get("rope_scaling") or {}), {}
    for fields, name in ((old, "rope_theta"), (old_near, "rope_local_base_freq")):
        if name in text:
            fields["rope_theta"] = text[name]
    for fields in (far, near, old):
        if "type" in fields:  # As files before transformers 4.43 say.
            fields.setdefault("rope_type", fields.pop("type"))
    old_near = (
        {"rope_theta": text["rope_local_base_freq"]} if "rope_local_base_freq" in text else {}
    )
    for new, older in ((far, old), (near, old_near)):
        for name, value in older.items():
            if new.setdefault(name, value) != value:
                raise ValueError(
                    f"{path}: rope_parameters say {name}={new[name]!r} and the older fields "
                    f"{value!r}; remove one of them"
                )
    for fields, kinds in ((far, ("default", "linear")), (near, ("default",))):
        kind = fields.get("rope_type", "default")
        extra = set(fields) - {"rope_type", "rope_theta", *(["factor"] if kind == "linear" else [])}
        if kind not in kinds or extra:
            raise ValueError(
                f"{path}: RoPE must be of a type of {kinds} with a factor if it is linear, "
                f"got {fields}"
            )
    if far.get("rope_type") == "linear" and "factor" not in far:
        raise ValueError(f"{path}: linear RoPE needs a factor, got {far}")
    return {
        "global_rope_theta": _number(path, far, "rope_theta", 1_000_000.0, True),
        "local_rope_theta": _number(path, near, "rope_theta", 10_000.0, True),
        "global_rope_factor": _number(path, far, "factor", 1.0, True),
    }


def _pattern(path: pathlib.Path, text: dict[str, Any], num_layers: int) -> int:
    """Every how many layers one is global; layer_types decide if they are there."""
    said = int(_number(path, text, "sliding_window_pattern", 6, False))
    kinds = text.get("layer_types")
    if kinds is None:
        return int(
            _number(path, {"sliding_window_pattern": said}, "sliding_window_pattern", 6, False)
        )
    if not isinstance(kinds, list) or said < 1:
        raise ValueError(
            f"{path}: layer_types must be a list and sliding_window_pattern >= 1, got {kinds!r} "
            f"and {said}"
        )
    first = kinds.index(GLOBAL) if GLOBAL in kinds else num_layers
    for pattern in (said, first + 1):
        if kinds == [LOCAL if (i + 1) % pattern else GLOBAL for i in range(num_layers)]:
            return pattern
    raise ValueError(
        f"{path}: layer_types must name {num_layers} layers with {GLOBAL} at every n-th place and "
        f"{LOCAL} at the others, got {kinds}"
    )

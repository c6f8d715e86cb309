"""The files that say how images are prepared: preprocessor_config.json and processor_config.json.

As Gemma 3's folders of Hugging Face have them. transformers gives the fields of pan and scan, which
the published files leave null, the values that `pictures.Config` has.
"""

import json
import pathlib
from typing import Any

from kullback.core import files, folders, json_files
from kullback.lm import pictures

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
SOFT_TOKENS = 256  # Of an image, where a folder does not say.
# Fields with one value that we support; null, or no field, is that value. 2 is Pillow's bilinear.
_FIXED: dict[str, Any] = {
    "do_resize": True,
    "resample": 2,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
}
_PAN_AND_SCAN = {  # Field of the file -> field of ours.
    "do_pan_and_scan": "pan_and_scan",
    "pan_and_scan_min_crop_size": "min_crop_side",
    "pan_and_scan_max_num_crops": "max_crops",
    "pan_and_scan_min_ratio_to_activate": "min_ratio",
}
_KINDS: dict[str, type] = {"pan_and_scan": bool, "min_ratio": float}  # The others are int.


def read(folder: files.Path) -> tuple[pictures.Config, int]:
    """Reads how a folder's images are prepared, and the number of soft tokens of an image.

    Raises:
      ValueError: naming file and field, if preprocessor_config.json is missing or no JSON, or asks
        for what we do not do; if the two files tell different numbers of tokens.
    """
    present = folders.present(folder, (PREPROCESSOR, PROCESSOR))
    if PREPROCESSOR not in present:
        raise ValueError(
            f"{pathlib.Path(folder) / PREPROCESSOR} is missing; expected the folder of a model "
            "that takes images"
        )
    fields = json_files.read(present[PREPROCESSOR])
    for name, value in _FIXED.items():
        if fields.values.get(name) not in (None, value):
            raise fields.error(name, json.dumps(value))
    size = fields.record("size")
    side = size.get("height", int)
    if size.get("width", int) != side:
        raise fields.error("size", "a square, height equal to width")
    values: dict[str, Any] = {"side": side}
    for name, ours in _PAN_AND_SCAN.items():
        value = fields.get(name, _KINDS.get(ours, int), None)
        if value is not None:
            values[ours] = value
    for name, ours in (("image_mean", "mean"), ("image_std", "std")):
        if fields.values.get(name) is not None:
            values[ours] = tuple(fields.list_of(name, float))
    if fields.values.get("rescale_factor") is not None:
        values["rescale_factor"] = fields.get("rescale_factor", float)
    try:
        config = pictures.Config(**values)
    except ValueError as error:
        raise ValueError(f"{fields.file}: {error}") from error
    return config, _soft_tokens(fields, present)


def write(folder: files.Path, config: pictures.Config, soft_tokens: int) -> None:
    """Writes both files; with the default settings their fields are those of the published ones.

    Args:
      folder: of the model.
      config: how images are prepared.
      soft_tokens: of an image.
    """
    default = pictures.Config()
    pan_and_scan = {
        name: None if getattr(config, ours) == getattr(default, ours) else getattr(config, ours)
        for name, ours in _PAN_AND_SCAN.items()
    }
    fields = {
        **{name: None if name == "do_convert_rgb" else value for name, value in _FIXED.items()},
        **pan_and_scan,
        "image_mean": list(config.mean),
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": soft_tokens,
        "image_std": list(config.std),
        "processor_class": "Gemma3Processor",
        "rescale_factor": config.rescale_factor,
        "size": {"height": config.side, "width": config.side},
    }
    processor = {"image_seq_length": soft_tokens, "processor_class": "Gemma3Processor"}
    for name, contents in ((PREPROCESSOR, fields), (PROCESSOR, processor)):
        text = json.dumps(contents, indent=2, sort_keys=True) + "\n"
        files.atomic_write_text(pathlib.Path(folder) / name, text)


def _soft_tokens(fields: json_files.Record, present: dict[str, pathlib.Path]) -> int:
    """Returns the soft tokens of an image, on which both files agree where both tell them."""
    sources = [fields]
    if PROCESSOR in present:
        sources.append(json_files.read(present[PROCESSOR]))
    told = {
        source.file: source.get("image_seq_length", int)
        for source in sources
        if source.values.get("image_seq_length") is not None
    }
    if len(set(told.values())) > 1:
        both = " and ".join(f"{count} in {file}" for file, count in told.items())
        raise ValueError(f"image_seq_length is {both}; expected one number: mend one of them")
    count = next(iter(told.values()), SOFT_TOKENS)
    if count < 1:
        raise ValueError(f"{next(iter(told))}: image_seq_length must be >= 1, got {count}")
    return count

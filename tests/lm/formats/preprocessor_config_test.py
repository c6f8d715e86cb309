"""Tests of lm/formats/preprocessor_config.py."""

import json
import pathlib
from typing import Any

import pytest

from kullback.lm import pictures
from kullback.lm.formats import preprocessor_config

# As Gemma 3's folders have it.
PUBLISHED = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 896, "width": 896},
}


def written(folder: pathlib.Path, **fields: Any) -> pathlib.Path:
    """Writes the published file with some fields changed; a field of ... is left out."""
    contents = {k: v for k, v in {**PUBLISHED, **fields}.items() if v is not ...}
    (folder / "preprocessor_config.json").write_text(json.dumps(contents))
    return folder


def test_the_published_file_is_the_default(tmp_path: pathlib.Path):
    assert preprocessor_config.read(written(tmp_path)) == (pictures.Config(), 256)
    preprocessor_config.write(tmp_path, pictures.Config(), 256)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == PUBLISHED
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    assert processor == {"image_seq_length": 256, "processor_class": "Gemma3Processor"}


def test_other_settings_are_read_as_they_were_written(tmp_path: pathlib.Path):
    config = pictures.Config(
        side=56,
        rescale_factor=0.5,
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 2.0, 3.0),
        pan_and_scan=True,
        min_crop_side=20,
        max_crops=3,
        min_ratio=1.5,
    )
    preprocessor_config.write(tmp_path, config, 4)
    assert preprocessor_config.read(tmp_path) == (config, 4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"resample": 3}, r"preprocessor_config\.json: resample must be 2, got 3"),
        ({"do_normalize": False}, "do_normalize must be true, got false"),
        ({"size": {"height": 896, "width": 448}}, "size must be a square"),
        ({"size": {"shortest_edge": 896}}, r"size\.height is missing"),
        ({"size": ...}, "size is missing"),
        ({"size": {"height": 0, "width": 0}}, "json: side must be >= 1"),
        ({"image_mean": "half"}, "image_mean must be a list"),
        ({"image_std": [0.5, 0.5]}, "json: std must be three"),
        ({"pan_and_scan_max_num_crops": 2.5}, "pan_and_scan_max_num_crops must be an integer"),
        ({"image_seq_length": 0}, "image_seq_length must be >= 1"),
    ],
)
def test_other_files_are_refused(tmp_path: pathlib.Path, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        preprocessor_config.read(written(tmp_path, **fields))


def test_both_files_tell_the_same_number_of_tokens(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is missing"):
        preprocessor_config.read(tmp_path)
    written(tmp_path, image_seq_length=...)
    assert preprocessor_config.read(tmp_path)[1] == 256
    (tmp_path / "processor_config.json").write_text('{"image_seq_length": 64}')
    assert preprocessor_config.read(tmp_path)[1] == 64
    written(tmp_path)
    with pytest.raises(ValueError, match=r"image_seq_length is 256 in .* and 64 in "):
        preprocessor_config.read(tmp_path)

"""Tests of --pan-and-scan, a setting of runs that learn with images."""

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from kullback import experiments
from kullback.experiments.runs import models, opened
from kullback.lm import encoded, forms, pictures

ROWS: dict[str, dict[str, str]] = {
    "sft tokens/jsonl": {"completion": "1"},
    "reward-model tokens/preferences": {"chosen": "1", "rejected": "2"},
}
NUM_VIEWS = 3  # Of an image: the whole of it, and two crops.


@pytest.fixture
def folder(sees: pathlib.Path, tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
    """Returns a model that sees, by whose folder small images may be cut, and are not."""
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    shutil.copytree(sees, tmp_path / "model")
    set_in_folder(tmp_path / "model", pan_and_scan_min_crop_size=4)
    return tmp_path / "model"


def set_in_folder(folder: pathlib.Path, **fields: Any) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(ROWS))
def test_a_run_that_cuts_goes_on_so_whatever_its_folder_says(
    kind: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
):
    algorithm, task = kind.split()
    for n, split in enumerate(("train", "train", "test")):
        pixels = np.random.default_rng(n).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        with (tmp_path / f"{split}.jsonl").open("a") as file:
            file.write(json.dumps({"prompt": "n", "images": [f"{n}.png"], **ROWS[kind]}) + "\n")
    encode, given = encoded.Images._encode, []

    def counted(images: encoded.Images, new: dict[str, Any]) -> None:
        given.extend(new)
        encode(images, new)

    monkeypatch.setattr(encoded.Images, "_encode", counted)
    paths = []
    for name, steps in (("run", 2), ("whole", 4)):
        settings = ("batch_size=2", "max_prompt_length=200", "max_new_tokens=4", "warmup_steps=0")
        path = experiments.train(
            *(algorithm, f"{task}:{tmp_path}"),
            **{"model": str(folder), "images": True, "pan_and_scan": "on", "steps": steps},
            **{"out": tmp_path / name, "settings": settings, "quiet": True},
        )
        paths.append(path)
    assert len(given) == 3 * NUM_VIEWS
    set_in_folder(folder, do_pan_and_scan=False)
    experiments.resume(paths[0], steps=4, quiet=True)
    one, other = (models.of_run(opened.open(p), modality=forms.IMAGES) for p in paths)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.images is not None and one.images.preparation.pan_and_scan


def test_what_is_asked_for_stands_before_what_the_folder_says(folder: pathlib.Path):
    read = models.load(folder, modality=forms.IMAGES)
    assert read.images is not None and not read.images.preparation.pan_and_scan
    pixels = np.zeros((9, 7, 3), np.uint8)
    for crops, expected in ((None, 1), (True, NUM_VIEWS), (False, 1)):
        images = read.cutting(crops).images
        assert images is not None
        assert len(pictures.views(pixels, images.preparation)) == expected
    with pytest.raises(ValueError, match="of a model that is read with images"):
        models.load(folder).cutting(True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pan_and_scan": "on"}, "--pan-and-scan on goes with --images"),
        ({"pan_and_scan": "yes", "images": True}, "pan_and_scan must be folder or on or off"),
    ],
)
def test_what_a_plan_cannot_cut_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        experiments.train("sft", "tokens/jsonl:x", model="y", **fields)

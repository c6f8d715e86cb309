"""Material that attempts start from: copies of work that the commands did once."""

import json
import pathlib
import shutil

import numpy as np
import safetensors.numpy

from tests.soak import runs, trials

BERT = pathlib.Path(__file__).parents[1] / "lm" / "fixtures" / "bert"


def place(workshop: trials.Workshop, folder: pathlib.Path, *names: str) -> None:
    """Copies the material into a folder, under its name; makes it where it is missing."""
    for name in names:
        source = path(workshop, name)
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
        else:
            shutil.copyfile(source, folder / name)


def path(workshop: trials.Workshop, name: str) -> pathlib.Path:
    """Returns where material is, which nobody may change."""
    if name == "bert":
        return _bert(workshop.home / "bert")
    if name in runs.DATA:
        runs.write_data(workshop.home)
        return workshop.home / name
    return runs.reference(workshop, name).path


def _bert(folder: pathlib.Path) -> pathlib.Path:
    """Writes the tests' tiny BERT with as many positions as an entailment model reads."""
    if not folder.exists():
        shutil.copytree(BERT, folder)
        config = json.loads((BERT / "config.json").read_text())
        tensors = safetensors.numpy.load_file(BERT / "model.safetensors")
        for name, value in tensors.items():
            if "position_embeddings" in name:
                tensors[name] = np.resize(value, (128, value.shape[1]))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(
            json.dumps({**config, "max_position_embeddings": 128}, indent=2)
        )
    return folder

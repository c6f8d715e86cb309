"""Models that other programs wrote: folders in Hugging Face's format, GGUF files, peft's adapters.

A GGUF file is read once: the cache keeps its model in a folder, which is memory-mapped.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from kullback.core import json_files, trees, weights
from kullback.experiments.runs import model_files, sights
from kullback.lm import (
    folder_meaning,
    narrow_weights,
    quantisation,
    sharding,
    terms,
    tokenizer,
    vision,
)
from kullback.lm.formats import (
    gguf_files,
    gguf_gemma,
    hugging_face,
    hugging_face_config,
    peft_files,
    stacked_layers,
)

PARAMS, OPERATOR = "params.safetensors", "operator.json"  # Of a folder of the cache.


def with_adapter(
    checkpoint: model_files.Checkpoint, name: str, folder: str
) -> model_files.Checkpoint:
    """Returns a model with the updates of a folder of peft's merged into it."""
    try:
        read = peft_files.read(folder, checkpoint.config)
    except ValueError as error:
        raise ValueError(f"adapters for {name}: {error}") from None
    params = read.merged(checkpoint.config, checkpoint.params)
    notice = terms.joined(checkpoint.notice, terms.of_folder(folder))
    return checkpoint._replace(params=params, notice=notice)


def of_cache(
    folder: pathlib.Path, mesh: sharding.Mesh | None, flags: Sequence[str], name: str
) -> model_files.Checkpoint:
    """Reads a model that `keep` wrote; `name` is what it is called in messages.

    Further arguments are those of `models.load`, and so below.
    """
    kept = model_files.saved(folder).computing(flags, name)
    divergence = json_files.read(folder / OPERATOR).get("divergence", str)
    like, path = sharding.shapes(kept.config, mesh), folder / PARAMS
    if scheme := quantisation.of_storage(kept.config.storage):
        shapes, chunks = trees.named_leaves(like), weights.chunks(path, like)
        params = stacked_layers.nest(
            {
                name: narrow_weights.read(name, leaf.shape, chunks[name], scheme)
                for name, leaf in shapes.items()
            }
        )
    else:
        params = weights.ready_params(path, like)
    return kept._replace(params=params, divergence=divergence)


def of_gguf(
    path: pathlib.Path, mesh: sharding.Mesh | None, flags: Sequence[str]
) -> model_files.Checkpoint:
    """Reads a GGUF file."""
    file = gguf_files.read(path)
    checkpoint = _without_params(file).computing(flags, str(path))
    shardings = sharding.by_path(checkpoint.config, mesh)
    storage = checkpoint.config.storage
    _, params, _ = gguf_gemma.load(file, sharding=shardings, storage=storage)
    return checkpoint._replace(params=params)


def _without_params(file: gguf_files.File) -> model_files.Checkpoint:
    """Returns the model of a GGUF file, whose tensors are not read."""
    config, divergence = gguf_gemma.read_config(file), gguf_gemma.output_divergence(file)
    notice = terms.of_gguf(file.metadata)
    return model_files.Checkpoint(
        config, tokenizer.from_gguf(file), None, divergence, notice=notice
    )


def of_folder(
    path: pathlib.Path,
    mesh: sharding.Mesh | None,
    flags: Sequence[str],
    *,
    images: bool,
    quiet: bool,
) -> model_files.Checkpoint:
    """Reads a folder in Hugging Face's format; `quiet` says nothing of images that are ignored."""
    # First, as what it needs meanwhile is freed before the parameters come.
    its_tokenizer = tokenizer.load(path)
    divergence, notice = folder_meaning.output_divergence(path), terms.of_folder(path)
    config = hugging_face_config.read(path)
    read = model_files.Checkpoint(config, its_tokenizer, None, divergence, notice=notice)
    read = read.computing(flags, str(path))
    shardings = sharding.by_path(config, mesh)
    storage = read.config.storage
    _, params, _ = hugging_face.load(path, sharding=shardings, storage=storage, sees=quiet)
    read = read._replace(params=params)
    return seeing(read, sights.of_folder(path, read.tokenizer)) if images else read


def seeing(checkpoint: model_files.Checkpoint, sight: sights.Sight) -> model_files.Checkpoint:
    """Returns a model with what it sees images by."""
    both = {**dict(checkpoint.params or {}), vision.PROJECTOR: sight.projector}
    return checkpoint._replace(params=both, images=sight.images)


def keep(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the model of a GGUF file into a folder of the cache, a parameter at a time."""
    file = gguf_files.read(path)
    checkpoint = _without_params(file)
    folder.mkdir()
    model_files.save(checkpoint, folder)
    (folder / OPERATOR).write_text(json.dumps({"divergence": checkpoint.divergence}))
    tensors, _ = gguf_gemma.open_rows(file, checkpoint.config)
    leaves, like = stacked_layers.leaves(checkpoint.config)

    def read(name: str) -> np.ndarray:
        rows = [tensors[tensor] for tensor in leaves[name].names]
        return stacked_layers.read(leaves[name], rows, like[name])

    weights.write_ready(folder / PARAMS, stacked_layers.nest(like), read)

"""Models written for other programs: folders of Hugging Face, and GGUF files of llama.cpp.

What is written is opened first, which reads no weights: a run of a language model, a folder, or a
GGUF file. Tensors of the latter two are memory-mapped, and read as they are written.
"""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kullback.core import folders
from kullback.experiments.runs import converted, models, opened, pretrained
from kullback.lm import folder_meaning, gemma, terms, texts, tokenizer
from kullback.lm.formats import (
    gguf_files,
    gguf_gemma,
    gguf_writer,
    hugging_face,
    hugging_face_config,
    stacked_layers,
    tensor_files,
)


class Source(NamedTuple):
    """A model that is to be written, but for its weights."""

    name: str
    config: gemma.Config  # Its `eos_ids` are all ids that end a text.
    tokenizer: tokenizer.Tokenizer
    # Returns its tensors, by transformers' names without prefix; a run's are read then.
    tensors: Callable[[], Mapping[str, stacked_layers.Rows]]
    divergence: str  # f of its softargmax_f.
    notice: str | None  # That copies of its weights carry, see lm/terms.py.


def open_source(path: pathlib.Path, seed: int | None = None, *, trust_code: bool = False) -> Source:
    """Opens a model.

    Args:
      path: of a run of a language model, of a folder in Hugging Face's format or of a GGUF file.
      seed: which of a run's seeds; None is the first.
      trust_code: as of `opened.open`.

    Raises:
      ValueError: if it is none of these, or a reward model, or has no such seed.
    """
    run = opened.find(path, trust_code=trust_code)
    if run is not None:
        return _of_run(run, seed)
    if pretrained.is_name(path):
        raise ValueError(f"{path} is published as a GGUF file; export it as a folder")
    _check_model(path, seed)
    if path.suffix == gguf_files.SUFFIX and path.is_file():
        file = gguf_files.read(path)
        config, own_tokenizer = gguf_gemma.read_config(file), tokenizer.from_gguf(file)
        tensors, _ = gguf_gemma.open_rows(file, config)
        return Source(
            path.stem,
            texts.with_all_ends(config, own_tokenizer),
            own_tokenizer,
            lambda: tensors,
            gguf_gemma.output_divergence(file),
            terms.of_gguf(file.metadata),
        )
    config, own_tokenizer = hugging_face_config.read(path), tokenizer.load(path)
    tensors, _ = hugging_face.open_rows(path, config)
    return Source(
        path.name,
        texts.with_all_ends(config, own_tokenizer),
        own_tokenizer,
        lambda: tensors,
        folder_meaning.output_divergence(path),
        terms.of_folder(path),
    )


def _check_model(path: pathlib.Path, seed: int | None) -> None:
    """Raises ValueError for what is no run and neither a folder of weights nor a GGUF file."""
    if seed is not None:
        raise ValueError(f"{path} is no run of a language model: it has no seeds")
    if not converted.is_converted(path) and not folders.present(
        path, (tensor_files.WEIGHTS, tensor_files.INDEX)
    ):
        raise ValueError(
            f"{path} is no run, and no model: expected a folder with config.json and weights, a "
            "file of GGUF, or a run"
        )


def _of_run(run: opened.Opened, seed: int | None) -> Source:
    if run.kind == "preferences":
        raise ValueError(
            f"{run.path} is a run of a reward model, for whose head there is no place in such a "
            "model: export what was trained by it"
        )
    decoder = models.decoder_of(run)  # Raises for a game.
    run.folder(seed)  # Raises for an unknown seed.

    def tensors() -> Mapping[str, stacked_layers.Rows]:
        checkpoint = models.of_run(run, seed)
        return stacked_layers.of_params(decoder.config, checkpoint.params)

    divergence = models.algorithm_config(run).output_divergence
    return Source(
        *(run.path.name, decoder.config, decoder.tokenizer, tensors, divergence), decoder.notice
    )


def plan_gguf(source: Source, quantization: str) -> gguf_writer.Plan:
    """Returns what a model's GGUF file will be, see `gguf_writer.plan`."""
    return gguf_writer.plan(
        source.config,
        source.tokenizer,
        quantization,
        name=source.name,
        divergence=source.divergence,
        license_notice=None if source.notice is None else terms.license_of(source.notice),
    )


def write_folder(path: pathlib.Path, out: pathlib.Path, seed: int | None = None) -> None:
    """Writes a model of a folder, a GGUF file or a package in float32, as one of Hugging Face.

    Raises:
      ValueError: as of `open_source`.
    """
    _check_model(path, seed)
    checkpoint = models.load(path)
    with tempfile.TemporaryDirectory() as folder:
        models.write_folder(checkpoint, out, tokenizer.save(checkpoint.tokenizer, folder))

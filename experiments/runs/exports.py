"""Models written for other programs: folders of Hugging Face, and GGUF files of llama.cpp.

What is written is opened first: a run of a language model, a folder, a GGUF file, or a published
model. Tensors of folders and files are memory-mapped, and read as they are written.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from kullback.core import files, folders
from kullback.experiments.runs import (
    learnt,
    model_files,
    models,
    opened,
    plans,
    pretrained,
    sights,
)
from kullback.lm import folder_meaning, forms, gemma, terms, texts, tokenizer, vision
from kullback.lm.formats import (
    gguf_files,
    gguf_gemma,
    gguf_vision,
    gguf_writer,
    hugging_face,
    hugging_face_config,
    peft_files,
    stacked_layers,
    vision_files,
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
    sight: sights.Sight | None = None  # What it sees images by, if it does.


class GgufPlan(NamedTuple):
    """The files of a model in GGUF that are to be written, but for the numbers."""

    model: gguf_writer.Plan
    images: gguf_writer.Plan | None  # Of what reads images, for the file beside the model's.

    @property
    def num_bytes(self) -> int:
        """Size of the files, bytes."""
        return self.model.num_bytes + (0 if self.images is None else self.images.num_bytes)


def open_source(
    path: pathlib.Path, seed: int | None = None, *, trust_code: bool = False, base: str = ""
) -> Source:
    """Opens a model.

    Args:
      path: of a run of a language model, of a folder in Hugging Face's format or of a GGUF file; or
        pretrained:NAME; with adapters behind it or not, as of `models.load`.
      seed: which of a run's seeds; None is the first.
      trust_code: as of `opened.open`.
      base: as for `models.stored`.

    Raises:
      ValueError: if it is none of these, or a reward model, or has no such seed.
    """
    if plans.ADAPTER in str(path):
        modality = models.modality_of(path)
        check_deaf(path, modality)
        read = models.load(path, seed, base=base, modality=modality)
        return _of_checkpoint(path.name, read)
    form, _, run = models.stored(path, seed, trust_code=trust_code, base=base)
    if run is not None:
        return _of_run(run, seed)
    if form == "published":  # As the cache keeps it: in float32, from which it is quantised.
        return _of_checkpoint(pretrained.named(path)[0], models.load(path))
    return _of_gguf(path) if form == "gguf" else _of_folder(path)


def _of_run(run: opened.Opened, seed: int | None) -> Source:
    if run.kind == "preferences":
        raise ValueError(
            f"{run.path} is a run of a reward model, for whose head there is no place in such a "
            "model: export what was trained by it"
        )
    decoder = models.decoder_of(run)  # Raises for a game.
    run.folder(seed)  # Raises for an unknown seed.
    check_deaf(run.path, run.plan.modality)

    def tensors() -> Mapping[str, stacked_layers.Rows]:
        checkpoint = models.of_run(run, seed)
        return stacked_layers.of_params(decoder.config, checkpoint.params)

    divergence = models.algorithm_config(run).output_divergence
    sight = sights.of_run(run, seed) if run.plan.images else None
    return Source(
        *(run.path.name, decoder.config, decoder.tokenizer, tensors, divergence),
        *(decoder.notice, sight),
    )


def _of_checkpoint(name: str, checkpoint: model_files.Checkpoint) -> Source:
    params, sight = checkpoint.params, None
    if checkpoint.images is not None:
        params, projector = sights.apart(params)
        sight = sights.Sight(checkpoint.images, projector)
    return Source(
        name,
        checkpoint.config,
        checkpoint.tokenizer,
        lambda: stacked_layers.of_params(checkpoint.config, params),
        checkpoint.divergence,
        checkpoint.notice,
        sight,
    )


def _of_gguf(path: pathlib.Path) -> Source:
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
        sights.of_gguf(path, own_tokenizer) if models.modality_of(path) is forms.IMAGES else None,
    )


def _of_folder(path: pathlib.Path) -> Source:
    config, own_tokenizer = hugging_face_config.read(path), tokenizer.load(path)
    tensors, _ = hugging_face.open_rows(path, config, sees=True)
    return Source(
        path.name,
        texts.with_all_ends(config, own_tokenizer),
        own_tokenizer,
        lambda: tensors,
        folder_meaning.output_divergence(path),
        terms.of_folder(path),
        sights.of_folder(path, own_tokenizer) if models.modality_of(path) is forms.IMAGES else None,
    )


def plan_gguf(source: Source, quantization: str) -> GgufPlan:
    """Returns what a model's GGUF files will be, see `gguf_writer.plan` and `gguf_vision.plan`."""
    how: dict[str, Any] = {"name": source.name, "notice": source.notice}
    model = gguf_writer.plan(
        *(source.config, source.tokenizer, quantization), divergence=source.divergence, **how
    )
    if source.sight is None:
        return GgufPlan(model, None)
    images = source.sight.images
    return GgufPlan(
        model,
        gguf_vision.plan(
            *(images.config, source.config.embed_dim, images.preparation, quantization), **how
        ),
    )


def check_new_gguf(out: pathlib.Path, notice: str | None) -> None:
    """Checks the places of a GGUF file, of images beside it, and of the notice of its terms.

    Raises:
      ValueError: if something is at the first two, though the model may not see, as what is there
        would be taken for its images'; or if there is another notice.
    """
    for path in (out, gguf_vision.beside(out)):
        files.check_new_file(path)
    terms.check_beside(out, notice)


def write_gguf(out: pathlib.Path, plan: GgufPlan, source: Source) -> None:
    """Writes a model's GGUF file, that of its images and the notice of its terms beside it.

    Raises:
      ValueError: as of `check_new_gguf`, `gguf_vision.write` and `gguf_writer.write`.
    """
    check_new_gguf(out, source.notice)
    beside = gguf_vision.beside(out)
    if plan.images is not None and (sight := source.sight) is not None:
        eye = vision.Eye(sight.images.config, sight.images.params, sight.projector)
        gguf_vision.write(beside, plan.images, eye, source.config.embed_dim)
    try:
        gguf_writer.write(out, plan.model, source.tensors())
    except BaseException:
        beside.unlink(missing_ok=True)  # Of no model.
        raise
    terms.write_beside(out, source.notice)


def write_folder(
    path: pathlib.Path,
    out: pathlib.Path,
    seed: int | None = None,
    *,
    trust_code: bool = False,
    base: str = "",
) -> None:
    """Writes a model, in float32, as a folder that Hugging Face's transformers load.

    Arguments are those of `open_source`.

    Raises:
      ValueError: as of `open_source`.
    """
    has_adapters = plans.ADAPTER in str(path)
    stored = None if has_adapters else models.stored(path, seed, trust_code=trust_code, base=base)
    if stored is not None and stored.run is not None:
        _write_run(stored.run, out, seed)
        return
    modality = models.modality_of(path)
    check_deaf(path, modality)
    read = models.load(path, seed, base=base, modality=modality)
    write_checkpoint(read, out)


def _write_run(run: opened.Opened, out: pathlib.Path, seed: int | None) -> None:
    """Writes the newest model of a run with its tokenizer's own files."""
    if run.kind == "preferences":
        checkpoint = models.load(run.path, seed)
    else:
        check_deaf(run.path, run.plan.modality)
        checkpoint = models.of_run(run, seed, modality=run.plan.modality)
    tokenizer_folder = folders.subfolder(run.path, model_files.TOKENIZER)
    present = folders.present(tokenizer_folder, checkpoint.tokenizer.sources)
    save(checkpoint, out, present.values())


def check_deaf(path: pathlib.Path, modality: forms.Modality | None) -> None:
    """Raises ValueError for a run of a model that hears, with adapters behind it or not."""
    if modality is forms.AUDIO:
        raise ValueError(
            f"{path} was trained with --audio, and no other program has a place for what it "
            "hears by: use the run itself"
        )


def save(
    checkpoint: model_files.Checkpoint, out: pathlib.Path, tokenizer_files: Iterable[pathlib.Path]
) -> None:
    """Writes a model as a folder that Hugging Face's transformers load.

    Its operator stands in a key of config.json that other programs ignore. A notice of terms goes
    with it (lm/terms.py), and what it sees images by, if it was read with that.
    """
    save, params = hugging_face.save, checkpoint.params
    if (images := checkpoint.images) is not None and params is not None:
        params, projector = sights.apart(params)
        eye = vision.Eye(images.config, images.params, projector)
        save = functools.partial(vision_files.save, eye=eye, preparation=images.preparation)
    save(
        out,
        checkpoint.config,
        params,
        tokenizer_files=tokenizer_files,
        extra={folder_meaning.NOTES: {"divergence": checkpoint.divergence}},
        notice=checkpoint.notice,
    )


def write_checkpoint(checkpoint: model_files.Checkpoint, out: pathlib.Path) -> None:
    """Writes a model that is in memory in float32, as a folder of Hugging Face."""
    with tempfile.TemporaryDirectory() as folder:
        save(checkpoint, out, tokenizer.save(checkpoint.tokenizer, folder))


def write_adapters(
    path: pathlib.Path, out: pathlib.Path, seed: int | None = None, base: str = ""
) -> None:
    """Writes the adapters of a run as a folder that peft loads beside the base's, a model of text.

    Args:
      path: of the run.
      out: new.
      seed: which of its seeds; None is the first.
      base: where the base is now; "" is where it was.

    Raises:
      ValueError: if it is no run of a language model, or has no adapters; as `models.base_of` does
        if rows of the base's embedding learn.
    """
    run = opened.find(path)
    if run is None:
        raise ValueError(f"{path} is no run, whose adapters may be written")
    run = learnt.beside(run, base)
    decoder = models.decoder_of(run)
    factors, settings = learnt.factors(run, decoder.config, seed), learnt.adapters_of(run)
    peft_files.save(
        out,
        decoder.config,
        settings,
        factors,
        base=run.plan.model,
        table=models.base_of(run)["embedding"] if settings.train_tokens else None,
        notice=decoder.notice,
    )

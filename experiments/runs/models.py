"""Language models on disk: folders in Hugging Face's format, GGUF files, and runs."""

import functools
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax

from kullback import lm
from kullback.core import folders, types
from kullback.experiments.runs import (
    converted,
    imported,
    learnt,
    model_files,
    opened,
    plans,
    pretrained,
    resolved,
    run_folder,
    sights,
)
from kullback.lm import forms, gemma, hearing, sharding, tokenizer, vision, warm
from kullback.lm.formats import (
    gguf_files,
    gguf_gemma,
    gguf_vision,
    hugging_face_config,
    vision_files,
)

_logger = logging.getLogger(__name__)


class Stored(NamedTuple):
    """A model where it is stored."""

    form: Literal["run", "published", "gguf", "folder"]  # The last is Hugging Face's.
    path: pathlib.Path  # Or pretrained:NAME.
    run: opened.Opened | None = None


def find(path: str | pathlib.Path, *, trust_code: bool = False) -> Stored | None:
    """Returns what a path or name is of, which reads no weights; None if it is of no model.

    Args:
      path: of a run of any kind, a GGUF file or a folder; or pretrained:NAME.
      trust_code: as of `opened.open`.

    Raises:
      ValueError: if a run's config.json is damaged.
    """
    path = pathlib.Path(path)
    if pretrained.is_name(path):
        return Stored("published", path)
    if (run := opened.find(path, trust_code=trust_code)) is not None:
        return Stored("run", path, run)
    if converted.is_converted(path):
        return Stored("gguf", path)
    return Stored("folder", path) if (path / "config.json").is_file() else None


def stored(
    path: str | pathlib.Path,
    seed: int | None = None,
    *,
    best: bool = False,
    base: str = "",
    trust_code: bool = False,
) -> Stored:
    """Returns what a path or name is of, as `find` does.

    Args:
      path, trust_code: as of `find`.
      seed, best: asked for.
      base: where the base of a run of adapters is now; "" is where it was.

    Raises:
      ValueError: if it is of no model; if it is no run, and a seed or the best is asked for; if it
        has no adapters, and a base is given.
    """
    place = find(path, trust_code=trust_code)
    if (seed is not None or best) and (place is None or place.run is None):
        raise ValueError(f"{path} is no run of a language model: it has no seeds and no best")
    if place is None:
        raise ValueError(_no_model(path))
    if base and place.run is None:
        raise ValueError(f"{path} is no run of adapters, and has no use for a base, got {base}")
    return place if place.run is None else place._replace(run=learnt.beside(place.run, base))


def modality_of(path: str | pathlib.Path) -> forms.Modality | None:
    """Returns what a model takes beside text: images or audio, as a run that learnt with either.

    A multimodal folder takes images, and a GGUF file that has the other half beside it. Of adapters
    it is their base that does.

    Raises:
      ValueError: as `find` does, and for a damaged config.json.
    """
    place = find(str(path).partition(plans.ADAPTER)[0])
    if place is None or place.form == "published":
        return None
    if place.run is not None:
        return place.run.plan.modality
    if place.form == "gguf":
        return forms.IMAGES if gguf_vision.beside(place.path).is_file() else None
    return None if vision_files.read_config(place.path) is None else forms.IMAGES


def load(
    path: str | pathlib.Path,
    seed: int | None = None,
    *,
    best: bool = False,
    mesh: sharding.Mesh | None = None,
    base: str = "",
    flags: Sequence[str] = (),
    modality: forms.Modality | None = None,
    says_ignored: bool = True,
) -> model_files.Checkpoint:
    """Reads the model of a folder in Hugging Face's format, a GGUF file, a run, or pretrained:NAME.

    Any of them may have "+adapter:FOLDER" behind it, a folder of peft's, which is merged into it.
    Its texts end with all ids that its configuration or its tokenizer names as ends.

    Args:
      path: of the folder, the file or the run; or the name of a published model.
      seed, best, mesh: as for `of_run`; a folder or file has no seeds and no best.
      base: as for `stored`.
      flags: how it is computed, as for `Checkpoint.computing`. A model of one device whose storage
        has few bits is read so, without a float copy of the whole; of a run there is one meanwhile.
      modality: which media it is read with what it takes by; None is of text alone.
      says_ignored: whether a line says so of a multimodal model whose images are ignored.

    Raises:
      ValueError: if it is none of these, the run is of another kind of model, or images or audio
        are asked for of what takes none; also as `of_run` and `converted.place_of`.
    """
    model_files.read_flags(flags)  # Raises before a file is converted.
    name, _, adapter = str(path).partition(plans.ADAPTER)
    if adapter:
        how: dict[str, Any] = {"modality": modality, "says_ignored": says_ignored}
        read = load(name, seed, best=best, mesh=mesh, base=base, **how)
        return imported.with_adapter(read, name, adapter).computing(flags, name)
    form, _, run = stored(path, seed, best=best, base=base)
    if modality is forms.AUDIO and form != "run":
        raise ValueError(f"{path} hears nothing: audio needs a run that was trained with --audio")
    if modality is forms.IMAGES and form == "published":
        raise ValueError(
            f"{path} reads no images: they need a multimodal folder of Hugging Face, with "
            "vision_config in its config.json, a GGUF file with its file of images beside it, or a "
            "run that was trained with --images"
        )
    if modality is forms.IMAGES and form == "gguf":
        sights.check_beside(pathlib.Path(path))  # Before the model is converted.
    if run is not None:
        if run.kind == "preferences":
            raise ValueError(f"{path} is a run of a reward model, which writes no texts")
        read = of_run(run, seed, best=best, mesh=mesh, modality=modality)
        return read.computing(flags, str(path))
    place = converted.place_of(path, imported.keep)
    if place.is_kept:
        read = imported.of_cache(place.path, mesh, flags, str(path))
    elif form == "folder":
        images = modality is forms.IMAGES
        quiet = images or not says_ignored
        read = imported.of_folder(place.path, mesh, flags, images=images, quiet=quiet)
    else:
        read = imported.of_gguf(place.path, mesh, flags)
    if form == "gguf":
        read = _of_two_files(pathlib.Path(path), read, modality, quiet=not says_ignored)
    return read._replace(origin=place.origin).with_all_ends()


def _of_two_files(
    path: pathlib.Path,
    read: model_files.Checkpoint,
    modality: forms.Modality | None,
    *,
    quiet: bool,
) -> model_files.Checkpoint:
    """Returns the model of a GGUF file, with what it sees images by if these are asked for."""
    if modality is forms.IMAGES:
        return imported.seeing(read, sights.of_gguf(path, read.tokenizer))
    if not quiet and (other := gguf_vision.beside(path)).is_file():
        _logger.warning("%s: images are ignored: what reads them, %s, is left out", path, other)
    return read


def tokenizer_of(path: str | pathlib.Path) -> tokenizer.Tokenizer:
    """Reads the tokenizer of a folder, one of its files, a GGUF file, a run, or a published model.

    Raises:
      ValueError: as of `tokenizer.load` and `converted.place_of`.
    """
    if run_folder.RunFolder(pathlib.Path(path)).is_run():
        return tokenizer.load(folders.subfolder(path, model_files.TOKENIZER))
    place = converted.place_of(path, imported.keep)
    return tokenizer.load(place.path / model_files.TOKENIZER if place.is_kept else place.path)


def _no_model(path: str | pathlib.Path) -> str:
    if str(path) in gemma.PRESETS:
        published = [f"{pretrained.PREFIX}{n}" for n in pretrained.MODELS if n == str(path)]
        hint = f"; {published[0]} has the published ones" if published else ""
        return f"{path} is a preset, a shape whose random weights kullback train draws{hint}"
    return (
        f"{path} is no model: expected a folder with config.json and weights, a file of GGUF, "
        f"a run, or {pretrained.PREFIX}NAME ({', '.join(pretrained.MODELS)})"
    )


def preset_notice(name: str) -> str:
    """Returns a line for a run whose weights are drawn, as it begins with a preset."""
    published = f"; {pretrained.PREFIX}{name} has the published ones"
    return (
        f"{name} is a preset: its random weights are drawn"
        f"{published if name in pretrained.MODELS else ''}"
    )


def shape(path: str | pathlib.Path) -> gemma.Config | None:
    """Reads the shape of the model that `load` would read; None if there is no model.

    Raises:
      ValueError: if it is damaged, or not a Gemma 3.
    """
    path = str(path).partition(plans.ADAPTER)[0]
    place = find(path)
    if place is None:
        return None
    if place.run is not None:
        return None if place.run.kind != "language" else model_files.saved_config(place.path)
    if place.form == "published":
        return pretrained.named(path)[1].config
    if place.form == "gguf":
        return gguf_gemma.read_config(gguf_files.read(place.path))
    return hugging_face_config.read(place.path)


def of_run(
    run: opened.Opened,
    seed: int | None = None,
    *,
    best: bool = False,
    mesh: sharding.Mesh | None = None,
    modality: forms.Modality | None = None,
) -> model_files.Checkpoint:
    """Reads the model that a run has trained; of a reward model, its decoder with its head.

    Adapters are merged into their base.

    Args:
      run: of a language model or a reward model.
      seed: which of its seeds; None is the first, or the average of all if they are a population.
      best: the checkpoint of the highest score in place of the newest.
      mesh: shards the parameters as they are read, but for a population's; None is one device.
      modality: which media it is read with what it takes by; None is of text alone.

    Raises:
      ValueError: if the run has no such seed, or no checkpoint with a score, or was trained without
        what is asked for; as `base_of` and `sights.of_run` do.
    """
    decoder = decoder_of(run)
    if run.kind == "language":
        run.folder(seed)  # Raises for an unknown seed before any work.
        decoder = decoder._replace(divergence=algorithm_config(run).output_divergence)
    like = learnt.shapes(run, decoder.config, mesh)
    if run.kind == "preferences" and seed is None and is_population(run):
        params = warm.average(learnt.read(run, like, member, best=best) for member in run.seeds)
    else:
        params = learnt.read(run, like, seed, best=best)
    whole = learnt.whole(run, decoder.config, base_of(run, mesh), params)
    if modality is None:
        return decoder._replace(params=whole)
    if modality is forms.AUDIO:
        return _hearing(run, decoder._replace(params=whole), seed, best=best)
    sight = sights.of_run(run, seed, best=best)
    both = _beside_projector(run, whole, sight)
    return decoder._replace(params=both, images=sight.images)


def _hearing(
    run: opened.Opened, read: model_files.Checkpoint, seed: int | None, *, best: bool
) -> model_files.Checkpoint:
    """Returns the model of a run with what it hears by; arguments are those of `learnt.read`."""
    if not run.plan.audio:
        raise ValueError(f"{run.path} was trained without --audio, and hears nothing")
    sounds, decoder = model_files.saved_sounds(run.path), dict(read.params or {})
    draw = functools.partial(hearing.init, config=sounds.config, embed_dim=read.config.embed_dim)
    like = {hearing.HEARING: jax.eval_shape(draw, jax.random.key(0))}
    params = {**decoder, **learnt.read(run, like, seed, best=best)}
    return read._replace(params=params, sounds=sounds)


def _beside_projector(
    run: opened.Opened, params: types.Params, sight: sights.Sight
) -> types.Params:
    """Returns the parameters of a run's model with the projector of its decoder."""
    if run.kind == "preferences":
        return {**params, "decoder": {**params["decoder"], vision.PROJECTOR: sight.projector}}
    return {**params, vision.PROJECTOR: sight.projector}


def is_population(run: opened.Opened) -> bool:
    """Returns whether the models of a run's seeds are members of one population."""
    return lm.ALGORITHMS[run.plan.agent].is_population


def members(
    run: opened.Opened, *, best: bool = False, images: bool = False
) -> Iterator[types.Params]:
    """Yields the parameters of each seed of a run of reward models, one at a time.

    Arguments are those of `of_run`.
    """
    config = model_files.saved_config(run.path)
    like, base = learnt.shapes(run, config), base_of(run)
    sight = sights.of_run(run) if images else None
    for seed in run.seeds:
        params = learnt.whole(run, config, base, learnt.read(run, like, seed, best=best))
        yield params if sight is None else _beside_projector(run, params, sight)


def base_of(run: opened.Opened, mesh: sharding.Mesh | None = None) -> types.Params:
    """Reads the base of a run's adapters; None if it has none.

    Args:
      run: of a language model or a reward model.
      mesh: as for `of_run`.

    Raises:
      ValueError: if it is no model, or not the one that the run began with, by its SHA-256.
    """
    if not learnt.adapters_of(run):
        return None
    learnt.check_bases(run)
    try:
        params = base_params(run.plan.model, mesh, says_ignored=not run.plan.images)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the base of {run.path}'s adapters cannot be read: {error}; --base says where it is"
        ) from None
    if model_files.fingerprint(params) != run.config.get(run_folder.BASE):
        raise ValueError(
            f"{run.plan.model} is not the base that {run.path}'s adapters were trained beside (its "
            "SHA-256 differs): put the old one back, or say by --base where it is"
        )
    return params


def base_params(
    name: str, mesh: sharding.Mesh | None = None, *, says_ignored: bool = True
) -> types.Params:
    """Reads a model to be the base of adapters; of a reward model, its decoder.

    Arguments are those of `load`.

    Raises:
      ValueError: as `load` and `of_run` do.
    """
    run = opened.find(name)
    if run is not None and run.kind == "preferences":
        params: types.Params = of_run(run, mesh=mesh).params
        return params["decoder"]
    return load(name, mesh=mesh, says_ignored=says_ignored).params


def decoder_of(run: opened.Opened) -> model_files.Checkpoint:
    """Reads shape and tokenizer of a run's decoder, without parameters."""
    if run.kind == "games":
        raise ValueError(
            f"{run.path} is a run of {run.plan.agent} on {run.plan.environment}, "
            "which is no language model"
        )
    return model_files.saved(run.path).with_all_ends()


def algorithm_config(run: opened.Opened) -> Any:
    """Returns the algorithm's configuration of a run of texts, as it was recorded."""
    return resolved.of(run).config

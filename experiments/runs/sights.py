"""The sight of models on disk: a frozen encoder of images, and the projector of a decoder.

Both are read from a multimodal folder of Hugging Face, or from the file beside a GGUF file. A run
that learns with images begins with one of these, or with such a run. It keeps neither the encoder
nor a projector that does not learn, as a run of adapters keeps no base: config.json has their
SHA-256, by which they are known again.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from kullback.core import trees, types
from kullback.experiments import cache
from kullback.experiments.runs import learnt, opened, plans
from kullback.lm import blocks, data, encoded, interleaved, pictures, tokenizer, vision
from kullback.lm.formats import (
    gguf_files,
    gguf_gemma,
    gguf_vision,
    hugging_face_config,
    preprocessor_config,
    vision_files,
)

# Keys of config.json; the last is of the files that rows name, by their kind.
ENCODER, PROJECTOR, MEDIA = "encoder_sha256", "projector_sha256", "{}_sha256"
CROPS = "pan_and_scan"  # Key of config.json: whether long images are given with crops.


class Sight(NamedTuple):
    """The parts by which a model sees images."""

    images: encoded.Images  # Has the encoder.
    projector: types.Params  # To the width of the decoder.

    def cutting(self, crops: bool | None) -> "Sight":
        """Returns it with pan and scan or without; None is as it is."""
        return self._replace(images=self.images.cutting(crops))

    def details(self, *, learns: bool) -> dict[str, Any]:
        """Returns `hashes`, and how images are cut, for config.json; the argument is theirs."""
        return {**self.hashes(learns=learns), CROPS: self.images.preparation.pan_and_scan}

    def hashes(self, *, learns: bool) -> dict[str, str]:
        """Returns the hashes of what is frozen.

        Args:
          learns: whether the projector learns.
        """
        encoder = {ENCODER: self.images.fingerprint}
        return encoder if learns else {**encoder, PROJECTOR: trees.fingerprint(self.projector)}


def of_folder(path: pathlib.Path, its_tokenizer: tokenizer.Tokenizer | None = None) -> Sight:
    """Reads what the model of a multimodal folder sees by.

    Args:
      path: of the folder.
      its_tokenizer: which is read, too, if it is None.

    Raises:
      ValueError: as `vision_files.load` and `preprocessor_config.read` do; if the folder's files
        tell different ids or numbers of soft tokens.
    """
    eye = vision_files.load(path, hugging_face_config.read(path).embed_dim)
    preparation, num_soft = preprocessor_config.read(path)
    ids = blocks.image_ids(its_tokenizer or tokenizer.load(path))
    if (num_soft, ids) != (eye.config.num_soft, eye.config.ids):
        raise ValueError(
            f"{path}: an image is {eye.config.num_soft} soft tokens of the ids "
            f"{tuple(eye.config.ids)} in config.json, and {num_soft} of {tuple(ids)} in "
            "preprocessor_config.json and the tokenizer; mend one of them"
        )
    return _of_eye(eye, preparation)


def of_gguf(path: pathlib.Path, its_tokenizer: tokenizer.Tokenizer | None = None) -> Sight:
    """Reads what the model of a GGUF file sees by, from the file beside it.

    Args:
      path: of the model's file.
      its_tokenizer: which is read, too, if it is None.

    Raises:
      ValueError: as `gguf_vision.load` does; if there is no such file, or the model's vocabulary
        has no images.
    """
    check_beside(path)
    model = gguf_files.read(path)
    ids = blocks.image_ids(its_tokenizer or tokenizer.from_gguf(model))
    embed_dim = gguf_gemma.read_config(model).embed_dim
    return _of_eye(*gguf_vision.load(gguf_files.read(gguf_vision.beside(path)), embed_dim, ids))


def check_beside(path: pathlib.Path) -> None:
    """Raises ValueError if a GGUF file has no file of images beside it."""
    if not gguf_vision.beside(path).is_file():
        raise ValueError(
            f"{path} reads no images: what reads them is looked for in "
            f"{gguf_vision.beside(path)}, which is missing; name the file of images so"
        )


def _of_eye(eye: vision.Eye, preparation: pictures.Config) -> Sight:
    images = encoded.Images(
        config=eye.config,
        params=eye.encoder,
        preparation=preparation,
        folder=cache.begun(cache.IMAGES),
    )
    return Sight(images, eye.projector)


def of_model(path: str | pathlib.Path) -> Sight:
    """Reads what a model of a folder or file, or that a run's first seed has trained, sees by.

    Args:
      path: of the model, with adapters behind it or not, which have no part in it.

    Raises:
      ValueError: as `of_folder`, `of_gguf` and `of_run` do.
    """
    name = str(path).partition(plans.ADAPTER)[0]
    if (run := opened.find(name)) is not None:
        return of_run(run)
    is_file = pathlib.Path(name).is_file()
    return of_gguf(pathlib.Path(name)) if is_file else of_folder(pathlib.Path(name))


def of_start(run: str | pathlib.Path, model: str, recorded: Mapping[str, Any]) -> Sight:
    """Reads what a run sees by, from the model that it began with.

    Args:
      run: its folder, for messages.
      model: that it began with.
      recorded: config.json of the run, by which images are cut; a run of an older version, which
        did not record that, goes on as the model's folder says.

    Raises:
      ValueError: as `of_model`, with the name of the run and the remedy.
    """
    crops = recorded.get(CROPS)
    if crops not in (None, True, False):
        raise ValueError(f"{run}: {CROPS} must be true or false, got {crops!r}; it is damaged")
    try:
        return of_model(model).cutting(crops)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"what {run} sees images by cannot be read: {error}; --base says where it is"
        ) from None


def of_run(run: opened.Opened, seed: int | None = None, *, best: bool = False) -> Sight:
    """Reads what the model of a run sees by; arguments are those of `learnt.read`.

    Raises:
      ValueError: if the run learns without images; if what it began with cannot be read, or is
        another now, by its SHA-256.
    """
    if not run.plan.images:
        raise ValueError(f"{run.path} was trained without --images, and sees none")
    learnt.check_bases(run)
    sight = of_start(run.path, run.plan.model, run.config)
    check(run.plan.model, run.config, sight)
    if PROJECTOR in run.config:
        return sight
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), sight.projector)
    like: Any = {vision.PROJECTOR: shapes}
    read = learnt.read(run, like, seed, best=best)
    return sight._replace(projector=read[vision.PROJECTOR])


def check(name: str, recorded: Mapping[str, Any], sight: Sight) -> None:
    """Checks that what a run sees by is what it began with.

    Args:
      name: of the model from which it is read now, for messages.
      recorded: config.json of the run.
      sight: as it is now.

    Raises:
      ValueError: if it differs.
    """
    for key, digest in sight.hashes(learns=PROJECTOR not in recorded).items():
        if digest != recorded.get(key):
            noun = key.partition("_")[0]
            raise ValueError(
                f"the {noun} of images of {name} is not the one that the run began with (its "
                "SHA-256 differs): put the old one back, or say by --base where it is"
            )


def check_shared(
    name: str, seen: encoded.Images | None, other: str, images: encoded.Images
) -> None:
    """Checks that two models see the same features of an image.

    Args:
      name: of one, for messages.
      seen: by which it sees.
      other: name of the other.
      images: by which that sees.

    Raises:
      ValueError: if their encoders differ, or how they prepare images.
    """
    if seen is None or (seen.fingerprint, seen.preparation) != (
        images.fingerprint,
        images.preparation,
    ):
        raise ValueError(
            f"{name} and {other} see images by other encoders, or prepare them in another way, and "
            "share no features; take models of one encoder"
        )


def fingerprint(examples: Iterable[data.Example]) -> str:
    """Returns the SHA-256 of the files of all media of some examples, in order, each once."""
    digest = hashlib.sha256()
    for name in interleaved.files([medium for example in examples for medium in example.media]):
        with open(name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def apart(params: types.Params) -> tuple[types.Params, types.Params]:
    """Returns the parameters of a decoder and of its projector."""
    decoder = {name: x for name, x in params.items() if name != vision.PROJECTOR}
    return decoder, params[vision.PROJECTOR]

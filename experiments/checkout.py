"""The checkout that this code is in: its revision, and whether it has changes."""

import pathlib
import subprocess


def revision() -> str | None:
    """Returns the revision, with "-dirty" if files of it are changed; None outside of one."""
    try:
        if root() is None:
            return None
        dirty = "-dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
        return _git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None


def root() -> pathlib.Path | None:
    """Returns the checkout's folder; None outside of one, in somebody else's too."""
    try:
        if not _git("ls-files", pathlib.Path(__file__).name):
            return None  # Installed into somebody else's checkout.
        return pathlib.Path(_git("rev-parse", "--show-toplevel"))
    except (OSError, subprocess.SubprocessError):
        return None


def clean_root() -> pathlib.Path:
    """Returns the checkout's folder, if all that is in it is committed.

    Raises:
      ValueError: outside of a checkout, or in one with changed or new files.
    """
    folder = root()
    if folder is None:
        raise ValueError(
            "--keep needs a checkout of Kullback to keep results in, and this code is in none; "
            "leave it out"
        )
    changes = _git("status", "--porcelain").splitlines()
    if changes:
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise ValueError(
            f"--keep needs a checkout without changes, so that verdict.json names what ran; "
            f"{folder} has {changes[0].split(maxsplit=1)[1]}{more}: commit them first"
        )
    return folder


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(pathlib.Path(__file__).resolve().parent), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.strip()

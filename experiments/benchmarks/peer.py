"""Programs of other libraries, each in a virtual environment of its own under .bench/."""

import json
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

from kullback.core import files

FOLDER = pathlib.Path(__file__).parent / "peers"  # Never imported, only run.
ENVIRONMENTS = pathlib.Path(".bench")
INSTALL_SECONDS, RUN_SECONDS = 1_800, 600  # Then it is given up.

# (peer, program, arguments ...) -> what the program printed; {} if it could not run.
Peer = Callable[..., dict[str, float]]


class PeerError(RuntimeError):
    """A peer could not be installed or did not run; one line says why."""


def none(name: str, program: str, *arguments: object) -> dict[str, float]:
    """Returns no rates: the peer that takes no part."""
    del name, program, arguments
    return {}


def requirements(name: str) -> str:
    """Returns the peer's requirements in pip's format, versions pinned."""
    return (FOLDER / f"{name}.txt").read_text()


def python(name: str) -> pathlib.Path:
    """Returns the interpreter of the peer's environment, which is installed if missing or stale.

    Raises:
      PeerError: if it cannot be installed.
    """
    folder = ENVIRONMENTS / name
    interpreter = folder.absolute() / "bin" / "python"
    stamp = folder / "installed.txt"
    wanted = f"# Python {platform.python_version()}\n{requirements(name)}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return interpreter
    print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], INSTALL_SECONDS)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
    _run([str(interpreter), *install, str(FOLDER / f"{name}.txt")], INSTALL_SECONDS)
    files.atomic_write_text(stamp, wanted)
    return interpreter


def run(name: str, program: str, *arguments: object) -> dict[str, float]:
    """Runs the peer's program; returns its last line, a JSON object of numbers.

    Raises:
      PeerError: if it cannot be installed, fails, or prints something else.
    """
    # -E: packages that PYTHONPATH has are ours, not the peer's.
    return _numbers(python(name), "-E", FOLDER / f"{name}_{program}.py", *arguments)


def ours(module: str, *arguments: object) -> dict[str, float]:
    """Runs a module of this package in a new process; returns its last line, as `run` does."""
    return _numbers(sys.executable, "-m", f"{__package__}.{module}", *arguments)


def _numbers(interpreter: str | pathlib.Path, *arguments: object) -> dict[str, float]:
    output = _run([str(interpreter), *map(str, arguments)], RUN_SECONDS)
    try:
        numbers = json.loads(output.strip().splitlines()[-1])
        return {str(key): float(value) for key, value in numbers.items()}
    except (IndexError, ValueError, AttributeError, TypeError) as error:
        said = f"{' '.join(map(str, arguments))} printed no JSON object of numbers"
        raise PeerError(f"{said}: {error}") from error


def failed(command: Sequence[str], status: int, complaints: str) -> PeerError:
    """Returns the error of a command that ended with a status; its last complaint says why."""
    last = (complaints.strip().splitlines() or ["no message"])[-1]
    return PeerError(f"{' '.join(command)} ended with {status}: {last}")


def _run(command: list[str], seconds: float) -> str:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=seconds
        ).stdout
    except subprocess.CalledProcessError as error:
        raise failed(command, error.returncode, error.stderr) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerError(f"{' '.join(command)}: {error}") from error

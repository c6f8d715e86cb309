"""Modules that a user names: installed, or in the folder that the program was started in.

Only these modules are looked for in that folder. An installed program does not search it otherwise,
so that a stranger's file called numpy.py in the current folder is not run.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType


def load(name: str) -> ModuleType:
    """Imports a module that the user has named, and that may run.

    Args:
      name: dotted, as after `import`.

    Raises:
      ValueError: if there is none, or it cannot be imported.
    """
    with current_folder():
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ValueError(str(error)) from error
        except (Exception, SystemExit) as error:  # It runs whatever code it likes.
            raise ValueError(f"importing {name} ends with {error!r}") from error


@contextlib.contextmanager
def current_folder() -> Iterator[None]:
    """Searches the current folder too, last, while the block runs: for what may run alone."""
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # The module may have changed it.
            sys.path.remove(folder)

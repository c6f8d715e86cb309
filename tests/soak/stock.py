"""What attempts start from: copies of work that was done once, by the commands themselves."""

import pathlib
import shutil

from tests.soak import runs, trials

BERT = pathlib.Path(__file__).parents[1] / "lm" / "fixtures" / "bert"


def place(workshop: trials.Workshop, folder: pathlib.Path, *names: str) -> None:
    """Copies material into a folder, under its name; makes it where it is not there yet."""
    for name in names:
        source = path(workshop, name)
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
        else:
            shutil.copyfile(source, folder / name)


def path(workshop: trials.Workshop, name: str) -> pathlib.Path:
    """Returns where material is, which nobody may change."""
    if name == "bert":
        return BERT
    if name in runs.DATA:
        runs.write_data(workshop.home)
        return workshop.home / name
    return runs.reference(workshop, name).path

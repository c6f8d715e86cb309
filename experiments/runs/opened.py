"""A run's folder, read once: its plan, its kind, its seeds.

Functions that need more than one fact of a run take an `Opened`, not the path.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from kullback.core import folders
from kullback.experiments.runs import plans, run_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A run on disk."""

    path: pathlib.Path
    plan: plans.Plan
    config: Mapping[str, Any]  # All of config.json.
    # By seed, the folder of its metrics and checkpoints: the run's folder, or a sub-folder for each
    # seed. In the latter case a seed that has not begun is left out.
    folders: Mapping[int, run_folder.RunFolder]

    @property
    def seeds(self) -> range:
        """Seeds that the run was started with."""
        return self.plan.seeds

    @property
    def kind(self) -> plans.Kind:
        """The kind of model that it trains."""
        return self.plan.kind

    def folder(self, seed: int | None = None) -> run_folder.RunFolder:
        """Returns the folder of a seed's metrics and checkpoints; None is the first seed.

        Raises:
          ValueError: if the run has no such seed, or it has not begun.
        """
        seed = self.seeds[0] if seed is None else seed
        if seed not in self.seeds:
            raise ValueError(
                f"{self.path} has seeds {self.seeds[0]} to {self.seeds[-1]}, not {seed}"
            )
        if seed not in self.folders:
            raise ValueError(
                f"seed {seed} of {self.path} has not begun; its seeds run one after another, and "
                f"{', '.join(map(str, self.folders))} have"
            )
        return self.folders[seed]


def open(path: str | pathlib.Path, *, trust_code: bool = False) -> Opened:
    """Reads a run.

    Args:
      path: of its folder.
      trust_code: whether modules that its plan names may run, see `Plan.require_trust`.

    Raises:
      ValueError: if this is no run, its config.json is damaged, or something in it is a link out
        of it, through which files elsewhere might be overwritten or deleted.
    """
    folder = run_folder.RunFolder(pathlib.Path(path))
    config = folder.config()
    folders.check_links(path)
    plan = plans.Plan.from_json(config["plan"], trust_code=trust_code, file=folder.config_file)
    by_seed = {seed: run_folder.RunFolder(folder.path / f"seed_{seed}") for seed in plan.seeds}
    begun = {seed: part for seed, part in by_seed.items() if part.config_file.is_file()}
    return Opened(
        path=folder.path,
        plan=plan,
        config=config,
        folders=begun or dict.fromkeys(plan.seeds, folder),
    )


def find(path: str | pathlib.Path, *, trust_code: bool = False) -> Opened | None:
    """Reads a run, None if the folder holds something else, such as a model's weights.

    Raises:
      ValueError: if its config.json is damaged, or a run's of an unknown version.
    """
    is_run = run_folder.RunFolder(pathlib.Path(path)).is_run()
    return open(path, trust_code=trust_code) if is_run else None

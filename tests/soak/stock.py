"""What attempts start from: folders of runs and models, made once by the commands themselves."""

import dataclasses
import json
import pathlib
import shutil

from tests.soak import runs, server, trials

BERT = pathlib.Path(__file__).parents[1] / "lm" / "fixtures" / "bert"
SWEEP = """
agents = ["dqn", "m-dqn"]
environments = ["toy/chain"]
seeds = 1
steps = 200
threads = 1
[plan]
num_envs = 2
log_every = 50
checkpoint_every = 50
[settings]
torso = "mlp_small"
capacity = 256
min_replay_size = 32
batch_size = 8
learning_rate = [1e-3, 2e-3]
"""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A folder that a command makes of others."""

    command: tuple[str, ...]  # In a folder where what it needs is, by name.
    needs: tuple[str, ...] = ()


PROMPTS = "".join(json.dumps({"prompt": f"{n}+1="}) + "\n" for n in range(4))
TEXTS = {"sweep.toml": SWEEP, "prompts.jsonl": PROMPTS}
RECIPES = {
    "model": Recipe(("export", "sft", "--out", "model"), ("sft",)),
    "sweep": Recipe(("sweep", "sweep.toml", "--out", "sweep", "--jobs", "1"), ("sweep.toml",)),
    "theory": Recipe(("reproduce", "connections", "--out=theory", "--set=num_garnets=2")),
}


def place(workshop: trials.Workshop, folder: pathlib.Path, *names: str) -> None:
    """Copies material into a folder, under its name; makes it where it is not there yet."""
    for name in names:
        if name in TEXTS:
            (folder / name).write_text(TEXTS[name])
            continue
        source = path(workshop, name)
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
        else:
            shutil.copyfile(source, folder / name)


def path(workshop: trials.Workshop, name: str) -> pathlib.Path:
    """Returns where material is, which nobody may change."""
    if name in runs.KINDS:
        return runs.reference(workshop, name).path
    if name == "bert":
        return BERT
    found = workshop.home / name
    if name in ("rows.jsonl", "pairs.jsonl"):
        runs.write_data(workshop.home)
    elif not found.exists():
        _make(workshop, name)
    return found


def _make(workshop: trials.Workshop, name: str) -> None:
    recipe, folder = RECIPES[name], workshop.home / "making"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    place(workshop, folder, *recipe.needs)
    keeps = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    call = workshop.call(folder, *recipe.command, environment=keeps)
    outcome = server.run(call, server.Limits(seconds=300))
    if outcome.status:
        raise RuntimeError(f"{name} could not be made: {outcome.err}")
    (folder / name).rename(workshop.home / name)

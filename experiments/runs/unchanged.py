"""Whether a run is as it was: its files since they were saved, what it reads since it began."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kullback.core import json_files
from kullback.experiments.runs import inputs, opened, plans, record, run_folder, run_processes
from kullback.experiments.runs.work import Work


def changes(run: opened.Opened, plan: plans.Plan) -> list[str]:
    """Returns a line for each file of a run that has changed since it was saved.

    Raises:
      ValueError: if it has rows, and no checkpoint to go on from.
    """
    lines = [
        f"{run.path / name} is of a seed that {run.path}/config.json does not have"
        for name in sorted(path.parent.name for path in run.path.glob("seed_*/config.json"))
        if name not in {f"seed_{seed}" for seed in run.seeds}
    ]
    lines += run_processes.changes(run.path, run.config)
    apart = {seed for seed, part in run.folders.items() if part.path != run.path}
    if run.config.get("loop") == "host" and run.plan.num_seeds > 1:
        for seed in sorted({int(row["seed"]) for row in run_folder.RunFolder(run.path).rows()}):
            if seed not in apart:
                raise ValueError(
                    f"{run.path / f'seed_{seed}'} is missing, and {run.path}/metrics.csv has its "
                    "rows: put it back, or start a new run elsewhere"
                )
    for seed, part in run.folders.items():
        is_whole_run = part.path == run.path
        if is_whole_run and seed != run.seeds[0]:
            continue  # All seeds are in one folder.
        record.standing(part, plan.steps)
        config = run.config
        if not is_whole_run:
            config = {**config, "plan": run.plan.of_seed(seed).to_json()}
        lines += record.complaints(part, config, plan.log_every)
    return lines


def details(work: Work) -> dict[str, Any]:
    """Returns the whole configuration and the spec of observations, for config.json."""
    agent = work.agent
    config = agent.config if agent.config is not None else agent.experience
    return {
        "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else str(config),  # pyright: ignore[reportArgumentType]
        "spec": inputs.details(work.spec),
        **work.details(),
    }


def check_frozen(plan: plans.Plan, details: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Raises ValueError if models or pairs that are read anew are not those of its beginning."""
    read_anew = (
        *(("teacher", plan.teacher), ("start", plan.model), ("base", plan.model)),
        *(("encoder", plan.model), ("projector", plan.model)),
        *(("data", plan.environment), ("images", plan.environment)),
        *(("audio", plan.environment), ("mixture", plan.environment)),
    )
    for name, frozen in read_anew:
        key = f"{name}_sha256"
        if key in recorded and details.get(key) != recorded[key]:
            raise ValueError(
                f"the {name} {frozen} has changed since the run began (its SHA-256 differs); put "
                "the old one back, or start a new run"
            )


def differences(
    plan: plans.Plan, details: Mapping[str, Any], recorded: Mapping[str, Any]
) -> Iterator[str]:
    """Yields a line for each change of the data, or of a custom agent's configuration."""
    # Named agents are built as recorded; models are compared by their hashes, with an error.
    keys = ("data", *(["config"] if plan.agent == plans.CUSTOM else []))
    before, now = (
        dict(json_files.leaves({key: facts[key] for key in keys if key in facts}))
        for facts in (recorded, json.loads(json.dumps(details)))
    )
    for name, value in now.items():
        if name in before and value != before[name]:
            yield f"{name} was {before[name]} when the run began, and is {value}"

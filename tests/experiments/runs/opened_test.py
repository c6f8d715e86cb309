"""Tests of experiments/runs/opened.py."""

import json
import pathlib

import pytest

from kullback.experiments.runs import opened, plans, run_folder, training


def run(path: pathlib.Path, **fields: object) -> pathlib.Path:
    plan = plans.Plan(**{"agent": "dqn", "environment": "toy/chain", **fields})  # pyright: ignore[reportArgumentType]
    path.mkdir()
    run_folder.RunFolder(path).write_config({"plan": plan.to_json(), "spec": {"num_actions": 2}})
    return path


@pytest.mark.parametrize(
    ("agent", "environment", "kind"),
    [
        ("dqn", "toy/chain", "games"),
        ("gkd", "tokens/lettercount", "language"),
        ("warm", "tokens/preferences:pairs.jsonl", "preferences"),
    ],
)
def test_what_a_run_is(agent: str, environment: str, kind: str, tmp_path: pathlib.Path):
    path = run(tmp_path / "run", agent=agent, environment=environment, seed=3, num_seeds=2)
    read = opened.open(path)
    assert read.kind == kind
    assert read.plan.agent == agent and read.config["spec"] == {"num_actions": 2}
    assert list(read.seeds) == [3, 4]
    assert read.folder().path == read.folder(4).path == path  # One program, one folder.
    with pytest.raises(ValueError, match="has seeds 3 to 4, not 5"):
        read.folder(5)


def test_seeds_with_folders_of_their_own(tmp_path: pathlib.Path):
    path = run(tmp_path / "run", num_seeds=2)
    run(path / "seed_0")
    run(path / "seed_7")  # Of nobody.
    read = opened.open(path)
    assert read.folder().path == path / "seed_0"
    with pytest.raises(ValueError, match=r"seed 1 .* has not begun"):
        read.folder(1)


def test_a_folder_of_weights_is_no_run_and_a_damaged_one_is_said(tmp_path: pathlib.Path):
    assert opened.find(tmp_path / "nothing") is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text"}))
    assert opened.find(tmp_path) is None
    with pytest.raises(ValueError, match="is no run"):
        opened.open(tmp_path)
    (tmp_path / "config.json").write_text('{"plan": ')
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        opened.find(tmp_path)


def test_a_number_of_seeds_is_not_believed(tmp_path: pathlib.Path):
    path = run(tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    config["plan"]["num_seeds"] = 2**31 - 2
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"num_seeds must lie in \[1, 10,000\], got 2147483646"):
        opened.open(path)


@pytest.mark.parametrize(
    "place",
    ["checkpoints", "metrics.csv", "tensorboard", "seed_0/replay", "checkpoints/000000000001"],
)
def test_a_run_whose_parts_are_elsewhere_is_not_gone_on_with(place: str, tmp_path: pathlib.Path):
    path = run(tmp_path / "run")
    (path / place).parent.mkdir(exist_ok=True)
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    (path / place).symlink_to(tmp_path / "photos")
    for use in (opened.open, opened.find, training.resume):
        with pytest.raises(ValueError, match=f"{place} is a link out of the folder"):
            use(path)
    assert [one.name for one in (tmp_path / "photos").iterdir()] == ["2024"]

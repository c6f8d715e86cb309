"""A run computes with the settings that were recorded when it began, not with today's presets."""

import contextlib
import dataclasses
import importlib
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback import agents, experiments, lm
from kullback.core import checkpoints
from kullback.environments import atari, toy
from kullback.experiments.runs import mends, models, opened, plans, resolved, run_folder, settings
from tests.records import as_killed, repeated

OLD = pathlib.Path(__file__).parents[1] / "fixtures" / "runs_of_0_1"
SMALL = ("learning.torso=mlp_small", "capacity=256", "min_replay_size=32", "batch_size=8")
FIELDS: dict[str, Any] = {
    "num_envs": 4,
    "settings": SMALL,
    "log_every": 100,
    "checkpoint_every": 100,
    "quiet": True,
}


def test_an_agent_may_have_its_own_number_of_environments_in_a_family():
    def rows(agent: str, environment: str, **fields: int) -> int:
        return plans.Plan(agent=agent, environment=environment, **fields).num_envs  # pyright: ignore[reportArgumentType]

    assert rows("btr", "atari/pong") == 64 and rows("m-iqn", "atari/pong") == 4
    assert rows("btr", "atari/pong", num_envs=32) == 32 and rows("btr", "minatar/breakout") == 16


def change_presets(monkeypatch: pytest.MonkeyPatch, agent: str, **changes: Any) -> None:
    """Makes today's presets of an agent others than they were."""
    entry = {**agents.AGENTS, **lm.ALGORITHMS}[agent]
    todays = entry.presets

    def presets(family: Any) -> Any:
        config = todays(family)
        names = {name.split(".")[-1]: name for name, *_ in settings.fields(config)}
        return settings.replace(config, {names[name]: value for name, value in changes.items()})

    monkeypatch.setattr(importlib.import_module(entry.module), entry.presets_name, presets)


def parameters(path: pathlib.Path) -> list[np.ndarray]:
    return [np.asarray(x) for x in _leaves(experiments.load(path).learner.params)]


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in _leaves(tree[name])]
    return [tree]


@pytest.mark.slow
def test_a_run_goes_on_as_it_began_when_presets_change(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = experiments.train("dqn", "toy/chain", out=tmp_path / "whole", steps=400, **FIELDS)
    path = as_killed(whole, tmp_path / "run", 200)
    change_presets(monkeypatch, "dqn", learning_rate=0.02, target_period=7)
    capsys.readouterr()
    experiments.resume(path)
    assert repeated(path) == repeated(whole)
    for ours, wanted in zip(parameters(path), parameters(whole), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    said = [line for line in capsys.readouterr().out.splitlines() if "as it began" in line]
    assert said == [
        f"{path}: the run goes on with learning.learning_rate=0.003, learning.target_period=50, as "
        "it began; today's presets have learning.learning_rate=0.02, learning.target_period=7"
    ]
    # One that begins today has today's.
    assert resolved.resolve(opened.open(path).plan).config.learning.learning_rate == 0.02


def test_a_run_is_loaded_with_the_network_that_it_has(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    fields = {**FIELDS, "settings": SMALL[1:]}
    path = experiments.train("dqn", "toy/chain", out=tmp_path / "run", steps=100, **fields)
    returns = experiments.load(path).evaluate(3)
    change_presets(monkeypatch, "dqn", torso="mlp_small", epsilon_evaluate=1.0)
    np.testing.assert_array_equal(experiments.load(path).evaluate(3), returns)


@pytest.mark.slow
def test_a_run_goes_on_in_the_environment_that_it_began_in(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given = {**FIELDS, "environment_flags": ("slip=0.10", "length=6")}
    whole = experiments.train("dqn", "toy/chain", out=tmp_path / "whole", steps=200, **given)
    path = experiments.train("dqn", "toy/chain", out=tmp_path / "run", steps=100, **given)
    flags = run_folder.RunFolder(path).config()[resolved.FLAGS]
    assert flags["slip"] == 0.1 and flags["length"] == 6 and len(flags) > 2
    make = toy.GAMES["chain"]

    def chain(num_envs: int, *, length: int, slip: float = 0.2, max_episode_steps: int = 9) -> Any:
        return make(num_envs, length=length, slip=slip, max_episode_steps=max_episode_steps)

    monkeypatch.setitem(toy.GAMES, "chain", chain)
    capsys.readouterr()
    experiments.resume(path, steps=200)
    assert repeated(path) == repeated(whole)
    said = [line for line in capsys.readouterr().out.splitlines() if "as it began" in line]
    assert said == [
        f"{path}: the run goes on with max_episode_steps={flags['max_episode_steps']}, as it "
        "began; today's presets have max_episode_steps=9"
    ]


def test_a_language_model_is_judged_as_it_was_trained(monkeypatch: pytest.MonkeyPatch):
    run = opened.open(OLD / "sft")
    before = models.algorithm_config(run)
    change_presets(monkeypatch, "sft", micro_batches=2, warmup_steps=3)
    assert models.algorithm_config(run) == before
    (note,) = (note for note in resolved.of(run).notes if "as it began" in note)
    assert "learning.warmup_steps=20, learning.widths=powers, learning.micro_batches=1" in note


@pytest.mark.parametrize("name", [p.parent.name for p in sorted(OLD.glob("*/config.json"))])
def test_an_old_record_is_what_todays_presets_give(name: str):
    """But for what came later with another default, of which a line says so."""
    named = resolved.of(opened.open(OLD / name))
    today = resolved.resolve(named.plan).config
    changed = {
        field: resolved.EARLIER[bare]
        for field, _, _ in settings.fields(today)
        if (bare := field.rpartition(".")[2]) in resolved.EARLIER
    }
    assert named.config == settings.replace(today, changed)
    kept = [note for note in named.notes if "as when the run began" in note]
    assert bool(kept) == (named.rule == 1 and "data.rule" in named.facts())
    began = [note for note in named.notes if "as it began" in note]
    assert len(began) == bool(changed)
    for note in began:
        assert all(f"{field}={value}" in note for field, value in changed.items())
    assert {*named.notes} - {*kept, *began} <= {mend.line for mend in mends.MENDS}


def edited(tmp_path: pathlib.Path, edit: Any) -> resolved.Resolved:
    config = json.loads((OLD / "compiled" / "config.json").read_text())
    edit(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return resolved.of(opened.open(tmp_path))


def test_what_a_record_lacks_and_what_nobody_knows_is_said(tmp_path: pathlib.Path):
    def edit(config: dict[str, Any]) -> None:
        del config["config"]["learning"]["loss"]
        config["config"]["learning"]["lost"] = 3

    named = edited(tmp_path, edit)
    assert named.notes[:2] == (
        "the run began before there was learning.loss=squared: this is today's default",
        "this version does not know learning.lost=3 of the run's record",
    )


def test_a_setting_that_came_later_has_what_was_done_before():
    plan = plans.Plan(agent="mo-dqn", environment="toy/chain", steps=100)
    begun = resolved.resolve(plan)
    assert begun.config.averaged_actions == "all"
    record = {"config": dataclasses.asdict(begun.config), **begun.to_json()}
    assert resolved.resolve(plan, record).config == begun.config
    del record["config"]["averaged_actions"]
    again = resolved.resolve(plan, record)
    assert again.config == dataclasses.replace(begun.config, averaged_actions="taken")
    assert again.notes == (
        "the run goes on with averaged_actions=taken, as it began; today's presets have "
        "averaged_actions=all",
    )


def test_what_a_plan_asks_for_wins_over_its_record(tmp_path: pathlib.Path):
    named = edited(tmp_path, lambda config: config["config"].update(temperature=0.5))
    assert named.config.temperature == 0.05
    assert named.notes[0] == (
        "the run's plan says temperature=0.05, which holds; its record has temperature=0.5"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["config"].update(log_policy_min="low"), r"config\.log_policy_min must be flo"),
        (lambda c: c["config"]["learning"].update(loss="l7"), r"config\.learning\.loss must be hu"),
        (lambda c: c.update(config=[1]), r"config must be an object, got \[1\]"),
        (lambda c: c.update(environment_flags={"slip": "abc"}), r"environment_flags\.slip must"),
        (lambda c: c.update(environment_flags=3), r"environment_flags must be an object, got 3"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: pathlib.Path, edit: Any, message: str):
    with pytest.raises(ValueError, match=r"config\.json: " + message):
        edited(tmp_path, edit)


def test_facts_are_values_and_not_texts():
    def facts(*flags: str, settings: tuple[str, ...] = ()) -> dict[str, Any]:
        plan = plans.Plan(
            agent="dqn", environment="atari/pong", environment_flags=flags, settings=settings
        )
        return resolved.resolve(plan).facts()

    assert facts("repeat_probability=0.10") == facts("num_threads=3", "repeat_probability=0.1")
    assert facts("repeat_probability=0.10") != facts()
    assert facts("protocol=sticky", "life_loss=false", "max_noops=none") == facts()
    classic = ("repeat_probability=0", "max_noops=30", "life_loss=true")
    assert facts("protocol=classic") == facts(*classic) != facts()
    assert facts(settings=("learning_rate=1e-4",)) == facts(settings=("learning_rate=0.0001",))


def test_a_run_of_a_file_keeps_the_rule_by_which_it_held_out_rows(tmp_path: pathlib.Path):
    file = tmp_path / "rows.jsonl"
    file.touch()
    for environment, count in ((f"tokens/jsonl:{file}", 2), (f"tokens/preferences:{tmp_path}", 1)):
        plan = plans.Plan(
            agent="rlhf", environment=environment, model="somewhere", reward="entailment:model"
        )
        today = resolved.resolve(plan)
        assert (today.rule, today.facts()["data.rule"], today.notes) == (2, 2, ())
        old = resolved.resolve(plan, {"plan": plan.to_json(), **today.to_json()})
        assert (old.rule, old.facts()["data.rule"], len(old.notes)) == (1, 1, count)
        assert "as when the run began" in old.notes[0] and old.facts() != today.facts()
        recorded = {"plan": plan.to_json(), **today.to_json(), "data": {"rule": 2}}
        assert resolved.resolve(plan, recorded) == today
    assert (
        "data.rule"
        not in resolved.resolve(plans.Plan(agent="dqn", environment="toy/chain")).facts()
    )


def mended(name: str, **changes: Any) -> set[int]:
    run = opened.open(OLD / name)
    plan = dataclasses.replace(run.plan, **changes)
    lines = [mend.line for mend in mends.MENDS]
    return {lines.index(line) for line in mends.since(plan, run.config)}


def test_a_run_is_told_of_the_mends_that_concern_it():
    assert mended("compiled") == mended("host") == set()
    assert mended("sft") == {5} and mended("rlhf") == {6}
    texts = {"environment": "tokens/jsonl:rows.jsonl"}
    assert mended("sft", **texts) == {5} and mended("sft", **texts, model="gemma") == {5, 7}
    assert mended("rlhf", **texts, reward="0.5*Entailment:model") == {6, 7, 8}
    atari = {"environment": "atari/pong", "family": "atari"}
    by_lives = {**atari, "environment_flags": ("life_loss=true",)}
    assert mended("host", **atari) == {0} and mended("host", **by_lives) == {0, 1}
    assert mended("compiled_two_seeds", num_envs=16) == {2}
    assert mended("compiled", num_envs=128) == {2, 3}


@pytest.mark.parametrize(("noise", "said"), [(0.5, 1), (0.0, 0)])
def test_a_noisy_run_is_told_that_it_is_evaluated_otherwise(noise: float, said: int):
    plan = plans.Plan(agent="rainbow", environment="toy/chain", eval_every=10)
    lines = mends.since(plan, {"config": {"noise": noise}})
    assert len([line for line in lines if "means of noisy layers" in line]) == said


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("life_loss=true",), ("protocol=classic",)])
def test_atari_is_evaluated_in_whole_games(flags: tuple[str, ...]):
    plan = plans.Plan(
        agent="dqn", environment="atari/breakout", environment_flags=(*flags, "max_noops=0")
    )
    named = resolved.resolve(plan)
    lives, games = 0, 0
    training, evaluating = named.make_environment(2), named.make_eval_environment(2)
    assert isinstance(training, atari.Atari) and isinstance(evaluating, atari.Atari)
    with contextlib.closing(training), contextlib.closing(evaluating):
        rng = np.random.default_rng(0)
        training.reset(0)
        evaluating.reset(0)
        for _ in range(500):
            for environment in (training, evaluating):
                environment.send(rng.integers(4, size=2).astype(np.int32))
            lives += int(np.sum(training.recv().last()))
            last = evaluating.recv().last()
            np.testing.assert_array_equal(last, evaluating.game_over)
            games += int(np.sum(last))
    assert games >= 1 and lives > 3 * games


def test_a_run_that_begins_today_knows_all_mends(tmp_path: pathlib.Path):
    plan = plans.Plan(agent="dqn", environment="toy/chain", num_envs=512, eval_every=10)
    recorded = {"plan": plan.to_json(), **resolved.resolve(plan).to_json()}
    assert resolved.resolve(plan, json.loads(json.dumps(recorded))).notes == ()
    assert mends.since(plan, {**recorded, mends.KEY: 0})


def test_a_protocol_that_changes_is_the_one_that_a_run_began_with(
    monkeypatch: pytest.MonkeyPatch,
):
    plan = plans.Plan(
        agent="dqn", environment="atari/pong", environment_flags=("protocol=classic",)
    )
    recorded = resolved.resolve(plan).to_json()
    assert resolved.resolve(plan, recorded).given == {"protocol": "classic"}
    rules = dataclasses.replace(atari.PROTOCOLS["classic"], max_noops=7)
    monkeypatch.setitem(atari.PROTOCOLS, "classic", rules)
    named = resolved.resolve(plan, recorded)
    assert named.given == {"protocol": "classic", "max_noops": 30}
    assert named.notes == (
        "the run goes on with max_noops=30, as it began; today's presets have max_noops=7",
    )


@pytest.mark.slow
def test_an_agent_that_is_handed_over_anew_is_compared(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    def make(**changes: Any) -> Any:
        config = settings.apply(agents.AGENTS["dqn"].presets("toy"), SMALL)
        return lambda spec: agents.AGENTS["dqn"].make(None, spec, settings.replace(config, changes))

    fields = {k: v for k, v in FIELDS.items() if k != "settings"}
    path = experiments.train(make(), "toy/chain", out=tmp_path / "run", steps=100, **fields)
    capsys.readouterr()
    experiments.resume(path, steps=200, agent=make(**{"learning.learning_rate": 0.02}))
    said = capsys.readouterr().out
    assert "config.learning.learning_rate was 0.003 when the run began, and is 0.02" in said
    assert checkpoints.steps(path / "checkpoints")[-1] == 200


def test_a_task_brings_the_lengths_that_it_needs():
    given: dict[str, Any] = {"agent": "sft", "environment": "tokens/conversations", "model": "tiny"}
    for chosen, expected in (((), (128, 64)), (("max_prompt_length=90",), (90, 64))):
        learning = resolved.resolve(plans.Plan(**given, settings=chosen)).config.learning
        assert (learning.max_prompt_length, learning.max_new_tokens) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("maybe", True), ("no", True), ("1", True), ("0", False), ("0.0", False), ("none", False)],
)
def test_a_boolean_of_an_old_run_counts_as_it_did(text: str, value: bool):
    flags = (f"minimal_actions={text}",)
    plan = plans.Plan(agent="dqn", environment="minatar/breakout", environment_flags=flags)
    with pytest.raises(ValueError, match="minimal_actions must be True or False, got"):
        resolved.resolve(plan)
    old = resolved.resolve(plan, {"plan": plan.to_json()})
    assert old.flags["minimal_actions"] is value
    assert old.notes[0] == (
        f"minimal_actions={text} counted as {str(value).lower()} when the run began, and does so "
        "still; a new run takes true or false"
    )
    with pytest.raises(ValueError, match="minimal_actions must be True or False"):
        resolved.resolve(plan, {"plan": plan.to_json(), resolved.FLAGS: {}})

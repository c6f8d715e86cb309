"""Tests of experiments/runs/preferences.py, reward_models.py and reward_report.py."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import platform
from kullback.environments import tokens
from kullback.experiments import cli
from kullback.experiments.evaluate import reward_report, subjects
from kullback.experiments.runs import (
    model_files,
    models,
    opened,
    preferences,
    resolved,
    reward_models,
    rewards,
    run_folder,
)
from kullback.lm import batches, gemma, reward_model, tasks, tokenizer, warm
from tests.records import repeated

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", "probe_pairs=32")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Writes pairs of sums, of which the right one was chosen."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"{n}+{m}=", "chosen": str(n + m), "rejected": str(n + m + 1 + n % 3)}
        for n in range(8)
        for m in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"tokens/preferences:{path}"


def train(path: pathlib.Path, task: str, algorithm: str = "reward-model", **fields: Any) -> Any:
    given: dict[str, Any] = {
        "steps": 6,
        "log_every": 2,
        "checkpoint_every": 3,
        "model": "tiny",
        "model_flags": MODEL,
        "quiet": True,
        **fields,
    }
    settings = (*SHORT, *given.pop("settings", ()))
    return experiments.train(algorithm, task, out=path, settings=settings, **given)


@pytest.fixture(scope="module")
def start(task: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Trains a run of supervised tuning on chosen answers, with three checkpoints."""
    path = tmp_path_factory.mktemp("start") / "run"
    settings = (*SHORT[:3], "warmup_steps=0")  # The program of other modules' starts.
    return experiments.train(
        "sft",
        task,
        out=path,
        steps=4,
        checkpoint_every=2,
        model="tiny",
        model_flags=MODEL,
        settings=settings,
        quiet=True,
    )


@pytest.fixture(scope="module")
def population(
    task: str, start: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """Trains two members, from the command line, that start from two checkpoints."""
    out = tmp_path_factory.mktemp("warm") / "run"
    given = ["--model", str(start), "--num-seeds", "2", "--steps", "4", "--checkpoint-every", "2"]
    settings = (*SHORT, "starts=2,4", "corruption=0.25", "learning_rates=1e-2")
    given += [f"--set={setting}" for setting in settings]
    assert cli.main(["train", "warm", task, *given, "--out", str(out)]) == 0
    return out


def params_of(path: pathlib.Path) -> Any:
    return reward_models.load(path).params


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_bit_by_bit(task: str, tmp_path: pathlib.Path):
    given: dict[str, Any] = {"settings": ("dropout=0.1",), "eval_every": 3, "eval_episodes": 4}
    whole = train(tmp_path / "whole", task, **given)
    part = train(tmp_path / "part", task, steps=3, **given)
    experiments.resume(part, steps=6, quiet=True)
    assert repeated(part)[-1] == repeated(whole)[-1]
    a, b = (params_of(path) for path in (whole, part))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    last = repeated(whole)[-1]
    assert {"accuracy", "margin", "reward_mean", "overconfidence"} <= set(last)
    assert 0 <= float(last["evaluation"]) <= 1
    lines = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "chosen", "rejected", "reward_chosen", "reward_rejected"} <= set(lines[0])
    # The head was probed: it does not begin at 0, and what it then learns is of all weights.
    assert np.any(np.asarray(a["head"]["w"])) and set(a) == {"decoder", "head"}
    with pytest.raises(ValueError, match="is a run of a reward model, which writes no texts"):
        models.load(whole)


def test_members_share_their_head_and_start_along_a_run(
    population: pathlib.Path, start: pathlib.Path
):
    config = json.loads((population / "config.json").read_text())
    assert [member["start"] for member in config["members"].values()] == [2, 4]
    rows = config["data"]["train"]["rows"]
    assert config["swapped_pairs"] == rows // 4
    states = [reward_models.load(population, seed).params for seed in (0, 1)]
    averaged = reward_models.load(population).params
    jax.tree.map(
        lambda mean, *x: np.testing.assert_allclose(mean, np.mean(x, 0), atol=1e-6),
        averaged,
        *states,
    )
    one = reward_models.load(population, 1).params
    jax.tree.map(np.testing.assert_array_equal, one, states[1])
    with pytest.raises(ValueError, match="has seeds 0 to 1, not 2"):
        reward_models.load(population, 2)
    with pytest.raises(ValueError, match="is no run of a reward model"):
        reward_models.load(start)


def test_the_start_of_members(
    population: pathlib.Path, start: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    setup = preferences.setup(resolved.of(opened.open(population)), population)
    first, second = setup.start(0), setup.start(1)
    jax.tree.map(np.testing.assert_array_equal, first["head"], second["head"])
    newest: Any = models.load(start).params
    jax.tree.map(np.testing.assert_array_equal, second["decoder"], newest)
    assert np.any(first["decoder"]["embedding"] != newest["embedding"])
    needs, of_all = setup.notes()
    assert needs.startswith("memory: ") and "moments" in needs and "activations" in needs
    assert of_all.startswith("2 reward models, one after another; their average takes ")
    setup.check()
    monkeypatch.setattr(platform, "available_memory", lambda: 1_000)
    with pytest.raises(ValueError, match=r"learning takes .* of memory, and 1.00 kB are free"):
        setup.check()


def test_a_population_is_reported_as_one_model_and_as_many(
    population: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["evaluate", str(population), "--episodes", "6"]) == 0
    shown = capsys.readouterr().out
    assert "6 held-out pairs" in shown and "calibration_error_of_ensemble" in shown
    run = opened.open(population)
    report = reward_report.report(subjects.Subject(path=population, run=run), run, count=6)
    margins = []
    task = tasks.make(run_folder.RunFolder(population).config()["plan"]["environment"])
    checkpoint = reward_models.load(population)
    rewards_of = jax.jit(reward_model.on_decoder(gemma.make(checkpoint.config)).rewards)
    assert task.pairs is not None
    pairs = task.pairs("test", checkpoint.tokenizer, None)[0][:6]
    for params in (checkpoint.params, *models.members(opened.open(population))):
        sides = [
            rewards_of(params, batches.pad([getattr(p, side) for p in pairs], 16, 0))
            for side in ("chosen", "rejected")
        ]
        margins.append(np.asarray(sides[0] - sides[1]))
    accuracies = [reward_model.accuracy(m).mean() for m in margins]
    estimates = report.estimates
    assert estimates["accuracy"].mean == pytest.approx(accuracies[0])
    assert estimates["accuracy_of_seed_1"].mean == pytest.approx(accuracies[2])
    assert estimates["margin"].mean == pytest.approx(margins[0].mean(), abs=1e-5)
    assert estimates["margin_of_ensemble"].mean == pytest.approx(np.mean(margins[1:]), abs=1e-5)
    assert estimates["calibration_error"].mean == pytest.approx(
        reward_model.calibration(margins[0])[0], abs=1e-5
    )
    assert len(report.lines) == 6
    member = subjects.Subject(path=population, run=run, seed=1)
    alone = reward_report.report(member, run, count=6).estimates
    assert alone["accuracy"].mean == estimates["accuracy_of_seed_1"].mean
    assert "margin_of_ensemble" not in alone


def two_answers() -> tokens.Completion:
    return tokens.Completion(
        np.array([[8, 9], [9, 1]]),  # pyright: ignore[reportArgumentType]
        np.ones((2, 2), bool),  # pyright: ignore[reportArgumentType]
        np.array([2, 2]),  # pyright: ignore[reportArgumentType]
        np.array([True, False]),  # pyright: ignore[reportArgumentType]
        np.zeros((2, 2)),  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.slow
def test_both_scorers_of_a_population(population: pathlib.Path):
    scorers = [reward_models.scorer(population, ensemble=ensemble) for ensemble in (False, True)]
    config = model_files.saved_config(population)
    rewards_of = jax.jit(reward_model.on_decoder(gemma.make(config)).rewards)
    prompts = batches.pad_prompts([(2, 5), (2, 6, 7)], 4, 0)
    rows = batches.join(prompts, np.array([[8, 9], [9, 1]]), np.ones((2, 2), bool))
    members = [*models.members(opened.open(population))]
    expected = [
        rewards_of(warm.average(members), rows),
        np.mean([rewards_of(params, rows) for params in members], 0),
    ]
    completion = two_answers()
    for scorer, given in zip(scorers, expected, strict=True):
        got = jax.jit(scorer.score)(scorer.params, completion, prompts)
        np.testing.assert_allclose(got, given, atol=1e-5)


@pytest.mark.slow
def test_a_sum_has_several_reward_models(population: pathlib.Path):
    bpe, task = tokenizer.load(population / "tokenizer"), tasks.make("tokens/arithmetic")
    name = f"reward-model:{population}"
    reward = rewards.parse(f"2*{name}-0.5*{name}-0.01*length", task, bpe)
    first, second, _ = reward.params
    second = jax.tree.map(lambda x: 1.5 * x, second)  # Another model.
    completion, prompts = two_answers(), batches.pad_prompts([(2, 5), (2, 6, 7)], 4, 0)
    one = rewards.parse(name, task, bpe)
    a, b = (np.asarray(one.jax_score((x,), completion, prompts)) for x in (first, second))
    assert np.all(np.abs(a - b) > 1e-3)
    got = jax.jit(reward.jax_score)((first, second, None), completion, prompts)
    np.testing.assert_allclose(got, 2 * a - 0.5 * b - 0.02, atol=1e-5)


def test_a_reward_model_has_the_ids_that_the_policy_writes(population: pathlib.Path):
    config, bpe = model_files.saved_config(population), tokenizer.load(population / "tokenizer")
    name, task = f"reward-model:{population}", tasks.make("tokens/arithmetic")
    rewards.parse(name, task, bpe, config.vocab_size)
    said = f"has {config.vocab_size} rows in its table and the policy writes"
    with pytest.raises(ValueError, match=said):
        rewards.parse(name, task, bpe, config.vocab_size + 1)


@pytest.mark.slow
def test_a_reward_model_goes_on_from_another(
    population: pathlib.Path, task: str, tmp_path: pathlib.Path
):
    """With its head, which is not probed again; the first step's learning rate is 0."""
    path = train(tmp_path / "run", task, steps=1, model=str(population), model_flags=())
    a, b = (reward_models.load(one).params for one in (path, population))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    with pytest.raises(ValueError, match="--model-flag and --tokenizer go with a preset"):
        train(tmp_path / "other", task, model=str(population))


@pytest.mark.parametrize(
    ("algorithm", "fields", "message"),
    [
        ("warm", {}, "warm averages a model a seed: add --num-seeds M"),
        ("reward-model", {"teacher": "x"}, "reward-model takes no --teacher, got 'x'"),
        ("warm", {"reward": "exact", "num_seeds": 2}, "warm takes no --reward, got 'exact'"),
        ("reward-model", {"mesh": "3x5"}, "mesh 3x5 is of 15 devices"),
        ("reward-model", {"model": ""}, "reward-model needs --model"),
        ("warm", {"num_seeds": 2, "settings": ("starts=3",)}, "starts are checkpoints of one run"),
        (
            "reward-model",
            {"settings": ("max_prompt_length=2", "max_new_tokens=1", "overlong=drop")},
            "in train is short enough",
        ),
    ],
)
def test_what_cannot_be_set_up_is_refused(
    task: str, tmp_path: pathlib.Path, algorithm: str, fields: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", task, algorithm, **fields)
    assert not (tmp_path / "run").exists()


def test_what_is_no_pair_and_no_checkpoint(
    task: str, start: pathlib.Path, population: pathlib.Path, tmp_path: pathlib.Path
):
    with pytest.raises(ValueError, match="learns from pairs, tokens/preferences:PATH, got"):
        train(tmp_path / "a", "tokens/arithmetic")
    given: dict[str, Any] = {"model": str(start), "model_flags": (), "num_seeds": 2}
    with pytest.raises(
        ValueError, match=r"no checkpoint of step 3 to start from, only \[0, 2, 4\]"
    ):
        train(tmp_path / "b", task, "warm", settings=("starts=2,3",), **given)
    run = opened.open(population)
    subject = subjects.Subject(path=population, run=run, task_name="tokens/arithmetic")
    with pytest.raises(ValueError, match="a reward model judges pairs"):
        reward_report.report(subject, run, count=2)

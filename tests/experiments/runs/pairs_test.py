"""Tests of experiments/runs/pairs.py and lessons.py: runs of policies that learn from pairs."""

import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import weights
from kullback.experiments import cli
from kullback.experiments.evaluate import evaluation, subjects
from kullback.experiments.runs import (
    language_setup,
    models,
    opened,
    pairs,
    plans,
    resolved,
    run_folder,
)
from kullback.lm import answers, batches, preferences, tasks
from tests.records import as_killed, repeated

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4")
ADAPTERS = ("lora.rank=2", "learning_rate=1e-2", "warmup_steps=0")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Writes pairs of sums, of which the right one was chosen."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"{n}+{m}=", "chosen": str(n + m), "rejected": str(n + m + 1 + n % 3)}
        for n in range(6)
        for m in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"tokens/preferences:{path}"


@pytest.fixture(scope="module")
def start(task: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return experiments.train(
        "sft",
        task,
        out=tmp_path_factory.mktemp("start") / "run",
        steps=2,
        model="tiny",
        model_flags=MODEL,
        settings=(*SHORT, "warmup_steps=0"),  # The program of other modules' starts.
        quiet=True,
    )


def given(start: pathlib.Path, *settings: str, **fields: Any) -> dict[str, Any]:
    return {
        "steps": 6,
        "log_every": 2,
        "checkpoint_every": 2,
        "model": str(start),
        "settings": (*SHORT, *settings),
        "quiet": True,
        **fields,
    }


@pytest.fixture(scope="module")
def run(task: str, start: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Trains from the command line, of which a quarter of the labels are swapped."""
    out = tmp_path_factory.mktemp("dpo") / "run"
    settings = (*SHORT, "corruption=0.25", "learning_rate=1e-2", "warmup_steps=0", "beta=0.5")
    line = ["train", "dpo", task, "--model", str(start), "--steps", "6", "--checkpoint-every", "2"]
    line += ["--log-every", "2", "--eval-every", "6", "--eval-episodes", "99"]
    assert cli.main([*line, *(f"--set={x}" for x in settings), "--out", str(out)]) == 0
    return out


def read_pairs(task: str, start: pathlib.Path, split: Any) -> list[preferences.Pair]:
    read = tasks.make(task).pairs
    assert read is not None
    return read(split, models.load(start).tokenizer, None)[0]


def log_pi(model: pathlib.Path, of: list[preferences.Pair]) -> np.ndarray:
    """Computes log-probabilities of both answers of pairs, [n, 2]."""
    checkpoint = models.load(model)
    program = jax.jit(functools.partial(answers.log_probabilities, checkpoint.model))
    rows = batches.pad([side for pair in of for side in pair], 16, 0)
    return np.asarray(program(checkpoint.params, rows)).sum(1).reshape(-1, 2)


def test_a_run_of_dpo(run: pathlib.Path, task: str, start: pathlib.Path):
    rows = repeated(run)
    assert [row["steps"] for row in rows] == ["2", "4", "6"]
    learnt = {"loss", "implicit_accuracy", "margin"}
    assert learnt | {"chosen_log_probability", "rejected_log_probability"} <= set(rows[0])
    assert float(rows[-1]["loss"]) < np.log(2)
    config = run_folder.RunFolder(run).config()
    train, test = (read_pairs(task, start, split) for split in ("train", "test"))
    assert config["swapped_pairs"] == len(train) // 4 == config["data"]["train"]["rows"] // 4
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "target", "completion", "greedy"} <= set(lines[0])
    # What the start says of each pair, in the order of the labels that are learnt.
    train = preferences.corrupt(train, 0.25, 0)
    kept = pairs.read(run, {"train": train, "test": test})
    np.testing.assert_allclose(kept["train"], log_pi(start, train), atol=1e-4)
    np.testing.assert_allclose(kept["test"], log_pi(start, test), atol=1e-4)
    ranked = np.diff(log_pi(run, test) - kept["test"])[:, 0]
    assert np.abs(ranked).min() > 1e-4  # No tie by rounding.
    assert float(rows[-1]["evaluation"]) == pytest.approx(np.mean(ranked < 0))


def test_evaluations_say_the_implicit_accuracy(run: pathlib.Path, tmp_path: pathlib.Path):
    """It is that of the run's last record, whose parameters are the newest."""
    known = opened.open(run)
    subject, count = subjects.Subject(path=run, run=known), known.plan.eval_episodes
    report, _ = evaluation.run(subject, count=count, num_samples=1, out=tmp_path / "a.jsonl")
    expected = float(repeated(run)[-1]["evaluation"])
    assert report.estimates["implicit_accuracy"].mean == pytest.approx(expected)
    assert 0 < expected <= 1 and report.estimates["nats_per_token"].mean > 0


def test_a_policy_that_is_its_reference_ranks_nothing(run: pathlib.Path, start: pathlib.Path):
    setup = language_setup.setup(resolved.of(opened.open(run)), run)
    acting = {"params": models.load(start).params}
    scores = setup.lessons.scores(acting, 5, jax.random.key(0))
    np.testing.assert_array_equal(scores, np.full(5, 0.5))
    assert setup.setting.per_row == 2


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["dpo", "online-dpo", "rlhf", "bond"])
def test_runs_that_take_a_prompt_once_learn_the_same(
    agent: str, task: str, start: pathlib.Path, tmp_path: pathlib.Path
):
    """The announced memory is of prompts with all their texts."""
    # A small rate: Adam steps by a gradient's sign, which the order of sums decides near 0, and
    # another policy would write other texts.
    settings = ("batch_size=12", "learning_rate=1e-5", "warmup_steps=0", "max_new_tokens=3")
    fields = {} if agent == "dpo" else {"reward": "exact", "environment": "tokens/arithmetic"}
    widths, rows = [], []
    for shares in ("false", "true"):
        flags = given(start, *settings, f"share_prompts={shares}", **fields)
        out = tmp_path / shares
        environment = flags.pop("environment", task)
        run = experiments.train(agent, environment, out=out, **flags)
        setup = language_setup.setup(resolved.of(opened.open(run)), run)
        widths.append((setup.setting.rows * setup.setting.per_row, setup.setting.width))
        rows.append([row["loss"] for row in repeated(run)])
    np.testing.assert_allclose(*(np.array(x, float) for x in rows), rtol=1e-3, atol=1e-4)
    texts = {"dpo": (12, 2, 24), "online-dpo": (6, 2, 12), "rlhf": (3, 4, 12), "bond": (4, 2, 8)}
    prompts, of_prompt, all_texts = texts[agent]
    width = 16 if agent == "dpo" else 16 + 3  # Of a pair, or of a prompt and its text.
    assert widths == [(all_texts, width), (prompts, width + 3 * (of_prompt - 1))]


def test_an_epoch_is_of_pairs(task: str, start: pathlib.Path):
    fields = {**given(start, epochs=2, steps=0), "agent": "dpo", "environment": task}
    del fields["quiet"]
    setup = language_setup.setup(resolved.resolve(plans.Plan(**fields)))
    assert setup.epoch == (len(setup.splits.train), "pairs", 4)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit_without_its_start(
    run: pathlib.Path, tmp_path: pathlib.Path, start: pathlib.Path
):
    part = as_killed(run, tmp_path / "part", 2)
    config = json.loads((part / "config.json").read_text())
    config["plan"]["model"] = str(tmp_path / "gone")  # No reference is read, nor computed.
    (part / "config.json").write_text(json.dumps(config))
    experiments.resume(part, quiet=True, accept_changes=True)
    assert repeated(part) == repeated(run)
    one, other = (models.load(path).params for path in (part, run))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (*ADAPTERS, "micro_batches=2"),
        ("reference=moving", "reference_period=2", "loss=ipo-mean"),
        (*ADAPTERS, "reference=moving", "reference_period=2", "lora.shared_a=true"),
        ("divergence=jensen_shannon", "quantize=int8", "nll_weight=1.0"),
    ],
    ids=["adapters", "moving", "adapters-moving", "few-bits"],
)
def test_other_settings_resume_to_the_bit(
    settings: tuple[str, ...], task: str, start: pathlib.Path, tmp_path: pathlib.Path
):
    fields = given(start, *settings, eval_every=4, eval_episodes=4)
    whole = experiments.train("dpo", task, out=tmp_path / "whole", **fields)
    part = as_killed(whole, tmp_path / "part", 4)
    experiments.resume(part, quiet=True)
    assert repeated(part) == repeated(whole)
    one, other = (models.load(path).params for path in (part, whole))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    begun = float(repeated(whole)[0]["margin"])
    assert abs(begun) < 0.3  # The reference is the start, in the format that it acts in.
    has_train = "train" in weights.read(whole / pairs.REFERENCE)
    assert has_train == ("reference=moving" not in settings)


@pytest.mark.slow
def test_seeds_share_one_reference(task: str, start: pathlib.Path, tmp_path: pathlib.Path):
    path = experiments.train(
        "dpo", task, out=tmp_path / "run", **given(start, num_seeds=2, steps=2)
    )
    assert not (path / "seed_1" / pairs.REFERENCE).exists()
    ends = [models.load(path, seed).params for seed in (0, 1)]  # The order of pairs differs.
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), *ends)))


@pytest.mark.slow
def test_online_dpo_from_the_command_line(
    task: str, start: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    settings = (*SHORT, "learning_rate=1e-2", "warmup_steps=0", "reference=moving")
    line = ["train", "online-dpo", task, "--model", str(start), "--reward=length", "--steps", "4"]
    line += ["--log-every", "2", "--checkpoint-every", "2", "--eval-every", "4"]
    line += ["--eval-episodes", "4", *(f"--set={x}" for x in settings)]
    assert cli.main([*line, "--out", str(tmp_path / "run")]) == 0
    (first, _) = repeated(tmp_path / "run")
    assert abs(float(first["kl_reference"]) - float(first["kl_start"])) < 1e-3
    part = as_killed(tmp_path / "run", tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    assert repeated(part) == repeated(tmp_path / "run")
    one, other = (models.load(tmp_path / name).params for name in ("part", "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    capsys.readouterr()


def test_data_or_a_reference_that_changed(
    run: pathlib.Path, task: str, start: pathlib.Path, tmp_path: pathlib.Path
):
    part = as_killed(run, tmp_path / "part", 4)
    (part / pairs.REFERENCE).rename(part / "away")
    with pytest.raises(ValueError, match=r"reference.safetensors is missing: the log-prob"):
        experiments.resume(part, quiet=True)
    table = {name: np.array(x.array) for name, x in weights.read(part / "away").items()}
    table["train"][3, 1] = np.nan
    weights.export_params(part / pairs.REFERENCE, table)
    with pytest.raises(ValueError, match=r"an answer of pair 4 in train is not finite"):
        experiments.resume(part, quiet=True)
    weights.export_params(part / pairs.REFERENCE, {**table, "train": table["train"][:-1]})
    with pytest.raises(ValueError, match="it has a row for each pair that the run began with"):
        experiments.resume(part, quiet=True)
    # Another answer to one prompt: as many pairs, of other numbers.
    file = pathlib.Path(task.partition(":")[2])
    before = file.read_text()
    (part / pairs.REFERENCE).unlink()
    shutil.copy(part / "away", part / pairs.REFERENCE)
    try:
        file.write_text(before.replace('"rejected": "1"', '"rejected": "9"', 1))
        with pytest.raises(ValueError, match=r"the data tokens/pref.* has changed since the run"):
            experiments.resume(part, quiet=True)
    finally:
        file.write_text(before)


def test_what_is_refused(task: str, start: pathlib.Path, tmp_path: pathlib.Path):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"environment": "tokens/arithmetic"}, "dpo learns from pairs, tokens/preferences:PATH"),
        ({"model": "tiny", "model_flags": MODEL}, "dpo starts from a supervised model"),
        ({"model": ""}, "dpo needs --model"),
        ({"reward": "exact"}, "dpo takes no --reward, got 'exact'"),
        ({"teacher": str(start)}, "dpo takes no --teacher"),
        ({"frozen": "int8"}, "--frozen int8 is of a teacher, a reference"),
    ]
    for fields, message in refused:
        environment = fields.pop("environment", task)
        with pytest.raises(ValueError, match=message):
            experiments.train("dpo", environment, out=tmp_path / "no", **given(start, **fields))
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_run_of_dpo_is_a_run_of_a_language_model(
    run: pathlib.Path, start: pathlib.Path, tmp_path: pathlib.Path
):
    said = str(tmp_path / "a.jsonl")
    for line in (
        ["generate", "--model", str(run), "--prompt", "1+2=", "--max-new-tokens", "3"],
        ["evaluate", str(run), "--episodes", "4", "--out", said],
        ["export", str(run), "--out", str(tmp_path / "exported")],
        ["merge", str(run), str(start), "--method", "mean", "--out", str(tmp_path / "merged")],
        ["report", str(run), "--out", str(tmp_path / "report")],
    ):
        assert cli.main(line) == 0, line

"""Tests of experiments/runs/language.py and evaluate/generate.py: runs of language models."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core.sampling import Sampling
from kullback.experiments import cli
from kullback.experiments.evaluate import generate
from kullback.experiments.runs import (
    exports,
    language_setup,
    model_files,
    models,
    opened,
    plans,
    resolved,
    run_folder,
)
from kullback.lm import batches, gemma, power_law
from tests.records import as_killed, repeated

# A model of one layer, and few sums: seconds, compilation included.
pytestmark = pytest.mark.usefixtures("few_sums")
MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4")
FAST = ("learning_rate=1e-2", "warmup_steps=0")
TASK = "tokens/arithmetic"


def train(path: pathlib.Path, algorithm: str = "sft", **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {
        "steps": 6,
        "log_every": 2,
        "checkpoint_every": 3,
        "model": "tiny",
        "model_flags": MODEL,
        **fields,
    }
    settings = (*SHORT, *given.pop("settings", ()))
    given.setdefault("quiet", True)
    return experiments.train(algorithm, TASK, out=path, settings=settings, **given)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return train(
        tmp_path_factory.mktemp("teacher") / "run", eval_every=6, eval_episodes=2, settings=FAST
    )


# With a seed that is far from the teacher's.
DISTILLED: dict[str, Any] = {"seed": 1, "eval_every": 2, "eval_episodes": 2}


@pytest.fixture(scope="module")
def distilled(teacher: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("distilled") / "run"
    return train(out, "distill", teacher=str(teacher), **DISTILLED)


def test_a_run_folder_of_a_language_model(teacher: pathlib.Path):
    rows = repeated(teacher)
    assert [row["steps"] for row in rows] == ["2", "4", "6"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert {"accuracy", "entropy", "answer_tokens", "truncated"} <= set(rows[0])
    assert rows[-1]["evaluation"] != "nan" and rows[0]["evaluation"] == "nan"
    config = json.loads((teacher / "config.json").read_text())
    assert config["data"]["train"]["rows"] == 200 and config["data"]["train"]["dropped"] == 0
    checkpoint = models.load(teacher)
    assert checkpoint.config == model_files.saved_config(teacher)
    assert checkpoint.tokenizer.vocab_size == checkpoint.config.vocab_size


@pytest.mark.slow
def test_random_weights_and_fewer_held_out_examples_than_asked_for_are_said_before_the_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    path = train(
        tmp_path / "run", steps=2, settings=FAST, eval_every=2, eval_episodes=99, quiet=False
    )
    report = run_folder.RunFolder(path).config()["data"]["test"]
    printed = capsys.readouterr()
    assert f"of the {report['rows']} examples that are held out" in printed.out
    assert printed.err.startswith("tiny is a preset: its random weights are drawn\n")
    experiments.resume(path, steps=3)
    printed = capsys.readouterr()
    assert "--eval-episodes asks for 99" in printed.out
    assert "random weights" not in printed.err


@pytest.mark.slow
def test_a_teacher_whose_table_is_padded_otherwise(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """Its ten rows of padding are no tokens; the student, and what both write, have none."""
    rows = models.load(train(tmp_path / "plain", steps=1)).config.vocab_size
    padded = (*MODEL, f"vocab_size={rows + 10}")
    path = train(tmp_path / "teacher", steps=1, model_flags=padded, quiet=False)
    assert f"of the {rows + 10} rows of the model's table 10 are beyond" in capsys.readouterr().out
    run = train(tmp_path / "run", "gkd", steps=4, teacher=str(path), eval_every=2, eval_episodes=2)
    assert models.load(run).config.vocab_size == rows
    assert np.isfinite(float(repeated(run)[-1]["teacher_distance"]))
    smaller = train(
        tmp_path / "more", "gkd", steps=2, teacher=str(run), model=str(path), model_flags=()
    )
    assert models.load(smaller).config.vocab_size == rows + 10


def test_a_trained_model_may_compute_otherwise_and_be_no_other(
    teacher: pathlib.Path, tmp_path: pathlib.Path
):
    """`--model-flag` on a run: dtype and remat change how it computes, its shape stays."""
    flags = ("dtype=bfloat16", "remat=True")
    fields = {"model": str(teacher), "model_flags": flags, "settings": SHORT}
    plan = plans.Plan(agent="sft", environment=TASK, **fields)
    setup = language_setup.setup(resolved.resolve(plan))
    config = setup.evaluator.model.config
    assert (config.dtype, config.remat) == ("bfloat16", True)
    assert setup.initial_params is not None
    leaves = jax.tree.leaves(setup.initial_params())
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    setup.save(tmp_path)
    assert model_files.saved_config(tmp_path) == config
    other = ("num_layers=2",)
    with pytest.raises(
        ValueError, match=r"changes the shape of a preset; .* but for dtype, storage"
    ):
        train(tmp_path / "other", "sft", model=str(teacher), model_flags=other)


@pytest.mark.slow
def test_packed_data_of_another_tokenizer(teacher: pathlib.Path, tmp_path: pathlib.Path):
    """Rows of 24 tokens hold two sums or more."""
    settings = ("pack=True", "reduction=token", "max_prompt_length=12", "max_new_tokens=12")
    path = train(tmp_path / "run", steps=2, settings=settings, tokenizer=str(teacher / "tokenizer"))
    bpe = models.load(teacher).tokenizer
    assert models.load(path).tokenizer.fingerprint == bpe.fingerprint
    answers = [float(repeated(run)[0]["answer_tokens"]) for run in (path, teacher)]
    assert answers[0] > 1.7 * answers[1]
    for given in ({"model": str(teacher), "model_flags": ()}, {"teacher": str(teacher)}):
        algorithm = "distill" if "teacher" in given else "sft"
        with pytest.raises(ValueError, match=r"--tokenizer goes with .* brings its own"):
            train(tmp_path / "no", algorithm, tokenizer=str(teacher), **given)


def test_what_is_too_long_is_dropped_and_counted(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    given = ["--model", "tiny", *(f"--model-flag={flag}" for flag in MODEL), "--steps", "1"]
    short = ("batch_size=4", "max_prompt_length=6", "max_new_tokens=4")
    out = tmp_path / "run"
    given += [*(f"--set={setting}" for setting in short), "--out", str(out)]
    assert cli.main(["train", "sft", TASK, *given]) == 2
    none = ["--set=max_prompt_length=2", "--set=max_new_tokens=1", "--overlong", "drop"]
    capsys.readouterr()
    assert cli.main(["train", "sft", TASK, *given, *none]) == 2
    assert "is short enough: they were dropped" in capsys.readouterr().err
    fields: dict[str, Any] = {"model": "tiny", "model_flags": MODEL}
    plan = plans.Plan(agent="sft", environment=TASK, settings=(*short, "overlong=drop"), **fields)
    of_config = language_setup.setup(resolved.resolve(plan)).details()  # In config.json.
    rows = of_config["data"]["train"]
    assert 0 < rows["dropped"] < rows["rows"]


def assert_equal_runs(one: pathlib.Path, other: pathlib.Path) -> None:
    assert repeated(one) == repeated(other)
    a, b = (models.load(path).params for path in (one, other))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_student_that_is_interrupted_goes_on_bit_by_bit(
    teacher: pathlib.Path, tmp_path: pathlib.Path
):
    """Between two rows, with texts of its own in each batch and an optimiser of the user's.

    Moments in bfloat16 and a rate that falls, as they are saved and read again.
    """
    settings = (
        *("student_fraction=0.5", "mixing=row"),
        *("optimizer=adamw", "weight_decay=0.1", "first_moment_dtype=bfloat16"),
        *("schedule=cosine", "decay_steps=6", "warmup_steps=1"),
    )
    whole = train(tmp_path / "whole", "gkd", teacher=str(teacher), settings=settings)
    part = as_killed(whole, tmp_path / "part", 3)
    experiments.resume(part, quiet=True)
    assert_equal_runs(part, whole)
    assert int(repeated(whole)[-1]["episodes"]) == 6 * 2
    with pytest.raises(ValueError, match="learning rate is 0 from step 6 on"):
        experiments.resume(part, steps=9, quiet=True)
    assert run_folder.RunFolder(part).config()["plan"]["steps"] == 6


@pytest.mark.slow
def test_a_run_watches_the_distance_to_its_teacher(
    teacher: pathlib.Path,
    distilled: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Oracle: the KL of all logits; the warning is said once, and again by no resumed run.

    A run that is extended is, bit by bit, the one that was as long from the beginning.
    """
    seen = []

    def warning(steps: Any, values: Any) -> str | None:
        seen.append((list(steps), list(values)))
        return "it departs" if len(steps) > 1 else None

    monkeypatch.setattr(power_law, "warning", warning)
    given = {"teacher": str(teacher), **DISTILLED}
    path = train(tmp_path / "run", "distill", quiet=False, steps=4, **given)
    experiments.resume(path, steps=6)
    assert_equal_runs(path, distilled)
    assert int(repeated(path)[-1]["episodes"]) == 0
    assert seen[-1][0] == [2, 4, 6]
    assert capsys.readouterr().err.count("warning: it departs") == 1
    rows = [float(row["teacher_distance"]) for row in repeated(path)]
    np.testing.assert_allclose(rows, seen[-1][1])
    setup = language_setup.setup(resolved.of(opened.open(path)), path)
    assert setup.teacher is not None
    held_out = batches.pad(setup.evaluator.test[:32], 12, 0)
    logs = []
    for checkpoint in (setup.teacher, models.load(path)):
        model = gemma.make(checkpoint.config)
        logits = jax.jit(model.apply)(checkpoint.params, *held_out[:1], *held_out[2:4])
        logs.append(np.asarray(jax.nn.log_softmax(logits), np.float64)[:, :-1])
    kl = np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), -1)
    answers = np.asarray(held_out.is_answer)[:, 1:]
    expected = np.mean([kl[b, answers[b]].mean() for b in range(len(kl))])
    np.testing.assert_allclose(rows[-1], expected, rtol=1e-4)


@pytest.mark.slow
def test_later_seeds_begin_with_the_model_that_the_first_began_with(
    teacher: pathlib.Path, tmp_path: pathlib.Path
):
    start, path = tmp_path / "start", tmp_path / "run"
    shutil.copytree(teacher, start)
    newest, elsewhere = max((start / "checkpoints").iterdir()), tmp_path / "newest"

    def take_away(row: Any) -> None:  # While the first seed learns.
        newest.rename(elsewhere)

    given: dict[str, Any] = {"steps": 2, "num_seeds": 2, "model": str(start), "model_flags": ()}
    with pytest.raises(ValueError, match=r"the start .*start has changed since the run began"):
        train(path, callback=take_away, **given)
    recorded = run_folder.RunFolder(path).config()["start_sha256"]
    assert recorded == model_files.fingerprint(models.load(teacher).params)
    with pytest.raises(ValueError, match=r"the start .* has changed since the run began"):
        experiments.resume(path, quiet=True)
    elsewhere.rename(newest)
    experiments.resume(path, quiet=True)
    assert {row["seed"] for row in run_folder.RunFolder(path).rows()} == {"0", "1"}


@pytest.mark.slow
def test_a_teacher_that_has_changed_is_refused(distilled: pathlib.Path, tmp_path: pathlib.Path):
    path = tmp_path / "run"
    shutil.copytree(distilled, path)
    folder = run_folder.RunFolder(path)
    folder.write_config({**folder.config(), "teacher_sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"the teacher .* has changed since the run began"):
        experiments.resume(path, steps=8, quiet=True, accept_changes=True)


@pytest.mark.slow
def test_the_teacher_is_no_part_of_a_checkpoint(distilled: pathlib.Path):
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(models.load(distilled).params))
    (newest,) = (distilled / "checkpoints").glob("*6")
    leaves = json.loads((newest / "contents.json").read_text())["leaves"]
    numbers = sum(int(np.prod(shape)) for shape, *_ in leaves.values())
    # Parameters, and Adam's two moments.
    assert num_bytes / 4 * 3 <= numbers < num_bytes / 4 * 3 + 500


@pytest.mark.slow
def test_generation_in_pieces_is_that_in_one(
    teacher: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = models.load(teacher)
    bpe = checkpoint.tokenizer
    prompts = [(bpe.bos_id, *bpe.encode(text)) for text in ("1+2=", "10+20=", "7")]
    texts, seen = {}, {0: "", 1: "", 2: ""}

    def note(row: int, text: str) -> None:
        seen[row] += text

    for size in (3, 12):
        monkeypatch.setattr(generate, "PIECE", size)
        seen = dict.fromkeys(seen, "")
        writer = generate.Writer(checkpoint=checkpoint, max_new_tokens=9, seed=1)
        completions = generate.complete(writer, prompts, on_text=note)
        texts[size] = [(row.text, row.ids) for row in completions]
        assert [row.text for row in completions] == list(seen.values())
        assert all(len(row.ids) <= 9 for row in completions)
        for row in completions:
            assert row.is_complete == (row.ids[-1] in checkpoint.config.eos_ids)
    assert texts[3] == texts[12]


@pytest.mark.slow
def test_greedy_generation_is_the_argmax_of_the_whole_pass(teacher: pathlib.Path):
    checkpoint = models.load(teacher)
    bpe, model = checkpoint.tokenizer, gemma.make(checkpoint.config)
    ids = [bpe.bos_id, *bpe.encode("31+4=")]
    greedy = Sampling(temperature=0)
    writer = generate.Writer(checkpoint=checkpoint, max_new_tokens=4, sampling=greedy)
    (completion,) = generate.complete(writer, [ids])
    for token in completion.ids:
        logits = model.apply(checkpoint.params, np.array([ids], np.int32))
        assert token == int(np.argmax(logits[0, -1]))
        ids = [*ids, token]


@pytest.mark.slow
def test_every_seed_starts_from_the_model_given(teacher: pathlib.Path, tmp_path: pathlib.Path):
    # The first step's learning rate is 0, that of a warm-up from nothing.
    given: dict[str, Any] = {"model": str(teacher), "model_flags": (), "num_seeds": 2, "steps": 1}
    path = train(tmp_path / "run", "sft", **given)
    expected = models.load(teacher).params
    for seed in (0, 1):
        got = models.load(path, seed).params
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_what_is_exported_is_read_again(teacher: pathlib.Path, tmp_path: pathlib.Path):
    exports.write_folder(teacher, tmp_path / "model")
    one, other = models.load(teacher), models.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.info == other.info
    same = dataclasses.replace(other.config, context_length=one.config.context_length)
    assert same == one.config


def test_the_command_line(
    teacher: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["evaluate", str(teacher), "--episodes", "3"]) == 0
    shown = capsys.readouterr().out
    assert "3 held-out examples" in shown and "nats_per_token" in shown
    assert cli.main(["evaluate", str(teacher), "--max-new-tokens", "999_999"]) == 2
    assert "max_new_tokens=999999 together exceed the model's" in capsys.readouterr().err
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1+1="}\n{"prompt": "2+2="}\n')
    arguments = ["generate", "--model", str(teacher), "--max-new-tokens", "3"]
    assert cli.main([*arguments, "--prompts", str(file)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["1+1=", "2+2="]
    assert cli.main([*arguments, "--prompt", "5+5=", "--temperature", "0"]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("\n")
    # 2 (keys, values) x 2 heads x 8 numbers x 4 bytes x a window of 4.
    assert shown.err == "keys and values of 1 texts: 0.000512 MB\n"
    for wrong, message in (
        (["--prompt", "1", "--temperature", "-1"], "temperature must be 0 (greedy) or finite"),
        (["--prompt", "1", "--top-p", "0"], "top_p must lie in (0, 1]"),
    ):
        assert cli.main([*arguments, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_fields_of_both_tenants(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["fields", "gkd", "tokens"]) == 0
    shown = capsys.readouterr().out
    assert "student_fraction" in shown and "learning.max_new_tokens" in shown
    for wrong in (["gkd", "atari"], ["dqn", "tokens"]):
        assert cli.main(["fields", *wrong]) == 2
        assert "has no presets for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("agent", "environment", "fields", "message"),
    [
        ("sft", "atari/pong", {}, "sft is a language model's"),
        ("dqn", TASK, {}, "dqn is of games"),
        ("dqn", "toy/chain", {"model": "tiny"}, "model is for language models"),
        ("sft", TASK, {"num_envs": 4}, "takes no num_envs"),
    ],
)
def test_plans_of_the_other_tenant_are_refused(agent, environment, fields, message):
    with pytest.raises(ValueError, match=message):
        plans.Plan(agent=agent, environment=environment, **fields)


@pytest.mark.parametrize(
    ("agent", "environment", "fields", "message"),
    [
        ("sft", TASK, {}, "sft needs --model"),
        ("sft", TASK, {"model": "nowhere"}, "nowhere is no model"),
        ("sft", TASK, {"model": "tiny", "teacher": "x"}, "sft takes no --teacher"),
        ("gkd", TASK, {"model": "tiny"}, "gkd needs --teacher"),
        ("sft", "tokens/arithmetics", {"model": "tiny"}, "unknown task 'tokens/arithmetics'"),
        ("sft", "tokens/jsonl:none", {"model": "tiny"}, "no file or folder at none"),
        ("sft", TASK, {"model": "tiny", "settings": ("max_prompt_length=3",)}, "problem 0"),
    ],
)
def test_what_cannot_be_set_up_is_refused_in_a_line(agent, environment, fields, message):
    with pytest.raises(ValueError, match=message):
        language_setup.setup(
            resolved.resolve(plans.Plan(agent=agent, environment=environment, **fields))
        )

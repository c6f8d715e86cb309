"""Tests of runs that learn adapters beside a frozen base, from training to their use as models."""

import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import trees
from kullback.experiments.runs import exports, model_files, models, opened, plans, reward_models
from tests.records import as_killed, repeated

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", "warmup_steps=0")
ADAPTERS = ("lora.rank=2", "lora.targets=query,down", "learning_rate=1e-2")
ROWS = "lora.train_tokens=<end_of_turn>,1"  # The second is an id.
TASK = "tokens/arithmetic"
pytestmark = pytest.mark.usefixtures("few_sums")


def letters(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Rewards each text by its letters, so that texts of one length have unequal rewards."""
    del prompts, references
    return [sum(map(ord, text)) / 100 for text in texts]


LETTERS = f"python:{__name__}:letters"


def train(path: pathlib.Path, algorithm: str, model: Any, **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {
        "steps": 4,
        "log_every": 2,
        "checkpoint_every": 2,
        "quiet": True,
        "model": str(model),
        **fields,
    }
    settings = (*SHORT, *given.pop("settings", ADAPTERS))
    environment = given.pop("environment", TASK)
    return experiments.train(algorithm, environment, out=path, settings=settings, **given)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("base") / "run"
    return train(path, "sft", "tiny", steps=2, model_flags=MODEL, settings=())


@pytest.fixture(scope="module")
def run(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("adapters") / "run"
    return train(path, "sft", base, settings=(*ADAPTERS, ROWS))


def params_of(path: pathlib.Path) -> Any:
    return models.load(path).params


def reward_params(path: pathlib.Path, seed: int | None = None) -> Any:
    return reward_models.load(path, seed).params


def equal(one: pathlib.Path, other: pathlib.Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, params_of(one), params_of(other))


def test_a_run_of_adapters_is_its_base_with_updates_of_low_rank_and_rows_that_learn(
    run: pathlib.Path, base: pathlib.Path
):
    config = json.loads((run / "config.json").read_text())
    assert config["base_sha256"] == model_files.fingerprint(params_of(base))
    assert config["config"]["learning"]["lora"]["rank"] == 2
    contents = json.loads((run / "checkpoints" / f"{4:012d}" / "contents.json").read_text())
    saved = [name for name in contents["leaves"] if name.startswith("learner/params")]
    layer = "learner/params/remainder/layer_0"
    names = ("attention/query", "feed_forward/down")
    assert saved == [
        *(f"{layer}/{name}/{factor}" for name in names for factor in "ab"),
        "learner/params/rows/update",
    ]
    ids = models.load(run).tokenizer.end_of_turn_id, 1
    changed = set()
    old, new = trees.named_leaves(params_of(base)), trees.named_leaves(params_of(run))
    for path, leaf in old.items():
        difference = np.asarray(new[path] - leaf)
        if path == "embedding":  # No text has an end of a turn: the head alone learns it.
            assert set(np.flatnonzero(np.any(difference, 1))) == set(ids)
        elif np.any(difference):
            changed.add(path.rpartition("/")[2])
            assert np.linalg.matrix_rank(difference[0], tol=1e-5) == 2
    assert changed == {"query", "down"}


def test_a_run_that_was_killed_goes_on_bit_by_bit(run: pathlib.Path, tmp_path: pathlib.Path):
    part = as_killed(run, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    equal(part, run)
    assert repeated(part) == repeated(run)


@pytest.mark.slow
def test_a_base_that_has_changed_is_refused(
    run: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path
):
    other, moved = tmp_path / "other", tmp_path / "moved"
    train(other, "sft", base, steps=1, settings=())
    with pytest.raises(ValueError, match=r"is not the base .* differs"):
        models.load(run, base=str(other))
    with pytest.raises(ValueError, match="has no adapters, and no use for a base"):
        models.load(base, base=str(other))
    shutil.copytree(base, moved)
    same = models.load(run, base=str(moved)).params
    jax.tree.map(np.testing.assert_array_equal, same, params_of(run))
    config = json.loads((run / "config.json").read_text())
    lost = tmp_path / "lost"
    shutil.copytree(run, lost)
    config["plan"]["model"] = str(tmp_path / "nowhere")
    (lost / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"base of .*nowhere is no model.* --base says"):
        models.load(lost)
    config["plan"]["model"] = str(lost)
    (lost / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is its own base"):
        models.load(lost)


@pytest.mark.slow
def test_a_run_goes_on_beside_a_base_that_has_moved(
    run: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path
):
    part, moved = as_killed(run, tmp_path / "part", 2), tmp_path / "moved"
    shutil.copytree(base, moved)
    experiments.resume(part, base=str(moved), quiet=True)
    equal(part, run)
    kept = json.loads((part / "config.json").read_text())
    assert kept["plan"]["model"] == str(moved)
    experiments.resume(part, steps=6, quiet=True)  # It knows now where the base is.
    assert repeated(part)[-1]["steps"] == "6"


def test_drawn_weights_are_no_base(refused: Any):
    given = ("train", "sft", TASK, "--model", "tiny", "--set", "lora.rank=2")
    assert "weights of the preset tiny are drawn" in refused(*given)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("good-day", "'good-day' is 8 tokens of this vocabulary"),
        ("<eos>,1", "lora.train_tokens has <eos> and 1, both of id 1"),
        ("512", r"token id 512 lies outside the vocabulary"),
    ],
)
def test_what_is_not_one_token_is_refused(
    tokens: str, message: str, base: pathlib.Path, tmp_path: pathlib.Path
):
    with pytest.raises(ValueError, match=message):
        settings = (*ADAPTERS, f"lora.train_tokens={tokens}")
        train(tmp_path / "run", "sft", base, settings=settings)


def test_peft_is_written_and_read_beside_the_base(
    run: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path, kullback: Any
):
    status, out, _ = kullback("export", run, "--format", "peft", "--out", tmp_path / "peft")
    assert status == 0 and out.startswith("adapters: ")
    merged = models.load(f"{base}{plans.ADAPTER}{tmp_path / 'peft'}").params
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, merged, params_of(run))
    given = ("merge", tmp_path / "peft", tmp_path / "peft", "--method", "mean", "--rank", "1")
    status, out, _ = kullback(*given, "--out", tmp_path / "merged")
    assert status == 0 and "truncated to rank 1: " in out and "is lost" in out
    assert out.splitlines()[-1].endswith("(2 matrices, rank 1, of 2 folders)")
    with pytest.raises(ValueError, match=r"has no adapters: it has learnt all weights"):
        exports.write_adapters(base, tmp_path / "other")


def test_merges_know_the_base_of_runs_of_adapters(
    run: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path, kullback: Any, refused: Any
):
    given = ("--method", "liti", "--interpolation", "0.25")
    status, out, _ = kullback("merge", run, run, *given, "--out", tmp_path / "merged")
    assert status == 0 and f"base: {base}, of all of these adapters" in out
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    old, new = params_of(base), params_of(run)
    between = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, old, new)
    jax.tree.map(close, params_of(tmp_path / "merged"), between)
    assert "base" in refused("merge", run, base, *given, "--out", tmp_path / "other")


@pytest.mark.slow
def test_merges_find_a_base_that_has_moved(
    run: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path, kullback: Any, refused: Any
):
    """It is where the runs' adapters are merged, and what differences are taken from."""
    moved, other, lost = tmp_path / "moved", tmp_path / "other", tmp_path / "lost"
    shutil.copytree(base, moved)
    train(other, "sft", base, steps=1, settings=())
    shutil.copytree(run, lost)
    config = json.loads((run / "config.json").read_text())
    config["plan"]["model"] = str(tmp_path / "nowhere")
    (lost / "config.json").write_text(json.dumps(config))
    liti, mean = ("--method", "liti", "--interpolation", "0.25"), ("--method", "mean")
    new = ("--out", tmp_path / "new")
    assert "nowhere, the base of these adapters, is no model: --base says" in refused(
        "merge", lost, lost, *liti, *new
    )
    assert "nowhere is no model" in refused("merge", lost, lost, *mean, *new)
    for method in (liti, mean):
        wrong = refused("merge", lost, lost, *method, "--base", other, *new)
        assert f"{other} is not the base that {lost}'s adapters were trained beside" in wrong
    assert "mean takes no base" in refused("merge", base, base, *mean, "--base", base, *new)
    old, learnt = params_of(base), params_of(run)
    expected = {
        liti: jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, old, learnt),
        mean: jax.tree.map(lambda a, b: (a + b) / 2, learnt, old),
    }
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    for method, second in ((liti, lost), (mean, base)):  # The second mean has a whole model.
        out = tmp_path / method[1]
        assert kullback("merge", lost, second, *method, "--base", moved, "--out", out)[0] == 0
        jax.tree.map(close, params_of(out), expected[method])


@pytest.mark.slow
def test_policy_reference_and_value_share_one_base(base: pathlib.Path, tmp_path: pathlib.Path):
    settings = (*ADAPTERS, "samples_per_prompt=2", "baseline=value", "value_learning_rate=1e-2")
    whole = train(tmp_path / "whole", "rlhf", base, settings=settings, reward=LETTERS)
    assert float(repeated(whole)[-1]["kl_start"]) != 0
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True, trust_code=True)
    equal(part, whole)
    state = json.loads((whole / "checkpoints" / f"{4:012d}" / "contents.json").read_text())
    assert not any("embedding" in name or "norm" in name for name in state["leaves"])
    assert "learner/params/value/head" in state["leaves"]


@pytest.mark.slow
def test_a_run_of_adapters_teaches_and_is_a_base(run: pathlib.Path, tmp_path: pathlib.Path):
    settings = (*ADAPTERS, "learning_rate=1e-6")
    fields = {"teacher": str(run), "eval_every": 2, "settings": settings}
    student = train(tmp_path / "gkd", "gkd", run, **fields)
    assert float(repeated(student)[0]["teacher_distance"]) < 1e-2
    config = json.loads((student / "config.json").read_text())
    assert (
        config["base_sha256"] == config["teacher_sha256"] == model_files.fingerprint(params_of(run))
    )


@pytest.mark.slow
def test_averages_of_policies_share_one_a(base: pathlib.Path, tmp_path: pathlib.Path):
    given = (*ADAPTERS, "samples_per_prompt=2", "members=2", "member_steps=2")
    with pytest.raises(ValueError, match=r"lora.shared_a=true"):
        train(tmp_path / "refused", "warp", base, settings=given, reward=LETTERS)
    settings = (*given, "lora.shared_a=true")
    whole = train(tmp_path / "whole", "warp", base, settings=settings, reward=LETTERS)
    assert (whole / "shared_a.safetensors").is_file() and (whole / "front.csv").is_file()
    merged, start = params_of(whole / "merged-000004"), params_of(base)
    query = (x["remainder"]["layer_0"]["attention"]["query"][0] for x in (merged, start))
    assert np.linalg.matrix_rank(np.subtract(*query), tol=1e-6) == 2
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True, trust_code=True)
    equal(part, whole)
    assert (part / "front.csv").read_text() == (whole / "front.csv").read_text()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"{n}+{m}=", "chosen": str(n + m), "rejected": str(n + m + 1)}
        for n in range(8)
        for m in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"tokens/preferences:{path}"


@pytest.mark.slow
def test_reward_models_of_adapters_are_averaged_exactly(
    base: pathlib.Path, pairs: str, tmp_path: pathlib.Path
):
    given = ("lora.rank=2", "lora.shared_a=true", "learning_rates=1e-2", "probe_pairs=8")
    fields = {"environment": pairs, "num_seeds": 2}
    run = train(tmp_path / "warm", "warm", base, settings=given, **fields)
    first, second, average = (reward_params(run, seed) for seed in (0, 1, None))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, average, mean)
    jax.tree.map(close, models.members(opened.open(run)).__next__(), first)
    assert np.any(np.asarray(first["head"]["w"] - second["head"]["w"]))
    # What was learnt scores texts in reinforcement learning, and is a base itself.
    settings = ("samples_per_prompt=2",)
    reward = f"reward-model:{run}"
    train(tmp_path / "rlhf", "rlhf", base, settings=settings, reward=reward, steps=2)
    again = train(tmp_path / "again", "reward-model", run, settings=ADAPTERS, environment=pairs)
    decoder = reward_params(again)["decoder"]
    np.testing.assert_array_equal(decoder["embedding"], average["decoder"]["embedding"])

"""Tests of experiments/commands/merge.py."""

import argparse
import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from kullback.core import averaging, checkpoints
from kullback.experiments.commands import merge
from kullback.experiments.runs import model_files, plans, run_folder
from kullback.lm import folder_meaning, gemma, merging, tokenizer
from kullback.lm.formats import hugging_face

CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], num_layers=1, embed_dim=8, hidden_dim=8, vocab_size=300, num_heads=2
)


def random_params(seed: int):
    shapes = jax.eval_shape(gemma.make(CONFIG).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)


def export(folder: pathlib.Path, seed: int, divergence: str = "kl") -> pathlib.Path:
    notes = {folder_meaning.NOTES: {"divergence": divergence}}
    hugging_face.save(folder, CONFIG, random_params(seed), extra=notes)
    return folder


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> list[str]:
    return [str(export(tmp_path / str(seed), seed)) for seed in range(3)]


def kullback_merge(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    merge.add_parser(parser.add_subparsers())
    options = parser.parse_args(["merge", *arguments])
    return options.command(options)


def assert_written(out: pathlib.Path, expected):
    params = hugging_face.load(out)[1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params, expected)


def test_slerp_toward_a_base(folders, tmp_path, capsys: pytest.CaptureFixture[str]):
    base, *others = folders
    out = tmp_path / "merged" / "out"
    request = [*others, "--base", base, "--out", str(out), "--t", "0.25", "--interpolation", "0.3"]
    assert kullback_merge("--method", "slerp", "--group", "all", *request) == 0
    start, *trees = (random_params(seed) for seed in range(3))
    merged = averaging.slerp(trees, start, t=0.25, group_of=averaging.whole)
    assert_written(out, averaging.liti(start, merged, 0.3))
    printed = capsys.readouterr().out
    assert f"model: {out} (15 tensors" in printed and "of 2 models" in printed
    cosine = averaging.cosines(trees, start, averaging.whole)[""][0, 1]
    assert f"cosines in 1 group: {cosine:.3f} to {cosine:.3f}" in printed


def test_mean_ema_and_liti(folders, tmp_path):
    trees = [random_params(seed) for seed in range(3)]
    for name, arguments, expected in (
        ("mean", ["--weights", "1", "1", "2"], averaging.mean(trees, [1, 1, 2])),
        ("ema", ["--rate", "1"], trees[2]),
        ("liti", ["--interpolation", "1", "--base", folders[1]], averaging.mean(trees)),
    ):
        out = tmp_path / f"of {name}"
        assert kullback_merge(*folders, "--method", name, "--out", str(out), *arguments) == 0
        assert_written(out, expected)


def test_a_run_is_a_model(folders, tmp_path):
    run = tmp_path / "run"
    plan = plans.Plan(agent="sft", environment="tokens/arithmetic", seed=3)
    run_folder.RunFolder(run).write_config({"plan": plan.to_json()})
    bpe = tokenizer.train_bpe(["a b c d"] * 4, vocab_size=CONFIG.vocab_size)
    model_files.save(model_files.Checkpoint(CONFIG, bpe, None), run)
    checkpoints.save(run / "checkpoints", 1, {"learner": {"params": random_params(7)}}, {})
    out = tmp_path / "out"
    assert kullback_merge(str(run), folders[0], "--method", "mean", "--out", str(out)) == 0
    assert_written(out, averaging.mean([random_params(7), random_params(0)]))
    assert (out / "tokenizer.json").is_file()  # Of the run, the first model.
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2", "run", "out"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "liti", "--base", "0"], "liti needs --interpolation"),
        (["--method", "ema"], "rate is of ema and required there"),
        (["--method", "mean", "--t", "0.5"], "t is of slerp, not of mean"),
        (["--method", "mean", "--base", "0"], "mean takes no base"),
    ],
)
def test_what_was_asked_wrongly_is_said_before_anything_is_read(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        kullback_merge("no/model", "nor/this", "--out", str(tmp_path / "out"), *arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_model_and_models_of_other_operators_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="is one of the models"):
        kullback_merge(*folders, "--method", "mean", "--out", folders[1])
    other = export(tmp_path / "other", 0, "alpha-1.5")
    with pytest.raises(
        ValueError, match=r"models differ in operator: kl in .*0.*alpha-1.5 in .*oth"
    ):
        kullback_merge(folders[0], str(other), "--method", "mean", "--out", str(tmp_path / "out"))
    # Of the base as well: task vectors are taken from it.
    with pytest.raises(
        ValueError, match=r"models differ in operator: kl in .*0.*alpha-1.5 in .*oth"
    ):
        kullback_merge(
            *folders, "--method", "slerp", "--base", str(other), "--out", str(tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


def test_what_is_overridden_is_printed(folders, tmp_path, capsys: pytest.CaptureFixture[str]):
    other = dataclasses.replace(CONFIG, window=5, local_rope_theta=7.0, dtype="bfloat16")
    hugging_face.save(tmp_path / "other", other, random_params(1))
    given = (
        folders[0],
        str(tmp_path / "other"),
        "--method",
        "mean",
        "--out",
        str(tmp_path / "out"),
    )
    with pytest.raises(
        ValueError, match=r"differ in window: 8 in .* \(and 1 fields more\)"
    ) as error:
        kullback_merge(*given)
    assert "\n" not in str(error.value) and "--force" in str(error.value)
    kullback_merge(*given, "--force")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("overridden")]
    assert said == [
        f"overridden: window: 8 in {folders[0]}/config.json, 5 in {tmp_path}/other/config.json",
        f"overridden: local_rope_theta: 10000.0 in {folders[0]}/config.json, "
        f"7.0 in {tmp_path}/other/config.json",
    ]
    assert hugging_face.load(tmp_path / "out")[0] == CONFIG
    assert_written(tmp_path / "out", averaging.mean([random_params(0), random_params(1)]))


def test_where_nothing_can_be_written_is_said_before_a_run_is_exported(folders, tmp_path):
    run = tmp_path / "run"
    plan = plans.Plan(agent="sft", environment="tokens/arithmetic", seed=3)
    run_folder.RunFolder(run).write_config({"plan": plan.to_json()})
    bpe = tokenizer.train_bpe(["a b c d"] * 4, vocab_size=CONFIG.vocab_size)
    model_files.save(
        model_files.Checkpoint(CONFIG, bpe, None), run
    )  # It has nothing to be exported.
    (tmp_path / "file").write_text("")
    for out, said in ((tmp_path / "file" / "out", "cannot be written"), (tmp_path, "not empty")):
        with pytest.raises(ValueError, match=said):
            kullback_merge(str(run), folders[0], "--method", "mean", "--out", str(out))


def test_a_folder_that_is_not_there_is_named(folders, tmp_path):
    gone = str(tmp_path / "gone")
    for more in ([gone], ["--base", gone]):
        with pytest.raises(ValueError, match="gone is no folder; expected that of a model"):
            kullback_merge(*folders, *more, "--method", "slerp", "--out", str(tmp_path / "out"))


def test_choices_are_those_of_the_library():
    assert merge.METHODS == merging.METHODS and merge.GROUPS == merging.GROUPS


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys; from kullback.experiments.commands import merge; "
        "sys.exit(bool({'jax', 'numpy', 'safetensors', 'rich'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

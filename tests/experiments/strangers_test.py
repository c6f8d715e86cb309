"""Tests of strangers' folders, by the commands that read them: they lead nowhere else."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import pytest

from kullback.core import archives, checkpoints, json_files, weights
from kullback.experiments import cli
from kullback.experiments.runs import model_files, plans, run_folder
from kullback.experiments.sweeps import sweeping
from kullback.lm import data, gemma, tokenizer
from kullback.lm.formats import hugging_face

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Makes a model in `model`, and a run of it in `run`."""
    folder = tmp_path_factory.mktemp("made")
    bpe = tokenizer.train_bpe(["user 0\nmodel 0"] * 2, 264)
    config = dataclasses.replace(
        gemma.PRESETS["tiny"],
        **{"num_layers": 1, "embed_dim": 16, "hidden_dim": 16, "window": 16},
        vocab_size=bpe.vocab_size,
    )
    params = jax.jit(gemma.make(config).init)(jax.random.key(0))
    hugging_face.save(folder / "model", config, params, tokenizer.save(bpe, folder / "words"))
    plan = plans.Plan(agent="sft", environment="tokens/arithmetic")
    run_folder.RunFolder(folder / "run").write_config({"plan": plan.to_json()})
    model_files.save(model_files.Checkpoint(config, bpe, None), folder / "run")
    checkpoints.save(folder / "run" / "checkpoints", 1, {"learner": {"params": params}}, {})
    return folder


@pytest.fixture
def home(originals: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Copies a folder beside a file that must not be touched."""
    shutil.copytree(originals, tmp_path / "stranger")
    (tmp_path / "key").write_text(SECRET)
    return tmp_path / "stranger"


def names_elsewhere(home: pathlib.Path) -> None:
    (home / "model" / WEIGHTS).rename(home.parent / "x.safetensors")
    where = {"model.norm.weight": "../../x.safetensors"}
    (home / "model" / INDEX).write_text(json.dumps({"weight_map": where}))


def names_absolutely(home: pathlib.Path) -> None:
    names_elsewhere(home)
    index = home / "model" / INDEX
    index.write_text(index.read_text().replace("../..", str(home.parent)))


def links_weights(home: pathlib.Path) -> None:
    names_elsewhere(home)
    (home / "model" / INDEX).unlink()
    (home / "model" / WEIGHTS).symlink_to("../../x.safetensors")


def links_tokenizer(home: pathlib.Path) -> None:
    for folder in (home / "model", home / "run" / "tokenizer"):
        (folder / "special_tokens_map.json").symlink_to(home.parent / "key")


@pytest.mark.parametrize(
    "change", [names_elsewhere, names_absolutely, links_weights, links_tokenizer]
)
def test_a_model_leads_nowhere_but_into_its_folder(change, home, capsys):
    change(home)
    before = sorted(home.rglob("*"))
    model, out = str(home / "model"), ("--out", str(home / "out"))
    for command in (
        ("generate", "--model", model, "--prompt", "0"),
        ("merge", model, model, "--method", "mean", *out),
        ("export", model, *out),
        ("export", model, "--format", "gguf", "--out", str(home / "out.gguf")),
        ("train", "sft", "tokens/arithmetic", "--model", model, *out),
        ("train", "gkd", "tokens/arithmetic", "--model", "tiny", "--teacher", model, *out),
    ):
        assert cli.main(command) == 2, command
        said = capsys.readouterr()
        (line,) = said.err.strip().splitlines()
        assert "must be a name inside" in line or "is a link out of the folder" in line, line
        assert SECRET not in said.out + said.err
        assert sorted(home.rglob("*")) == before


def test_what_is_exported_is_the_tokenizer_of_the_run(home, capsys):
    tokenizer_folder = home / "run" / "tokenizer"
    (tokenizer_folder / "evil.py").write_text("")
    command = ("export", str(home / "run"), "--out")
    assert cli.main((*command, str(home / "out"))) == 0
    kept = {"config.json", "generation_config.json", WEIGHTS}
    kept |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (home / "out").iterdir()} == kept
    merge = ("merge", str(home / "run"), str(home / "model"), "--method", "mean", "--out")
    assert cli.main((*merge, str(home / "merged"))) == 0
    assert {path.name for path in (home / "merged").iterdir()} == kept
    capsys.readouterr()
    links_tokenizer(home)
    for refused in (command, merge):
        assert cli.main((*refused, str(home / "none"))) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "special_tokens_map.json is a link out of the folder" in line
        assert not (home / "none").exists()
    to_gguf = (*command, str(home / "none.gguf"), "--format", "gguf")
    assert cli.main(to_gguf) == 2
    assert "special_tokens_map.json is a link out of the folder" in capsys.readouterr().err
    assert not (home / "none.gguf").exists()
    shutil.move(tokenizer_folder, home.parent / "words")
    tokenizer_folder.symlink_to(home.parent / "words")
    assert cli.main((*command, str(home / "none"))) == 2
    assert "tokenizer is a link out of the folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["logs", "sweep.json"])
def test_a_sweep_writes_where_no_link_leads(name, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    sweep = {"agents": ["dqn"], "environments": ["toy/chain"]}
    with pytest.raises(ValueError, match=f"{name} is a link out of the folder"):
        sweeping.sweep(sweep, out=tmp_path / "out")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_tensor_that_a_folder_names_is_not_exported_from_elsewhere(home, capsys):
    (home / "model.gguf").symlink_to(home.parent / "key")  # Named by the user, and yet no model.
    assert cli.main(("export", str(home / "model.gguf"), "--out", str(home / "out"))) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model.gguf is no GGUF file" in line and SECRET not in line
    assert not (home / "out").exists()


def test_a_pipe_that_a_user_names_is_not_waited_for(tmp_path: pathlib.Path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for read in (archives.read, json_files.read, weights.read, lambda p: [*data.read_rows(p)]):
        for path in (pipe, link):
            with pytest.raises(ValueError, match=f"{path} is no regular file"):
                read(path)
    with pytest.raises(ValueError, match="is no regular file"):
        sweeping.sweep(pipe, out=tmp_path / "out")

"""Tests of experiments/commands/export.py, and of experiments/runs/exports.py."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from kullback.core import checkpoints, trees
from kullback.experiments import cli
from kullback.experiments.commands import export
from kullback.experiments.runs import model_files, models, plans, run_folder, sights
from kullback.lm import forms, gemma, terms, tokenizer
from kullback.lm.formats import gguf_files, gguf_writer, hugging_face
from tests import small_models
from tests.lm import tokenizer_test
from tests.lm.formats import gguf_gemma_test

BPE = tokenizer.train_bpe(tokenizer_test.TEXTS, 300)
CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], vocab_size=300, num_layers=2, embed_dim=32, eos_ids=(1, 5)
)
PARAMS = gguf_gemma_test.random_params(CONFIG)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, root: pathlib.Path) -> pathlib.Path:
    """Makes a model in `folder` and of another operator in `sparse`, and runs in `run`, ..."""
    home = tmp_path_factory.mktemp("models")
    names = tokenizer.save(BPE, home / "tokenizer")
    hugging_face.save(home / "folder", CONFIG, PARAMS, names)
    sparse = {"kullback": {"divergence": "alpha-1.5"}}
    hugging_face.save(home / "sparse", CONFIG, PARAMS, names, sparse)
    plan = plans.Plan(agent="sft", environment="tokens/arithmetic")
    run_folder.RunFolder(home / "run").write_config({"plan": plan.to_json()})
    model_files.save(model_files.Checkpoint(CONFIG, BPE, None), home / "run")
    checkpoints.save(home / "run" / "checkpoints", 1, {"learner": {"params": PARAMS}}, {})
    stored = root / "tests" / "experiments" / "fixtures" / "runs_of_0_1"
    for name in ("compiled", "reward_model", "sft"):
        shutil.copytree(stored / name, home / name)
    (home / "empty").mkdir()
    (home / "notes.txt").write_text("mine")
    return home


@pytest.fixture(autouse=True)
def at_home(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def test_a_run_a_folder_and_a_file_become_the_same_file(home: pathlib.Path, capsys):
    line = ("--format", "gguf", "--quantize", "f32", "--out")
    assert cli.main(("export", "run", *line, "a.gguf")) == 0
    size = (home / "a.gguf").stat().st_size
    assert capsys.readouterr().out == f"GGUF in f32: {size / 1e3:.3g} kB\nmodel: a.gguf\n"
    assert cli.main(("export", "a.gguf", "--out", "of_file")) == 0
    assert cli.main(("export", "of_file", *line, "b.gguf")) == 0
    assert cli.main(("export", "b.gguf", *line, "c.gguf")) == 0
    first = gguf_files.read("a.gguf")
    for name in ("b.gguf", "c.gguf"):
        other = gguf_files.read(name)
        assert other.tensors.keys() == first.tensors.keys()
        for key, tensor in other.tensors.items():
            np.testing.assert_array_equal(tensor.data, first.tensors[key].data, err_msg=key)
        differing = {k for k, v in first.metadata.items() if other.metadata.values[k] != v}
        assert differing == {"general.name"}
    loaded = models.load("b.gguf")
    assert loaded.tokenizer.fingerprint == BPE.fingerprint
    assert loaded.config == dataclasses.replace(CONFIG, vocab_size=BPE.vocab_size)
    expected = trees.named_leaves(PARAMS)
    for name, x in trees.named_leaves(models.load("of_file").params).items():
        exact = expected[name][: len(x)] if name == "embedding" else expected[name]
        np.testing.assert_allclose(x, exact, atol=5e-7 if "norm" in name else 0)


def test_half_precision_is_the_default_and_operators_are_noted(home: pathlib.Path, capsys):
    assert cli.main(("export", "sparse", "--format", "gguf", "--out", "sparse.gguf")) == 0
    out = capsys.readouterr().out
    assert "GGUF in f16" in out and "its operator is that of alpha-1.5" in out
    assert gguf_files.read("sparse.gguf").tensors["token_embd.weight"].kind == "F16"
    assert models.load("sparse.gguf").divergence == "alpha-1.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("folder --out x --format gguf", "must be a file *.gguf for --format gguf, got x"),
        ("folder --out x.gguf", "--out x.gguf is of GGUF: add --format gguf"),
        ("folder --out x --quantize q8_0", "--quantize is of GGUF: add --format gguf"),
        ("folder --out notes.txt", "notes.txt exists; nothing is overwritten"),
        ("folder --seed 1 --out x", "folder is no run of a language model: it has no seeds"),
        ("nowhere --out x", "nowhere is no model: expected"),
        ("empty --out x.gguf --format gguf", "empty is no model: expected"),
        ("notes.txt --out x.gguf --format gguf", "notes.txt is no model"),
        ("compiled --out x.gguf --format gguf", "which is no language model"),
        ("reward_model --out x.gguf --format gguf", "reward_model is a run of a reward model"),
        ("run --seed 7 --out x.gguf --format gguf", "run has seeds 0 to 0, not 7"),
        ("sft --out x.gguf --format gguf", "has no merges, and llama.cpp asks for some"),
        (
            "sft --out x.gguf --format gguf --quantize q4_0",
            "keep to --format hugging-face",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_line(
    arguments: str, message: str, home: pathlib.Path, capsys
):
    before = sorted(home.rglob("*"))
    assert cli.main(("export", *arguments.split())) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert message in line and not said.out
    assert sorted(home.rglob("*")) == before


def test_terms_go_with_a_file(home: pathlib.Path, capsys):
    shutil.copytree(home / "folder", home / "derived")
    terms.write(home / "derived", terms.GEMMA.notice)
    (home / "out").mkdir()
    line = ("export", "derived", "--format", "gguf", "--out")
    assert cli.main((*line, "out/m.gguf")) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("terms: out/NOTICE, which goes")
    assert (home / "out" / "NOTICE").read_text() == terms.GEMMA.notice
    (home / "out" / "NOTICE").unlink()
    assert cli.main(("export", "out/m.gguf", "--out", "of_derived")) == 0
    assert (home / "of_derived" / "NOTICE").read_text() == terms.GEMMA.notice
    (home / "out" / "NOTICE").write_text("Another one.")
    assert cli.main((*line, "out/n.gguf")) == 2
    assert "out/NOTICE is another notice than that of the weights" in capsys.readouterr().err
    assert not (home / "out" / "n.gguf").exists()


@pytest.fixture(scope="module")
def sees(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_models.that_sees(tmp_path_factory.mktemp("sees"), num_merges=1)


def leaves(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all parameters of a model that sees, and how it prepares images."""
    read = models.load(path, modality=forms.IMAGES)
    assert read.images is not None
    return trees.named_leaves({"encoder": read.images.params, "model": read.params})


def test_a_model_that_sees_is_two_files_and_their_folder_again(
    sees: pathlib.Path, tmp_path: pathlib.Path, monkeypatch, capsys, caplog
):
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    line = ("export", str(sees), "--format", "gguf", "--quantize", "f32", "--out")
    out, beside, again = (tmp_path / name for name in ("m.gguf", "mmproj-m.gguf", "again"))
    assert cli.main((*line, str(out))) == 0
    size = out.stat().st_size + beside.stat().st_size
    assert capsys.readouterr().out.splitlines() == [
        f"GGUF in f32: {size / 1e3:.3g} kB",
        f"model: {out}",
        f"images: {beside}, which goes with it",
    ]
    assert cli.main(("export", str(out), "--out", str(again))) == 0
    expected = leaves(sees)
    one, two = (models.load(path, modality=forms.IMAGES).images for path in (sees, out))
    assert one is not None and two is not None
    assert (one.config, one.preparation) == (two.config, two.preparation)
    assert (one.fingerprint, sights.of_model(out).images.fingerprint) == (two.fingerprint,) * 2
    for path in (out, again):
        read = leaves(path)
        assert read.keys() == expected.keys()
        for name, x in read.items():
            is_stored_otherwise = name.startswith("model/") and "norm" in name  # As 1 + w.
            np.testing.assert_allclose(
                x, expected[name], atol=5e-7 if is_stored_otherwise else 0, rtol=0, err_msg=name
            )
    assert "images are ignored" not in caplog.text
    assert models.load(out).images is None
    assert f"images are ignored: what reads them, {beside}, is left out" in caplog.text

    # A file that stands there would be taken for the new one's images.
    beside.rename(tmp_path / "mmproj-n.gguf")
    assert cli.main((*line, str(tmp_path / "n.gguf"))) == 2
    assert f"{tmp_path}/mmproj-n.gguf exists" in capsys.readouterr().err
    assert cli.main(("generate", f"--model={out}", "--prompt=n", "--image=a.png")) == 2
    assert f"looked for in {beside}, which is missing" in capsys.readouterr().err
    encoded = gguf_writer._encoded

    def broken(tensor: gguf_writer.Tensor, numbers: np.ndarray) -> np.ndarray:
        if tensor.name.startswith("blk."):
            raise ValueError("full")
        return encoded(tensor, numbers)

    monkeypatch.setattr(gguf_writer, "_encoded", broken)
    assert cli.main((*line, str(tmp_path / "o.gguf"))) == 2
    assert not [*tmp_path.glob("*o.gguf")]


def test_names_are_those_of_the_format():
    assert export.QUANTIZATIONS == gguf_writer.QUANTIZATIONS
    assert export.SUFFIX == gguf_files.SUFFIX

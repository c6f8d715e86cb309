"""Tests of experiments/runs/models.py."""

import dataclasses
import pathlib

import gguf
import jax
import numpy as np
import pytest

from kullback.experiments.runs import converted, models
from kullback.lm import terms
from kullback.lm.formats import gguf_gemma
from tests import gguf_models
from tests.lm import tokenizer_test
from tests.lm.formats import gguf_gemma_test, gguf_vocabulary_test

CONFIG = dataclasses.replace(gguf_gemma_test.CONFIG, vocab_size=400, num_layers=1)


def write_gguf(path: pathlib.Path, license: str | None = None) -> pathlib.Path:
    """Writes a small model with a tokenizer."""
    params = gguf_gemma_test.random_params(CONFIG)
    add = gguf_vocabulary_test.pieces(tokenizer_test.sentencepiece_model())

    def metadata(writer: gguf.GGUFWriter) -> None:
        gguf_models.describe(writer, CONFIG)
        add(writer)
        for role, number in {"bos": 2, "eos": 1, "pad": 0, "unk": 3}.items():
            getattr(writer, f"add_{role}_token_id")(number)
        if license is not None:
            writer.add_license(license)

    gguf_models.write(path, gguf_models.tensors_of(CONFIG, params), metadata)
    return path


def test_a_gguf_file_is_a_model(tmp_path: pathlib.Path):
    config, path = CONFIG, write_gguf(tmp_path / "m.gguf")
    loaded = models.load(path)
    assert loaded.config == dataclasses.replace(config, eos_ids=(1, 5))  # The end of a turn, too.
    assert loaded.model.num_ids == loaded.tokenizer.vocab_size < 400
    text = "The cat sat"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    with pytest.raises(ValueError, match="it has no seeds and no best"):
        models.load(path, seed=1)


def test_a_large_gguf_file_is_converted_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "m.gguf", license="gemma")
    small = models.load(path)
    assert not (tmp_path / "cache").exists() and small.notice == terms.GEMMA.notice
    monkeypatch.setattr(converted, "LEAST_BYTES", 1)
    first = models.load(path)
    assert f"m.gguf, converted is kept in {tmp_path}/cache/models/file-" in capsys.readouterr().err
    monkeypatch.setattr(gguf_gemma, "load", None)  # The file is not read again.
    again = models.load(path)
    assert capsys.readouterr().err == ""
    for loaded in (first, again):
        jax.tree.map(np.testing.assert_array_equal, loaded.params, small.params)
        assert (loaded.config, loaded.origin) == (small.config, small.origin)
        assert loaded.notice == small.notice
        assert loaded.tokenizer.fingerprint == small.tokenizer.fingerprint
    assert models.tokenizer_of(path).fingerprint == small.tokenizer.fingerprint
    monkeypatch.undo()
    changed = bytearray(path.read_bytes())
    changed[-2] ^= 1
    path.write_bytes(changed)
    assert models.load(path).origin != small.origin


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(converted, "LEAST_BYTES", 1)
    assert models.load(write_gguf(tmp_path / "m.gguf")).params is not None
    assert "m.gguf is converted for this command alone: " in capsys.readouterr().err


def test_flags_are_read_before_a_file_is(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"storage must be float32 or int8 .* got 'int3'"):
        models.load(tmp_path / "missing.gguf", flags=("storage=int3",))
    with pytest.raises(ValueError, match="unknown field 'stroage'"):
        models.load(tmp_path / "missing.gguf", flags=("stroage=int8",))


def test_a_preset_is_no_trained_model():
    with pytest.raises(ValueError, match=r"random weights .*; pretrained:gemma3-270m has"):
        models.load("gemma3-270m")


def test_a_run_has_a_tokenizer_for_other_models(root: pathlib.Path):
    run = root / "tests" / "experiments" / "fixtures" / "runs_of_0_1" / "sft"
    trained = models.load(run).tokenizer
    assert models.tokenizer_of(run).fingerprint == trained.fingerprint

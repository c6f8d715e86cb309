"""Tests of experiments/runs/models.py."""

import dataclasses
import pathlib

import gguf
import pytest

from kullback.experiments.runs import models
from tests import gguf_models
from tests.lm import tokenizer_test
from tests.lm.formats import gguf_gemma_test, gguf_vocabulary_test


def test_a_gguf_file_is_a_model(tmp_path: pathlib.Path):
    config = dataclasses.replace(gguf_gemma_test.CONFIG, vocab_size=400)
    params = gguf_gemma_test.random_params(config)
    add = gguf_vocabulary_test.pieces(tokenizer_test.sentencepiece_model())

    def metadata(writer: gguf.GGUFWriter) -> None:
        gguf_models.describe(writer, config)
        add(writer)
        for role, number in {"bos": 2, "eos": 1, "pad": 0, "unk": 3}.items():
            getattr(writer, f"add_{role}_token_id")(number)

    path = tmp_path / "m.gguf"
    gguf_models.write(path, gguf_models.tensors_of(config, params), metadata)
    loaded = models.load(path)
    assert loaded.config == dataclasses.replace(config, eos_ids=(1, 5))  # The end of a turn, too.
    assert loaded.model.num_ids == loaded.tokenizer.vocab_size < 400
    text = "The cat sat"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    with pytest.raises(ValueError, match="it has no seeds and no best"):
        models.load(path, seed=1)

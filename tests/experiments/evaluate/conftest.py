"""Folders of a small model that writes letters, with a chat template and without one."""

import pathlib

import jax
import numpy as np
import pytest

from kullback.lm import chat, gemma, tokenizer
from kullback.lm.formats import hugging_face


def write(folder: pathlib.Path, bpe: tokenizer.Tokenizer) -> pathlib.Path:
    """Writes an untrained model, of which top-k draws letters, digits and signs only."""
    config = gemma.Config(
        vocab_size=bpe.vocab_size,
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        hidden_dim=16,
        window=8,
        query_scale=8.0,
        pattern=2,
        context_length=256,
        bos_id=bpe.bos_id,
        eos_ids=bpe.eos_ids,
        pad_id=bpe.pad_id,
    )
    params = jax.jit(gemma.make(config).init)(jax.random.key(0))
    is_sign = np.array([piece.isascii() and piece.isalnum() for piece in bpe.pieces])
    params["embedding"] = params["embedding"] * is_sign[:, None]  # Else logits are 0.
    files = tokenizer.save(bpe, folder / "tokenizer")
    hugging_face.save(folder / "model", config, params, files)
    return folder / "model"


@pytest.fixture(scope="session")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    bpe = tokenizer.train_bpe(["user\nmodel\n"], 262)
    return write(tmp_path_factory.mktemp("untuned"), bpe)


@pytest.fixture(scope="session")
def converses(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    bpe = chat.with_template(tokenizer.train_bpe(["user\nmodel\n"], 262))
    return write(tmp_path_factory.mktemp("converses"), bpe)

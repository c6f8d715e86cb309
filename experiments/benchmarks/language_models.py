"""The language models that are timed: shapes, prompts, and how they are told to peers."""

import dataclasses
import json

import numpy as np

from kullback.lm import batches, gemma
from kullback.lm.formats import hugging_face_config

SMALL = gemma.Config(
    vocab_size=8_192,
    num_layers=4,  # All of them local.
    embed_dim=256,
    num_heads=4,
    num_kv_heads=1,
    head_dim=64,
    hidden_dim=1_024,
    window=64,
    query_scale=64.0,
    context_length=128,
)
STUDENT = dataclasses.replace(SMALL, num_layers=2)
LONG = dataclasses.replace(SMALL, num_layers=6, window=512, context_length=2_048)  # One is global.


def tokens(config: gemma.Config, rows: int, length: int) -> np.ndarray:
    """Draws random text, int32 [rows, length], without special tokens."""
    special = {config.bos_id, config.pad_id, *config.eos_ids}
    others = np.setdiff1d(np.arange(config.vocab_size, dtype=np.int32), sorted(special))
    return others[np.random.default_rng(0).integers(0, len(others), (rows, length), np.int32)]


def prompts(config: gemma.Config, rows: int, length: int) -> batches.Prompts:
    """Draws prompts of random text, all of one length."""
    return batches.Prompts(tokens(config, rows, length), np.full(rows, length, np.int32))


def answered(
    config: gemma.Config, rows: int, length: int, num_prompt: int = 1
) -> batches.Sequences:
    """Draws rows of random text, all of one length, whose tokens are answers after `num_prompt`."""
    return whole(tokens(config, rows, length), num_prompt)


def whole(text: np.ndarray, num_prompt: int) -> batches.Sequences:
    """Returns rows without padding, int32 [rows, length], answers after `num_prompt` tokens."""
    place = np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape)
    lengths = np.full(len(text), text.shape[1], np.int32)
    return batches.Sequences(text, place >= num_prompt, place, np.ones_like(text), lengths)


def described(config: gemma.Config) -> str:
    """Returns a config.json as transformers writes it, for programs of peers."""
    return json.dumps(hugging_face_config.to_json(config, "float32"))

"""Writes random Gemma 3 models as GGUF files, for `run_gguf.py`: FOLDER.

Beside FOLDER/NAME.gguf, NAME.npz has tokens int32 [T] and our log-probabilities float32 [T, V] of
what follows each, by the numbers that are read from the file again; NAME.json has the ids of texts.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np

from kullback.lm import gemma, tokenizer
from kullback.lm.formats import gguf_files, gguf_gemma, gguf_pieces, gguf_writer, stacked_layers
from tests.lm import tokenizer_test

LENGTH = 60  # Tokens, several times the window.
_SMALL = dataclasses.replace(
    gemma.PRESETS["tiny"], embed_dim=32, hidden_dim=64, global_rope_factor=8.0
)
MODELS = {
    "small": _SMALL,
    # What the file says where it differs from what llama.cpp takes for granted.
    "other_pattern": dataclasses.replace(_SMALL, pattern=3, local_rope_theta=300.0, window=5),
    # llama.cpp knows the largest model by its layers, and scales its queries otherwise.
    "deep": dataclasses.replace(_SMALL, num_layers=62, head_dim=16),
}


def tokenizers() -> dict[str, tokenizer.Tokenizer]:
    """Returns one tokenizer of each kind that GGUF has."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.model"
        path.write_bytes(tokenizer_test.sentencepiece_model())
        pieces = tokenizer.load(path)
    return {"bytes": tokenizer.train_bpe(tokenizer_test.TEXTS, 330), "pieces": pieces}


def random_params(config: gemma.Config):
    """Returns parameters whose scales and matrices hide nothing, as zeros would."""
    params = gemma.make(config).init(jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), params)


def main(folder: pathlib.Path) -> None:
    """Writes all models, each with the tokenizers and types of numbers that go with it."""
    jax.config.update("jax_default_matmul_precision", "highest")
    folder.mkdir(parents=True)
    for kind, source in tokenizers().items():
        for name, config in MODELS.items():
            config = dataclasses.replace(
                config, vocab_size=source.vocab_size + 6, eos_ids=source.eos_ids
            )
            tensors = stacked_layers.of_params(config, random_params(config))
            few = gguf_writer.QUANTIZATIONS if name == "small" else ("f32",)
            for quantization in few:
                write(folder / f"{name}-{kind}-{quantization}", config, source, tensors)


def write(path: pathlib.Path, config: gemma.Config, source: tokenizer.Tokenizer, tensors) -> None:
    """Writes a model, and what we compute of it."""
    quantization = path.name.rpartition("-")[2]
    file = path.with_name(f"{path.name}.gguf")
    plan = gguf_writer.plan(config, source, quantization, name=path.name)
    gguf_writer.write(file, plan, tensors)
    config, params, _ = gguf_gemma.load(gguf_files.read(file))
    tokens = np.random.default_rng(2).integers(6, config.vocab_size, LENGTH, np.int32)
    tokens[0] = config.bos_id
    logits = jax.jit(gemma.make(config).apply)(params, tokens[None])[0]
    np.savez(f"{path}.npz", tokens=tokens, log_probs=jax.nn.log_softmax(logits))
    ids = {text: source.encode(text) for text in gguf_pieces.TEXTS}
    path.with_name(f"{path.name}.json").write_text(json.dumps(ids))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

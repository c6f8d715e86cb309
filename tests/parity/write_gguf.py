"""Writes random Gemma 3 models as GGUF files, for `run_gguf.py`: FOLDER.

Beside FOLDER/NAME.gguf, NAME.npz has tokens int32 [T] and our log-probabilities float32 [T, V] of
what follows each, by the numbers that are read from the file again; NAME.json has the ids of texts.
A model that sees is FOLDER/seeing/NAME.gguf, with its images' file beside it; there NAME.json has a
prompt, in which llama.cpp's marker is the place of the picture NAME.png, and NAME.npz log_probs [V]
of what follows it.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
from PIL import Image

from kullback.lm import blocks, gemma, pictures, siglip, tokenizer, vision
from kullback.lm.formats import (
    gguf_files,
    gguf_gemma,
    gguf_pieces,
    gguf_vision,
    gguf_writer,
    stacked_layers,
)
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
    write_seeing(folder / "seeing")
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


def write_seeing(folder: pathlib.Path) -> None:
    """Writes a model that sees, and what we compute of a prompt with a picture."""
    folder.mkdir()
    source = tokenizer.train_bpe(tokenizer_test.TEXTS, 330, further_controls=blocks.IMAGE_TOKENS)
    config = dataclasses.replace(_SMALL, vocab_size=source.vocab_size, eos_ids=source.eos_ids)
    ids = blocks.image_ids(source)
    encoder = siglip.Config(
        image_size=56, patch_size=7, embed_dim=24, num_layers=2, num_heads=3, hidden_dim=40
    )
    eye_config = vision.Config(encoder=encoder, num_soft=16, ids=ids)
    random = np.random.default_rng(3)
    params = siglip.make(encoder).init(jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape), params)
    projector = vision.init_projector(jax.random.key(2), eye_config, config.embed_dim)
    projector["norm"] = projector["norm"] + 0.3 * random.normal(size=encoder.embed_dim)
    eye = jax.tree.map(np.float32, vision.Eye(eye_config, params, projector)[1:])
    path, width = folder / "small-f32.gguf", config.embed_dim
    preparation = pictures.Config(side=encoder.image_size)
    plan = gguf_vision.plan(eye_config, width, preparation, "f32", name="small")
    gguf_vision.write(gguf_vision.beside(path), plan, vision.Eye(eye_config, *eye), width)
    plan = gguf_writer.plan(config, source, "f32", name="small")
    gguf_writer.write(path, plan, stacked_layers.of_params(config, random_params(config)))

    config, decoder, _ = gguf_gemma.load(gguf_files.read(path))
    beside = gguf_files.read(gguf_vision.beside(path))
    read, preparation = gguf_vision.load(beside, config.embed_dim, ids)
    pixels = random.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    image = pictures.normalized(pictures.views(pixels, preparation), preparation)
    pooled = vision.pooled(read.config, read.encoder, image)
    soft = vision.project(read.config, read.projector, pooled)
    before, after = "The cat ", " sat on"
    # llama.cpp puts nothing around a picture.
    block = [ids.begin, *[ids.soft] * read.config.num_soft, ids.end]
    row = [config.bos_id, *source.encode(before), *block, *source.encode(after)]
    tokens = np.array([row], np.int32)
    groups = blocks.groups(tokens, blocks.Markers(image=ids))
    logits = gemma.make(config).apply(decoder, tokens, soft=soft, groups=groups)[0, -1]
    alone = np.where(groups >= 0, np.arange(groups.shape[1]), groups).astype(groups.dtype)
    causal = gemma.make(config).apply(decoder, tokens, soft=soft, groups=alone)[0, -1]
    print("without looking ahead within the picture:", np.abs(logits - causal).max())
    np.savez(path.with_suffix(".npz"), log_probs=jax.nn.log_softmax(logits))
    path.with_suffix(".json").write_text(json.dumps([before, after]))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

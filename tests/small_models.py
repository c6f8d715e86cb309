"""Small models: folders of models that write letters, one of which sees images, and a shape."""

import pathlib
from typing import Any

import jax
import numpy as np

from kullback.lm import blocks, chat, forms, gemma, siglip, tokenizer, vision
from kullback.lm.formats import hugging_face, vision_files


def shape(vocab_size: int, **sizes: Any) -> gemma.Config:
    """Returns the shape of a small decoder: a local layer, of a short window, and a global one.

    Args:
      vocab_size: number of its tokens.
      **sizes: further fields, in place of those that it has.
    """
    small: dict[str, Any] = {
        **{"num_layers": 2, "pattern": 2, "window": 4, "embed_dim": 16, "hidden_dim": 32},
        **{"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "query_scale": 8.0},
    }
    return gemma.Config(vocab_size=vocab_size, **{**small, **sizes})


def shape_for(bpe: tokenizer.Tokenizer, **sizes: Any) -> gemma.Config:
    """Returns such a shape of a tokenizer's tokens, with its ids of begin, end and padding."""
    ids = {"bos_id": bpe.bos_id, "eos_ids": bpe.eos_ids, "pad_id": bpe.pad_id}
    return shape(**{"vocab_size": bpe.vocab_size, **ids, **sizes})


def divisible(bpe: tokenizer.Tokenizer) -> gemma.Config:
    """Returns the shape of a model that two devices divide, whatever is cut."""
    # Two tokens more than the tokenizer has.
    return shape_for(bpe, vocab_size=264, pattern=1, num_kv_heads=2)


def write(
    folder: pathlib.Path,
    bpe: tokenizer.Tokenizer,
    eye: vision.Eye | None = None,
    seed: int = 0,
    embed_dim: int = 16,
) -> pathlib.Path:
    """Writes an untrained model, of which top-k draws letters, digits and signs only."""
    sizes = {"embed_dim": embed_dim, "hidden_dim": 16, "window": 8, "context_length": 256}
    config = shape_for(bpe, **sizes)
    params = jax.jit(gemma.make(config).init)(jax.random.key(seed))
    is_sign = np.array([piece.isascii() and piece.isalnum() for piece in bpe.pieces])
    params["embedding"] = params["embedding"] * is_sign[:, None]  # Else logits are 0.
    files = tokenizer.save(bpe, folder / "tokenizer")
    if eye is None:
        hugging_face.save(folder / "model", config, params, files)
    else:
        vision_files.save(folder / "model", config, params, eye, files)
    return folder / "model"


def that_sees(
    folder: pathlib.Path, seed: int = 0, embed_dim: int = 16, num_merges: int = 0
) -> pathlib.Path:
    """Writes a model that sees images of 8 pixels, 4 soft tokens each; the encoder is always one.

    Args:
      folder: in which a folder of the model is made.
      seed: of decoder and projector.
      embed_dim: of the decoder.
      num_merges: of its tokenizer.
    """
    text = ["user\nmodel\n\n\n"]
    bpe = tokenizer.train_bpe(text, 265 + num_merges, further_controls=blocks.IMAGE_TOKENS)
    bpe = chat.with_template(bpe, forms.IMAGES)
    encoder = siglip.Config(
        image_size=8, patch_size=2, embed_dim=6, num_layers=1, num_heads=2, hidden_dim=8
    )
    config = vision.Config(encoder=encoder, num_soft=4, ids=blocks.image_ids(bpe))
    random = np.random.default_rng(0)
    like = jax.eval_shape(siglip.make(encoder).init, jax.random.key(0))
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), like)
    projector = vision.init_projector(jax.random.key(1 + seed), config, embed_dim)
    return write(folder, bpe, vision.Eye(config, params, projector), seed, embed_dim)

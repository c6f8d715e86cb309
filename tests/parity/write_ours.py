"""Writes random Gemma 3 models as Hugging Face's folders, for `load_ours.py`: FOLDER.

FOLDER/NAME is the model; FOLDER/NAME.npz has tokens int32 [B, T] and our logits [B, T, V]; of one
that sees, images float32 [N, S, S, 3] besides, of all rows in order.
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np

from kullback.core import types
from kullback.lm import blocks, gemma, siglip, vision
from kullback.lm.formats import hugging_face, vision_files

MODELS = {
    "tiny": gemma.PRESETS["tiny"],
    "scaled_rope": dataclasses.replace(
        gemma.PRESETS["tiny"], num_layers=13, global_rope_factor=8.0, eos_ids=(1, 106), window=5
    ),
    "other_pattern": dataclasses.replace(
        gemma.PRESETS["tiny"], pattern=4, num_kv_heads=4, local_rope_theta=300.0, query_scale=11.0
    ),
}


VISION = vision.Config(
    encoder=siglip.Config(
        image_size=24, patch_size=4, embed_dim=12, num_layers=3, num_heads=2, hidden_dim=20
    ),
    num_soft=9,
    ids=blocks.Delimiters(begin=120, soft=122, end=121),
)


def randomised(params: types.Params) -> types.Params:
    """Adds noise: scales and biases begin as zeros, which would hide one another."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise, strict=True)])


def write_seeing(folder: pathlib.Path) -> None:
    """Writes a model that sees, whose window is shorter than an image."""
    config = dataclasses.replace(MODELS["scaled_rope"], eos_ids=(1,))
    model, key = gemma.make(config), jax.random.key(0)
    params = randomised(model.init(key))
    encoder = randomised(siglip.make(VISION.encoder).init(key))
    projector = randomised(vision.init_projector(key, VISION, config.embed_dim))
    vision_files.save(folder / "seeing", config, params, vision.Eye(VISION, encoder, projector))
    image = [VISION.ids.begin, *[VISION.ids.soft] * VISION.num_soft, VISION.ids.end]
    tokens = np.array([[2, 5, *image, 7, 8, *image, 9, 3]], np.int32)
    groups = blocks.groups(tokens, blocks.Markers(image=VISION.ids))
    images = jax.random.uniform(key, (2, 24, 24, 3), minval=-1.0)
    pooled = vision.pooled(VISION, encoder, images)
    soft = vision.project(VISION, projector, pooled).reshape(1, -1, config.embed_dim)
    logits = jax.jit(model.apply)(params, tokens, soft=soft, groups=groups)
    np.savez(folder / "seeing.npz", tokens=tokens, logits=logits, images=images)


def main(folder: pathlib.Path) -> None:
    """Writes all models."""
    jax.config.update("jax_default_matmul_precision", "highest")
    for name, config in MODELS.items():
        model = gemma.make(config)
        params = randomised(model.init(jax.random.key(0)))
        tokens = jax.random.randint(jax.random.key(2), (2, 24), 0, config.vocab_size)
        hugging_face.save(folder / name, config, params)
        np.savez(folder / f"{name}.npz", tokens=tokens, logits=model.apply(params, tokens))
    write_seeing(folder)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""Writes random Gemma 3 models as Hugging Face's folders, for `load_ours.py`: FOLDER.

FOLDER/NAME is the model; FOLDER/NAME.npz has tokens int32 [B, T] and our logits [B, T, V].
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np

from kullback.lm import gemma
from kullback.lm.formats import hugging_face

MODELS = {
    "tiny": gemma.PRESETS["tiny"],
    "scaled_rope": dataclasses.replace(
        gemma.PRESETS["tiny"], num_layers=13, global_rope_factor=8.0, eos_ids=(1, 106), window=5
    ),
    "other_pattern": dataclasses.replace(
        gemma.PRESETS["tiny"], pattern=4, num_kv_heads=4, local_rope_theta=300.0, query_scale=11.0
    ),
}


def main(folder: pathlib.Path) -> None:
    """Writes all models."""
    jax.config.update("jax_default_matmul_precision", "highest")
    for name, config in MODELS.items():
        model = gemma.make(config)
        params = model.init(jax.random.key(0))
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        # The scales begin as zeros, which would hide one another.
        noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        params = jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise, strict=True)])
        tokens = jax.random.randint(jax.random.key(2), (2, 24), 0, config.vocab_size)
        hugging_face.save(folder / name, config, params)
        np.savez(folder / f"{name}.npz", tokens=tokens, logits=model.apply(params, tokens))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""Writes a random Gemma 3 and adapters of it, for `peft_adapters.py load`: FOLDER.

FOLDER/base is the model, FOLDER/peft the adapters; FOLDER/expected.npz has tokens int32 [B, T] and
our logits [B, T, V].
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import trees
from kullback.lm import gemma, lora
from kullback.lm.formats import hugging_face, peft_files

IDS = 17, 5
CONFIG = gemma.PRESETS["tiny"]
SETTINGS = lora.Config(rank=4, alpha=6.5, rslora=True, train_tokens=IDS)


def main(folder: pathlib.Path) -> None:
    """Writes all of it."""
    jax.config.update("jax_default_matmul_precision", "highest")
    model = gemma.make(CONFIG, SETTINGS)
    base = gemma.make(CONFIG).init(jax.random.key(0))
    adapters = model.init(jax.random.key(1))
    leaves, tree = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    adapters = trees.joined(lora.row_ids(IDS), jax.tree.unflatten(tree, noisy))
    tokens = jax.random.randint(jax.random.key(3), (2, 24), 0, CONFIG.vocab_size)
    tokens = tokens.at[0, :2].set(jnp.asarray(IDS))
    hugging_face.save(folder / "base", CONFIG, base)
    given, table = (folder / "peft", CONFIG, SETTINGS, adapters), base["embedding"]
    peft_files.save(*given, base=str(folder / "base"), table=table)
    logits = model.apply(trees.joined(base, adapters), tokens)
    np.savez(folder / "expected.npz", tokens=tokens, logits=logits)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""Images a second through layers of Gemma 3's eye: SigLIP So400m/14, 896 pixels, 4,096 patches.

All 27 layers take 5.5e12 operations an image, most of a minute of two cores. A few are timed, with
patches and norms around them; an image through all of them takes as many times longer.
"""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import platform
from kullback.experiments.benchmarks import flops, machine, peer, rows, timing
from kullback.lm import siglip

LAYERS = 2  # Of 27.
TARGET_RATIO = 1.0
CONFIG = siglip.Config(num_layers=LAYERS)


def encoder(config: siglip.Config = CONFIG) -> Callable[[], float]:
    """Makes a function that encodes an image and returns 1."""
    model = siglip.make(config)
    params = jax.jit(model.init)(jax.random.key(0))
    size = config.image_size
    image = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    program, given = jax.jit(model.apply), jnp.asarray(image)

    def work() -> float:
        return len(program(params, given).block_until_ready())

    work()
    return work


def cost(config: siglip.Config = CONFIG) -> int:
    """Counts the floating-point operations of an image."""
    width, patches = config.embed_dim, config.num_patches
    dense = (
        flops.Layer(3 * width, width),
        flops.Layer(width, width),
        flops.Layer(config.hidden_dim, width),
        flops.Layer(width, config.hidden_dim),
    )
    attention = 2 * 2 * width * patches  # For a patch: scores, and the sum of the values.
    embedding = flops.Layer(width, siglip.CHANNELS * config.patch_size**2).flops
    of_patch = config.num_layers * (flops.forward(dense) + attention) + embedding
    return patches * of_patch


def shape(config: siglip.Config = CONFIG) -> str:
    """Returns the fields of transformers' SiglipVisionConfig, as JSON."""
    return json.dumps(
        {
            "hidden_size": config.embed_dim,
            "intermediate_size": config.hidden_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "layer_norm_eps": config.norm_epsilon,
            "vision_use_head": False,
        }
    )


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside transformers' SiglipVisionModel, as it is and at best."""
    platform.run_large_programs()
    ours = timing.rates({"images": encoder()}, budget.seconds)

    def theirs() -> dict[str, float]:
        rates = run_peer("transformers", "sight", budget.seconds, shape())
        return {f"peer, {key}": rate for key, rate in rates.items()}

    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    whole = dataclasses.replace(CONFIG, num_layers=siglip.Config().num_layers)
    seconds = cost(whole) / cost() / best["images"]
    row = rows.Row(
        name=f"{LAYERS} layers of SigLIP So400m/14, 896 pixels",
        ours=best["images"],
        unit="images/s",
        limit_share=best["images"] * cost() / best["sgemm"],
        details={"sgemm": best["sgemm"], "seconds_of_all_layers": seconds},
    )
    return rows.beside_transformers(row, best, "images", TARGET_RATIO)

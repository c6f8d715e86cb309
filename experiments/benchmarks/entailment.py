"""Pairs a second that a cross-encoder of MiniLM's shape scores: 32 at once, of 128 tokens each."""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import platform
from kullback.experiments.benchmarks import flops, machine, peer, rows, timing
from kullback.lm.entailment import bert, bert_folder

PAIRS, TOKENS = 32, 128
TARGET_RATIO = 1.0
CONFIG = bert.Config(
    kind="bert",
    vocab_size=30_522,
    num_layers=6,
    embed_dim=384,
    num_heads=12,
    hidden_dim=1_536,
    labels=("not_entailment", "entailment"),
)


def scorer(config: bert.Config = CONFIG) -> Callable[[], float]:
    """Makes a function that scores all pairs and returns their number."""
    model = bert.make(config)
    params = jax.jit(model.init)(jax.random.key(0))
    first = 1 + config.pad_id
    ids = np.random.default_rng(0).integers(first, config.vocab_size, (PAIRS, TOKENS), np.int32)
    kinds = np.broadcast_to(np.arange(TOKENS) >= TOKENS // 2, ids.shape).astype(np.int32)
    program = jax.jit(lambda params, *rows: jax.nn.softmax(model.logits(params, *rows)))
    given = [jnp.asarray(x) for x in (ids, np.ones(ids.shape, bool), kinds)]

    def work() -> float:
        return len(np.asarray(program(params, *given)))

    work()
    return work


def cost(config: bert.Config = CONFIG) -> int:
    """Counts the floating-point operations of a pair."""
    width = config.embed_dim
    dense = (
        flops.Layer(3 * width, width),
        flops.Layer(width, width),
        flops.Layer(config.hidden_dim, width),
        flops.Layer(width, config.hidden_dim),
    )
    attention = 2 * 2 * width * TOKENS  # For a token: scores, and the sum of the values.
    head = (flops.Layer(width, width), flops.Layer(len(config.labels), width))
    layers = config.num_layers * TOKENS * (flops.forward(dense) + attention)
    return layers + flops.forward(head)


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside transformers' BertForSequenceClassification, as it is and at best."""
    platform.run_large_programs()
    ours = timing.rates({"pairs": scorer()}, budget.seconds)

    def theirs() -> dict[str, float]:
        shape = json.dumps(bert_folder.to_json(CONFIG))
        rates = run_peer("transformers", "entailment", budget.seconds, PAIRS, TOKENS, shape)
        return {f"peer, {key}": rate for key, rate in rates.items()}

    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    row = rows.Row(
        name=f"entailment of {PAIRS} pairs of {TOKENS} tokens",
        ours=best["pairs"],
        unit="pairs/s",
        limit_share=best["pairs"] * cost() / best["sgemm"],
        details={"sgemm": best["sgemm"]},
    )
    return rows.beside_transformers(row, best, "pairs", TARGET_RATIO)

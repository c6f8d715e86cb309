"""New tokens a second of a Gemma 3 model that samples at temperature 1, prompts included."""

import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from kullback.core import platform
from kullback.experiments.benchmarks import flops, language_models, machine, peer, rows, timing
from kullback.lm import completions, gemma


class Case(NamedTuple):
    """Prompts that are gone on with."""

    config: gemma.Config
    num_rows: int
    prompt_tokens: int
    new_tokens: int
    target_ratios: dict[str, float | None]  # By peer.


CASES = {
    "16 rows": Case(language_models.SMALL, 16, 64, 64, {"transformers": 2.5, "tunix": 1.0}),
    "1 row": Case(language_models.SMALL, 1, 64, 64, {"transformers": 5.0, "tunix": 1.0}),
    "4 rows after 1,984 tokens": Case(language_models.LONG, 4, 1_984, 64, {"transformers": None}),
}


def sampler(case: Case) -> Callable[[], float]:
    """Makes a function that generates the tokens of all rows and returns their number."""
    model = gemma.make(case.config)
    program = jax.jit(completions.sampler(model, case.new_tokens).sequences)
    acting = {"params": jax.jit(model.init)(jax.random.key(0))}
    prompts = language_models.prompts(case.config, case.num_rows, case.prompt_tokens)
    calls = 0

    def work() -> float:
        nonlocal calls
        calls += 1
        sampled = program(acting, prompts, jax.random.key(calls))
        # A row may end early, once in some 8,000 tokens; peers never end one.
        return float(np.asarray(sampled.is_answer).sum())

    work()
    return work


def limit(case: Case, sgemm: float, bandwidth: float) -> float:
    """Bounds the new tokens a second, by operations and by reading all weights for each step.

    Args:
      case: what is done.
      sgemm: FLOP/s.
      bandwidth: bytes/s of memory, or of a cache that holds the weights.
    """
    total = case.prompt_tokens + case.new_tokens - 1  # The last token is not fed back.
    products = case.num_rows * (
        flops.decoder(case.config, range(total)) + case.new_tokens * flops.unembedding(case.config)
    )
    seconds = max(products / sgemm, case.new_tokens * weight_bytes(case) / bandwidth)
    return case.num_rows * case.new_tokens / seconds


def weight_bytes(case: Case) -> int:
    """Returns the bytes of all parameters in float32."""
    return 4 * gemma.num_params(case.config).total


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside transformers' `generate`, and tunix's sampler for short texts."""
    platform.run_large_programs()
    ours = timing.rates({name: sampler(case) for name, case in CASES.items()}, budget.seconds)

    def theirs() -> dict[str, float]:
        by_peer = {}
        for name in ("transformers", "tunix"):
            cases = {n: told(case) for n, case in CASES.items() if name in case.target_ratios}
            rates = run_peer(name, "generation", budget.seconds, json.dumps(cases))
            by_peer |= {f"{name}, {key}": rate for key, rate in rates.items()}
        return by_peer

    copies = [machine.bandwidth(weight_bytes(c), f"bandwidth, {n}") for n, c in CASES.items()]
    best = timing.interleave([machine.sgemm(), *copies, ours, theirs], budget.rounds)
    return [
        rows.Row(
            name=f"generation, {name}",
            ours=best[name],
            unit="tokens/s",
            **rows.of_peer(best, f"{other}, {name}", other),
            target_ratio=target,
            limit_share=best[name] / limit(case, best["sgemm"], best[f"bandwidth, {name}"]),
            details={"sgemm": best["sgemm"], "bandwidth": best[f"bandwidth, {name}"]},
        )
        for name, case in CASES.items()
        for other, target in case.target_ratios.items()
    ]


def told(case: Case) -> list[object]:
    """Describes the case to a peer's program: shape, rows, tokens of the prompt, new tokens."""
    shape = json.loads(language_models.described(case.config))
    return [shape, case.num_rows, case.prompt_tokens, case.new_tokens]

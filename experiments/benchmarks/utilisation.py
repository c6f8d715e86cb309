"""`python -m kullback.experiments.benchmarks.utilisation`: tokens a second, and shares of the peak.

Of a Gemma 3 with random weights: a full pass, a step of supervised fine-tuning, and decoding. The
share is that of the products which the shapes ask for in what the device could do (MFU); and of
decoding the share of its memory's bandwidth, at which all weights would be read once a token.

The peaks are those that makers publish for dense products, if the device is known here, or given
(--peak, --bandwidth); else they are measured.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import platform, trees, types
from kullback.experiments.benchmarks import flops, language_models, machine, timing
from kullback.lm import completions, gemma, sft, tuning


class Peak(NamedTuple):
    """The most that a device can do."""

    half: float  # FLOP/s of bfloat16 products.
    bandwidth: float  # Bytes/s of its memory.


# Peaks by the beginning of a device's name, as in the makers' data sheets; without sparsity.
PEAKS = {
    "NVIDIA A100": Peak(312e12, 2.0e12),
    "NVIDIA H100": Peak(989e12, 3.35e12),
    "NVIDIA H200": Peak(989e12, 4.8e12),
    "NVIDIA L4": Peak(121e12, 0.3e12),
    "TPU v4": Peak(275e12, 1.2e12),
    "TPU v5 lite": Peak(197e12, 0.82e12),
    "TPU v5p": Peak(459e12, 2.77e12),
    "TPU v6 lite": Peak(918e12, 1.64e12),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of what is measured."""

    config: gemma.Config
    rows: int
    length: int  # Tokens of a row, of a pass and of a step.
    prompt: int  # Tokens before those that are decoded.
    new: int  # Tokens that are decoded.


class Workload(NamedTuple):
    """A function that works and returns how many tokens it did, and what one token asks for."""

    run: Callable[[], float]
    flops: float
    num_bytes: float = 0.0


def forward(case: Case) -> Workload:
    """Returns a full pass with the logits of each row's last token."""
    model, rows = gemma.make(case.config), case.rows
    params = _drawn(model)
    tokens = jnp.asarray(language_models.tokens(case.config, rows, case.length))

    @jax.jit
    def program(params: types.Params, tokens: jax.Array) -> jax.Array:
        return model.unembed(params, model.features(params, tokens)[:, -1])

    def run() -> float:
        program(params, tokens).block_until_ready()
        return float(rows * case.length)

    one_row = flops.decoder(case.config, range(case.length)) + flops.unembedding(case.config)
    return Workload(run, one_row / case.length)


def step(case: Case) -> Workload:
    """Returns a step of supervised fine-tuning by Adam, every token an answer."""
    learning = tuning.Config(
        batch_size=case.rows, max_prompt_length=case.length // 2, max_new_tokens=case.length // 2
    )
    learner = sft.make(gemma.make(case.config), config=sft.Config(learning=learning)).learner
    batch = types.Batch.of(language_models.answered(case.config, case.rows, case.length))
    state: Any = jax.jit(learner.init)(jax.random.key(0))
    program = jax.jit(learner.step, donate_argnums=0)

    def run() -> float:
        nonlocal state
        state, _ = program(state, batch)
        jax.block_until_ready(state)
        return float(case.rows * case.length)

    one_row = flops.decoder(case.config, range(case.length))
    one_row += (case.length - 1) * flops.unembedding(case.config)
    return Workload(run, 3 * one_row / case.length)  # The pass, and two products of its gradient.


def decoding(case: Case) -> Workload:
    """Returns the sampling of new tokens after prompts, whose reading counts as no tokens."""
    model = gemma.make(case.config)
    sampler = completions.sampler(model, case.new, stop_tokens=())
    params = _drawn(model)
    prompts = language_models.prompts(case.config, case.rows, case.prompt)
    program, calls = completions.compiled(sampler.completions), 0

    def run() -> float:
        nonlocal calls
        calls += 1
        sampled = program({"params": params}, prompts, jax.random.key(calls))
        return float(np.asarray(sampled.length).sum())

    one_row = flops.decoder(case.config, range(case.prompt + case.new - 1))
    one_row += case.new * flops.unembedding(case.config)
    return Workload(run, one_row / case.new, trees.num_bytes(params) / case.rows)


def _drawn(model: gemma.Model) -> types.Params:
    """Draws weights in the type of the computation, which a step alone keeps in float32."""

    def draw(key: types.Key) -> types.Params:
        return jax.tree.map(lambda x: x.astype(model.config.dtype), model.init(key))

    return jax.jit(draw)(jax.random.key(0))


WORK: dict[str, Callable[[Case], Workload]] = {
    "forward": forward,
    "step": step,
    "decoding": decoding,
}


def peak(given: float | None, bandwidth: float | None, dtype: str) -> tuple[Peak, str]:
    """Returns the peaks of the device, and where they are from.

    Args:
      given: FLOP/s of the computation's type, or None.
      bandwidth: bytes/s, or None.
      dtype: of the computation.
    """
    kind = jax.devices()[0].device_kind
    known = next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)
    source = "given"
    if known is None or dtype != "bfloat16":
        measured = machine.product(dtype)()["product"], machine.bandwidth(2**28)()["bandwidth"]
        known, source = Peak(*measured), "measured"
    elif given is None or bandwidth is None:
        source = "published"
    return Peak(given or known.half, bandwidth or known.bandwidth), source


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each kind of work; exit status 0."""
    parser = argparse.ArgumentParser(prog="utilisation", description=__doc__)
    parser.add_argument("--preset", default="gemma3-1b", choices=list(gemma.PRESETS))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1_024, help="tokens of a row")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128, help="tokens that are decoded")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--peak", type=float, help="FLOP/s of the device")
    parser.add_argument("--bandwidth", type=float, help="bytes/s of its memory")
    parser.add_argument("--work", action="append", choices=list(WORK), help="default: all")
    options = parser.parse_args(arguments)
    for name in ("rows", "length", "prompt", "new"):
        if getattr(options, name) < 2:
            parser.error(f"--{name} must be >= 2, got {getattr(options, name)}")
    platform.run_large_programs()
    config = dataclasses.replace(gemma.PRESETS[options.preset], dtype=options.dtype)
    case = Case(
        config=config,
        rows=options.rows,
        length=options.length,
        prompt=options.prompt,
        new=options.new,
    )
    most, source = peak(options.peak, options.bandwidth, options.dtype)
    kind = jax.devices()[0].device_kind
    print(
        f"{options.preset} in {options.dtype} on {kind}: peaks of {most.half / 1e12:.4g} TFLOP/s "
        f"and {most.bandwidth / 1e9:.4g} GB/s, {source}"
    )
    for name in options.work or WORK:
        work = WORK[name](case)
        work.run()  # It compiles.
        rate = timing.best_rate(work.run, options.seconds)
        line = f"{name:8} {rate:12,.1f} tokens/s {rate * work.flops / most.half:8.1%} of the peak"
        if work.num_bytes:
            line += f" {rate * work.num_bytes / most.bandwidth:8.1%} of the bandwidth"
        print(line, flush=True)
        del work  # Its arrays, before the next ones come.
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Our side of the work on a published model, in a process that does nothing else.

`python -m kullback.experiments.benchmarks.published_work KIND SECONDS SIZES MODEL` prints rates, in
tokens or steps a second, seconds to a first token, and the peak of the memory. KIND is a name of
WORK, SIZES its JSON list.
"""

import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kullback.core import platform, sequences, trees, types
from kullback.environments import tokens
from kullback.experiments import cache, programs
from kullback.experiments.benchmarks import language_models, machine, reinforce, timing
from kullback.experiments.evaluate import generate
from kullback.experiments.runs import exports, model_files, models, pretrained
from kullback.lm import batches, gemma, lora, sft, tuning

Figures = dict[str, float]
FOLDER, FILE = "transformers", "model.gguf"  # In the folder that peers read.
NOISE = 0.01  # Of adapters that are merged, as after some hundred steps.


def generation(model: str, seconds: float, sizes: Sequence[int]) -> Figures:
    """Measures texts that are written side by side, as `kullback generate` writes them.

    Args:
      model: a folder, a file, or pretrained:NAME.
      seconds: of the measurement.
      sizes: texts, tokens of a prompt, new tokens of each.
    """
    rows, prompt_tokens, new_tokens = sizes
    checkpoint = endless(models.load(model))
    writer = generate.Writer(checkpoint=checkpoint, max_new_tokens=new_tokens)
    prompts = language_models.tokens(checkpoint.config, rows, prompt_tokens).tolist()
    calls, firsts = 0, list[float]()

    def work() -> float:
        nonlocal calls
        calls += 1
        num_tokens, first = write(writer, prompts, calls)
        firsts.append(first)
        return num_tokens

    work()  # Compiles.
    firsts.clear()
    rate = timing.best_rate(work, seconds)
    return {"rate": rate, "first_seconds": min(firsts)}


def write(writer: generate.Writer, prompts: list[list[int]], seed: int) -> tuple[int, float]:
    """Returns the number of tokens that are written, and the seconds to the first text."""
    came, start = list[float](), time.perf_counter()

    def on_text(number: int, text: str) -> None:
        came.append(time.perf_counter() - start)

    written = writer.write(prompts, jax.random.key(seed), on_text=on_text)
    return sum(len(text.ids) for text in written), min(came, default=math.inf)


def prefill(model: str, seconds: float, sizes: Sequence[int]) -> Figures:
    """Measures how fast a long prompt is read, and how soon its first token comes.

    Args:
      model, seconds: as for `generation`.
      sizes: tokens of the prompt.
    """
    (prompt_tokens,) = sizes
    checkpoint = endless(models.load(model))
    writer = generate.Writer(checkpoint=checkpoint, max_new_tokens=generate.PIECE)
    prompts = language_models.tokens(checkpoint.config, 1, prompt_tokens).tolist()
    width = batches.width(prompt_tokens)
    padded = batches.pad_prompts(prompts, width, checkpoint.tokenizer.pad_id)

    def work() -> float:
        jax.block_until_ready(writer.start(padded).policy)
        return prompt_tokens - 1  # The last one is read when the next is drawn.

    work()
    rate = timing.best_rate(work, seconds)
    firsts = [write(writer, prompts, seed)[1] for seed in range(3)]
    return {"rate": rate, "first_seconds": min(firsts)}  # The first of them compiles.


def supervised(model: str, seconds: float, sizes: Sequence[int]) -> Figures:
    """Measures steps of supervised fine-tuning.

    Args:
      model, seconds: as for `generation`.
      sizes: texts of a step, tokens of each, all of them learnt but for the first.
    """
    rows, length = sizes
    return {"rate": timing.best_rate(_tuner(model, rows, length), seconds)}


def adapted(model: str, seconds: float, sizes: Sequence[int]) -> Figures:
    """Measures steps of supervised fine-tuning by adapters, and merges what they may become.

    Args:
      model, seconds: as for `generation`.
      sizes: those of `supervised`, and the rank.
    """
    rows, length, rank = sizes
    settings = lora.Config(rank=rank, alpha=float(rank))
    rate = timing.best_rate(_tuner(model, rows, length, settings), seconds)
    peak = machine.peak_memory()
    differences = logit_differences(shape(model), settings, parameters(model))
    return {"rate": rate, "peak_bytes": peak, **differences}


def _tuner(
    model: str, rows: int, length: int, settings: lora.Config = lora.Config()
) -> Callable[[], float]:
    """Makes a function that takes one step of supervised fine-tuning."""
    learning = tuning.Config(
        batch_size=rows,
        max_prompt_length=length // 2,
        max_new_tokens=length - length // 2,
        reduction="token",
        lora=settings,
    )
    config = shape(model)
    agent = sft.make(gemma.make(config), sft.Config(learning=learning))
    stored = language_models.answered(config, rows, length)
    source = sequences.Source(rows, example=stored, stored=lambda step, count: stored)
    if settings:
        constants = types.Constants(base=parameters(model))
        return timing.advancing(sequences.make(agent, source, 0, constants=constants), 1)
    loop = sequences.make(agent, source, 0, params=lambda: parameters(model))
    return timing.advancing(loop, 1)


def logit_differences(
    config: gemma.Config, settings: lora.Config, base: types.Params
) -> dict[str, float]:
    """Returns how far logits of merged adapters are from those beside the base, at most.

    Adapters are drawn at NOISE around those that a run begins with. "rounding" is the same between
    one row and two rows of one text, of the base alone.
    """
    model, key = gemma.make(config, settings), jax.random.key(0)
    leaves, tree = jax.tree.flatten(model.init(key))
    keys = jax.random.split(key, len(leaves))
    noisy = [x + NOISE * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    factors, text = jax.tree.unflatten(tree, noisy), language_models.tokens(config, 1, 32)
    apply = jax.jit(gemma.make(config).apply)
    beside = jax.jit(model.apply)(trees.joined(base, factors), text)
    merged = apply(lora.merged(config, settings, base, factors), text)
    alone, twice = apply(base, text), apply(base, jnp.concatenate([text, text]))[:1]
    pairs = {"logit_difference": (merged, beside), "rounding": (alone, twice)}
    return {name: float(jnp.max(jnp.abs(one - other))) for name, (one, other) in pairs.items()}


def reinforced(model: str, seconds: float, sizes: Sequence[int]) -> Figures:
    """Measures steps of REINFORCE with leave-one-out baselines, whose reward is a rule.

    Args:
      model, seconds: as for `generation`.
      sizes: those of `reinforce.Sizes`.
    """

    def share_of_even_ids(
        params: None, completion: tokens.Completion, prompts: batches.Prompts
    ) -> jax.Array:
        return jnp.mean(completion.tokens % 2 == 0, 1)

    policy = gemma.make(shape(model))
    work = reinforce.stepper(policy, parameters(model), reinforce.Sizes(*sizes), share_of_even_ids)
    return {"rate": timing.best_rate(work, seconds)}


WORK: dict[str, Callable[[str, float, Sequence[int]], Figures]] = {
    "generation": generation,
    "prefill": prefill,
    "sft": supervised,
    "lora": adapted,
    "rloo": reinforced,
}


def shape(model: str) -> gemma.Config:
    """Returns the shape of a model, whose texts nothing ends.

    Raises:
      ValueError: if there is no such model.
    """
    config = models.shape(model)
    if config is None:
        raise ValueError(f"{model} is no language model")
    return unending(config)


def parameters(model: str) -> types.Params:
    """Reads the parameters of a model."""
    return models.load(model).params


def unending(config: gemma.Config) -> gemma.Config:
    """Returns a shape in which the last id alone ends a text; it is drawn hardly ever."""
    return dataclasses.replace(config, eos_ids=(config.vocab_size - 1,))


def endless(checkpoint: model_files.Checkpoint) -> model_files.Checkpoint:
    """Returns a model whose texts have as many tokens as they may have."""
    return checkpoint._replace(config=unending(checkpoint.config))


def written_for_peers(name: str) -> pathlib.Path:
    """Returns a folder with FOLDER, a published model for transformers, and FILE, as it came.

    It is written into the cache unless it is there.

    Args:
      name: of the model, without its prefix.
    """
    published = pretrained.MODELS[name]
    called = f"{pretrained.PREFIX}{name}"
    models.tokenizer_of(called)  # Converts it: the cache is locked while a folder is written.

    def fill(folder: pathlib.Path) -> None:
        folder.mkdir()
        pretrained.assemble(name, folder / FILE)
        exports.write_folder(pathlib.Path(called), folder / FOLDER)

    return cache.model(
        f"{name}-{published.sha256[:12]}-for-peers",
        fill,
        description=f"{called}, for peers of benchmarks",
        num_bytes=4 * gemma.num_params(published.config).total + published.num_bytes,
    )


def main() -> None:
    """Prints the figures of a kind of work, or writes for peers what they read."""
    platform.run_large_programs()
    programs.keep()
    kind, seconds, sizes, model = sys.argv[1:]
    figures = WORK[kind](model, float(seconds), json.loads(sizes))
    print(json.dumps({"peak_bytes": machine.peak_memory()} | figures))


if __name__ == "__main__":
    main()

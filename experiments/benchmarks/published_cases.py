"""Sizes of the work on a published Gemma 3, the machine's bounds, and the figures wanted."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kullback.experiments.benchmarks import flops, reinforce
from kullback.experiments.runs import pretrained
from kullback.lm import gemma

NAME = "gemma3-270m"
MODEL = f"{pretrained.PREFIX}{NAME}"
CONFIG = pretrained.MODELS[NAME].config
WEIGHT_BYTES = 4 * gemma.num_params(CONFIG).total
PROMPT, NEW, LONG = 16, 48, 2_048  # Tokens of a prompt, after it, and of a long prompt.
TEXTS, TOKENS = 4, 128  # Of a step of SFT.
RANK = 16  # Of adapters.
RLOO = reinforce.Sizes(prompts=2, samples=4, prompt=64, new=32)
FLOAT32, BFLOAT16, LLAMA = "transformers", "transformers, bfloat16", "llama.cpp, Q4_K_M"
PEFT = "transformers with peft"
LOGIT_DIFFERENCE = 1e-4  # Most, between adapters that are merged and beside their base.
GB = 1e9


class Limits(NamedTuple):
    """The most that the machine does."""

    sgemm: float  # FLOP/s.
    memory: float  # Bytes/s that are read, or read and written by a copy, whichever is more.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Work whose rate is measured."""

    name: str  # Of its rows.
    kind: str  # A name of `published_work.WORK`.
    sizes: Sequence[int]  # As that work takes them.
    unit: str
    peers: tuple[str, ...] = (FLOAT32,)
    bound: Callable[[Limits], float]  # The highest rate that the machine allows.
    target_ratio: float | None = None  # To the first peer.
    target_limit_share: float | None = None


class Command(NamedTuple):
    """A command whose peak of the memory is measured, with all that it loads and saves."""

    name: str  # Of its rows.
    arguments: tuple[str, ...]  # But for the model, the texts and the run's folder.
    target_bytes: float
    checkpoint_bytes: float | None = None  # Wanted of its last checkpoint.


def generation_bound(limits: Limits, num_rows: int) -> float:
    """Bounds new tokens a second; prompts are read, too, and weights once for each new token."""
    total = PROMPT + NEW - 1  # The last token is not fed back.
    of_text = flops.decoder(CONFIG, range(total)) + NEW * flops.unembedding(CONFIG)
    seconds = max(num_rows * of_text / limits.sgemm, NEW * WEIGHT_BYTES / limits.memory)
    return num_rows * NEW / seconds


def prefill_bound(limits: Limits) -> float:
    """Bounds the tokens of a long prompt that are read a second; no logits are needed."""
    return limits.sgemm * (LONG - 1) / flops.decoder(CONFIG, range(LONG - 1))


def sft_bound(limits: Limits) -> float:
    """Bounds steps of SFT a second: forward, and gradients of weights and inputs."""
    return limits.sgemm / (3 * _pass())


def lora_bound(limits: Limits) -> float:
    """Bounds steps of adapters a second: forward, and gradients of inputs, of the base alone."""
    return limits.sgemm / (2 * _pass())


def _pass() -> int:
    """Counts the operations of the texts of a step, once."""
    of_text = flops.decoder(CONFIG, range(TOKENS)) + (TOKENS - 1) * flops.unembedding(CONFIG)
    return TEXTS * of_text


def rloo_bound(limits: Limits) -> float:
    """Bounds steps of REINFORCE a second, by products alone."""
    return limits.sgemm / reinforce.cost(CONFIG, RLOO)


def _generation(num_rows: int, peers: tuple[str, ...] = (FLOAT32,), **targets: float) -> Case:
    return Case(
        name=f"{NAME}, {num_rows} text{'s' * (num_rows > 1)} written",
        kind="generation",
        sizes=(num_rows, PROMPT, NEW),
        unit="tokens/s",
        peers=peers,
        bound=lambda limits: generation_bound(limits, num_rows),
        target_ratio=targets.get("ratio"),
        target_limit_share=targets.get("limit_share"),
    )


CASES = {
    "generation-1": _generation(1, (FLOAT32, BFLOAT16, LLAMA), limit_share=0.7),
    "generation-8": _generation(8, ratio=2.0),
    "generation-32": _generation(32, limit_share=0.55),
    "prefill": Case(
        name=f"{NAME}, {LONG:,} tokens read",
        kind="prefill",
        sizes=(LONG,),
        unit="tokens/s",
        peers=(FLOAT32, LLAMA),
        bound=prefill_bound,
    ),
    "sft": Case(
        name=f"{NAME}, step of SFT",
        kind="sft",
        sizes=(TEXTS, TOKENS),
        unit="steps/s",
        bound=sft_bound,
        target_ratio=1 / 0.9,
    ),
    "lora": Case(
        name=f"{NAME}, step of SFT by LoRA of rank {RANK}",
        kind="lora",
        sizes=(TEXTS, TOKENS, RANK),
        unit="steps/s",
        peers=(PEFT,),
        bound=lora_bound,
        target_ratio=1 / 0.9,
    ),
    "rloo": Case(
        name=f"{NAME}, step of REINFORCE, leave-one-out",
        kind="rloo",
        sizes=RLOO,
        unit="steps/s",
        bound=rloo_bound,
    ),
}


def _training(*settings: str) -> tuple[str, ...]:
    """Returns arguments of two steps with some settings."""
    return "--steps", "2", *(x for setting in settings for x in ("--set", setting))


_SFT = f"batch_size={TEXTS}", f"max_prompt_length={TOKENS // 2}", f"max_new_tokens={TOKENS // 2}"
_RLOO = (
    *(f"batch_size={RLOO.rows}", f"samples_per_prompt={RLOO.samples}"),
    *(f"max_prompt_length={RLOO.prompt}", f"max_new_tokens={RLOO.new}"),
)
_REWARDED = "--reward", "length", "--overlong", "truncate-left"
_LORA = f"lora.rank={RANK}"
GENERATE = "generate"
COMMANDS = {
    GENERATE: Command(
        f"{NAME}, kullback generate",
        ("generate", "--prompt", "The capital of France is", "--max-new-tokens", "16"),
        WEIGHT_BYTES + 0.5 * GB,
    ),
    "train-sft": Command(
        f"{NAME}, kullback train sft", ("train", "sft", *_training(*_SFT)), 7.0 * GB
    ),
    "train-rlhf": Command(
        f"{NAME}, kullback train rlhf",
        ("train", "rlhf", *_training(*_RLOO), *_REWARDED),
        8.5 * GB,
    ),
    "train-sft-lora": Command(
        f"{NAME}, kullback train sft, LoRA of rank {RANK}",
        ("train", "sft", *_training(*_SFT, _LORA)),
        3.0 * GB,
        checkpoint_bytes=60e6,
    ),
    "train-gkd-lora": Command(  # A frozen teacher of the same size takes 1.5 GB.
        f"{NAME}, kullback train gkd, LoRA of rank {RANK}",
        ("train", "gkd", "--teacher", MODEL, *_training(*_SFT, _LORA)),
        4.5 * GB,
    ),
    "train-rlhf-lora": Command(
        f"{NAME}, kullback train rlhf, LoRA of rank {RANK}",
        ("train", "rlhf", *_training(*_RLOO, _LORA), *_REWARDED),
        3.8 * GB,
    ),
}
FIRST_SECONDS = 6.0  # From the start of a command that has run before to its first token.

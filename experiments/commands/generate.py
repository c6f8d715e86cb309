"""`kullback generate`: text from a language model."""

import argparse
import json
import sys
from typing import Any

from kullback.experiments import limits
from kullback.experiments.commands import arguments


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    ids = arguments.whole(0, limits.IDS)
    sub = commands.add_parser("generate", help="text from a language model")
    sub.add_argument(
        "--model",
        metavar="DIR",
        type=arguments.name,
        required=True,
        help="a folder, a .gguf file, or a run",
    )
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT")
    what.add_argument("--prompts", metavar="FILE", type=arguments.path, help="JSONL of {prompt}")
    sub.add_argument("--max-new-tokens", metavar="N", type=arguments.tokens, default=256)
    sub.add_argument(
        "--temperature", metavar="T", type=arguments.number, default=1.0, help="0 is greedy"
    )
    sub.add_argument("--top-k", metavar="K", type=ids, default=0, help="0 is all tokens")
    sub.add_argument("--top-p", metavar="P", type=arguments.number, default=1.0)
    sub.add_argument("--seed", metavar="S", type=arguments.seed, default=0)
    sub.add_argument("--stop-token", metavar="ID", type=ids, action="append", default=[])
    sub.add_argument("--chat", action="store_true", help="TEXT is the user's turn, in a template")
    arguments.add_control_tokens(sub, "text")
    sub.set_defaults(command=_generate, prints_only=True)


def _generate(options: argparse.Namespace) -> int:
    from kullback.core import sampling
    from kullback.experiments.evaluate import generate
    from kullback.experiments.runs import models
    from kullback.lm import chat, control_tokens, data

    settings = sampling.Sampling(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
    )
    is_one = options.prompt is not None
    checkpoint = models.load(options.model).reading(options.control_tokens or "text")
    tokenizer = checkpoint.tokenizer
    spelled: list[tuple[str, str]] = []  # (place, control token) of texts that spell one.
    if not is_one:
        prompts = data.read_prompts(
            options.prompts,
            tokenizer,
            vocab_size=checkpoint.config.vocab_size,
            on_spelled=lambda *place_and_name: spelled.append(place_and_name),
        )
    elif options.chat:
        messages = [{"role": "user", "content": options.prompt}]
        segments = chat.chat(messages, tokenizer, add_generation_prompt=True)
        prompts = [tuple(i for segment in segments for i in segment.ids)]
    else:
        prompts = [data.prompt_of(options.prompt, tokenizer)]
    if is_one and not tokenizer.reads_controls:
        name = control_tokens.spelled(options.prompt, tokenizer.controls)
        spelled += [("--prompt", name)] if name is not None else []
    if spelled:
        print(data.spelled_notice(*spelled[0], len(spelled) - 1), file=sys.stderr)
    completions = generate.generate(
        checkpoint,
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=settings,
        seed=options.seed,
        stop_tokens=options.stop_token,
        # One text is shown as it comes; of several the lines would mix.
        on_text=lambda number, text: print(text, end="", flush=True) if is_one else None,
        on_cache=lambda count: print(
            f"keys and values of {len(prompts)} texts: {count / 1e6:.3g} MB", file=sys.stderr
        ),
    )
    if is_one:
        print()
        return 0
    for prompt, x in zip(prompts, completions, strict=True):
        line = {"prompt": tokenizer.decode(prompt), "completion": x.text, "done": x.is_complete}
        print(json.dumps(line, ensure_ascii=False))
    return 0

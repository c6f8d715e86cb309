"""Types and flags that several commands share."""

import argparse
import contextlib
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from kullback.core import typed
from kullback.experiments import limits


def whole(least: int, most: int) -> Callable[[str], int]:
    """Returns what reads a whole number from `least` to `most`; 50_000 and 5e4 too."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError, OverflowError):  # The latter for inf.
            number = int(text) if text.lstrip("+-").isdecimal() else float(text)
            if text.isascii() and number == int(number) and least <= number <= most:
                return int(number)
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {most:,}, got {typed.shown(text)}"
        )

    return read


def number(text: str) -> float:
    """Reads a finite number."""
    try:
        return typed.parse("it", float, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, got {typed.shown(text)}") from error


steps = whole(1, limits.STEPS)
period = whole(1, limits.PERIOD)
seed = whole(0, limits.SEED)
episodes = whole(1, limits.EPISODES)
tokens = whole(1, limits.TOKENS)


def name(text: str) -> str:
    """Returns a name, which is not empty: `--model "$UNSET"` is a mistake of the shell's user."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a name, got {text!r}")
    return text


def path(text: str) -> pathlib.Path:
    """Returns a path, which is not empty: pathlib takes "" for the current folder."""
    return pathlib.Path(name(text))


def add_trust_code(parser: argparse.ArgumentParser) -> None:
    """Adds --trust-code, the user's word for modules that a file names."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="let modules run that a file names (python:MODULE:FUNCTION, gym/MODULE:ID); what is "
        "typed in this command needs no such word",
    )


def add_control_tokens(parser: Any, default: str) -> None:
    """Adds --control-tokens, which is None where it is not given; `default` is for its help."""
    parser.add_argument(
        "--control-tokens",
        choices=("text", "parse"),
        help="what <start_of_turn> and the like in a text are: the letters that they are, or the "
        f"tokens, as a chat template has written them; default: {default}",
    )


def add_model_flag(parser: Any) -> None:
    """Adds --model-flag of a model that is trained already."""
    parser.add_argument(
        "--model-flag",
        metavar="field=value",
        dest="model_flags",
        action="append",
        default=[],
        help="how the model is computed: dtype=bfloat16",
    )


def add_writing(parser: Any) -> None:
    """Adds the flags of texts that a language model writes, which `writing` reads."""
    ids = whole(0, limits.IDS)
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--max-new-tokens", metavar="N", type=tokens, default=256, help="at most; default: 256"
    )
    group.add_argument("--temperature", metavar="T", type=number, default=1.0, help="0 is greedy")
    group.add_argument("--top-k", metavar="K", type=ids, default=0, help="0 is all tokens")
    group.add_argument(
        "--top-p",
        metavar="P",
        type=number,
        default=1.0,
        help="the most probable tokens, that hold this mass; 1 is all",
    )
    group.add_argument(
        "--min-p",
        metavar="P",
        type=number,
        default=0.0,
        help="tokens with this share of the best one's probability; 0 is all",
    )
    group.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=number,
        default=1.0,
        help="above 1: tokens that stand in the text already become less probable",
    )
    group.add_argument("--seed", metavar="S", type=seed, default=0)
    group.add_argument(
        "--stop",
        metavar="TEXT",
        dest="stop_texts",
        action="append",
        default=[],
        help="what is written ends before TEXT; may be given several times",
    )
    group.add_argument(
        "--stop-token",
        metavar="ID",
        dest="stop_tokens",
        type=ids,
        action="append",
        default=[],
        help="a token that ends it, beside the model's own",
    )


def writing(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of a `generate.Writer` by the flags of `add_writing`.

    Raises:
      ValueError: for values that do not make sense.
    """
    from kullback.core import sampling

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    same = ("max_new_tokens", "seed", "stop_tokens", "stop_texts")
    settings = sampling.Sampling(**{name: getattr(options, name) for name in names})
    return {"sampling": settings, **{name: getattr(options, name) for name in same}}


def print_fields(fields: Iterable[tuple[str, Any, Any]]) -> None:
    """Prints dotted name, value and type of each field of a configuration."""
    for field, hint, value in fields:
        # At least a space between them, however long they are.
        print(f"{field:<43} {value!s:<11} {typed.describe(hint)}")

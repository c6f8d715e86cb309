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


def print_fields(fields: Iterable[tuple[str, Any, Any]]) -> None:
    """Prints dotted name, value and type of each field of a configuration."""
    for field, hint, value in fields:
        # At least a space between them, however long they are.
        print(f"{field:<43} {value!s:<11} {typed.describe(hint)}")

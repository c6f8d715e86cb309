"""Types and flags that several commands share."""

import argparse
import contextlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kullback.core import typed
from kullback.experiments import limits
from kullback.experiments.runs import plans
from kullback.lm.control_tokens import READINGS

if TYPE_CHECKING:
    from kullback.experiments.runs import opened


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


def flag(
    parser: Any,
    spelled: str,
    kind: Callable[[str], Any] | Sequence[str] | None = None,
    help: str | None = None,
    **options: Any,
) -> None:
    """Adds a flag, or a positional argument, to a parser or a group of one.

    Args:
      parser: of `argparse`.
      spelled: as a user sees it, "--top-k K" or "run DIR"; a flag without a value is a switch.
      kind: reads the value, or the values that there are; None takes any text.
      help: for --help.
      **options: further ones of `argparse.ArgumentParser.add_argument`.
    """
    name, _, metavar = spelled.partition(" ")
    if metavar:
        options["metavar"] = metavar
    if isinstance(kind, Sequence):
        options["choices"] = kind
    elif kind is not None:
        options["type"] = kind
    elif name.startswith("--") and not metavar:
        options["action"] = "store_true"
    parser.add_argument(name, help=help, **options)


def several(
    parser: Any,
    spelled: str,
    field: str,
    kind: Callable[[str], Any] | None = None,
    help: str | None = None,
) -> None:
    """Adds a flag that may be given several times; `field` of the options has a list of values."""
    flag(parser, spelled, kind, help, dest=field, action="append", default=[])


def add_settings(parser: Any) -> None:
    """Adds --set, and --fields, which lists what it takes."""
    several(parser, "--set field=value", "settings")
    flag(parser, "--fields", help="the fields that --set takes; no run")


def add_overlong(parser: Any, default: str) -> None:
    """Adds --overlong; `default` is for its help."""
    meaning = f"what becomes of an example that is too long; default: {default}"
    flag(parser, "--overlong", ("drop", "truncate-left", "error"), meaning)


def add_trust_code(parser: Any) -> None:
    """Adds --trust-code, the user's word for modules that a file names."""
    flag(
        *(parser, "--trust-code"),
        help="let modules run that a file names (python:MODULE:FUNCTION, gym/MODULE:ID); what is "
        "typed in this command needs no such word",
    )


def add_control_tokens(parser: Any, default: str) -> None:
    """Adds --control-tokens, which is None where it is not given; `default` is for its help."""
    flag(
        *(parser, "--control-tokens", READINGS),
        help="what <start_of_turn> and the like in a text are: the letters that they are, or the "
        f"tokens, as a chat template has written them; default: {default}",
    )


def add_pan_and_scan(parser: Any) -> None:
    """Adds --pan-and-scan, which is None where it is not given."""
    flag(
        *(parser, "--pan-and-scan", ("on", "off")),
        help="whether long images are given with crops; default: as the model's folder says, or as "
        "its run learnt",
    )


def crops(options: argparse.Namespace) -> bool | None:
    """Returns what --pan-and-scan says; None where it is not given."""
    return None if options.pan_and_scan is None else options.pan_and_scan == "on"


def add_model_flag(parser: Any) -> None:
    """Adds --model-flag of a model that is trained already."""
    meaning = (
        "how the model is computed: dtype=bfloat16 in half precision; storage=bfloat16, int8, int4 "
        "or q4_0 with weights that stay in so many bits in memory, which on CPUs is no faster"
    )
    several(parser, "--model-flag field=value", "model_flags", help=meaning)


def add_adapters(parser: Any, *, adapter: bool = True) -> None:
    """Adds --base, and --adapter if the model may have one, see `with_adapter`."""
    moved = "where the base of a run's adapters is now, if it has moved"
    flag(parser, "--base MODEL", name, moved)
    if adapter:
        folder = "adapters as peft writes them, which are merged into the model"
        flag(parser, "--adapter DIR", path, folder)


def with_adapter(model: pathlib.Path | str, adapter: pathlib.Path | None) -> Any:
    """Returns the name of a model, of the type that it has, with its --adapter if there is one."""
    return model if adapter is None else type(model)(f"{model}{plans.ADAPTER}{adapter}")


def beside_base(
    run: "opened.Opened | None", named: pathlib.Path, options: argparse.Namespace
) -> "opened.Opened | None":
    """Returns a run with its --base, if that is given; refuses flags of `add_adapters` for others.

    Args:
      run: of the model; None if it is none.
      named: the model as the user named it.
      options: of the command.

    Raises:
      ValueError: for a --base without a run, or an --adapter of one; as `learnt.beside` does.
    """
    if options.base:
        from kullback.experiments.runs import learnt

        if run is None:
            raise ValueError(f"--base is of a run of adapters, and {named} is none")
        run = learnt.beside(run, options.base)
    if run is not None and options.adapter:
        raise ValueError(f"--adapter is merged into weights, and {named} is a run: export it first")
    return run


def add_writing(parser: Any) -> None:
    """Adds the flags of texts that a language model writes, which `writing` reads."""
    ids, group = whole(0, limits.IDS), parser.add_argument_group("what is written")
    flag(group, "--max-new-tokens N", tokens, "at most; default: 256", default=256)
    flag(group, "--temperature T", number, "0 is greedy", default=1.0)
    flag(group, "--top-k K", ids, "0 is all tokens", default=0)
    mass = "the most probable tokens, that hold this mass; 1 is all"
    flag(group, "--top-p P", number, mass, default=1.0)
    share = "tokens with this share of the best one's probability; 0 is all"
    flag(group, "--min-p P", number, share, default=0.0)
    repeated = "above 1: tokens that stand in the text already become less probable"
    flag(group, "--repetition-penalty X", number, repeated, default=1.0)
    flag(group, "--seed S", seed, default=0)
    stop = "what is written ends before TEXT; may be given several times"
    several(group, "--stop TEXT", "stop_texts", help=stop)
    stop_token = "a token that ends it, beside the model's own"
    several(group, "--stop-token ID", "stop_tokens", ids, stop_token)


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

"""The `kullback` command. Nothing heavy is imported before it is known that there is work."""

import argparse
import contextlib
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from kullback.core import typed
from kullback.experiments import display, interrupts

# Modules of `commands/`, which are imported where Ctrl-C is heard.
COMMANDS = (
    *("listing", "train", "evaluate", "answer", "generate", "chat", "export", "reproduce"),
    *("sweep", "report", "merge", "quantize", "label", "pipeline", "entailment", "cache"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      Exit status: 0, 1 if a run failed, 2 for a wrong command line; after a signal the shell's
      number for it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, and 141 if a command that
      only prints has lost its reader.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for argument in arguments:
        if not typed.is_unicode(argument):  # Records could not hold it.
            return _fail(f"arguments must be UTF-8, got {argument!a}", 2)
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # Of the command, whose --help has its arguments.
        parser.prog += f" {next(word for word in arguments if not word.startswith('-'))}"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    outlives = contextlib.nullcontext() if vars(options).pop("prints_only") else display.outliving()
    with display.plain(), outlives:
        return _run(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads a command line, and runs nothing.

    Raises:
      ValueError: for what is no command, or not one of its arguments.
    """
    return _parser(_Checking).parse_args(arguments)


def program() -> NoReturn:
    """Runs the command that was typed, and ends the process with its exit status."""
    try:
        status = main()
        # The work is done: Ctrl-C now ends the libraries' cleaning up, silently.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)


def _run(options: argparse.Namespace) -> int:
    try:
        with interrupts.Interrupts(
            raises=True
        ):  # A run that has a state to save handles signals itself.
            status = options.command(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # The reader of a pipe has seen enough.
        display.drop(sys.stdout)
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        return _fail(str(error), 2)
    except (ArithmeticError, interrupts.Failure) as error:
        return _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(f"there is not enough memory: {str(error)[:200] or 'ask for less'}", 1)
    except KeyboardInterrupt as error:
        stopped = interrupts.as_interrupted(error, str(error) or "interrupted")
        return _fail(str(stopped), stopped.status)


def _fail(message: str, status: int) -> int:
    print(_line(message), file=sys.stderr)
    return status


def _line(message: str) -> str:
    """Puts a message on one line, without characters that a terminal would obey."""
    return f"kullback: {display.line(message)}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prints an error in one line and ends the command, as all its errors do."""
        self.exit(2, f"{_line(message)}; see {self.prog} --help\n")


class _Checking(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises an error in place of ending the process."""
        raise ValueError(message)


def _parser(kind: type[argparse.ArgumentParser] = _Parser) -> argparse.ArgumentParser:
    parser = kind(
        prog="kullback",
        description="Deep reinforcement learning as regularised policy updates.",
        epilog="Each command has its own --help.",
    )
    parser.set_defaults(prints_only=False)  # True: a closed pipe ends the command.
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"kullback.experiments.commands.{name}")
        module.add_parser(commands)
    return parser


if __name__ == "__main__":
    program()

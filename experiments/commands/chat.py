"""`kullback chat`: a conversation with a language model."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kullback.core import files, typed
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

if TYPE_CHECKING:
    from kullback.experiments.evaluate import conversation
    from kullback.experiments.runs import model_files

_HELP = (
    "/image FILE shows an image with the next text, /reset begins anew, /save FILE writes the "
    "conversation, /quit ends, // begins a text with /"
)


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "chat",
        help="a conversation with a language model",
        description="Each line that is typed, or piped in, is answered. Ctrl-C ends an answer, and "
        f"at the prompt the program, as Ctrl-D does; {_HELP}.",
    )
    flag(
        *(sub, "--model MODEL", arguments.name),
        help="a folder, a .gguf file, a run, or pretrained:NAME, of a model that was tuned on "
        "conversations",
        required=True,
    )
    arguments.add_model_flag(sub)
    arguments.add_adapters(sub)
    arguments.add_pan_and_scan(sub)
    flag(sub, "--system TEXT", help="instructions before all turns", default="")
    flag(
        *(sub, "--context N", arguments.tokens),
        help="tokens that are remembered, the answer included; the oldest turns are left out "
        "beyond; default: the model's context, 4,096 at most",
    )
    arguments.add_writing(sub)
    sub.set_defaults(command=_chat, prints_only=True)


def _chat(options: argparse.Namespace) -> int:
    settings = arguments.writing(options)
    from kullback.experiments import programs
    from kullback.experiments.evaluate import conversation, generate
    from kullback.experiments.runs import models

    programs.keep()
    named = arguments.with_adapter(options.model, options.adapter)
    checkpoint = models.load(
        named,
        base=options.base or "",
        flags=options.model_flags,
        modality=models.modality_of(named),
    )
    checkpoint = checkpoint.cutting(arguments.crops(options))
    _require_template(checkpoint, options.model)
    writer = generate.Writer(checkpoint=checkpoint, **settings)
    most = min(conversation.CONTEXT, checkpoint.config.context_length)
    talk = conversation.Conversation(
        writer=writer, context=options.context or most, system=options.system.strip()
    )
    _note(
        f"{talk.context:,} tokens are remembered, beyond which the oldest turns are left out; keys "
        f"and values: {talk.cache_bytes / 1e6:.3g} MB; {_HELP}"
    )
    for line in _lines():
        if not _obey(talk, line):
            break
    return 0


def _require_template(checkpoint: "model_files.Checkpoint", name: str) -> None:
    """Raises ValueError for a base model, with the command that tunes it."""
    from kullback.lm import chat

    tokenizer = checkpoint.tokenizer
    if tokenizer.start_of_turn_id is None or tokenizer.end_of_turn_id is None:
        raise ValueError(
            f"{name} has a vocabulary without <start_of_turn> and <end_of_turn>, in which no "
            "conversation can be written; kullback generate goes on with a text"
        )
    if not chat.has_template(tokenizer):
        raise ValueError(
            f"{name} is a base model: no chat template says that it was tuned on conversations; "
            f"kullback train sft tokens/conversations --model {name} tunes it"
        )


def _obey(talk: "conversation.Conversation", line: str) -> bool:
    """Answers a line or does what it commands; returns whether to go on."""
    command, _, argument = line.partition(" ")
    if line.startswith("/") and not line.startswith("//"):
        match command:
            case "/quit":
                return False
            case "/reset":
                talk.reset()
                _note("the conversation begins anew")
            case "/image":
                _show_image(talk, argument.strip())
            case "/save":
                _save(talk, argument.strip())
            case _:
                _note(f"no command {typed.shown(command)}: {_HELP}")
        return True
    from kullback.experiments.evaluate import conversation

    before = talk.num_forgotten
    try:
        answer = talk.answer(line.removeprefix("/"), _show)
    except conversation.TooLongError as error:  # The conversation goes on.
        _note(str(error))
        return True
    print(flush=True)
    if talk.num_forgotten > before:
        _note(f"{talk.num_forgotten} of the oldest turns no longer fit, and were left out")
    if not answer.strip():
        _note("the answer is empty, and the turn is forgotten")
    return True


def _show_image(talk: "conversation.Conversation", name: str) -> None:
    """Puts an image before the next text."""
    if not name:
        _note("expected /image FILE")
        return
    try:
        note = talk.show(pathlib.Path(name))
    except (OSError, ValueError) as error:
        _note(str(error))
        return
    _note(note or f"{name} is shown with the next text")


def _save(talk: "conversation.Conversation", name: str) -> None:
    """Writes the conversation as a record of a data set, JSONL, in a new file."""
    if not name or not talk.turns:
        _note("expected /save FILE" if not name else "nothing was said that could be saved")
        return
    path = pathlib.Path(name)
    try:
        files.check_new_file(path, "file")
        record: dict[str, Any] = {"messages": talk.messages}
        if talk.images:
            record["images"] = talk.images
        line = json.dumps(record, ensure_ascii=False)
        files.atomic_write_text(path, line + "\n")
    except (OSError, ValueError) as error:
        _note(str(error))
        return
    _note(f"saved: {path}")


def _lines() -> Iterator[str]:
    """Yields the lines that are typed or piped in, but for blank ones, until there are no more."""
    if sys.stdin is None:
        return
    is_typed = sys.stdin.isatty() and sys.stdout.isatty()
    if is_typed:
        import readline  # noqa: F401  # With it, input() can edit a line, and knows those before.
    while True:
        try:
            line = input("> ") if is_typed else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()  # What is said of it has a line of its own.
            raise
        if not is_typed and not line:
            return
        if not typed.is_unicode(line):
            raise ValueError("what is typed must be UTF-8")
        if line.strip():
            yield line.strip()


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""`kullback generate`: text from a language model."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kullback.experiments import limits
from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

if TYPE_CHECKING:
    from kullback.experiments.evaluate import generate
    from kullback.experiments.runs import model_files
    from kullback.lm import examples, forms


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser("generate", help="text from a language model")
    model = "a folder, a .gguf file, a run, or pretrained:NAME"
    flag(sub, "--model MODEL", arguments.name, model, required=True)
    arguments.add_model_flag(sub)
    arguments.add_adapters(sub)
    what = sub.add_mutually_exclusive_group(required=True)
    flag(what, "--prompt TEXT")
    seen = "an image before the text of --prompt, for a multimodal model; may be given again"
    arguments.several(sub, "--image FILE", "images", arguments.path, seen)
    heard = "a clip, WAV, before the text of --prompt, for a run that learnt with --audio; likewise"
    arguments.several(sub, "--audio FILE", "clips", arguments.path, heard)
    prompts = (
        "JSONL of {prompt} or {messages}, with images or audio for a model that takes them; of a "
        ".txt file each line is a prompt"
    )
    flag(what, "--prompts FILE", arguments.path, prompts)
    rows = "prompts of FILE that are completed side by side; default: 8"
    flag(sub, "--batch-size N", arguments.whole(1, limits.ROWS), rows, default=8)
    out = "JSONL of the completions of --prompts, new, as they end"
    flag(sub, "--out FILE", arguments.path, out)
    flag(sub, "--chat", help="a prompt is a user's turn, in a template")
    arguments.add_writing(sub)
    arguments.add_pan_and_scan(sub)
    arguments.add_control_tokens(sub, "text")
    sub.set_defaults(command=_generate, prints_only=True)


def _generate(options: argparse.Namespace) -> int:
    if options.out is not None:
        from kullback.core import files

        if options.prompts is None:
            raise ValueError("--out goes with --prompts FILE; of one prompt the text is printed")
        files.check_new_file(options.out)
    for name, given in (("image", options.images), ("audio", options.clips)):
        if given and options.prompt is None:
            raise ValueError(f"--{name} goes with --prompt TEXT")
    if options.images and options.clips:
        raise ValueError("--image does not go with --audio yet: leave one out")
    settings = arguments.writing(options)
    from kullback.experiments import programs
    from kullback.experiments.evaluate import generate
    from kullback.experiments.runs import models
    from kullback.lm import forms

    programs.keep()
    named = arguments.with_adapter(options.model, options.adapter)
    modality = forms.IMAGES if options.images else forms.AUDIO if options.clips else None
    if modality is None and (taken := models.modality_of(named)) is not None:
        modality = taken if _names_media(options.prompts, taken) else None
    loaded = models.load(
        named, base=options.base or "", flags=options.model_flags, modality=modality
    )
    loaded = loaded.cutting(arguments.crops(options))
    checkpoint = loaded.reading(options.control_tokens or "text")
    writer = generate.Writer(checkpoint=checkpoint, **settings)
    return _write_one(options, writer) if options.prompts is None else _write_all(options, writer)


def _names_media(path: pathlib.Path | None, modality: "forms.Modality") -> bool:
    """Returns whether a row of prompts names such media; malformed rows are refused later."""
    if path is None or path.suffix == ".txt":
        return False
    from kullback.lm import data, media_rows

    def names(record: dict[str, Any]) -> bool:
        with contextlib.suppress(ValueError):
            return bool(media_rows.names(record, modality))
        return False

    return any(names(record) for _, record in data.read_rows(path))


def _write_one(options: argparse.Namespace, writer: "generate.Writer") -> int:
    """Prints the completion of --prompt as it comes."""
    from kullback.experiments.evaluate import generate
    from kullback.lm import control_tokens, data

    tokenizer = writer.checkpoint.tokenizer
    question = _question(options, writer.checkpoint)
    if not tokenizer.reads_controls:
        name = control_tokens.spelled(options.prompt, tokenizer.controls)
        if name is not None:
            print(data.spelled_notice("--prompt", name), file=sys.stderr)
    generate.complete(
        writer,
        [question.ids],
        media=[question.media],
        on_text=lambda number, text: print(text, end="", flush=True),
        on_cache=lambda count: _say_cache(1, count),
    )
    print()
    return 0


def _question(
    options: argparse.Namespace, checkpoint: "model_files.Checkpoint"
) -> "examples.Question":
    """Returns --prompt after its media, as ids and what their soft tokens are made of."""
    from kullback.lm import blocks, chat, examples, interleaved

    tokenizer, shown = checkpoint.tokenizer, list[interleaved.Shown]()
    for path in (*options.images, *options.clips):
        sense = checkpoint.sense
        assert sense is not None, "the model was read with what it takes media by"
        segment, note = sense.rows.open(path)
        shown.append(segment)
        if note:
            print(note, file=sys.stderr)
    media = tuple(view for segment in shown for view in interleaved.views(segment))
    if options.chat:
        ids = chat.continued((), options.prompt, tokenizer, shown=shown)
        return examples.Question(tuple(ids), media)
    if not shown:
        return examples.Question(examples.prompt_of(options.prompt, tokenizer))
    markers = blocks.markers_of(tokenizer)
    row = interleaved.encode([*shown, options.prompt], tokenizer.encode, markers)
    return examples.Question((tokenizer.bos_id, *row.ids), media)


def _write_all(options: argparse.Namespace, writer: "generate.Writer") -> int:
    """Prints the completions of --prompts, a line each, as they end."""
    from kullback.experiments import interrupts
    from kullback.lm import data, interleaved, media_rows

    tokenizer, sense = writer.checkpoint.tokenizer, writer.checkpoint.sense
    spelled: list[tuple[str, str]] = []  # (place, control token) of texts that spell one.
    reader = None
    if sense is not None:
        reader = media_rows.Reader(folder=options.prompts.parent, settings=sense.rows)
    questions = data.read_questions(
        options.prompts,
        tokenizer,
        media=reader,
        vocab_size=writer.checkpoint.config.vocab_size,
        as_turns=options.chat,
        on_spelled=lambda *place_and_name: spelled.append(place_and_name),
    )
    if spelled:
        print(data.spelled_notice(*spelled[0], len(spelled) - 1), file=sys.stderr)
    for note in reader.notes if reader is not None else ():
        print(note, file=sys.stderr)
    prompts = [question.ids for question in questions]
    longest = max(map(len, prompts))
    writer.check_length(longest)
    num_rows = min(options.batch_size, len(prompts))
    _say_cache(num_rows, writer.cache_bytes(num_rows, longest))
    num_ended = 0
    with _lines(options) as write:

        def on_end(number: int, generated: "generate.Generated") -> None:
            nonlocal num_ended
            num_ended += generated.is_complete or len(generated.ids) >= writer.max_new_tokens
            files = interleaved.files(questions[number].media)
            line = {
                "number": number + 1,
                **({reader.settings.modality.name: files} if reader and files else {}),
                "prompt": tokenizer.decode(prompts[number]),
                "completion": generated.text,
                "done": generated.is_complete,
            }
            write(json.dumps(line, ensure_ascii=False) + "\n")

        try:
            media = [question.media for question in questions]
            writer.write_all(prompts, options.batch_size, on_end, media if reader else ())
        except KeyboardInterrupt as error:
            message = f"interrupted: {num_ended} of {len(prompts)} prompts were completed"
            raise interrupts.as_interrupted(error, message) from error
    return 0


@contextlib.contextmanager
def _lines(options: argparse.Namespace) -> Iterator[Callable[[str], None]]:
    """Yields the function that prints a line, and adds it to --out."""
    with contextlib.ExitStack() as stack:
        file = None
        if options.out is not None:
            file = stack.enter_context(open(options.out, "x", encoding="utf-8"))

        def write(line: str) -> None:
            if file is not None:
                file.write(line)
                file.flush()
            sys.stdout.write(line)
            sys.stdout.flush()

        yield write


def _say_cache(num_rows: int, count: int) -> None:
    print(f"keys and values of {num_rows} texts: {count / 1e6:.3g} MB", file=sys.stderr)

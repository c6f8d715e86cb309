"""Tests of experiments/evaluate/conversation.py and of `kullback chat`."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pathlib
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from kullback import experiments
from kullback.core.sampling import Sampling
from kullback.experiments import cli, interrupts
from kullback.experiments.evaluate import conversation, generate
from kullback.experiments.runs import exports, model_files, models
from kullback.lm import chat, data, forms, interleaved

LETTERS = Sampling(top_k=20, repetition_penalty=1.3)
CONTEXT = 128  # Of all conversations with a writer, whose programs they share.


@pytest.fixture(scope="module")
def checkpoint(converses: pathlib.Path) -> model_files.Checkpoint:
    return models.load(converses)


@pytest.fixture(scope="module")
def writer(checkpoint: model_files.Checkpoint) -> generate.Writer:
    return generate.Writer(checkpoint=checkpoint, max_new_tokens=10, sampling=LETTERS)


def silent(text: str) -> None:
    """Shows nothing."""


def read_anew(talk: conversation.Conversation, text: str) -> str:
    """Returns the next answer to a text as a conversation gives it that has read nothing yet."""
    return dataclasses.replace(talk, turns=[*talk.turns], _read=None).answer(text, silent)


def expected(talk: conversation.Conversation, text: str) -> str:
    """Returns the next answer to a text as a writer gives it that remembers nothing."""
    turns = [chat.Turn(x.text, x.ids) for x in talk.turns[talk.num_forgotten :]]
    ids = chat.continued(turns, text, talk.writer.checkpoint.tokenizer, talk.system)
    key = jax.random.fold_in(jax.random.key(talk.writer.seed), talk.num_answers)
    return talk.writer.write([ids], key)[0].text


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows each time that a conversation is read from its beginning."""
    counted: list[int] = []
    empty = conversation.Conversation._empty

    def count(self: conversation.Conversation) -> Any:
        counted.append(len(self.turns))
        return empty(self)

    monkeypatch.setattr(conversation.Conversation, "_empty", count)
    return counted


def test_what_was_said_is_not_read_again(writer: generate.Writer, begins: list[int]):
    talk = conversation.Conversation(writer=writer, context=CONTEXT, system="Be brief.")
    for text in ("ab", "What is it?"):
        before = expected(talk, text)
        shown: list[str] = []
        assert talk.answer(text, shown.append) == "".join(shown) == before
        assert len(before) == 10
    assert begins == [0]
    assert [m["role"] for m in talk.messages] == ["system", *["user", "assistant"] * 2]
    assert [m["content"] for m in talk.messages[1::2]] == ["ab", "What is it?"]
    assert writer.read._cache_size() <= len(conversation.PARTS)  # pyright: ignore[reportFunctionMemberAccess]
    talk.reset()
    assert talk.answer("ab", silent) != talk.answer("ab", silent)
    assert begins == [0, 0] and len(talk.turns) == 2


def test_an_answer_ends_at_a_stop_token_and_a_stop_text(
    checkpoint: model_files.Checkpoint, begins: list[int]
):
    letters = checkpoint.tokenizer.encode("abcd")
    ends = generate.Writer(
        checkpoint=checkpoint,
        max_new_tokens=10,
        sampling=LETTERS,
        stop_tokens=letters,
        stop_texts=("A", "B", "C", "D"),
    )
    talk = conversation.Conversation(writer=ends, context=CONTEXT)
    lengths = []
    for n in range(6):
        before = read_anew(talk, f"{n}")
        answer = talk.answer(f"{n}", silent)
        assert answer == before and not {*answer} & {*"ABCDabcd"}
        lengths.append(len(answer))
    # Read anew where a text was cut, and once each for what was expected.
    assert len({*lengths}) > 1 and 6 < len(begins) < 12


def test_a_signal_ends_an_answer_where_it_is(writer: generate.Writer, begins: list[int]):
    def interrupt(text: str) -> None:
        raise interrupts.Interrupted

    talk = conversation.Conversation(writer=writer, context=CONTEXT)
    before = read_anew(talk, "a")
    assert talk.answer("a", interrupt) == before[:1]
    before = read_anew(talk, "b")
    begins.clear()
    assert talk.answer("b", silent) == before and not begins

    def terminate(text: str) -> None:
        raise interrupts.Interrupted(number=15)

    with pytest.raises(interrupts.Interrupted):
        talk.answer("c", terminate)


def test_the_oldest_turns_are_left_out_where_they_do_not_fit(
    writer: generate.Writer, begins: list[int]
):
    talk = conversation.Conversation(writer=writer, context=CONTEXT)
    forgotten = []
    for n in range(6):
        text = f"{n} is a number"
        talk.answer(text, silent)
        forgotten.append(talk.num_forgotten)
    assert forgotten[0] == 0 and 0 < forgotten[-1] < 6 and len(begins) < 5
    assert len(talk.messages) == 12  # All can be saved.
    answer = talk.answer("so", silent)
    after = conversation.Conversation(writer=writer, context=CONTEXT)
    after.turns, after.num_answers = talk.turns[talk.num_forgotten : -1], talk.num_answers - 1
    assert after.answer("so", silent) == answer
    with pytest.raises(conversation.TooLongError, match="and 118 fit beside an answer of 10"):
        talk.answer("x" * 120, silent)
    assert len(talk.turns) == 7
    with pytest.raises(ValueError, match="has no room for a text beside an answer of 10"):
        conversation.Conversation(writer=writer, context=10)
    with pytest.raises(ValueError, match="context is of 256 tokens, got 300"):
        conversation.Conversation(writer=writer, context=300)


def test_an_empty_answer_is_forgotten_with_its_text(checkpoint: model_files.Checkpoint):
    stops = range(checkpoint.config.vocab_size)
    writer = generate.Writer(
        checkpoint=checkpoint, max_new_tokens=10, sampling=LETTERS, stop_tokens=stops
    )
    talk = conversation.Conversation(writer=writer, context=CONTEXT)
    assert talk.answer("a", silent) == "" and not talk.messages


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.slow
def test_an_image_is_seen_and_read_once(
    sees: pathlib.Path, picture: pathlib.Path, begins: list[int]
):
    """Each answer is that of a writer which is given the whole row with its images at once."""
    checkpoint = models.load(sees, modality=forms.IMAGES)
    writer = generate.Writer(checkpoint=checkpoint, max_new_tokens=10, sampling=LETTERS)
    talk = conversation.Conversation(writer=writer, context=CONTEXT)
    blind = conversation.Conversation(writer=writer, context=CONTEXT)
    dark = picture.parent / "dark.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(dark)
    for text, paths in (("ab", [picture]), ("c", []), ("d", [dark, picture])):
        for path in paths:
            assert talk.show(path) == ""
        shown = tuple(talk.shown)
        turns = [chat.Turn(x.text, x.ids, x.images) for x in talk.turns]
        ids = chat.continued(turns, text, checkpoint.tokenizer, shown=shown)
        media = [m for x in (*talk.turns, talk) for i in _images(x) for m in interleaved.views(i)]
        key = jax.random.fold_in(jax.random.key(0), talk.num_answers)
        before = writer.write([ids], key, media=[media])[0].text
        if not talk.turns:  # With the same key.
            assert blind.answer(text, silent) != before
        assert talk.answer(text, silent) == before and not talk.shown
    assert begins == [0, 0]  # Each conversation was read once.
    assert talk.images == [str(picture), str(dark), str(picture)]
    assert talk.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "ab"}]
    with pytest.raises(conversation.TooLongError, match="the text and its images have"):
        talk.show(picture)
        talk.answer("x" * 120, silent)
    talk.reset()
    assert not talk.shown and not talk.images


def _images(of: Any) -> tuple[interleaved.Shown, ...]:
    return tuple(of.shown if isinstance(of, conversation.Conversation) else of.images)


def test_parts_are_of_few_lengths():
    for length in (0, 1, 3, 255, 256, 600, 1023):
        assert sum(conversation.parts(length)) == length
    assert [*conversation.parts(600)] == [256, 256, 64, 16, 4, 4]


Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    def run(model: pathlib.Path, lines: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        # As the writer above, whose programs these are.
        given = ["--max-new-tokens=10", "--top-k=20", "--repetition-penalty=1.3"]
        given += [f"--context={CONTEXT}"]
        status = cli.main(["chat", "--model", str(model), *given, *more])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_lines_are_answered_and_a_conversation_is_saved_as_data(
    converses: pathlib.Path, tmp_path: pathlib.Path, talk: Talk
):
    saved = tmp_path / "saved.jsonl"
    lines = f"ab\n\n//save\n/save {saved}\n/reset\nc\n/save {saved}\n/nothing\n/quit\nd\n"
    status, printed, said = talk(converses, lines, "--system= Be brief. ")
    answers = printed.splitlines()
    assert status == 0 and len(answers) == 3 and all(len(answer) == 10 for answer in answers)
    assert "128 tokens are remembered" in said and "no command '/nothing'" in said
    assert "begins anew" in said and "nothing is overwritten" in said
    (line,) = saved.read_text().splitlines()
    roles = ("system", "user", "assistant", "user", "assistant")
    contents = ("Be brief.", "ab", answers[0], "/save", answers[1])
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    assert json.loads(line) == {"messages": messages}
    (example,), _ = data.read_jsonl(saved, models.load(converses).tokenizer)
    assert len(example.answers) == 1
    status, again, said = talk(converses, "x" * 400 + "\nab", "--system= Be brief. ")
    assert status == 0 and again.splitlines() == answers[:1] and "say it in parts" in said


def test_images_are_shown_by_a_command_and_saved_as_data(
    sees: pathlib.Path,
    converses: pathlib.Path,
    picture: pathlib.Path,
    tmp_path: pathlib.Path,
    talk: Talk,
):
    saved = picture.parent / "saved.jsonl"
    lines = f"/image\n/image {tmp_path / 'no.png'}\n/image {picture}\nab\nc\n/save {saved}\n"
    status, printed, said = talk(sees, lines)
    assert status == 0 and len(printed.splitlines()) == 2
    for part in ("expected /image FILE", "no.png is missing", "a.png is shown with the next text"):
        assert part in said
    record = json.loads(saved.read_text())
    assert record["images"] == [str(picture)] and len(record["messages"]) == 4
    status, _, said = talk(converses, f"/image {picture}\n")
    assert status == 0 and "this model reads no images" in said


def test_a_base_model_is_refused_by_the_command_that_tunes_it(
    untuned: pathlib.Path, converses: pathlib.Path, talk: Talk
):
    status, printed, said = talk(untuned, "ab\n")
    assert (status, printed) == (2, "") and said.count("\n") == 1
    assert f"kullback train sft tokens/conversations --model {untuned} tunes it" in said
    for wrong, message in (
        ("--context=300", "the model's context is of 256 tokens, got 300"),
        ("--context=10", "has no room for a text beside an answer of 10"),
        ("--temperature=-1", "temperature must be 0"),
    ):
        status, _, said = talk(converses, "", wrong)
        assert status == 2 and message in said and said.count("\n") == 1


@pytest.mark.slow
def test_a_run_on_conversations_converses(
    untuned: pathlib.Path, tmp_path: pathlib.Path, talk: Talk
):
    path = experiments.train(
        "sft",
        "tokens/conversations",
        out=tmp_path / "run",
        model=str(untuned),
        settings=("batch_size=4", "max_prompt_length=240", "max_new_tokens=120"),
        steps=2,
        quiet=True,
    )
    config = json.loads((path / "config.json").read_text())
    assert config["data"]["train"]["dropped"] == 0
    status, printed, _ = talk(path, "Hello!\n")
    assert status == 0 and printed
    exports.write_folder(path, tmp_path / "model")
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == chat.TEMPLATE
    assert talk(tmp_path / "model", "Hello!\n")[1] == printed


# A program at a terminal, in which Ctrl-C reaches it: the first one that a session's leader opens.
AT_A_TERMINAL = """
import argparse, os, sys, time
os.open(os.ttyname(0), os.O_RDWR)
from kullback.experiments import cli, display, interrupts
from kullback.experiments.commands import chat
"""
ECHO = """
def command(options):
    for line in chat._lines():
        print(repr(line), flush=True)
    return 0
with display.plain():
    sys.exit(cli._run(argparse.Namespace(command=command)))
"""
SLOWLY = """
show = chat._show
chat._show = lambda text: (show(text), time.sleep(0.5))
sys.exit(cli.main(sys.argv[1:]))
"""


class Terminal:
    """A terminal of some width, and the program in it."""

    def __init__(self, code: str, *arguments: str, width: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        command = [sys.executable, "-c", AT_A_TERMINAL + code, *arguments]
        self._program = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._shown = b""  # And not yet returned.

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, text: str) -> str:
        """Returns what is shown next, up to a text and with it."""
        while text.encode() not in self._shown:
            assert self.read(), self._shown
        shown, _, self._shown = self._shown.partition(text.encode())
        return shown.decode() + text

    def rest(self) -> str:
        """Returns what is shown until the program ends."""
        while self.read():
            pass
        return self._shown.decode()

    def read(self) -> bool:
        """Reads what is shown next; returns False if the program has ended."""
        part = b""
        assert self._shows(120), self._shown
        with contextlib.suppress(OSError):
            part = os.read(self._ours, 4096)
        self._shown += part
        return bool(part)

    def _shows(self, seconds: float) -> bool:
        return bool(select.select([self._ours], [], [], seconds)[0])

    def interrupt(self) -> None:
        """Types Ctrl-C, once more where it came just before Python began to wait for a key."""
        self.type("\x03")
        if not self._shows(5):
            self.type("\x03")

    def end(self) -> int:
        status = self._program.wait(60)
        os.close(self._ours)
        return status

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        self._program.kill()
        self._program.wait()


@pytest.mark.parametrize("width", [80, 0, pytest.param(5, marks=pytest.mark.slow)])
def test_lines_are_edited_at_a_terminal_of_any_width(width: int):
    with Terminal(ECHO, width=width) as terminal:
        assert terminal.until("> ").endswith("> ")
        terminal.type("ab\x01X\n")  # Ctrl-A leads to the line's beginning.
        assert terminal.until("\n> ").endswith("'Xab'\r\n> ")
        terminal.type("\x1b[A\n")  # An arrow, to the line before.
        assert terminal.until("\n> ").endswith("'Xab'\r\n> ")
        long = "a long text " * 20
        terminal.type(f"{long}\n")
        assert terminal.until("\n> ").endswith(f"{long.strip()!r}\r\n> ")
        if width:
            terminal.type("h")
            terminal.until("h")
            terminal.interrupt()
            assert terminal.rest() == "\r\nkullback: interrupted\r\n"
            assert terminal.end() == 130
        else:
            terminal.type("\x04")
            assert terminal.rest() == "\r\n"
            assert terminal.end() == 0


@pytest.mark.slow
def test_a_conversation_at_a_terminal(converses: pathlib.Path, tmp_path: pathlib.Path):
    arguments = ("chat", "--model", str(converses), "--max-new-tokens=40", "--top-k=20")
    with Terminal(SLOWLY, *arguments) as terminal:
        terminal.until("\r\n> ")
        terminal.type("ab\n")
        assert terminal.until("ab\r\n") == "ab\r\n"
        first = terminal.until("\n> ").removesuffix("\r\n> ")
        assert len(first) == 40
        terminal.type("c\n")
        terminal.until("c\r\n")
        assert terminal.read()  # The answer has begun.
        terminal.type("\x03")  # It ends the answer alone.
        rest = terminal.until("\n> ")
        assert "^C" in rest and len(rest) < 40
        terminal.type("/save /proc/saved.jsonl\n")
        assert "/proc/saved.jsonl" in terminal.until("\n> ").split("\r\n", 1)[1]
        terminal.type(f"/save {tmp_path}/saved.jsonl\n")
        assert "saved: " in terminal.until("\n> ")
        terminal.type("d\n")
        terminal.until("d\r\n")
        assert len(terminal.until("\n> ").removesuffix("\r\n> ")) == 40
        terminal.type("\x04")
        assert terminal.rest() == "\r\n" and terminal.end() == 0
    (line,) = (tmp_path / "saved.jsonl").read_text().splitlines()
    contents = [message["content"] for message in json.loads(line)["messages"]]
    assert contents[:3] == ["ab", first, "c"] and 0 < len(contents[3]) < 40

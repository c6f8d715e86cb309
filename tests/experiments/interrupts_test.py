"""Tests of experiments/interrupts.py: which signals are received, when, and what they become."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from kullback.experiments import cli, interrupts


@pytest.fixture(autouse=True)
def hangup() -> Iterator[None]:
    """Hears SIGHUP, also where the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_handlers_that_a_library_replaces_are_put_back():
    with interrupts.Interrupts() as signals:
        with interrupts.kept():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        send(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_first_signal_is_remembered_and_the_second_raises(number, status):
    before = signal.getsignal(number)
    with interrupts.Interrupts() as signals:
        send(number)
        assert signals.received == number
        with pytest.raises(interrupts.Interrupted) as caught:
            send(signal.SIGINT)
        assert caught.value.status == 130
        with pytest.raises(interrupts.Interrupted) as caught, signals.at_once():
            raise AssertionError("the block is not entered")
        assert caught.value.status == status
    assert signal.getsignal(number) == before


def test_where_nothing_is_lost_a_signal_ends_the_block_at_once():
    with interrupts.Interrupts() as signals:
        with pytest.raises(interrupts.Interrupted), signals.at_once():
            send(signal.SIGTERM)
            raise AssertionError("it went on")
        assert signals.received == signal.SIGTERM


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.Interrupts(raises=True) as signals:
            send(signal.SIGHUP)
            assert not signals.received
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_the_callers_handlers_stay():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with interrupts.Interrupts() as signals, signals.at_once():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_signal_that_comes_where_nobody_can_catch_it_is_heard_all_the_same(capsys):
    class Lost:
        def __del__(self) -> None:
            send(signal.SIGTERM)
            time.sleep(0.001)

    before = sys.unraisablehook
    with interrupts.Interrupts() as signals:
        with pytest.raises(interrupts.Interrupted) as caught, signals.at_once():
            Lost()
            time.sleep(10)
            raise AssertionError("it went on")
        assert caught.value.status == 143
        with pytest.raises(interrupts.Interrupted):  # The second of the user.
            send(signal.SIGTERM)
    assert sys.unraisablehook == before
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_command_ends_with_the_status_of_its_signal(number, status, monkeypatch, capsys):
    from kullback.experiments.commands import listing

    def add_parser(commands) -> None:
        commands.add_parser("wait").set_defaults(command=lambda options: send(number))

    monkeypatch.setattr(listing, "add_parser", add_parser)
    assert cli.main(["wait"]) == status
    assert capsys.readouterr().err == "kullback: interrupted\n"


def test_another_message_keeps_the_signal_and_pythons_own_is_sigints():
    interrupted = interrupts.as_interrupted(interrupts.Interrupted(number=signal.SIGTERM), "saved")
    assert (str(interrupted), interrupted.status) == ("saved", 143)
    assert interrupts.as_interrupted(KeyboardInterrupt("kept")).args == ("kept",)
    assert interrupts.as_interrupted(KeyboardInterrupt()).status == 130


@pytest.mark.parametrize(
    ("when", "status"),
    [
        ("atexit.register(os.kill, os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("sys.meta_path.insert(0, Finder)", 128 + signal.SIGINT),
    ],
    ids=["while libraries clean up", "while commands are imported"],
)
def test_ctrl_c_says_nothing(when: str, status: int):
    code = (
        "import atexit, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # Shells ignore it for `&`.
        "from kullback.experiments import cli\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'kullback.experiments.commands.train':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        f"{when}\n"
        "sys.argv = ['kullback', 'list']\n"
        "cli.program()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    assert bool(done.stdout) == (status < 0)

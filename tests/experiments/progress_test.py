"""Tests of experiments/progress.py: what the live line says, on a terminal and elsewhere."""

import re

import pytest
import rich.console

from kullback.experiments import progress


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_elsewhere_a_plain_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.Progress("dqn toy/chain", 0, 10_000) as bar:
        clock.now += 5
        bar.update(1_000)  # Too soon for a line.
        clock.now += 15
        bar.update(4_000, 0.512, "loss")  # 200 a second: 6,000 more take 30 s.
        clock.now += 5
        bar.update(5_000)
        bar.say("a line of its own")
        clock.now += 25
        bar.update(10_000)  # No value: what it showed stays, and its name.
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "dqn toy/chain: step 0 of 10,000",
        "dqn toy/chain: step 4,000 of 10,000, loss 0.51, 200 steps/s, 0:00:30 left",
        "a line of its own",
        "dqn toy/chain: step 10,000 of 10,000, loss 0.51, 200 steps/s, 0:00:00 left",
    ]
    assert not captured.out, "stdout is for results"


def test_a_resumed_run_counts_its_speed_from_where_it_went_on(
    clock: Clock, capsys: pytest.CaptureFixture[str]
):
    with progress.Progress("dqn", 8_000, 10_000) as bar:
        clock.now += 20
        bar.update(9_000)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "dqn: step 8,000 of 10,000"
    assert second == "dqn: step 9,000 of 10,000, return -, 50 steps/s, 0:00:20 left"


def test_before_the_first_step_nobody_knows_how_long_it_takes(
    clock: Clock, capsys: pytest.CaptureFixture[str]
):
    with progress.Progress("dqn", 0, 10_000) as bar:
        clock.now += 20
        bar.update(0, value=1.5)
    assert capsys.readouterr().err.splitlines()[1] == (
        "dqn: step 0 of 10,000, return 1.50, - steps/s, - left"
    )


@pytest.mark.parametrize(
    ("speed", "shown"),
    [
        (12_345.6, "12,346 steps/s"),
        (10.0, "10 steps/s"),
        (9.94, "9.9 steps/s"),
        (1.0, "1.0 steps/s"),
        (0.99, "1.0 s/step"),
        (1 / 2.3, "2.3 s/step"),
        (1 / 75, "75 s/step"),
        (1 / 5_400, "5,400 s/step"),
        (0.0, "- steps/s"),
    ],
)
def test_slow_steps_have_their_seconds(speed: float, shown: str):
    assert progress.pace(speed) == shown


def test_a_line_of_slow_steps(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.Progress("sft", 0, 100) as bar:
        clock.now += 23
        bar.update(10)
    line = capsys.readouterr().err.splitlines()[1]
    assert line == "sft: step 10 of 100, return -, 2.3 s/step, 0:03:27 left"


def test_the_speed_is_that_of_late(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.Progress("dqn", 0, 100_000) as bar:
        for step in range(1_000, 20_001, 1_000):  # Warming up, 1,000 a second,
            clock.now += 1
            bar.update(step)
        for step in range(20_100, 24_001, 100):  # then learning, 100 a second.
            clock.now += 1
            bar.update(step)
    assert capsys.readouterr().err.splitlines()[-1].endswith(" 100 steps/s, 0:12:45 left")


def test_a_terminal_has_step_return_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plain = rich.console.Console

    def terminal(**options: object) -> rich.console.Console:
        return plain(force_terminal=True, width=120, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(rich.console, "Console", terminal)
    with progress.Progress("m-dqn minatar/breakout", 0, 2_000) as bar:
        bar.update(500, value=7.25)
        bar.update(1_000, value=8.5)
        bar.say("above")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    line = re.split(r"[\r\n]+", text.strip())[-1]
    assert re.search(
        r"m-dqn minatar/breakout .*1,000/2,000 steps return 8\.50 [\d,]+ steps/s \d?-?[\d:-]+", line
    ), line
    assert "above" in text


def test_quiet(capsys: pytest.CaptureFixture[str]):
    with progress.Progress("dqn", 0, 10, quiet=True) as bar:
        bar.update(10, 1.0)
        bar.say("nothing")
    assert not any(capsys.readouterr())


def test_another_metric_than_the_return(capsys: pytest.CaptureFixture[str]):
    with progress.Progress("sft tokens/arithmetic", 0, 10) as bar:
        bar.update(10, 1.5, "loss")
    assert "step 10 of 10, loss 1.50" in capsys.readouterr().err


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_name_is_neither_markup_nor_a_control_character(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    with progress.Progress("sft [/red]:smile:\x1b[2Jx\ny", 0, 100) as bar:
        bar.say("[/b] \x1b]0;title\x07")
        bar.update(100)
    said = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert r"sft [/red]:smile:\x1b[2Jx y" in said and r"[/b] \x1b]0;title\x07" in said

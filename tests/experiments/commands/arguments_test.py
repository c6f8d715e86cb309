"""Tests of experiments/commands/arguments.py, and bad command lines of every command.

Each is refused in one line, with status 2, before anything is compiled or written.
"""

import argparse
import functools
import pathlib
import shutil
from collections.abc import Callable

import pytest

from kullback.environments import minatar  # noqa: F401  # Which compiles as it is imported.
from kullback.experiments import cli, limits
from kullback.experiments.commands import arguments
from kullback.experiments.runs import models

Refused = Callable[..., str]

NO_TEXT = "\udcff"  # A byte that is not UTF-8, as Python hands it over.
HUGE = "9" * 40
NO_COUNTS = ("0", "-1", "1.5", "abc", "", "nan", "inf", "-inf", "1e30", HUGE, "9" * 5_000)
NO_COUNTS += ("\u0663", "\uff11", "1_", "[1]", "0x10", "True")  # Other alphabets' digits: 3 and 1.
NO_SEEDS = ("-1", "1.5", "abc", "", "nan", str(2**70), str(-(2**70)), str(2**31 - 1), "\u0663")
NO_NUMBERS = ("abc", "", "nan", "inf", "1e999", "1,2", "\u0663", "True")

CHAIN = ("train", "dqn", "toy/chain", "--out", "new")
SFT = ("train", "sft", "tokens/arithmetic", "--model", "tiny", "--out", "new")
PLAY = ("evaluate", "{game}")
JUDGE = ("evaluate", "{text}", "tokens/arithmetic", "--out", "new")
ANSWER = ("answer", "{text}", "questions.jsonl")
TELL = ("generate", "--model", "{text}", "--prompt", "1+1=")
TALK = ("chat", "--model", "{text}")
QUANTIZE = ("quantize", "{text}", "--format", "int8")
LABEL = ("label", "{text}", "tokens/arithmetic", "--out", "new")
MERGE = ("merge", "{text}", "{text}", "--out", "new", "--method", "slerp")
COUNTS = {
    CHAIN: (
        *("steps", "num-seeds", "num-envs", "eval-every", "eval-episodes", "eval-max-steps"),
        *("log-every", "checkpoint-every", "epochs"),
    ),
    ("train", "--resume", "{game}"): ("steps", "epochs"),
    PLAY: ("episodes", "max-steps"),
    JUDGE: ("episodes", "samples", "best-of", "max-prompt-length", "max-new-tokens"),
    ANSWER: ("samples", "limit", "batch-size", "max-new-tokens"),
    TELL: ("max-new-tokens", "batch-size"),
    TALK: ("max-new-tokens", "context"),
    QUANTIZE: ("episodes",),
    LABEL: ("prompts", "max-prompt-length", "max-new-tokens"),
    ("report", "{game}", "--out", "new"): ("steps",),
    ("sweep", "sweep.toml"): ("jobs",),
}
SEEDS = {
    line: ("seed",)
    for line in (
        CHAIN,
        SFT,
        PLAY,
        JUDGE,
        ANSWER,
        TELL,
        TALK,
        QUANTIZE,
        ("export", "{text}", "--out", "new"),
    )
} | {("entailment", "--out", "new"): ("seed",)}
DRAWN = ("temperature", "top-p", "min-p", "repetition-penalty")
NUMBERS = {
    TELL: DRAWN,
    ANSWER: ("temperature", "top-p"),
    TALK: DRAWN,
    MERGE: ("t", "interpolation", "weights", "rate"),
}
LINES = [
    (*line, f"--{flag}={value}")
    for flags, values in ((COUNTS, NO_COUNTS), (SEEDS, NO_SEEDS), (NUMBERS, NO_NUMBERS))
    for line, names in flags.items()
    for flag in names
    for value in values
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns a run of a game and one of a language model."""
    home = tmp_path_factory.mktemp("runs")
    stored = root / "tests" / "experiments" / "fixtures" / "runs_of_0_1"
    shutil.copytree(stored / "compiled", home / "game")
    shutil.copytree(stored / "sft", home / "text")
    models.load(home / "text")  # Compiles a few operations, which need a model, once.
    return {"game": home / "game", "text": home / "text"}


def test_numbers_and_seeds_of_no_use_are_refused_by_the_parser_of_every_command():
    for line in LINES:
        with pytest.raises(argparse.ArgumentError) as error:
            _parse(line)
        said = str(error.value)
        assert "expected a " in said and len(said) < 250, (line, said)


def _parse(line: tuple[str, ...]) -> None:
    """Raises argparse's error, where the command would print it and end."""
    command = _commands().choices[line[0]]
    command.exit_on_error = False
    command.parse_args(line[1:])


@functools.cache
def _commands() -> argparse._SubParsersAction:
    """Returns the parsers of all commands, made once."""
    actions = cli._parser()._actions
    return next(a for a in actions if isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("50_000", 50_000), ("5e4", 50_000), ("2e9", 2 * 10**9)]
)
def test_whole_numbers_are_read_as_people_write_them(text: str, number: int):
    read = arguments.whole(1, limits.STEPS)(text)
    assert (type(read), read) == (int, number)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # Text that is none, wherever it stands.
        ((*CHAIN, NO_TEXT), "arguments must be UTF-8, got '\\udcff'"),
        ((NO_TEXT,), "arguments must be UTF-8"),
        ((*CHAIN[:3], "--out", f"a{NO_TEXT}"), "arguments must be UTF-8, got 'a\\udcff'"),
        ((*CHAIN, f"--set={NO_TEXT}=1"), "arguments must be UTF-8"),
        ((*TELL[:3], "--prompt", NO_TEXT), "arguments must be UTF-8"),
        (("evaluate", NO_TEXT), "arguments must be UTF-8"),
        (("export", "{text}", "--out", NO_TEXT), "arguments must be UTF-8"),
        (("sweep", NO_TEXT), "arguments must be UTF-8"),
        (("report", "{game}", "--out", NO_TEXT), "arguments must be UTF-8"),
        (("merge", "{text}", NO_TEXT, "--method=mean", "--out=new"), "arguments must be UTF-8"),
        (("reproduce", NO_TEXT), "arguments must be UTF-8"),
        # On one line, and nothing that a terminal obeys.
        (("train", "a\nb\x1b[31m", "toy/chain"), "unknown agent 'a\\nb\\x1b[31m'"),
        ((*CHAIN, "a\nb\x1b[31m"), "unrecognized arguments: a b\\x1b[31m"),
        # Numbers as the command says them.
        ((*CHAIN, "--num-envs", "1e18"), "--num-envs: expected a whole number from 1 to 1,048,576"),
        ((*CHAIN, "--seed", str(2**70)), "--seed: expected a whole number from 0 to 2,147,483,646"),
        ((*CHAIN, "--seed", "2147483640", "--num-seeds", "9"), "seed must lie in [0, 2^31 - num_s"),
        ((*PLAY, "--episodes", "1e12"), "--episodes: expected a whole number from 1 to 1,000,000"),
        ((*PLAY, "--seed", str(2**70)), "--seed: expected a whole number from 0 to"),
        ((*JUDGE, "--seed", "5"), "has seeds"),
        # Flags of environments.
        ((*CHAIN, "--environment-flag=auto_reset=maybe"), "auto_reset must be True or False, got"),
        ((*CHAIN, "--environment-flag=length=1e3"), "toy/chain: length must be int, got '1e3'"),
        ((*CHAIN, f"--environment-flag=length={HUGE}"), "toy/chain: length must be int, got"),
        ((*CHAIN, "--environment-flag=length=99999"), "length must lie in [1, 10,000], got 99999"),
        ((*CHAIN, "--environment-flag=slip=nan"), "toy/chain: slip must be float, got 'nan'"),
        ((*CHAIN, "--environment-flag=slip"), "toy/chain: expected flag=value, got 'slip'"),
        ((*CHAIN, "--environment-flag=slp=0.1"), "unknown flag 'slp'; did you mean slip?"),
        *(
            (("train", "dqn", environment, "--out=new", f"--environment-flag={flag}"), message)
            for environment, flag, message in (
                ("minatar/breakout", "sticky_action_prob=abc", "must be float, got 'abc'"),
                ("minatar/breakout", "sticky_action_prob=1.5", "must be in [0, 1], got 1.5"),
                ("minatar/breakout", "max_episode_steps=1.5", "must be int | None, got '1.5'"),
                ("minatar/breakout", "max_episode_steps=nan", "must be int | None, got 'nan'"),
                ("minatar/breakout", "difficulty_ramping=abc", "must be True or False, got 'abc'"),
                ("minatar/breakout", "minimal_actions=no", "must be True or False, got 'no'"),
                ("gym/CartPole-v1", "sutton_barto_reward=maybe", "must be True or False, got"),
                ("gym/CartPole-v1", "max_episode_steps=nan", "must be int | None, got 'nan'"),
                ("gym/CartPole-v1", "max_episode_steps=0", "must lie in [1, 2^31)"),
                ("gym/CartPole-v1", "render_mode=human", "unknown flag 'render_mode'"),
                ("gym/MountainCar-v0", "goal_velocity=abc", "must be int | float, got 'abc'"),
                ("atari/pong", "life_loss=maybe", "life_loss must be bool | None, got 'maybe'"),
                ("atari/pong", "num_threads=1e9", "num_threads must be int, got '1e9'"),
                ("atari/pong", "num_threads=1000000000", "num_threads must lie in [0, 1024]"),
                ("atari/pong", "repeat_probability=abc", "must be float | None, got 'abc'"),
                ("atari/pong", "protocol=abc", "protocol must be sticky or classic, got 'abc'"),
                ("atari/pong", "max_frames=9999999999", "max_frames must lie below 2^31, got"),
            )
        ),
        (("train", "dqn", "gym/CartPole-v1", "--num-envs", "20_000"), "must lie in [1, 16,384]"),
        (("train", "dqn", "atari/pong", "--num-envs", "8192"), "rows (num_envs) must lie in [1, 4"),
        # Fields of configurations and of models.
        ((*CHAIN, "--set=learning_rate=nan"), "learning.learning_rate must be float, got 'nan'"),
        ((*CHAIN, "--set=learning_rate=inf"), "learning.learning_rate must be float, got 'inf'"),
        ((*CHAIN, f"--set=batch_size={HUGE}"), "learning.replay.batch_size must be int, got"),
        ((*CHAIN, "--set=capacity=\u0663"), "learning.replay.capacity must be int, got"),
        (
            (*CHAIN, f"--set=samples_per_update={10**18}"),
            "learning.replay.samples_per_update must lie",
        ),
        ((*CHAIN, "--set=samples_per_update=2000000011"), "the nearest valid num_envs is 1"),
        ((*SFT, "--model-flag=num_layers=1.5"), "num_layers must be int, got '1.5'"),
        ((*SFT, "--model-flag=dtype=int8"), "dtype must be float32 or bfloat16, got 'int8'"),
        ((*SFT, "--model-flag=num_layer=1"), "unknown field 'num_layer'; did you mean num_layers"),
        ((*SFT, "--set=batch_size=1e3"), "batch_size must be int, got '1e3'"),
        (("entailment", "--out=new", "--set=steps=1.5"), "steps must be int | None, got '1.5'"),
        (("reproduce", "connections", "--out=new", "--set=num_garnets=x"), "must be int, got 'x'"),
        # Empty names are variables that were not set.
        ((*CHAIN[:3], "--out", ""), "--out: expected a name, got ''"),
        (("evaluate", ""), "expected a name, got ''"),
        (("generate", "--model", "", "--prompt", "x"), "--model: expected a name, got ''"),
        # Places where nothing can be written.
        ((*CHAIN[:3], "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        ((*CHAIN[:3], "--out", "x" * 300), "cannot be written (File name too long)"),
        ((*SFT[:5], "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        ((*JUDGE[:3], "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        ((*PLAY, "--video", "/proc/x/y.gif"), "/proc/x/y.gif cannot be written"),
        (("export", "{game}", "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        (("export", "{text}", "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        (("export", "{text}", "--out", "{text}"), "exists; nothing is overwritten"),
        ((*MERGE[:3], "--method", "mean", "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        (("report", "{game}", "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        (("reproduce", "connections", "--out", "/proc/x/y"), "/proc/x/y"),
        (("entailment", "--out", "/proc/x/y"), "/proc/x/y cannot be written"),
        # What does not fit a model.
        ((*TELL, "--max-new-tokens", "1000000"), "exceed the model's context"),
        ((*TELL, "--stop-token", "99999"), "99999"),
        ((*TELL, "--top-p", "2"), "top_p must lie in (0, 1]"),
        ((*TELL, "--temperature=-1"), "temperature must be 0 (greedy)"),
        ((*MERGE, "--t", "2"), "t must lie in [0, 1]"),
        (("fields", "dqn", "tpy"), "invalid choice: 'tpy'"),
        (("list", "dqn"), "unrecognized arguments: dqn"),
        (("cache", "--clear="), "--clear: expected a name, got ''"),
        (("cache", "--clear", "a/b"), "'a/b'"),
    ],
)
def test_refused_before_work(
    line: tuple[str, ...], message: str, refused: Refused, runs: dict[str, pathlib.Path]
):
    before = sorted(runs["game"].parent.rglob("*"))
    assert message in refused(
        *(
            word.replace("{game}", str(runs["game"])).replace("{text}", str(runs["text"]))
            for word in line
        )
    )
    assert sorted(runs["game"].parent.rglob("*")) == before


def test_the_table_has_every_command():
    commands = {line[0] for line in LINES}
    parser = cli._parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert commands | {"cache", "fields", "list", "pipeline", "reproduce"} == set(action.choices)
    for name, command in action.choices.items():
        for option in command._actions:  # None reads a number, or a path, by a type of its own.
            assert option.type not in (int, float, pathlib.Path), (name, option.dest)

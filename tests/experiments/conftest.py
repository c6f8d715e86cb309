"""Fixtures of this folder: a short run that no test changes, and commands that are run."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import pytest

from kullback import experiments
from kullback.experiments import cli
from kullback.lm import tasks, tokenizer
from tests import small_models


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run."""

    path: pathlib.Path
    rows: list[Mapping[str, Any]]  # As its callback received them.


@pytest.fixture(scope="session")
def chain_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    rows: list[Mapping[str, Any]] = []
    path = experiments.train(
        "m-dqn",
        "toy/chain",
        steps=4_000,
        seed=7,
        log_every=1_000,
        checkpoint_every=2_000,
        eval_every=2_000,
        eval_episodes=4,
        settings=("temperature=0.05",),
        out=tmp_path_factory.mktemp("chain") / "run",
        callback=rows.append,
        quiet=True,
    )
    return Trained(path, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewSums(tasks.Arithmetic):
    """Settings of `tokens/arithmetic`, of which ten thousand sums are read for a second a run."""

    num_train: int = 200
    num_test: int = 50


@pytest.fixture(scope="module")
def few_sums() -> Iterator[None]:
    """Makes `tokens/arithmetic` a task of few sums, for all tests of a module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tasks, "Arithmetic", FewSums)
        yield


@pytest.fixture(scope="session")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns the folder of a model that writes letters, without a chat template."""
    bpe = tokenizer.train_bpe(["user\nmodel\n"], 262)
    return small_models.write(tmp_path_factory.mktemp("untuned"), bpe)


@pytest.fixture(scope="session")
def sees(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns the folder of a model that sees images of 8 pixels, 4 soft tokens each."""
    return small_models.that_sees(tmp_path_factory.mktemp("sees"))


COMPILED: list[str] = []  # Grows with each program that XLA compiles.


def _note(event: str, duration_secs: float, **facts: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_note)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compiled() -> list[str]:
    """Returns a list that grows with each program that XLA compiles."""
    return COMPILED


@pytest.fixture
def kullback(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a command in an empty folder; returns its status and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main(list(map(str, arguments)))
        except SystemExit as stopped:  # Of argparse.
            status = stopped.code
        assert isinstance(status, int)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


@pytest.fixture
def refused(kullback: Command) -> Callable[..., str]:
    """Runs a command that is refused before it writes or compiles; returns its one line."""

    def run(*arguments: object) -> str:
        before, files = len(COMPILED), sorted(pathlib.Path().rglob("*"))
        status, out, err = kullback(*arguments)
        assert status == 2, (status, out, err)
        assert not out and err.startswith("kullback: ") and err.count("\n") == 1, err
        assert err[:-1].isprintable() and len(err) < 1_000, err
        assert len(COMPILED) == before, "something was compiled first"
        assert sorted(pathlib.Path().rglob("*")) == files
        return err

    return run

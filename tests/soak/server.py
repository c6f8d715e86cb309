"""Commands of `kullback`, each a process of its own, forked off one that has imported everything.

Importing takes three seconds and a fork none. The server never computes: no back end of JAX exists
when it forks, so that a child starts as `kullback` does once its modules are there.
"""

import atexit
import ctypes
import dataclasses
import importlib
import multiprocessing
import os
import pathlib
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

POLL_SECONDS = 0.02  # Between two looks at whether a process lives.
WEIGH_SECONDS = 0.5  # Between two looks at its memory, which take milliseconds.
# Root reads and writes whatever a file's mode says by these (linux/capability.h).
OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH.
NO_CAPABILITIES = 77  # Status of exit: the machine does not let them be given up.
CAPGET, CAPSET, CAPABILITY_VERSION_3 = 125, 126, 0x20080522
# What commands import when there is work; the rest of the library comes with it. Not MinAtar's
# games, whose tables are arrays of JAX: they make a back end.
MODULES = (
    "kullback.experiments.cli",
    "kullback.experiments.evaluate.best_of",
    "kullback.experiments.entailment",
    "kullback.experiments.evaluate.evaluation",
    "kullback.experiments.evaluate.generate",
    "kullback.experiments.runs.preferences",
    "kullback.experiments.report",
    "kullback.experiments.reproduce",
    "kullback.experiments.runs.acting",
    "kullback.experiments.sweeps.sweeping",
    "kullback.experiments.runs.training",
    "kullback.environments.atari",
    "kullback.environments.gym",
    "kullback.lm.merging",
    "kullback.theory.iteration",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Resources that a command may take before it is killed and counted as lost."""

    seconds: float = 60.0
    megabytes: float = 4_000.0  # Resident, with its children.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A command to be run."""

    arguments: tuple[str, ...]
    home: pathlib.Path  # The folder that it runs in.
    log: pathlib.Path  # Folder of what it says.
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_plain: bool = False  # Whether modes of files hold for it, though it may be root's.
    stdout: pathlib.Path | None = None  # A pipe in place of a file in `log`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    status: int  # Of exit; negative: the signal that ended it.
    out: str
    err: str
    seconds: float
    megabytes: float  # The most that was seen.
    exceeded: str = ""  # "time" or "memory" if it was killed for that.


def start_server(environment: Mapping[str, str]) -> None:
    """Prepares what the commands are forked off, with variables that all of them see."""
    os.environ.update(environment)
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload([*MODULES, __name__])


class Command:
    """A command under way, in a session of its own."""

    def __init__(self, call: Call):
        self._call = call
        call.log.mkdir(parents=True, exist_ok=True)
        self._process = multiprocessing.Process(target=_main, args=(call,))
        (call.log / "stderr").unlink(missing_ok=True)
        self._process.start()
        while not (call.log / "stderr").exists() and self._process.is_alive():
            time.sleep(0.001)
        self.begun = time.monotonic()
        self._megabytes = self._weighed = 0.0

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: int) -> None:
        """Sends a signal to the process alone, as `kill PID` does; none if it is gone."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def is_alive(self) -> bool:
        """Returns whether it still runs; looks at its memory too."""
        if time.monotonic() > self._weighed + WEIGH_SECONDS:
            self._weighed = time.monotonic()
            self._megabytes = max(self._megabytes, _resident(self.pid))
        return self._process.is_alive()

    def wait(self, limits: Limits = Limits(), until: Callable[[], bool] = lambda: False) -> str:
        """Waits for its end, or for `until`; says which limit was passed, "" for none."""
        while self.is_alive() and not until():
            if time.monotonic() - self.begun > limits.seconds:
                return "time"
            if self._megabytes > limits.megabytes:
                return "memory"
            self._process.join(POLL_SECONDS)
        return ""

    def finish(self, limits: Limits = Limits()) -> Outcome:
        """Waits for its end, and for that of what it started; kills what passes the limits."""
        exceeded = self.wait(limits)
        if exceeded:
            self.send(signal.SIGKILL)
        self._process.join()
        seconds = time.monotonic() - self.begun
        _end_session(self.pid, grace=20.0)
        status = self._process.exitcode
        assert status is not None
        return Outcome(
            status=status,
            out=_text(self._call.log / "stdout"),
            err=_text(self._call.log / "stderr"),
            seconds=seconds,
            megabytes=self._megabytes,
            exceeded=exceeded,
        )


def run(call: Call, limits: Limits = Limits()) -> Outcome:
    """Runs a command to its end."""
    return Command(call).finish(limits)


def compute(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of a function that may use JAX, run in a new process; raises its error."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=_answer, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        is_good, value = receiver.recv()
    except EOFError:
        is_good, value = False, f"{function.__name__} ended without an answer"
    child.join()
    if not is_good:
        raise RuntimeError(value)
    return value


def _answer(sender: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        sender.send((True, function(*arguments)))
    except Exception as error:  # What it says is all that can be sent.
        sender.send((False, f"{type(error).__name__}: {error}"))


def _main(call: Call) -> None:
    """Does what `kullback ARGUMENTS` does, from the end of its imports on; runs in the child."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # Whatever the soak was told.
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    _redirect(1, call.stdout or call.log / "stdout")
    _redirect(2, call.log / "stderr")  # The sign that the process has begun.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    os.chdir(call.home)
    os.environ.update(call.environment)
    if call.is_plain:
        try:
            obey_modes()
        except OSError:
            os._exit(NO_CAPABILITIES)
    sys.argv = ["kullback", *call.arguments]
    cli = importlib.import_module("kullback.experiments.cli")
    try:
        cli.program()
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # A process of multiprocessing leaves them out.


def obey_modes() -> None:
    """Gives up what lets root pass over the modes of files.

    Raises:
      OSError: where the machine knows no capabilities.
    """
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # Effective, permitted and inheritable, twice.
    for number in (CAPGET, CAPSET):
        numbers = {125: 90, 126: 91} if platform.machine() == "aarch64" else {}
        if library.syscall(numbers.get(number, number), header, data):
            raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
        for place in range(3):
            data[place] &= ~OVERRIDES


def _redirect(descriptor: int, path: pathlib.Path) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(opened, descriptor)
    os.close(opened)


def _resident(pid: int) -> float:
    """Megabytes of a process and of what it started; 0 once it is gone."""
    total = 0
    try:
        one = psutil.Process(pid)
        for each in (one, *one.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.Error:
        pass
    return total / 1e6


def _end_session(session: int, grace: float) -> None:
    """Waits until no process of a session is left; kills those that outlast the time of grace."""
    end = time.monotonic() + grace
    while left := [pid for pid in psutil.pids() if _session(pid) == session]:
        if time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _text(path: pathlib.Path) -> str:
    return path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""

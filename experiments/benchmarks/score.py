"""The score that a person has two minutes after the command: returns on MinAtar's Breakout.

Each agent runs alone, by the command, with nothing compiled before; after SECONDS its record is
read, and it is ended. So the score has the start, the compilation and the machine's speed in it.
"""

import functools
import math
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kullback.experiments.benchmarks import commands, peer, rows, timing
from kullback.experiments.runs import run_folder

SECONDS = 120.0
GAME = "minatar/breakout"
TARGET = (
    20.0  # Points, of the best agent; 20.3 was DQN's once, and 6.9 that of PQN's authors' code.
)
# With the presets that users have; PQN's are for 10 million agent steps, of which epsilon takes a
# tenth to fall. Two minutes are less: it falls as DQN's does there.
_EXPLORES_AS_DQN = ("epsilon_decay_env_steps=100_000",)
AGENTS: Mapping[str, Sequence[str]] = {
    "dqn": (),
    "m-dqn": (),
    "pqn": _EXPLORES_AS_DQN,
    "m-pqn": _EXPLORES_AS_DQN,
}
ENDS = 60.0  # Seconds that a run has to end, once it is told to.


class Score(NamedTuple):
    """The last row of a run's record."""

    value: float  # Mean return of the last 100 training episodes.
    steps: int


def after(
    seconds: float, agent: str, settings: Sequence[str] = (), environment: str = GAME
) -> Score:
    """Trains an agent by the command and returns the score that it has after so many seconds.

    Raises:
      PeerError: if the command fails, or no episode has ended by then.
    """
    cold = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        command = [commands.path(), "train", agent, environment, "--out", str(out)]
        # A row each half second or so; no time goes to checkpoints, and it never ends by itself.
        command += ["--log-every", "2000", "--checkpoint-every", "1e9", "--steps", "1e9"]
        command += [part for setting in settings for part in ("--set", setting)]
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=cold, text=True
        ) as process:
            try:
                _, complaints = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                score = last(out)
                late = time.perf_counter() - start - seconds
                end(process)
            else:
                raise peer.failed(["kullback", "train", agent], process.returncode, complaints)
    if math.isnan(score.value) or late > 1:
        why = f"the record was read {late:.0f} s late" if late > 1 else "no episode has ended"
        raise peer.PeerError(f"{agent} on {environment} after {seconds:g} s: {why}")
    return score


def end(process: subprocess.Popen[str]) -> None:
    """Tells a run to end, as a user does by a signal, and waits."""
    process.terminate()
    try:
        process.communicate(timeout=ENDS)
    except subprocess.TimeoutExpired:
        process.kill()


def last(out: pathlib.Path) -> Score:
    """Returns the last row of a run that is under way; NaN if there is none."""
    written = run_folder.RunFolder(out).rows()
    if not written:
        return Score(math.nan, 0)
    return Score(float(written[-1]["recent_return"]), int(written[-1]["steps"]))


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures each agent once, and says the best; no other library takes part."""
    del budget, run_peer
    scores = {agent: after(SECONDS, agent, settings) for agent, settings in AGENTS.items()}
    row = functools.partial(rows.Row, unit="points")
    best = max(scores, key=lambda agent: scores[agent].value)
    return [
        *(
            row(
                name=f"{GAME} after {SECONDS:g} s, {agent}",
                ours=score.value,
                details={"steps": score.steps},
            )
            for agent, score in scores.items()
        ),
        row(
            name=f"{GAME} after {SECONDS:g} s, the best",
            ours=scores[best].value,
            target=TARGET,
        ),
    ]

"""A step of supervised tuning over processes, at equal rows: what their agreement costs."""

import functools
import pathlib
import socket
from typing import NamedTuple

from kullback.experiments.benchmarks import peer, rows, speeds, timing
from kullback.experiments.runs import model_files
from kullback.lm import gemma_config

FLAGS = {"num_layers": 4, "embed_dim": 256, "hidden_dim": 1024, "num_heads": 4, "head_dim": 64}
SIZES = {"batch_size": 32, "max_prompt_length": 16, "max_new_tokens": 16}
STEPS = 60
ALONE = "1 process of 1 device"
# Processes, and devices of each.
SHARED = {
    ALONE: (1, 1),
    "1 process of 2 devices": (1, 2),
    "2 processes of 1 device": (2, 1),
    "4 processes of 1 device": (4, 1),
}


class Measured(NamedTuple):
    """Speed of a run, and the size of its model."""

    rate: float  # Learner steps a second.
    num_params: int


def read(path: pathlib.Path) -> Measured:
    """Reads the speed of a run, and the size of its model."""
    size = gemma_config.num_params(model_files.saved_config(path))
    return Measured(speeds.of_folder(path).rate, size.total)


def measure(processes: int, devices: int) -> Measured:
    """Trains a run.

    Args:
      processes: that share the rows.
      devices: of each.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    joined = [
        [f"--coordinator={place}", f"--num-processes={processes}", f"--process-id={n}"]
        for n in range(processes)
    ]
    mesh = f"--mesh={processes * devices}x1"
    arguments = [
        *("sft", "tokens/arithmetic", "--model=tiny", mesh, f"--steps={STEPS}"),
        *(f"--model-flag={name}={value}" for name, value in FLAGS.items()),
        *(f"--set={name}={value}" for name, value in SIZES.items()),
        *(f"--log-every={STEPS // 10}", "--checkpoint-every=1000000"),
    ]
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return speeds.trained(read, arguments, joined if processes > 1 else ((),), variables)


def exchanged(processes: int, num_params: int) -> float:
    """Returns the bytes that a process sends a step where gradients go round in a ring.

    Each of n parts of them goes n - 1 times to the next to be added up, and n - 1 times whole.
    """
    return 2 * (processes - 1) / processes * 4 * num_params


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures a run of each kind in turn; the peer is one process of one device."""
    del run_peer
    measures = {name: functools.partial(measure, *sizes) for name, sizes in SHARED.items()}
    best, work = speeds.in_turn(measures, budget.rounds), f"step of SFT, {SIZES['batch_size']} rows"
    alone = {ALONE: best[ALONE].rate}
    return [
        rows.Row(
            name=f"{work}, {measured.num_params / 1e6:.1f} M weights, {name}",
            ours=measured.rate,
            unit="steps/s",
            details={"bytes_a_step": exchanged(SHARED[name][0], measured.num_params)},
            **({} if name == ALONE else rows.of_peer(alone, ALONE)),
        )
        for name, measured in best.items()
    ]

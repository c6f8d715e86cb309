"""A published Gemma 3 at its real size: writing, reading and learning, beside other programs.

Each side is a process of its own, which warms up and repeats its work for the seconds of a
measurement, and once at least; its peak of the memory is a row, too. The limits are measured
between the two: a step of one text reads all weights, so the machine's memory bounds it, and
products of matrices bound the others. Peers read the same weights: transformers in float32, and in
bfloat16 where half of the bytes are read; llama.cpp the file as it was published. Where the
packages that bring the model are not installed, nothing is measured, and the reason is said.

Ours are float32 all along. All texts have the same lengths, no padding, and nothing ends them.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from kullback.core import names
from kullback.experiments.benchmarks import (
    commands,
    machine,
    peer,
    published_cases,
    published_work,
    rows,
    timing,
)
from kullback.experiments.benchmarks.published_cases import (
    CASES,
    COMMANDS,
    GB,
    LOGIT_DIFFERENCE,
    Case,
    Limits,
)
from kullback.experiments.runs import pretrained

KEEPING = "transformers that keeps freed memory"


class Side(NamedTuple):
    """The figures of a peer; without them, why there are none."""

    figures: Mapping[str, float]
    failure: str = ""


def run(budget: timing.Budget, run_peer: peer.Peer, case: str) -> list[rows.Row]:
    """Measures one case.

    Args:
      budget: its rounds have no say.
      run_peer: runs a peer's program.
      case: a name of CASES or COMMANDS.

    Raises:
      Skipped: if the model is not installed.
      PeerError: if our side fails; a peer's failure is said in its rows.
    """
    if case not in CASES and case not in COMMANDS:
        raise ValueError(names.unknown("case", case, [*CASES, *COMMANDS]))
    try:
        pretrained.require(published_cases.NAME)
    except ValueError as reason:
        raise rows.Skipped(str(reason)) from None
    if case in COMMANDS:
        return of_command(case)
    chosen = CASES[case]
    sizes = json.dumps(chosen.sizes)
    arguments = chosen.kind, budget.seconds, sizes, published_cases.MODEL
    ours = peer.ours("published_work", *arguments)
    best = limits()
    sides = theirs(chosen, budget.seconds, run_peer) if run_peer is not peer.none else {}
    return compared(chosen, ours, sides, best)


def limits() -> Limits:
    """Measures what the machine does at best."""
    num_bytes = published_cases.WEIGHT_BYTES
    copied, read = machine.bandwidth(num_bytes, "bytes")(), machine.reading(num_bytes, "bytes")()
    return Limits(machine.sgemm()()["sgemm"], max(copied["bytes"], read["bytes"]))


def theirs(case: Case, seconds: float, run_peer: peer.Peer) -> dict[str, Side]:
    """Measures the peers of a case, one after another."""
    folder = published_work.written_for_peers(published_cases.NAME)
    sides = {}
    for name in case.peers:
        try:
            sides[name] = Side(run_peer(*request(case, name, seconds, folder)))
        except peer.PeerError as error:
            sides[name] = Side({}, f"{case.name}, {name}: {error}")
    return sides


def request(
    case: Case, name: str, seconds: float, folder: pathlib.Path
) -> tuple[str, str, *tuple[object, ...]]:
    """Returns a peer's environment, its program, and the program's arguments.

    Args:
      case: what is measured.
      name: of the peer.
      seconds: of the measurement.
      folder: of what peers read.
    """
    weights, file = folder / published_work.FOLDER, folder / published_work.FILE
    if name == published_cases.LLAMA:
        _, *sizes = (1, published_cases.LONG, 0) if case.kind == "prefill" else case.sizes
        return "llamacpp", "published", seconds, json.dumps(sizes), file
    if case.kind == "rloo":
        sizes = [*case.sizes, published_cases.RLOO.settings().kl_coefficient]
        return "transformers", "reinforce", seconds, json.dumps(sizes), weights
    dtype = "bfloat16" if name == published_cases.BFLOAT16 else "float32"
    sizes = json.dumps(case.sizes)
    return "transformers", "published", seconds, case.kind, sizes, weights, dtype


def compared(
    case: Case, ours: Mapping[str, float], sides: Mapping[str, Side], limits: Limits
) -> list[rows.Row]:
    """Returns rows of rates, seconds to the first token, and memory, beside each peer."""
    sides = {name: side._replace(figures=rates(side.figures)) for name, side in sides.items()}
    for side in list(sides.values()):
        if "kept_rate" in side.figures:
            sides[KEEPING] = Side({"rate": side.figures["kept_rate"]})
    rate = rows.Row(
        name=case.name,
        ours=ours["rate"],
        unit=case.unit,
        target_ratio=case.target_ratio,
        limit_share=ours["rate"] / case.bound(limits),
        target_limit_share=case.target_limit_share,
        details=limits._asdict(),
    )
    results = beside(rate, sides, "rate")
    for key, name, unit, scale, target in (
        ("first_seconds", "to the first token", "s", 1.0, None),
        ("peak_bytes", "peak memory", "GB", GB, None),
        ("logit_difference", "merged against factored", "nats", 1.0, LOGIT_DIFFERENCE),
    ):
        if key in ours:
            value, called = ours[key] / scale, f"{case.name}, {name}"
            row = rows.Row(name=called, ours=value, unit=unit, lower_is_better=True, target=target)
            if key == "logit_difference":  # Where the target is below what float32 tells apart.
                row = dataclasses.replace(row, details={"rounding": ours["rounding"]})
            results += beside(row, sides, key, scale)
    return results


def rates(figures: Mapping[str, float]) -> dict[str, float]:
    """Returns a peer's figures, with a rate in place of the seconds of its step."""
    if "seconds" not in figures:
        return dict(figures)
    return {"rate": 1 / figures["seconds"], "peak_bytes": figures["peak_bytes"]}


def beside(
    row: rows.Row, sides: Mapping[str, Side], key: str, scale: float = 1.0
) -> list[rows.Row]:
    """Returns the row for each peer that has such a figure, or failed; one row if there is none.

    Args:
      row: ours, with targets, which are of the first peer.
      sides: the peers.
      key: of their figures.
      scale: the unit of the row in that of the figures.
    """
    results = []
    for name, side in sides.items():
        value = side.figures.get(key)
        if value is None and not side.failure:
            continue
        value = None if value is None else value / scale
        results.append(dataclasses.replace(row, peer=name, peer_value=value, failure=side.failure))
        row = dataclasses.replace(row, target_ratio=None, target_limit_share=None)
    return results or [row]


def of_command(case: str) -> list[rows.Row]:
    """Measures a command of COMMANDS; no other program takes part."""
    command, model = COMMANDS[case], ("--model", published_cases.MODEL)
    saved, is_generate = 0, case == published_cases.GENERATE
    peer.ENVIRONMENTS.mkdir(exist_ok=True)  # A disk, where /tmp may be memory.
    with tempfile.TemporaryDirectory(dir=peer.ENVIRONMENTS) as folder:
        if is_generate:
            arguments = [*command.arguments, *model]
            commands.watch(arguments)  # Converts and compiles what the next one finds.
        else:
            texts, run = (pathlib.Path(folder) / name for name in ("texts.jsonl", "run"))
            texts.write_text(_texts())
            kind, agent, *rest = command.arguments
            arguments = [kind, agent, f"tokens/jsonl:{texts}", *rest, *model, "--out", str(run)]
        watched = commands.watch(arguments)
        if command.checkpoint_bytes is not None:
            saved = _last_checkpoint(pathlib.Path(folder) / "run")
    memory = rows.Row(
        name=f"{command.name}, peak memory",
        ours=watched.peak_bytes / GB,
        unit="GB",
        lower_is_better=True,
        target=command.target_bytes / GB,
        details={"seconds": watched.seconds},
    )
    first = rows.Row(
        name=f"{command.name}, from its start to the first token",
        ours=watched.first_seconds,
        unit="s",
        lower_is_better=True,
        target=published_cases.FIRST_SECONDS,
    )
    if command.checkpoint_bytes is None:
        return [first, memory] if is_generate else [memory]
    checkpoint = rows.Row(
        name=f"{command.name}, its last checkpoint",
        ours=saved / 1e6,
        unit="MB",
        lower_is_better=True,
        target=command.checkpoint_bytes / 1e6,
    )
    return [memory, checkpoint]


def _last_checkpoint(run: pathlib.Path) -> int:
    """Returns the bytes of the newest checkpoint of a run."""
    newest = max((run / "checkpoints").glob("[0-9]*"))
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())


def _texts() -> str:
    """Returns prompts and completions as JSONL, of about 50 tokens each."""
    prompt, completion = "one two " * 25, "three four " * 25
    pairs = ({"prompt": f"{n} {prompt}", "completion": completion} for n in range(40))
    return "".join(json.dumps(pair) + "\n" for pair in pairs)

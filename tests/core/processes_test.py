"""Tests of core/processes.py: two processes that put, fetch, agree, fail and die."""

import json
import re
import signal
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import processes
from tests import machines, several

PROGRAM = """
import json, os, signal, sys, time
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from kullback.core import processes, sharding, trees

address, count, index, ending = sys.argv[1:]
said, index = {}, int(index)
if ending == "alone":
    processes.JOIN_SECONDS = 3


def error_of(function):
    try:
        function()
    except Exception as error:
        return [type(error).__name__, str(error), processes.shared(error) is error]


def raises(error):
    raise error


def die():
    os.kill(os.getpid(), signal.SIGKILL)


with processes.joined(address, int(count), index):
    processes.say_how_to_go_on("kullback train --resume runs/x")
    mesh = sharding.make_mesh("2x1")
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), sharding.replicated(mesh)
    cut = processes.put(np.float32([[1, -0.0], [np.nan, 4]]), rows)
    key = processes.put(jax.random.key(7), whole)
    tree = {"cut": cut, "key": key, "local": np.arange(3)}
    said["part"] = [np.asarray(x.data).tolist() for x in cut.addressable_shards]
    said["again"] = processes.put(cut, rows) is cut
    fetched = processes.fetch(tree)
    said["bits"] = fetched["cut"].view(np.uint32).tolist()
    said["key"] = jax.random.key_data(fetched["key"]).tolist()
    said["fetched"] = [type(x).__name__ for x in (fetched["cut"], fetched["local"])]
    said["gathered"] = [x is None for x in processes.gathered(tree).values()]
    said["to_numpy"] = trees.to_numpy(cut).shape
    said["agreed"] = [processes.agreed(index * 15), processes.agreed(0)]
    said["told"] = processes.told(lambda: ["of", index, float(np.float32(0.1))])
    said["refused"] = error_of(lambda: processes.told(lambda: raises(ValueError(f"no {index}"))))
    said["other kind"] = error_of(
        lambda: processes.told(lambda: raises(KeyError("x")), KeyError)
    )
    processes.check_equal({"x": np.arange(4)}, "the batch of step 3")
    mine = {"x": np.arange(4) + index}
    said["differs"] = error_of(lambda: processes.check_equal(mine, "the batch of step 3"))
    print(json.dumps(said), flush=True)
    if ending == "hang" and index == 1:
        time.sleep(60)
    if ending == "fail" and index == 1:
        raise ValueError("the model is\\nmissing here")
    if ending == f"{index} tells":
        processes.told(die)
    if ending == "0 tells":
        processes.told(lambda: None)
    if ending == f"{index} gives":
        die()
    if ending.endswith("gives"):
        processes.gathered(tree)
    if ending == f"{index} ends":
        die()
    if ending in ("hang", "fail"):
        while True:
            processes.barrier()
"""


def started(ending: str, count: int = 2, host: str = "127.0.0.1", **more: Any) -> Any:
    command = ["-c", PROGRAM, f"{host}:@PORT", "@COUNT", "@INDEX", ending]
    return several.running(command, count, **more)


def await_lines(processes: list[Any]) -> None:
    """Waits until each process has said what it found."""
    for process in processes:
        assert any(line.startswith("{") for line in process.stdout)


def test_two_processes_are_one():
    with started("end") as two:
        (status, out, error), (status_1, out_1, error_1) = several.ended(two)
    assert (status, status_1) == (0, 0), error + error_1
    first, other = (json.loads(text.splitlines()[-1]) for text in (out, out_1))
    assert (first["part"], other["part"][0][0][1]) == ([[[1.0, -0.0]]], 4.0)
    for said in (first, other):
        # Bits, as a sum with zeros would lose the sign of zero.
        bits = np.array([[1, -0.0], [np.nan, 4]], np.float32).view(np.uint32)
        assert said["again"] and said["bits"] == bits.tolist()
        assert said["key"] == jax.random.key_data(jax.random.key(7)).tolist()
        assert said["fetched"] == ["ndarray", "ndarray"] and said["to_numpy"] == [2, 2]
        assert said["agreed"] == [15, 0]
        assert said["told"] == ["of", 0, float(np.float32(0.1))]
        name, message, is_shared = said["differs"]
        assert (name, is_shared) == ("ValueError", True)
        assert message.startswith("the batch of step 3 of process 1 (")
        assert "is not that of process 0 (" in message
    assert first["gathered"] == [False] * 3 and other["gathered"] == [True] * 3
    assert first["refused"] == ["ValueError", "no 0", True]
    name, message, is_shared = other["refused"]
    assert (name, is_shared) == ("ValueError", True)
    assert re.fullmatch(r"process 0 \(\S+, pid \d+\): no 0", message)
    assert first["other kind"][0] == other["other kind"][0] == "KeyError"


AGAIN = "start all 2 processes again with: kullback train --resume runs/x"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_who_is_gone_or_hangs_is_named_by_the_other(killed: int, number: int):
    with started("hang") as two:
        await_lines(two)
        two[killed].send_signal(number)
        _, error = two[1 - killed].communicate()
        two[killed].kill()
        said = several.ended(two[killed : killed + 1])
    assert said[0][0] == -signal.SIGKILL and two[1 - killed].returncode == 1
    how = "(is gone|answers no more)" if number == signal.SIGSTOP else "is gone"
    named = rf"process {killed} \(\S+, pid {two[killed].pid}\) {how}; {AGAIN}"
    assert re.search(named, error.splitlines()[-1]), error


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["0 tells", "0 gives", "1 gives", "0 ends", "1 ends"])
def test_who_dies_is_named_whatever_the_other_waits_for(ending: str):
    """Its answer, an array of it, and its last word."""
    killed = int(ending[0])
    with started(ending) as two:
        said = several.ended(two)
    status, _, error = said[1 - killed]
    assert said[killed][0] == -signal.SIGKILL and status == 1
    named = rf"process {killed} \(\S+, pid {two[killed].pid}\) is gone; {AGAIN}"
    assert re.search(named, error.splitlines()[-1]), error


@pytest.mark.slow
@pytest.mark.parametrize("index", ["0", "1"])
def test_a_process_that_does_not_come_is_awaited_for_so_long(index: str):
    command = ["-c", PROGRAM, "127.0.0.1:@PORT", "2", index, "alone"]
    with several.running(command, 1) as one:
        ((status, _, error),) = several.ended(one)
    assert status == 1
    missed = r"the 2 processes of this run did not meet at 127\.0\.0\.1:\d+ within 3 seconds"
    assert re.search(missed, error), error


@pytest.mark.slow
def test_a_network_that_is_cut_is_said_by_both():
    with machines.two() as (hosts, cut), started("hang", host="host-0", inside=hosts) as two:
        await_lines(two)
        cut()
        said = several.ended(two)
    for index, (status, _, error) in enumerate(said):
        assert status == 1
        pid = two[1 - index].pid
        other = rf"process {1 - index} \(host-{1 - index}, pid {pid}\) is gone; {AGAIN}"
        assert re.search(other, error.splitlines()[-1]), error


@pytest.mark.slow
def test_why_a_process_ended_is_told_to_the_other():
    with started("fail") as two:
        (status, _, error), (status_1, _, error_1) = several.ended(two)
    assert (status, status_1) == (1, 1)
    assert "ValueError: the model is\nmissing here" in error_1
    assert re.search(r"Gone: process 1 \(.*\) ended: the model is missing here; start all", error)


def test_one_process_is_left_alone():
    assert (processes.count(), processes.is_first()) == (1, True)
    tree = {"x": np.arange(3), "key": jax.random.key(0)}
    assert processes.fetch(tree) is tree and processes.gathered(tree) is tree
    assert processes.agreed(3) == 3 and processes.told(lambda: tree) is tree
    error = KeyError()
    assert processes.shared(error) is error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:9000", 2, None), "go together, got 127.0.0.1:9000, 2 and None"),
        (("9000", 2, 0), "a coordinator is HOST:PORT, such as 10.0.0.1:9000, got 9000"),
        (("host:0", 2, 0), "a coordinator is HOST:PORT"),
        (("host:99999", 2, 0), "a coordinator is HOST:PORT"),
        (("127.0.0.1:9000", 2, 2), "ids of processes are 0 to N - 1 of N >= 2, got id 2 of 2"),
        (("127.0.0.1:9000", 1, 0), "got id 0 of 1"),
        (("192.0.2.1:9000", 2, 0), "process 0 cannot listen at 192.0.2.1:9000"),
    ],
)
def test_refuses_what_does_not_fit(arguments: Any, message: str):
    with pytest.raises(ValueError) as error:
        processes.start(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert processes.count() == 1

"""A run over several processes, on one machine or several: the only file that knows of them.

Each process runs the whole program over one mesh of all devices (`core/sharding.py`), and the
compiler inserts the communication: NCCL between GPUs, gloo between CPUs, the links of a TPU slice.
The coordination service of `jax.distributed`, in process 0, carries what is not an array: who is
there, what process 0 says, why a process ended.

The rule of all code that may run so: every process calls the same programs in the same order. A
branch may depend on the plan, the step and replicated values, on nothing else. What is read from
outside (a clock, a signal, a disk that is written to, a server) is asked of one process, and told
to all: `agreed`, `told`.

With one process every function here returns what it is given, at once.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # Its client; jax.distributed hands out none.
from jax.experimental import multihost_utils

from kullback.core import departures, platform

T = TypeVar("T")

JOIN_SECONDS = 300  # All processes must have started by then.
_LONG = 2**31 - 1  # Milliseconds: who is gone ends a wait, see departures.py.
_WHO, _TOLD = "kullback/who", "kullback/told"


class Gone(RuntimeError):
    """Another process has ended, so that this one cannot go on; the message names it."""


@dataclasses.dataclass(kw_only=True)
class _Group:
    """The processes of this run, as this one sees them."""

    client: Any
    count: int
    index: int
    watch: departures.Watch
    num_told: int = 0
    told: list[str] = dataclasses.field(default_factory=list)  # Keys that all may have read.
    shared_error: BaseException | None = None  # The last that every process has raised.


_group: _Group | None = None
_KINDS = (ValueError, ArithmeticError, OSError)


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run; returns when all are there. Call it before JAX is used.

    If `jax.distributed` has begun already, its processes are taken.

    Args:
      coordinator: HOST:PORT, on which process 0 listens at this address alone, and all connect.
      num_processes: of the run, 2 or more.
      process_id: of this one, from 0. If all are None, the cluster says them (SLURM, MPI, GKE), by
        JAX's own detection; process 0 then listens on all of its addresses.

    Raises:
      ValueError: for arguments that do not fit, an address at which process 0 cannot listen, or a
        cluster that says nothing; a process that does not come within JOIN_SECONDS.
    """
    global _group
    if _group is not None:
        raise ValueError("this process has joined others already")
    if not jax.distributed.is_initialized():
        _initialize(coordinator, num_processes, process_id)
    state = distributed.global_state
    client, count, index = state.client, state.num_processes, state.process_id
    if count < 2 or client is None:
        return
    client.key_value_set(f"{_WHO}/{index}", f"{socket.gethostname()}, pid {os.getpid()}")
    who = [client.blocking_key_value_get(f"{_WHO}/{n}", 1000 * JOIN_SECONDS) for n in range(count)]
    address = state.coordinator_address or ""
    watch = departures.Watch(client=client, coordinator=address, index=index, who=who)
    _group = _Group(client=client, count=count, index=index, watch=watch)
    watch.begin()
    # The devices connect while all processes are here: later one of them may be late, and gloo
    # waits for 30 seconds where devices first meet. What JAX is told of large programs comes first.
    platform.run_large_programs()
    barrier()


def _initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = (coordinator, num_processes, process_id)
    if any(x is None for x in given) and any(x is not None for x in given):
        raise ValueError(
            "a coordinator, the number of processes and the id of this one go together, got "
            f"{coordinator}, {num_processes} and {process_id}"
        )
    if coordinator is not None and num_processes is not None and process_id is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(
                f"a coordinator is HOST:PORT, such as 10.0.0.1:9000, got {coordinator}"
            )
        if not 0 <= process_id < num_processes or num_processes < 2:
            raise ValueError(
                f"ids of processes are 0 to N - 1 of N >= 2, got id {process_id} of {num_processes}"
            )
        if process_id == 0:
            _check_free(host.strip("[]"), int(port))
    # SIGTERM is ours, see experiments/interrupts.py. And JAX would abort a process as soon as
    # another ended, before it could say who and what next.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", True)
    missed = f"the {num_processes or ''} processes of this run did not meet".replace("  ", " ")
    where = "as the cluster says" if coordinator is None else f"at {coordinator}"
    departures.on_abort(lambda: f"{missed} {where} within {JOIN_SECONDS} seconds")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            coordinator_bind_address=coordinator,
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=departures.HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        if coordinator is None:
            raise ValueError(
                f"no cluster says which processes this run has ({first}): give a coordinator, the "
                "number of processes, and the id of each"
            ) from error
        raise ValueError(f"{missed} {where}: {first}") from error


def _check_free(host: str, port: int) -> None:
    """Raises ValueError if process 0 cannot listen there: JAX would abort the process."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen at {host}:{port} ({error.strerror or error}): the "
            "coordinator is an address of the machine where process 0 runs, and a free port"
        ) from error


def count() -> int:
    """Returns the number of processes; 1 unless `start` was called."""
    return 1 if _group is None else _group.count


def is_first() -> bool:
    """Returns whether this is process 0, which writes files and shows progress."""
    return _group is None or _group.index == 0


def say_how_to_go_on(command: str) -> None:
    """Keeps a command for the message that ends this process if another is gone."""
    if _group is not None:
        _group.watch.going_on = command


# Arrays.


def put(tree: Any, shardings: Any) -> Any:
    """Returns arrays that have their shardings; every process holds the parts of its devices.

    Args:
      tree: of arrays; those on the host, or on this process's devices, are equal in all processes,
        which `jax.device_put` would compare each time.
      shardings: a tree of them, or one for all.
    """
    if _group is None:
        return jax.device_put(tree, shardings)
    leaves, structure = jax.tree.flatten(tree)
    is_one = isinstance(shardings, jax.sharding.Sharding) or shardings is None
    homes = [shardings] * len(leaves) if is_one else jax.tree.leaves(shardings)
    return jax.tree.unflatten(structure, [_put(*pair) for pair in zip(leaves, homes, strict=True)])


def _put(leaf: Any, home: jax.sharding.Sharding | None) -> jax.Array:
    if home is None or home.is_fully_addressable or _spans(leaf):
        return jax.device_put(leaf, home)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        wrap, impl = jax.random.wrap_key_data, jax.random.key_impl(leaf)
        numbers = _put(jax.random.key_data(leaf), home)
        return jax.jit(lambda x: wrap(x, impl=impl), out_shardings=home)(numbers)
    numbers = np.asarray(leaf)
    numbers = numbers.astype(jax.dtypes.canonicalize_dtype(numbers.dtype), copy=False)
    return jax.make_array_from_callback(numbers.shape, home, lambda at: numbers[at])


def fetch(tree: Any) -> Any:
    """Returns a tree whose arrays over several processes are NumPy's, whole in each of them.

    All other leaves stay as they are. Every process must call it.
    """
    return tree if _group is None else jax.tree.map(_fetch, tree)


def _fetch(leaf: Any) -> Any:
    if not _spans(leaf):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        numbers = _fetch(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
    return multihost_utils.process_allgather(leaf, tiled=True)


def gathered(tree: Any) -> Any:
    """Returns what `fetch` does in the first process, and the tree with None for it elsewhere.

    One array at a time is whole in each process; the first one's host has room for all, as the
    host of a run of one process has for its checkpoint. Nobody else writes, so that a checkpoint
    is whole or not there by one rename, has the files of a run of one process, needs no disk that
    all machines share while it is written, and fills one disk alone.
    """
    if _group is None:
        return tree

    def of_leaf(leaf: Any) -> Any:
        whole = _fetch(leaf)
        return whole if is_first() else None

    return jax.tree.map(of_leaf, tree)


def _spans(leaf: Any) -> bool:
    """Returns whether an array is on devices of other processes, too."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


# Agreement.


def agreed(number: int) -> int:
    """Returns the largest of all processes' numbers, below 2^31."""
    if _group is None:
        return number
    largest = int(np.max(multihost_utils.process_allgather(np.int32(number))))
    for key in _group.told:  # All have read them, as all are here.
        _group.client.key_value_delete(key)
    _group.told.clear()
    return largest


def barrier() -> None:
    """Waits for all processes."""
    agreed(0)


def check_equal(tree: Any, what: str) -> None:
    """Compares arrays of NumPy's over all processes by their CRC-32.

    Raises:
      ValueError: in every process, if they differ; the message names one that differs from the
        first.
    """
    if _group is None:
        return
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc)
    sums = multihost_utils.process_allgather(np.uint32(crc)).reshape(-1)
    wrong = np.flatnonzero(sums != sums[0])
    if len(wrong):
        error = ValueError(
            f"{what} of {_named(int(wrong[0]))} is not that of {_named(0)}: they read other data, "
            "or are of other versions; give all machines the same files and packages"
        )
        raise share(error)


def told(function: Callable[[], T], *kinds: type[Exception]) -> T:
    """Calls a function in the first process, and returns in all what it returned, JSON-able.

    Raises:
      Exception: what it raised, in all processes, if that is a ValueError, an ArithmeticError, an
        OSError or one of `kinds`. Any other is raised in the first alone, which ends.
    """
    if _group is None:
        return function()
    _group.num_told += 1
    key = f"{_TOLD}/{_group.num_told}"
    if _group.index > 0:
        said = json.loads(_group.client.blocking_key_value_get_bytes(key, _LONG))
        if "kind" in said:
            kind = {kind.__name__: kind for kind in (*_KINDS, *kinds)}[said["kind"]]
            raise share(kind(f"{_named(0)}: {said['message']}"))
        return said["value"]
    try:
        value = function()
    except (*_KINDS, *kinds) as error:
        kind = next(kind for kind in (*kinds, *_KINDS) if isinstance(error, kind))
        said = {"kind": kind.__name__, "message": str(error)}
        _tell(key, said)
        share(error)
        raise
    _tell(key, {"value": value})
    return value


def _tell(key: str, said: dict[str, Any]) -> None:
    assert _group is not None
    _group.client.key_value_set_bytes(key, json.dumps(said).encode())
    _group.told.append(key)


def shared(error: BaseException) -> BaseException:
    """Returns an error after which a run saves and ends, as every process has it.

    Raises:
      BaseException: the error, if this process alone has it, so that it cannot save.
    """
    if _group is not None and error is not _group.shared_error:
        raise error
    return error


def share(error: BaseException) -> BaseException:
    """Returns an error that every process raises at the same point, and notes that it is so."""
    if _group is not None:
        _group.shared_error = error
    return error


def _named(index: int) -> str:
    assert _group is not None
    return _group.watch.named(index)


# The end.


@contextlib.contextmanager
def joined(*arguments: Any) -> Iterator[None]:
    """Joins the processes of a run for a block, see `start`, and leaves them at its end.

    If the block raises what the others do not, they are told why, and end too.

    Raises:
      Gone: in place of an error of the communication, if another process has ended.
    """
    start(*arguments)
    if _group is None:
        yield
        return
    group = _group
    try:
        try:
            yield
        except BaseException as error:
            if error is group.shared_error:
                group.watch.finish()
            raise
        sys.stdout.flush()
        group.watch.finish()
    except BaseException as error:
        if departures.is_of_communication(error):
            lost = f"the processes lost touch: {error}"
            raise Gone(group.watch.await_verdict() or lost) from error
        if error is not group.shared_error:
            group.watch.leave(f"ended: {str(error) or type(error).__name__}")
        raise

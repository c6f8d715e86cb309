"""Two machines for tests, as far as a network goes: namespaces of Linux, joined by a cable."""

import contextlib
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence

import pytest

HOSTS = ("10.9.0.1 host-0", "10.9.0.2 host-1")
_UNSHARE = ("unshare", "--net", "--uts", "--mount")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@contextlib.contextmanager
def two() -> Iterator[tuple[Sequence[Sequence[str]], Callable[[], None]]]:
    """Yields the words by which a program starts on host-0 and host-1, and cuts the cable.

    Skips the test where that is not allowed, as it is to root alone.
    """
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = folder / "hosts"
        names.write_text("".join(f"{line}\n" for line in ("127.0.0.1 localhost", *HOSTS)))
        holders, insides = [], []
        for _ in HOSTS:
            holder = subprocess.Popen(
                [*_UNSHARE, "sh", "-c", "echo; exec sleep 600"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            if holder.stdout.readline() != b"\n":
                pytest.skip("no namespaces: they want root, and a kernel that has them")
            holders.append(str(holder.pid))
            insides.append(("nsenter", "-t", str(holder.pid), "--net", "--uts", "--mount", "--"))
        try:
            first = ("ip", "link", "add", "cable-0", "type", "veth", "peer", "name", "cable-1")
            _run(*insides[0], *first, "netns", holders[1])
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("no pair of virtual networks: iproute2 and a kernel with veth make them")
        for index, inside in enumerate(insides):
            address = HOSTS[index].split()[0]
            _run(*inside, "ip", "addr", "add", f"{address}/24", "dev", f"cable-{index}")
            for device in ("lo", f"cable-{index}"):
                _run(*inside, "ip", "link", "set", device, "up")
            _run(*inside, "hostname", f"host-{index}")
            _run(*inside, "mount", "--bind", str(names), "/etc/hosts")
        yield insides, lambda: _run(*insides[0], "ip", "link", "set", "cable-0", "down")

"""A Ray cluster of this machine, for tests."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import psutil


def variables(home: pathlib.Path) -> dict[str, str]:
    """Returns the environment of a process that starts a cluster.

    Args:
      home: where Ray may write its token.
    """
    # Ray gives what it starts a low priority, by which it starves beside other work.
    return {**os.environ, "HOME": str(home), "RAY_worker_niceness": "0", "JAX_PLATFORMS": "cpu"}


def program(cpus: int) -> str:
    """Returns a program that starts a cluster, and runs a command of ours as --ray=auto."""
    return (
        "import sys, ray\n"
        "from kullback.experiments import cli\n"
        f"ray.init(num_cpus={cpus}, include_dashboard=False, log_to_driver=False)\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )


class Head(NamedTuple):
    """Head of a cluster that is no child of the run's."""

    address: str  # HOST:PORT.
    pid: int  # Of its control store.
    folder: str  # That its processes have in their command lines.

    def actors(self) -> list[psutil.Process]:
        """Returns the workers that act or write for a run."""
        children = [child for one in _of(self.folder) for child in one.children(recursive=True)]
        return [one for one in {*children} if "ray::Actor" in " ".join(one.cmdline())]


@contextlib.contextmanager
def head(home: pathlib.Path, cpus: int) -> Iterator[Head]:
    """Starts a cluster of this machine for a block, as `ray start` does.

    Args:
      home: see `variables`.
      cpus: that its workers may take.
    """
    # Sockets lie in its folder, and their paths are at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        flags = ("--head", "--port=0", f"--num-cpus={cpus}", f"--temp-dir={folder}")
        quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
        started = subprocess.run(
            (sys.executable, "-m", "ray.scripts.scripts", "start", *flags),
            env={**variables(home), **quiet},
            capture_output=True,
            text=True,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        try:
            (store,) = (one for one in _of(folder) if one.name() == "gcs_server")
            address = (pathlib.Path(folder) / "ray_current_cluster").read_text()
            yield Head(address, store.pid, folder)
        finally:
            for process in _of(folder):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def _of(folder: str) -> list[psutil.Process]:
    """Returns the processes of a cluster."""
    running = psutil.process_iter(["cmdline"])
    return [one for one in running if folder in " ".join(one.info["cmdline"] or ())]

"""The connection to a Ray cluster (https://docs.ray.io)."""

import importlib
import socket
from typing import Any

from kullback.experiments import interrupts

CONNECT_SECONDS = 10.0


def connected(address: str) -> Any:
    """Joins a cluster, unless this process is in one already; returns the module of Ray.

    Args:
      address: of the cluster, as `ray.init` takes it; "local" starts one on this machine.

    Raises:
      ValueError: if Ray is not installed, or the cluster is not found.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError("--ray needs Ray: pip install 'kullback[ray]'") from error
    if ray.is_initialized():
        return ray
    _check_reachable(address)
    try:
        with interrupts.kept():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray has a class for each way to find no cluster.
        raise ValueError(
            f"no Ray cluster at {address!r}: {first_line(error)}; one that wants its token, which "
            "Ray reads for 'auto' alone, needs RAY_AUTH_MODE=token here"
        ) from error
    return ray


def first_line(error: Exception) -> str:
    """Returns what Ray says of an error, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _check_reachable(address: str) -> None:
    """Raises ValueError where nobody listens; Ray itself tries for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host:
        return  # "auto" or "local".
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"no Ray cluster at {address!r}: {error}") from error

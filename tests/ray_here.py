"""A Ray cluster of this machine, for tests."""

import os
import pathlib


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

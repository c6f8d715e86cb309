"""Tests of core/platform.py, each in a process of its own: what is set stays set."""

import platform
import subprocess
import sys

import pytest

# Temporaries of 100 MB, of which each call would fault in 24,000 pages anew.
PROGRAM = """
import resource
from kullback.core import platform
{prepare}
import jax, jax.numpy as jnp

@jax.jit
def program(x):
    return jnp.tanh(x @ x.T) @ x

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = jnp.ones((5_000, 16))
faults()
print(min(faults() for _ in range(12)))  # The heap may grow a few times.
"""


def faults(prepare: str) -> int:
    program = PROGRAM.format(prepare=prepare)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_temporaries_are_kept():
    assert faults("platform.keep_freed_memory()") > 10_000  # So that the program shows it.
    assert faults("platform.run_large_programs()") < 1_000


def test_configurations_of_language_models_leave_jax_untouched():
    program = """
import jax
from kullback import lm

for algorithm in lm.ALGORITHMS.values():
    algorithm.presets("tokens")
jax.config.update("jax_num_cpu_devices", 1)  # Refused once there are devices.
"""
    subprocess.run([sys.executable, "-c", program], check=True)

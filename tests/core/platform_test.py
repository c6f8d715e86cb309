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


@pytest.mark.slow
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


# A gap as the temporaries of a large program leave it, and a small piece that is asked for then.
GAP = """
import jax
from kullback.core import platform

platform.run_large_programs()
libc = platform._glibc()
size, small = 2**28, 2**25  # More than importing leaves free in one piece.
gap, _ = libc.malloc(size), libc.malloc(small)
{compilation}
libc.free(gap)
print(gap <= libc.malloc(small) < gap + size)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the order of free pieces is glibc's")
def test_after_a_long_compilation_small_pieces_leave_the_gap_of_temporaries_alone():
    def is_in_gap(compilation: str) -> bool:
        program = GAP.format(compilation=compilation)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        return done.stdout == b"True\n"

    event = "jax.monitoring.record_event_duration_secs(platform._COMPILED, 1.0)"
    assert is_in_gap("")  # So that the program shows it.
    assert not is_in_gap(event)
    assert not is_in_gap("\n".join([event] * 3))

"""Settings of every test: strict shapes, programs kept between runs, and bounded memory."""

import ctypes
import functools
import gc
import os
import pathlib
import platform
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis
import jax
import psutil
import pytest
from jax._src.interpreters import mlir  # Makes contexts; nothing public does.

from kullback.experiments.runs import pretrained

ROOT = pathlib.Path(__file__).parent.parent

# Most of a test's seconds are compilation: xdist's workers, the programs that tests start (through
# the environment) and the next run share this folder, or one that the caller names. The thresholds
# let small programs in.
CACHE = {
    "jax_compilation_cache_dir": os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")
    ),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)
# What Python has compiled is kept, see the Makefile: by the programs that tests start, too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".cache" / "pycache"))
sys.dont_write_bytecode = False
# A checkpoint waits for the disk at each of its files. In memory nothing waits, and what tests that
# pass have written is deleted at once (setup.cfg).
MEMORY = pathlib.Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4_000_000_000:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Of the models that tests convert; a user's own cache is left alone.
os.environ["KULLBACK_CACHE"] = str(ROOT / ".cache" / "kullback")
# [B] + [B, 1] is [B, B], silently, unless this raises.
jax.config.update("jax_numpy_rank_promotion", "raise")

# `make test` draws its examples from the tests' names: it fails for what was changed, never by
# chance. `make test-all` draws more, and new ones; a failure prints the line that repeats it.
# Numbers that reach XLA are never subnormal: it flushes them to zero where NumPy does not.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, print_blob=True, max_examples=10
)
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True, max_examples=25)
hypothesis.settings.load_profile(os.environ.get("KULLBACK_TEST_EXAMPLES", "repeatable"))


# Tracing makes many objects that stay: by default Python looks through them again and again.
gc.set_threshold(20_000, 20, 20)
# Bytes of memory above which a worker forgets its programs, which are on disk; it grows by ROOM
# beyond what is left then, lest they be forgotten after each module.
LIMIT = [1_400_000_000]
ROOM = 500_000_000


# A fifth of what a small program costs is the MLIR context that JAX makes to lower it in: those of
# a test module share one.
_make_context = mlir.make_ir_context


@functools.lru_cache(maxsize=8)
def _context_of(thread: int) -> Any:
    del thread  # Two threads may lower at once.
    return _make_context()


mlir.make_ir_context = lambda: _context_of(threading.get_ident())


def pytest_collection_finish() -> None:
    """Lets the collector pass over what importing has made, which nobody will free."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Frees the programs that a worker has compiled, once they and what they hold are large."""
    yield
    _context_of.cache_clear()  # It keeps the constants of programs.
    process = psutil.Process()
    if process.memory_info().rss > LIMIT[0]:
        return_freed_memory()  # Runs keep it in the process: there may be little else.
    if process.memory_info().rss > LIMIT[0]:
        jax.clear_caches()
        gc.collect()
        return_freed_memory()
        LIMIT[0] = max(LIMIT[0], process.memory_info().rss + ROOM)


def return_freed_memory() -> None:
    """Returns what the C library holds and nobody uses to the system, where it is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compiles a test's programs as users do, whatever JAX_DISABLE_MOST_OPTIMIZATIONS says."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """Returns the checkout's folder."""
    return ROOT


@pytest.fixture
def gemma3_270m() -> str:
    """Returns the name of the published Gemma 3 270M; skips the test without its package."""
    if not pretrained.is_installed("gemma3-270m"):
        pytest.skip(f"{pretrained.MODELS['gemma3-270m'].package} is not installed")
    return "pretrained:gemma3-270m"

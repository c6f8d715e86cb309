"""Settings of every test: strict shapes, and compiled programs kept between runs."""

import os
import pathlib

import hypothesis
import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Most of a test's seconds are compilation: xdist's workers, the programs that tests start (through
# the environment) and the next run share this folder. The thresholds let small programs in.
CACHE = {
    "jax_compilation_cache_dir": str(ROOT / ".cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)
# [B] + [B, 1] is [B, B], silently, unless this raises.
jax.config.update("jax_numpy_rank_promotion", "raise")

# `make test` draws its examples from the tests' names: it fails for what was changed, never by
# chance. `make test-all` draws new ones, and a failure prints the line that repeats it. Numbers
# that reach XLA are never subnormal: it flushes them to zero where NumPy does not.
hypothesis.settings.register_profile("repeatable", derandomize=True, print_blob=True)
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("KULLBACK_TEST_EXAMPLES", "repeatable"))


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """Returns the checkout's folder."""
    return ROOT

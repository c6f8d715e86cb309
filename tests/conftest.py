"""Settings of every test: strict shapes, and compiled programs kept between runs."""

import os
import pathlib

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


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The checkout."""
    return ROOT

"""Upper limits of sizes in a configuration, which may come from a damaged or malicious file.

Each is several times that of the largest model that we know of. A model within the limits may still
be too large for a machine, but no file can cause endless counting, tracing or allocation. Where
there are weights, sizes are compared with those of the tensors too.
"""

from typing import Any

TRACED = 128  # Layers that are traced one by one, 0.1 s each.
INT32 = 2**31 - 1  # Largest position.
# Upper limits of real numbers: with a larger epsilon a norm would be meaningless.
LARGEST = {"rms_epsilon": 1.0, "norm_epsilon": 1.0}
MOST = {
    "vocab_size": 1 << 23,
    "num_layers": 1024,
    "embed_dim": 1 << 17,
    "hidden_dim": 1 << 20,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 14,
    "num_positions": 1 << 24,
    "num_types": 1 << 10,
    "image_size": 1 << 14,
    "patch_size": 1 << 10,
    "window": INT32,
    "pattern": INT32,
    "context_length": INT32,
}


def check(config: Any, *reals: str) -> None:
    """Checks the sizes of a model's configuration, those of its fields that are in MOST.

    Args:
      config: a dataclass.
      reals: names of its fields that are numbers > 0, of at most LARGEST or INT32.

    Raises:
      ValueError: for the first that is not.
    """
    fields = vars(config)
    for name, most in MOST.items():
        if name in fields and not 1 <= fields[name] <= most:
            raise ValueError(f"{name} must lie in [1, {most}], got {fields[name]}")
    for name in reals:
        most = LARGEST.get(name, INT32)
        if not 0 < fields[name] <= most:
            raise ValueError(f"{name} must be > 0 and at most {most:,}, got {fields[name]}")

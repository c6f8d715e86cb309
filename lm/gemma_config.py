"""Sizes of Gemma 3 models, and settings of their computation.

Gemma Team 2025, https://arxiv.org/abs/2503.19786. Shape letters are those of lm/gemma.py.
"""

import dataclasses
import typing
from typing import Literal, NamedTuple

from kullback.lm import sizes

# Formats of matrices in memory: float32, or one of lm/quantisation.py.
Storage = Literal["float32", "int8", "int4", "q8_0", "q4_0", "sfp8", "bfloat16"]
BLOCKS = "periods", "remainder"  # Names of the parameters that have a layer axis.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a Gemma 3 model, and settings of its computation."""

    vocab_size: int = 262_144  # Rows of the embedding, V.
    num_layers: int  # L.
    embed_dim: int  # D.
    num_heads: int  # N.
    num_kv_heads: int  # K, divides N.
    head_dim: int = 256  # H, even.
    hidden_dim: int  # F.
    window: int  # W: keys that a token of a local layer attends to, its own included.
    query_scale: float = 256.0  # Square of the divisor of queries (query_pre_attn_scalar).
    local_rope_theta: float = 10_000.0
    global_rope_theta: float = 1_000_000.0
    global_rope_factor: float = 1.0  # Divisor of positions in global layers; 8 from 4B on.
    pattern: int = 6  # Layers of a period, of which the last is global, the others local.
    rms_epsilon: float = 1e-6
    context_length: int = 32_768  # Tokens that it was trained for; it limits nothing here.
    bos_id: int = 2
    eos_ids: tuple[int, ...] = (1,)  # Ids that end a text; tuned models add end_of_turn, 106.
    pad_id: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # Type of the computation, not of params.
    # Keys and values that decoding remembers: in the type of the computation, or in 8 bits.
    cache: Literal["float", "int8"] = "float"
    # Format in memory of the matrices of a model that learns nothing, see lm/narrow_weights.py.
    storage: Storage = "float32"
    remat: bool = False  # Whether the backward pass recomputes each layer's activations.

    def __post_init__(self) -> None:
        ropes = ("local_rope_theta", "global_rope_theta", "global_rope_factor")
        sizes.check(self, "query_scale", "rms_epsilon", *ropes)
        if (depth := sum(depth for _, depth in self.blocks.values())) > sizes.TRACED:
            raise ValueError(
                f"pattern must leave at most {sizes.TRACED} layers that are traced one by one, "
                f"got pattern={self.pattern} for num_layers={self.num_layers}, which leaves {depth}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (RoPE turns pairs), got {self.head_dim}")
        if not self.eos_ids:
            raise ValueError("eos_ids must name at least one token, got (); Gemma's is (1,)")
        for token in (self.bos_id, self.pad_id, *self.eos_ids):
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"bos_id, eos_ids and pad_id must lie in [0, {self.vocab_size}), got {token}"
                )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")
        if self.cache not in ("float", "int8"):
            raise ValueError(f"cache must be 'float' or 'int8', got {self.cache!r}")
        if self.storage not in (formats := typing.get_args(Storage)):
            raise ValueError(f"storage must be one of {', '.join(formats)}, got {self.storage!r}")

    @property
    def num_periods(self) -> int:
        """Number of whole periods, P."""
        return self.num_layers // self.pattern

    @property
    def num_remaining(self) -> int:
        """Number of layers after the last whole period, all local."""
        return self.num_layers % self.pattern

    def is_global(self, layer: int) -> bool:
        """Returns whether a layer, counted from 0, attends to all tokens before."""
        return (layer + 1) % self.pattern == 0

    @property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """(Length of the layer axis, number of stacks) by name, without empty ones."""
        axes = (self.num_periods, self.pattern), (1, self.num_remaining)
        return {name: pair for name, pair in zip(BLOCKS, axes, strict=True) if all(pair)}


class NumParams(NamedTuple):
    """The number of a model's parameters; the tied embedding counts once."""

    embedding: int
    other: int

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.embedding + self.other


def num_params(config: Config) -> NumParams:
    """Counts the parameters of a model.

    Of a layer they are queries and output, keys and values, the three matrices of the feed-forward
    part, four norms of the width and two of a head:

        2 D N H + 2 D K H + 3 D F + 4 D + 2 H
    """
    width, head = config.embed_dim, config.head_dim
    layer = 2 * width * (config.num_heads + config.num_kv_heads) * head
    layer += 3 * width * config.hidden_dim + 4 * width + 2 * head
    return NumParams(config.vocab_size * width, config.num_layers * layer + width)


_4B = Config(  # The embedding of larger models has rows for image tokens.
    vocab_size=262_208,
    num_layers=34,
    embed_dim=2560,
    num_heads=8,
    num_kv_heads=4,
    hidden_dim=10_240,
    window=1024,
    global_rope_factor=8.0,
    context_length=131_072,
)
_1B = Config(
    num_layers=26, embed_dim=1152, num_heads=4, num_kv_heads=1, hidden_dim=6912, window=512
)
# Sizes of models by name.
PRESETS: dict[str, Config] = {
    "gemma3-270m": dataclasses.replace(_1B, num_layers=18, embed_dim=640, hidden_dim=2048),
    "gemma3-1b": _1B,
    "gemma3-4b": _4B,
    "gemma3-12b": dataclasses.replace(
        _4B, num_layers=48, embed_dim=3840, num_heads=16, num_kv_heads=8, hidden_dim=15_360
    ),
    "gemma3-27b": dataclasses.replace(
        _4B,
        num_layers=62,
        embed_dim=5376,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        hidden_dim=21_504,
        query_scale=168.0,  # D / N, not H.
    ),
    "tiny": Config(  # For tests: a period, and one layer more.
        vocab_size=128,
        num_layers=7,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        hidden_dim=64,
        window=8,
        query_scale=8.0,
        context_length=512,
    ),
}

"""`kullback reproduce kv-cache`: what local layers save of a cache's memory.

Gemma Team, "Gemma 3 Technical Report", 2025, https://arxiv.org/abs/2503.19786, figures 5 and 6:
a model of 2B parameters whose layers are all global, or of which most see a window alone. Bytes
follow from shapes, so there are no seeds here and every figure is exact; what is checked is that
the arrays which the library allocates have the bytes that its formula, and the figures, claim.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from kullback.experiments import reproduce
from kullback.lm import gemma

GLOBAL_ONLY = 0  # Local layers for each global one.
DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The model of the figures, and what is varied. The report does not print its shape."""

    num_layers: int = 26  # This one is Gemma 2's of 2B (https://arxiv.org/abs/2408.00118).
    embed_dim: int = 2304
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 256
    hidden_dim: int = 9216
    ratios: tuple[int, ...] = (1, 3, 5)  # Local layers for each global one.
    windows: tuple[int, ...] = (1024, 4096)
    contexts: tuple[int, ...] = tuple(1024 * 2**n for n in range(8))  # Tokens, of a row.
    prefill: int = 32_768  # Tokens, of figure 5.
    # Bytes of a number, in the cache and of a weight; at 1 the axis of figure 6 is met.
    itemsize: int = 1
    allocated_contexts: tuple[int, ...] = (4, 8, 64, 500)  # Of the caches that are made, B = 2.

    def __post_init__(self) -> None:
        for name in ("ratios", "windows", "contexts", "allocated_contexts"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be numbers >= 1, got {getattr(self, name)}")
        for name in ("prefill", "itemsize"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if max(self.ratios) >= self.num_layers:
            raise ValueError(
                f"ratios must be < num_layers={self.num_layers}, got {self.ratios}; a model needs "
                "a global layer"
            )
        self.model(GLOBAL_ONLY, self.windows[0])

    def model(self, ratio: int, window: int) -> gemma.Config:
        """The model with `ratio` local layers before each global one."""
        return gemma.Config(
            num_layers=self.num_layers,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden_dim=self.hidden_dim,
            window=window,
            pattern=ratio + 1,
        )

    @property
    def layouts(self) -> list[tuple[int, int]]:
        """Ratio and window of each model; a window means nothing where all layers are global."""
        return [(GLOBAL_ONLY, self.windows[0]), *itertools.product(self.ratios, self.windows)]


def name(ratio: int, window: int) -> str:
    """A layout in words: "5:1, window 1024"."""
    return "global only" if ratio == GLOBAL_ONLY else f"{ratio}:1, window {window}"


def allocated_bytes(config: gemma.Config, batch: int, max_length: int) -> int:
    """Bytes of the keys and values of a cache that is really made."""
    lengths = jnp.ones(batch, jnp.int32)
    cache = gemma.make(config).init_cache(batch, max_length, lengths, 1)
    return sum(leaf.nbytes for leaf in jax.tree.leaves((cache.keys, cache.values)))


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """Bytes by formula at every size, and by allocation at small ones."""
    allocated = work.part("allocated", _num_allocated(config), lambda: _allocated(config, work))
    memory = [
        {
            "layout": name(*layout),
            "local_layers_to_a_global_one": layout[0],
            "window": layout[1],
            "context": context,
            "bytes": gemma.cache_bytes(config.model(*layout), 1, context, config.itemsize),
        }
        for layout in config.layouts
        for context in config.contexts
    ]
    overhead = _overhead(config)
    checks = [_formula(allocated), _savings(config), _ordering(config, overhead), _report(overhead)]
    return reproduce.Found(
        {"memory": memory, "overhead": overhead, "allocated": allocated},
        {"kv_cache": _draw(config, memory, overhead)},
        checks,
    )


def _small(config: Config, ratio: int, window: int, dtype: str) -> gemma.Config:
    """The layout with few heads and narrow ones: the depth and the pattern decide the bytes."""
    return dataclasses.replace(
        config.model(ratio, window),
        vocab_size=8,
        embed_dim=8,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        hidden_dim=8,
        dtype=dtype,
    )


def _sizes(config: Config) -> list[tuple[int, int, int, str]]:
    windows = (4, 16, 100)
    layouts = [(GLOBAL_ONLY, 4), *itertools.product(config.ratios, windows)]
    grid = itertools.product(layouts, config.allocated_contexts, DTYPES)
    return [(*layout, context, dtype) for layout, context, dtype in grid]


def _num_allocated(config: Config) -> int:
    return len(_sizes(config))


def _allocated(config: Config, work: reproduce.Work) -> reproduce.Rows:
    rows: reproduce.Rows = []
    for ratio, window, context, dtype in _sizes(config):
        small = _small(config, ratio, window, dtype)
        found = allocated_bytes(small, 2, context)
        by_formula = gemma.cache_bytes(small, 2, context, jnp.dtype(dtype).itemsize)
        rows.append(
            {
                "layout": name(ratio, window),
                "dtype": dtype,
                "context": context,
                "allocated_bytes": found,
                "formula_bytes": by_formula,
            }
        )
        work.tick(len(rows), float(found - by_formula), "bytes off")
    return rows


def _overhead(config: Config) -> reproduce.Rows:
    """Cache of `prefill` tokens beside the weights, a row a layout."""
    whole = gemma.cache_bytes(config.model(*config.layouts[0]), 1, config.prefill, config.itemsize)
    rows: reproduce.Rows = []
    for layout in config.layouts:
        model = config.model(*layout)
        cache = gemma.cache_bytes(model, 1, config.prefill, config.itemsize)
        weights = gemma.num_params(model).total * config.itemsize
        rows.append(
            {
                "layout": name(*layout),
                "weights_bytes": weights,
                "cache_bytes": cache,
                "cache_of_weights": cache / weights,
                "of_global_only": cache / whole,
            }
        )
    return rows


def _formula(allocated: reproduce.Rows) -> reproduce.Check:
    wrong = [row for row in allocated if row["allocated_bytes"] != row["formula_bytes"]]
    return reproduce.Check(
        "the caches that are allocated have the formula's bytes",
        not wrong,
        f"{len(allocated) - len(wrong)} of {len(allocated)} sizes, to the byte",
    )


def _savings(config: Config) -> reproduce.Check:
    ratio, window, longest = max(config.ratios), min(config.windows), max(config.contexts)
    local, whole = config.model(ratio, window), config.model(*config.layouts[0])
    before, after = (
        gemma.cache_bytes(model, 1, longest, config.itemsize) for model in (whole, local)
    )
    num_global = config.num_layers // (ratio + 1)
    limit = config.num_layers / num_global  # What an endless context would save.
    same = all(
        gemma.cache_bytes(whole, 1, short, config.itemsize)
        == gemma.cache_bytes(local, 1, short, config.itemsize)
        for short in config.contexts
        if short <= window
    )
    return reproduce.Check(
        f"{ratio}:1 with window {window} costs what global layers do up to the window, and at "
        f"{longest:,} tokens over 0.9 of the most that it may save (figure 6)",
        same and before / after > 0.9 * limit,
        f"{before / 1e6:,.0f} against {after / 1e6:,.0f} MB, {before / after:.2f} times less of "
        f"at most {limit:.2f}",
    )


def _ordering(config: Config, overhead: reproduce.Rows) -> reproduce.Check:
    found = {row["layout"]: row["cache_bytes"] for row in overhead}
    pairs = [
        *((name(r, w), name(s, w)) for w in config.windows for r, s in _pairs((0, *config.ratios))),
        *((name(r, v), name(r, w)) for r in config.ratios for w, v in _pairs(config.windows)),
    ]
    wrong = [pair for pair in pairs if not found[pair[0]] > found[pair[1]]]
    return reproduce.Check(
        f"at {config.prefill:,} tokens more local layers and shorter windows both take less "
        "(figure 5)",
        not wrong,
        f"{len(pairs) - len(wrong)} of {len(pairs)} neighbours in that order",
    )


def _pairs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(sorted(values)))


def _report(overhead: reproduce.Rows) -> reproduce.Check:
    # The report names neither the model's shape nor the bytes of a number, so this is no verdict.
    figures = ", ".join(f"{row['layout']} {row['cache_of_weights']:.1%}" for row in overhead)
    return reproduce.Check(
        "cache over weights; the report: about 60% global only, below 15% at 3:1 with window 1024",
        None,
        figures,
    )


def _draw(config: Config, memory: reproduce.Rows, overhead: reproduce.Rows) -> Figure:
    drawn = reproduce.figure(2, width=5.2, height=3.9)
    lines, bars = drawn.axes
    window = min(config.windows)
    for ratio in (GLOBAL_ONLY, *config.ratios):
        rows = [r for r in memory if r["layout"] == name(ratio, window)]
        contexts, values = zip(*((r["context"], r["bytes"] / 1e6) for r in rows), strict=True)
        lines.plot(contexts, values, "o-", markersize=3.5, label=name(ratio, window))
    lines.set_xscale("log", base=2)
    ticks = sorted(config.contexts)
    lines.set_xticks(ticks, [f"{t // 1024}K" if t % 1024 == 0 else str(t) for t in ticks])
    lines.set_xlabel("context, tokens")
    lines.set_ylabel(f"KV cache, MB ({8 * config.itemsize} bits a number)")
    lines.set_title("Cache of one row", fontsize=10)
    lines.legend(fontsize=8)
    labels = [row["layout"] for row in overhead][::-1]
    shares = [100 * row["cache_of_weights"] for row in overhead][::-1]
    drawn_bars = bars.barh(labels, shares, color="tab:blue")
    bars.bar_label(drawn_bars, fmt="%.1f%%", padding=3, fontsize=8)
    bars.set_xlim(0, 1.15 * max(shares))
    bars.tick_params(axis="y", labelsize=8)
    bars.grid(visible=False, axis="y")
    bars.set_xlabel("cache, % of the weights")
    bars.set_title(f"Beside the model, at {config.prefill:,} tokens", fontsize=10)
    return drawn


REPRODUCTION = reproduce.Reproduction(
    claim="Five local layers for each global one make the cache of a long context several times "
    "smaller.",
    source="Gemma 3, arXiv:2503.19786",
    config=Config(),
    steps=_num_allocated,
    seconds=lambda config: 3 + 0.02 * _num_allocated(config),
    run=run,
)

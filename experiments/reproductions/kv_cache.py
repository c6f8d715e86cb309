"""`kullback reproduce kv-cache`: what local layers save of a cache's memory.

Gemma Team, "Gemma 3 Technical Report", 2025, https://arxiv.org/abs/2503.19786, figures 5 and 6:
a model of 2B parameters whose layers are all global, or of which most see a window alone. Bytes
follow from shapes, so there are no seeds here and every figure is exact; what is checked is that
the arrays which the library allocates have the bytes that its formula, and the figures, claim.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from kullback.core import ranges
from kullback.experiments.reproductions import charts, judging, study
from kullback.lm import gemma

GLOBAL_ONLY = 0  # Local layers for each global one.
DTYPES = ("bfloat16", "float32")
SHAPE = ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "hidden_dim")


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
        ranges.at_least(1, self, "windows", "contexts", "allocated_contexts", "prefill", "itemsize")
        ranges.inside("[1, num_layers)", self, "ratios")  # A model needs a global layer.
        self.model(GLOBAL_ONLY, self.windows[0])

    def model(self, ratio: int, window: int) -> gemma.Config:
        """Returns the model with `ratio` local layers before each global one."""
        shape = {name: getattr(self, name) for name in SHAPE}
        return gemma.Config(**shape, window=window, pattern=ratio + 1)

    @property
    def layouts(self) -> list[tuple[int, int]]:
        """Ratio and window of each model; a window means nothing where all layers are global."""
        return [(GLOBAL_ONLY, self.windows[0]), *itertools.product(self.ratios, self.windows)]

    def cache_bytes(self, layout: tuple[int, int], context: int) -> int:
        """Returns the bytes of a row's cache by the formula."""
        return gemma.cache_bytes(self.model(*layout), 1, context, self.itemsize)


def name(ratio: int, window: int) -> str:
    """Returns a layout in words: "5:1, window 1024"."""
    return "global only" if ratio == GLOBAL_ONLY else f"{ratio}:1, window {window}"


def allocated_bytes(config: gemma.Config, batch: int, max_length: int) -> int:
    """Returns the bytes of the keys and values of a cache that is really made."""
    lengths = jnp.ones(batch, jnp.int32)
    cache = gemma.make(config).init_cache(batch, max_length, lengths, 1)
    return sum(leaf.nbytes for leaf in jax.tree.leaves((cache.keys, cache.values)))


def arms(config: Config) -> list[study.Arm]:
    """Returns the one arm: small caches of all depths and patterns, which decide the bytes."""
    layouts = [(GLOBAL_ONLY, 4), *itertools.product(config.ratios, (4, 16, 100))]
    cases = list(itertools.product(layouts, config.allocated_contexts, DTYPES))
    narrow = {"embed_dim": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "hidden_dim": 8}

    def compute(journal: study.Journal) -> study.Rows:
        rows: study.Rows = []
        for layout, context, dtype in cases:
            small = {"vocab_size": 8, **narrow, "dtype": dtype}
            model = dataclasses.replace(config.model(*layout), **small)
            row = {"layout": name(*layout), "dtype": dtype, "context": context}
            row["allocated_bytes"] = allocated = allocated_bytes(model, 2, context)
            formula = gemma.cache_bytes(model, 2, context, jnp.dtype(dtype).itemsize)
            rows.append({**row, "formula_bytes": formula})
            journal.tick(len(rows), float(allocated - formula), "bytes off")
        return rows

    return [study.Arm("allocated", len(cases), compute)]


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns bytes by formula, alone and beside the weights, and those that were allocated."""
    memory: study.Rows = []
    overhead: study.Rows = []
    whole = config.cache_bytes(config.layouts[0], config.prefill)
    for layout in config.layouts:
        ratio, window = layout
        row = {"layout": name(*layout), "local_layers_to_a_global_one": ratio, "window": window}
        for context in config.contexts:
            in_bytes = config.cache_bytes(layout, context)
            memory.append({**row, "context": context, "bytes": in_bytes})
        cache = config.cache_bytes(layout, config.prefill)
        weights = gemma.num_params(config.model(*layout)).total * config.itemsize
        row = {"layout": name(*layout), "weights_bytes": weights, "cache_bytes": cache}
        overhead.append(
            {**row, "cache_of_weights": cache / weights, "of_global_only": cache / whole}
        )
    return {"memory": memory, "overhead": overhead, "allocated": rows}


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the formula, what is saved and in which order; reports caches beside the weights."""
    allocated = tables["allocated"]
    right = [row["allocated_bytes"] == row["formula_bytes"] for row in allocated]
    yield judging.exactly(
        "the caches that are allocated have the formula's bytes",
        all(right),
        f"{sum(right)} of {len(right)} sizes, to the byte",
    )
    ratio, window, longest = max(config.ratios), min(config.windows), max(config.contexts)
    whole, local = config.layouts[0], (ratio, window)
    before, after = (config.cache_bytes(layout, longest) for layout in (whole, local))
    # What an endless context would save.
    limit = config.num_layers / (config.num_layers // (ratio + 1))
    short = [context for context in config.contexts if context <= window]
    is_same = all(config.cache_bytes(whole, n) == config.cache_bytes(local, n) for n in short)
    yield judging.exactly(
        f"{ratio}:1 with window {window} costs what global layers do up to the window, and at "
        f"{longest:,} tokens over 0.9 of the most that it may save (figure 6)",
        is_same and before / after > 0.9 * limit,
        f"{before / 1e6:,.0f} against {after / 1e6:,.0f} MB, {before / after:.2f} times less of "
        f"at most {limit:.2f}",
    )
    cache = {row["layout"]: row["cache_bytes"] for row in tables["overhead"]}
    ratios, windows = ((0, *sorted(config.ratios)), sorted(config.windows))
    neighbours = [
        *(((r, w), (s, w)) for w in windows for r, s in itertools.pairwise(ratios)),
        *(((r, v), (r, w)) for r in ratios[1:] for w, v in itertools.pairwise(windows)),
    ]
    is_more = [cache[name(*more)] > cache[name(*less)] for more, less in neighbours]
    yield judging.exactly(
        f"at {config.prefill:,} tokens more local layers and shorter windows both take less "
        "(figure 5)",
        all(is_more),
        f"{sum(is_more)} of {len(is_more)} neighbours in that order",
    )
    # The report names neither the model's shape nor the bytes of a number, so this is no verdict.
    yield judging.reported(
        "cache over weights; the report: about 60% global only, below 15% at 3:1 with window 1024",
        ", ".join(f"{row['layout']} {row['cache_of_weights']:.1%}" for row in tables["overhead"]),
    )


class Shares(NamedTuple):
    """Bars from top to bottom, each with its number, in percent."""

    labels: list[str]
    shares: list[float]

    def draw(self, axes: Axes) -> None:
        """Draws them."""
        bars = axes.barh(self.labels[::-1], self.shares[::-1], color="tab:blue")
        axes.bar_label(bars, fmt="%.1f%%", padding=3, fontsize=8)
        axes.set_xlim(0, 1.15 * max(self.shares))
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(visible=False, axis="y")


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns caches over the context, and beside the weights."""
    lines: list[charts.Mark] = []
    for ratio in (GLOBAL_ONLY, *config.ratios):
        layout = name(ratio, min(config.windows))
        of = functools.partial(study.column, tables["memory"], layout=layout)
        dots = {"marker": "o", "markersize": 3.5}
        lines.append(charts.Line(of("context"), of("bytes") / 1e6, layout, dots))

    def finish(axes: Axes) -> None:
        ticks = sorted(config.contexts)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{t // 1024}K" if t % 1024 == 0 else str(t) for t in ticks])

    megabytes = f"KV cache, MB ({8 * config.itemsize} bits a number)"
    axes = {"xlabel": "context, tokens", "ylabel": megabytes, "title": "Cache of one row"}
    overhead = tables["overhead"]
    percents = [100 * row["cache_of_weights"] for row in overhead]
    shares = Shares([row["layout"] for row in overhead], percents)
    beside = f"Beside the model, at {config.prefill:,} tokens"
    beside_axes = {"xlabel": "cache, % of the weights", "title": beside}
    panels = [
        charts.Panel(marks=lines, axes=axes, legend={"fontsize": 8}, finish=finish),
        charts.Panel(marks=[shares], axes=beside_axes, legend=None),
    ]
    return charts.Grid(panels=panels, width=5.2, height=3.9, title_size=10)


STUDY = study.Study(
    claim="Five local layers for each global one make the cache of a long context several times "
    "smaller.",
    source="Gemma 3, arXiv:2503.19786",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {"kv_cache": panels(config, tables)},
    seconds=lambda config: 3 + 0.02 * sum(arm.steps for arm in arms(config)),
)

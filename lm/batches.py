"""Batches of padded token sequences in a few static shapes; epochs.py says of which examples.

Shape letters: B rows, T tokens of a row, P tokens of a prompt, N examples, I media of a row at
most: its images, or its clips of sound.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, types
from kullback.lm import epochs, interleaved
from kullback.lm.data import Example


class Sequences(NamedTuple):
    """Token sequences, padded on the right.

    Logits at t - 1 predict token t. Padding is defined by `segments` and `lengths`, never by a
    token's id.
    """

    tokens: types.Array  # int32, [B, T].
    is_answer: types.Array  # bool, [B, T]: tokens to learn, the end of sequence included.
    positions: types.Array  # int32, [B, T]: from 0 in each example; 0 in the padding.
    segments: types.Array  # int32, [B, T]: number of the row's example, from 1; 0 is padding.
    lengths: types.Array  # int32, [B]: number of tokens that are not padding.
    sensed: Any = None  # Features of the rows' media, as of `Prompts`.

    @property
    def senses(self) -> dict[str, Any]:
        """Arguments of the functions of a model that senses (lm/senses.py); {} of rows of text."""
        return {} if self.sensed is None else {"sensed": self.sensed}


class Prompts(NamedTuple):
    """Prompts, padded on the left, so that all rows are continued in the same column."""

    tokens: types.Array  # int32, [B, P].
    lengths: types.Array  # int32, [B], >= 1.
    # Features of the media of a row in order, a tree of arrays [B, I, ...]: those of images are
    # float [B, I, M, E] (lm/sight.py), those of clips a `hearing.Clips`. Rows with fewer than I
    # have zeros after them. None: no row of any batch has media.
    sensed: Any = None


Rows = TypeVar("Rows", Sequences, Prompts)
Widths = Literal["steps", "powers"]
# Media -> their features, a tree of arrays [n, ...], as `senses.Sense.features` gives them.
Features = Callable[[Sequence[interleaved.Medium]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of batches: shapes, order and packing."""

    batch_size: int = 16  # B.
    # Static lengths, those of `widths` if None: T and P are the smallest that hold the batch.
    # Programs are compiled once for each.
    lengths: tuple[int, ...] | None = None
    widths: Widths = "powers"  # Rule of the lengths, see `static_lengths`.
    # Whether a row, of the greatest of `lengths`, holds several examples; not for on-policy
    # learning.
    pack: bool = False
    # Batches whose examples are sorted by length together; 1 does not sort. More of them save
    # padding, but make batches less alike.
    batches_per_sort: int = 1
    least_media: int = 1  # Media of a row >= 1 for which there is room at least, I.
    seed: int = 0

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "batch_size", "batches_per_sort", "least_media")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2^64), got {self.seed}")
        lengths = self.lengths
        if lengths is not None and (
            not lengths or lengths[0] < 1 or any(a >= b for a, b in itertools.pairwise(lengths))
        ):
            raise ValueError(f"lengths must be positive and increase, got {lengths}")


class Sampler(NamedTuple):
    """Training batches by step, which counts from 0."""

    num_items: int  # Examples in an epoch, N, or packed rows.
    # step -> Batch whose data are `Sequences` and whose indices are examples, or packed rows.
    sequences: Callable[[int], types.Batch]
    prompts: Callable[[int], Prompts]  # step -> prompts of the same examples, in the same order.


def make(
    examples: Sequence[Example],
    config: Config,
    pad_id: int,
    mixed: Callable[[int], np.ndarray] | None = None,
    features: Features | None = None,
) -> Sampler:
    """Returns the sampler of batches of `examples`.

    Args:
      examples: N >= 1 of them.
      config: shapes, order, packing.
      pad_id: id of the padding, whose value does not matter.
      mixed: step -> examples of its batch, int64 [B], see `mixtures.Mixture.rows`; None draws all
        equally often. It is neither packed nor sorted.
      features: of media, where examples have some.

    Raises:
      ValueError: without examples, for one longer than every length, a mixture of packed or sorted
        rows, and for media without `features`. The sampler's `prompts` raises it if rows are
        packed, as a row then has several prompts.
    """
    if not examples:
        raise ValueError("no examples to make batches of; was everything dropped?")
    if mixed is not None and (config.pack or config.batches_per_sort > 1):
        raise ValueError("a mixture's rows are drawn one by one: pack=False, batches_per_sort=1")
    features = of_media(examples, features)
    longest = max(example.length for example in examples)
    lengths = config.lengths or static_lengths(longest, config.widths)
    if longest > lengths[-1]:
        raise ValueError(
            f"an example has {longest} tokens, more than the greatest of lengths={lengths}; add "
            "a length, or drop or truncate what is longer"
        )
    longest_prompt = max(len(example.prompt) for example in examples)
    prompt_lengths = config.lengths or static_lengths(longest_prompt, config.widths)
    rows = pack_rows([e.length for e in examples], lengths[-1]) if config.pack else None
    num_items = len(examples) if rows is None else len(rows)
    row_lengths = None if config.pack else np.array([e.length for e in examples])
    draw = mixed or functools.partial(
        epochs.indices,
        num_items=num_items,
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=row_lengths if config.batches_per_sort > 1 else None,
        batches_per_sort=config.batches_per_sort,
    )

    def sequences(step: int) -> types.Batch:
        items = draw(step)
        if rows is None:
            chosen = [[examples[i]] for i in items]
            longest = max(example.length for (example,) in chosen)
            data = pack(chosen, _bucket(longest, lengths), pad_id)
        else:
            chosen = [[examples[i] for i in rows[n]] for n in items]
            data = pack(chosen, lengths[-1], pad_id)
        if features is not None:
            media = [[medium for example in row for medium in example.media] for row in chosen]
            data = data._replace(sensed=pad_features(media, features, config.least_media))
        shape = (config.batch_size,)
        return types.Batch(
            data=data,
            indices=items.astype(np.int32),
            probabilities=np.full(shape, 1 / num_items, np.float32),
            weights=np.ones(shape, np.float32),
        )

    def prompts(step: int) -> Prompts:
        if rows is not None:
            raise ValueError(
                "packed rows hold several prompts, and generation needs one a row: on-policy "
                "learning takes pack=False"
            )
        chosen = [examples[i] for i in draw(step)]
        longest = max(len(example.prompt) for example in chosen)
        ids = [example.prompt for example in chosen]
        padded = pad_prompts(ids, _bucket(longest, prompt_lengths), pad_id)
        if features is None:
            return padded
        media = [example.media for example in chosen]
        return padded._replace(sensed=pad_features(media, features, config.least_media))

    return Sampler(num_items, sequences, prompts)


def static_lengths(longest: int, widths: Widths) -> tuple[int, ...]:
    """Returns the lengths that rows are padded to, which increase; the last holds the longest row.

    Args:
      longest: tokens of the longest row.
      widths: "powers" of two; "steps" has the middles between those beyond 64 too, and ends with
        the first multiple of 8 that holds the longest row.
    """
    powers = powers_of_two(longest)
    if widths == "powers" or longest <= 64:
        return powers
    rungs = sorted({*powers, *(3 * power // 2 for power in powers if power >= 64)})
    return (*(n for n in rungs if n < longest), -(-longest // 8) * 8)


def powers_of_two(longest: int, shortest: int = 16) -> tuple[int, ...]:
    """Returns static lengths: `shortest`, its double and so on, the last one >= `longest`."""
    lengths = [shortest]
    while lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return tuple(lengths)


def width(longest: int) -> int:
    """Returns the static length that prompts of at most `longest` tokens are padded to.

    It is a power of two up to 1,024, then one of sixteen steps to the next or a multiple of 256,
    whichever is less: few programs are compiled, and of a long prompt little is padding.
    """
    power = powers_of_two(longest)[-1]
    step = max(256, power // 32)
    return power if power <= 1024 else -(-longest // step) * step


def pad(examples: Sequence[Example], length: int, pad_id: int) -> Sequences:
    """Pads examples to rows of one each, [B, length].

    Raises:
      ValueError: for an example longer than `length`.
    """
    return pack([[example] for example in examples], length, pad_id)


def pack(rows: Sequence[Sequence[Example]], length: int, pad_id: int) -> Sequences:
    """Concatenates the examples of each row, and pads it to [B, length].

    Raises:
      ValueError: for a row longer than `length`.
    """
    shape = (len(rows), length)
    tokens = np.full(shape, pad_id, np.int32)
    is_answer = np.zeros(shape, bool)
    positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    lengths = np.array([sum(e.length for e in row) for row in rows], np.int32)
    if lengths.max(initial=0) > length:
        raise ValueError(f"a row has {lengths.max()} tokens, more than its length, {length}")
    for b, row in enumerate(rows):
        begin = 0
        for segment, example in enumerate(row, 1):
            end = begin + example.length
            tokens[b, begin:end] = (*example.prompt, *example.completion)
            is_answer[b, begin + len(example.prompt) : end] = True
            for span in example.answers:
                is_answer[b, begin + span[0] : begin + span[1]] = True
            positions[b, begin:end] = np.arange(example.length)
            segments[b, begin:end] = segment
            begin = end
    return Sequences(tokens, is_answer, positions, segments, lengths)


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns the items of each row, no row longer than `capacity`, by best fit decreasing.

    Every item is in one row. The rows do not depend on a seed, so that each epoch has as many of
    them; only their order is shuffled. Examples of a row do not see each other, so it does not
    matter which they are.

    Args:
      lengths: of the items, in tokens.
      capacity: tokens of a row.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # Stable.
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # Room left and row, sorted.
    for i in order:
        place = bisect.bisect_left(free, (lengths[i], 0))
        if place < len(free):
            room, row = free.pop(place)
            rows[row].append(i)
        else:
            room, row = capacity, len(rows)
            rows.append([i])
        if room - lengths[i] > 0:
            bisect.insort(free, (room - lengths[i], row))
    return rows


def pad_prompts(prompts: Sequence[Sequence[int]], length: int, pad_id: int) -> Prompts:
    """Pads prompts on the left to [B, length].

    Raises:
      ValueError: for an empty prompt, or one longer than `length`.
    """
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    for n in lengths:
        if not 1 <= n <= length:
            raise ValueError(f"a prompt has {n} tokens, expected 1 to {length}")
    for row, prompt in zip(tokens, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    return Prompts(tokens, lengths)


def of_media(examples: Sequence[Example], features: Features | None) -> Features | None:
    """Returns features where an example has an image or a clip, None where all are text.

    Raises:
      ValueError: for media without features.
    """
    if not any(example.media for example in examples):
        return None
    if features is None:
        raise ValueError(
            "examples have images or clips, which this model does not read; take one that sees, or "
            "hears"
        )
    return features


def pad_features(
    media: Sequence[Sequence[interleaved.Medium]], features: Features, least: int = 1
) -> Any:
    """Returns features of rows' media, a tree of [B, I, ...], with zeros after a row's last one.

    I is the smallest power of two that holds the media of each row, and `least`.

    Args:
      media: of each row, in order.
      features: of media; of none it gives their shapes, [0, ...].
      least: media >= 1 of a row for which there is room, so that batches have one shape.
    """
    given = features([medium for of_row in media for medium in of_row])  # [n, ...]
    most = powers_of_two(max(least, *map(len, media)), 1)[-1]

    def padded(given: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(media), most, *given.shape[1:]), given.dtype)
        begin = 0
        for row, of_row in enumerate(media):
            rows[row, : len(of_row)] = given[begin : begin + len(of_row)]
            begin += len(of_row)
        return rows

    return jax.tree.map(padded, given)


def join(prompts: Prompts, tokens: types.Array, is_answer: types.Array) -> Sequences:
    """Joins prompts and their completions to rows of `Sequences`, [B, P + T]; works under jit.

    Args:
      prompts: [B, P], padded on the left.
      tokens: int32, [B, T], the completions.
      is_answer: bool, [B, T]: a row's completion, its end of sequence included; no True after
        False.

    Returns:
      The rows, moved to the left so that each starts in column 0. The padding repeats tokens of the
      row, which does not matter.
    """
    batch, width = prompts.tokens.shape
    joined = jnp.concatenate([jnp.asarray(prompts.tokens), jnp.asarray(tokens)], axis=1)
    prompt_lengths = jnp.asarray(prompts.lengths)[:, None]  # [B, 1]
    lengths = prompt_lengths + jnp.sum(is_answer, 1, keepdims=True, dtype=jnp.int32)
    columns = jnp.broadcast_to(
        jnp.arange(joined.shape[1], dtype=jnp.int32), (batch, joined.shape[1])
    )
    source = (columns + width - prompt_lengths) % joined.shape[1]
    is_token = columns < lengths
    return Sequences(
        tokens=jnp.take_along_axis(joined, source, axis=1),
        is_answer=is_token & (columns >= prompt_lengths),
        positions=jnp.where(is_token, columns, 0),
        segments=is_token.astype(jnp.int32),
        lengths=lengths[:, 0],
        sensed=prompts.sensed,
    )


def _bucket(length: int, lengths: Sequence[int]) -> int:
    return lengths[bisect.bisect_left(lengths, length)]

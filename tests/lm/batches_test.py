"""Tests of lm/batches.py."""

from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.lm import batches
from kullback.lm.batches import Config
from kullback.lm.data import Example

PAD = 0
join = jax.jit(batches.join)
examples_ = st.lists(
    st.builds(
        lambda n, m, first: Example(tuple(range(first, first + n)), tuple(range(50, 50 + m))),
        st.integers(1, 9),
        st.integers(1, 6),
        st.integers(0, 20),  # 0 is the padding's id too: rows are masked by length.
    ),
    min_size=1,
    max_size=12,
)


def test_a_padded_batch():
    rows = [Example((2, 10), (11, 1)), Example((2, 10, 12, 13), (11,), ((2, 4),))]
    got = batches.pad(rows, 6, PAD)
    np.testing.assert_array_equal(got.tokens, [[2, 10, 11, 1, 0, 0], [2, 10, 12, 13, 11, 0]])
    np.testing.assert_array_equal(got.is_answer, [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(got.positions, [[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 0]])
    np.testing.assert_array_equal(got.segments, [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(got.lengths, [4, 5])
    assert [x.dtype for x in got[:5]] == [np.int32, bool, np.int32, np.int32, np.int32]
    with pytest.raises(ValueError, match="a row has 5 tokens, more than its length, 4"):
        batches.pad(rows, 4, PAD)


def test_a_packed_batch():
    rows = [[Example((2,), (1,)), Example((2, 9, 8), (7, 1), ((1, 2),))]]
    got = batches.pack(rows, 8, PAD)
    np.testing.assert_array_equal(got.tokens, [[2, 1, 2, 9, 8, 7, 1, 0]])
    np.testing.assert_array_equal(got.is_answer, [[0, 1, 0, 1, 0, 1, 1, 0]])
    np.testing.assert_array_equal(got.positions, [[0, 1, 0, 1, 2, 3, 4, 0]])
    np.testing.assert_array_equal(got.segments, [[1, 1, 2, 2, 2, 2, 2, 0]])
    np.testing.assert_array_equal(got.lengths, [7])


@hypothesis.settings(deadline=None)
@hypothesis.given(examples=examples_)
def test_packing_keeps_every_example(examples: list[Example]):
    rows = batches.pack_rows([e.length for e in examples], 20)
    assert sorted(i for row in rows for i in row) == list(range(len(examples)))
    packed = batches.pack([[examples[i] for i in row] for row in rows], 20, PAD)
    alone = batches.pad(examples, 20, PAD)
    for b, row in enumerate(rows):
        assert packed.lengths[b] == sum(examples[i].length for i in row) <= 20
        for segment, i in enumerate(row, 1):
            here = packed.segments[b] == segment
            n = examples[i].length
            assert here.sum() == n
            for got, expected in zip(packed[:3], alone[:3], strict=True):
                np.testing.assert_array_equal(got[b][here], expected[i][:n])
        assert not packed.is_answer[b][packed.segments[b] == 0].any()


def test_packing_fills_its_rows():
    assert len(batches.pack_rows([6, 4, 7, 3, 5, 5], 10)) == 3
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    assert len(batches.pack_rows(list(lengths), 128)) <= 1.02 * np.ceil(lengths.sum() / 128)


def test_prompts_end_in_one_column():
    got = batches.pad_prompts([(2, 5, 6), (2,)], 4, PAD)
    np.testing.assert_array_equal(got.tokens, [[0, 2, 5, 6], [0, 0, 0, 2]])
    np.testing.assert_array_equal(got.lengths, [3, 1])
    for prompt in ((), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match=f"has {len(prompt)} tokens, expected 1 to 4"):
            batches.pad_prompts([prompt], 4, PAD)


@hypothesis.settings(deadline=None)
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("variant", [batches.join, join], ids=["eager", "jit"])
def test_joined_rows_are_those_of_the_data(variant: Any, data: st.DataObject):
    lengths = st.lists(st.integers(1, 5), min_size=3, max_size=3)
    examples = [
        Example(tuple(range(10, 10 + n)), tuple(range(20, 20 + m)))
        for n, m in zip(data.draw(lengths), data.draw(lengths), strict=True)
    ]
    prompts = batches.pad_prompts([e.prompt for e in examples], 6, PAD)
    tokens = np.full((3, 5), 99, np.int32)
    is_answer = np.zeros((3, 5), bool)
    for b, example in enumerate(examples):
        tokens[b, : len(example.completion)] = example.completion
        is_answer[b, : len(example.completion)] = True
    expected = batches.pad(examples, 11, PAD)
    got = variant(prompts, tokens, is_answer)
    for name in ("is_answer", "positions", "segments", "lengths"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), name)
        assert getattr(got, name).dtype == getattr(expected, name).dtype
    real = expected.segments > 0
    np.testing.assert_array_equal(np.asarray(got.tokens)[real], expected.tokens[real])


EXAMPLES = [Example((2, *range(10, 10 + n)), (*range(10, 10 + n), 1)) for n in range(1, 21)]


def test_a_sampler_has_few_shapes_and_says_what_it_drew():
    config = Config(batch_size=3, lengths=(8, 24, 42), batches_per_sort=4)
    sampler = batches.make(EXAMPLES, config, PAD)
    shapes, prompt_shapes = set(), set()
    for step in range(20):
        batch = sampler.sequences(step)
        chosen = [EXAMPLES[i] for i in batch.indices]
        expected = batches.pad(chosen, batch.data.tokens.shape[1], PAD)
        jax.tree.map(np.testing.assert_array_equal, batch.data, expected)
        prompts = sampler.prompts(step)
        np.testing.assert_array_equal(prompts.lengths, [len(e.prompt) for e in chosen])
        np.testing.assert_array_equal(prompts.tokens[:, -1], [e.prompt[-1] for e in chosen])
        shapes.add(batch.data.tokens.shape)
        prompt_shapes.add(prompts.tokens.shape)
    assert shapes == {(3, 8), (3, 24), (3, 42)} and prompt_shapes <= shapes
    batch = sampler.sequences(0)
    np.testing.assert_allclose(batch.probabilities, 1 / 20)
    np.testing.assert_array_equal(batch.weights, np.ones(3, np.float32))
    assert batch.indices.dtype == np.int32
    assert batches.make(EXAMPLES, Config(), PAD).sequences(0).data.tokens.shape[1] in (16, 32, 64)


def test_a_packing_sampler_reads_every_example_once_an_epoch():
    config = Config(batch_size=2, lengths=(42,), pack=True)
    sampler = batches.make(EXAMPLES, config, PAD)
    starts = 0
    for step in range(sampler.num_items):  # Two epochs, with two rows a step.
        data = sampler.sequences(step).data
        starts += int(np.sum((data.positions == 0) & (data.segments > 0)))
    assert starts == 2 * len(EXAMPLES)
    assert sampler.num_items < len(EXAMPLES) / 1.5
    with pytest.raises(ValueError, match="on-policy learning takes pack=False"):
        sampler.prompts(0)


def test_bad_arguments():
    for name in ("batch_size", "batches_per_sort"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1"):
            Config(**{name: 0})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="seed must lie"):
        Config(seed=-1)
    for lengths in ((), (0, 4), (8, 8), (8, 4)):
        with pytest.raises(ValueError, match="lengths must be positive and increase"):
            Config(lengths=lengths)
    with pytest.raises(ValueError, match="no examples"):
        batches.make([], Config(), PAD)
    with pytest.raises(ValueError, match="has 42 tokens, more than the greatest"):
        batches.make(EXAMPLES, Config(lengths=(8, 16)), PAD)
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        batches.make(EXAMPLES, Config(), PAD).sequences(-1)


@pytest.mark.parametrize(
    "longest, width",
    [(1, 16), (17, 32), (1024, 1024), (1025, 1280), (2049, 2304), (8192, 8192), (8300, 8704)],
)
def test_little_of_a_long_prompt_is_padding(longest: int, width: int):
    assert batches.width(longest) == width


def test_steps_leave_less_padding_than_powers():
    assert batches.static_lengths(300, "powers") == (16, 32, 64, 128, 256, 512)
    assert batches.static_lengths(300, "steps") == (16, 32, 64, 96, 128, 192, 256, 304)
    assert batches.static_lengths(97, "steps") == (16, 32, 64, 96, 104)
    assert batches.static_lengths(96, "steps") == (16, 32, 64, 96)
    for longest in (1, 16, 64):  # Of short rows there is little to save.
        assert batches.static_lengths(longest, "steps") == batches.powers_of_two(longest)
    waste = {
        widths: np.mean(
            [
                next(m for m in batches.static_lengths(1000, widths) if m >= n) / n
                for n in range(65, 1001)
            ]
        )
        for widths in ("steps", "powers")
    }
    assert waste["steps"] < 1.25 < 1.35 < waste["powers"]


def test_powers_of_two():
    assert batches.powers_of_two(16) == (16,)
    assert batches.powers_of_two(65) == (16, 32, 64, 128)
    assert batches.powers_of_two(1) == (16,)

"""Tests of lm/blocks.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import blocks
from kullback.lm.tokenizer import train_bpe

IMAGE, AUDIO = blocks.Delimiters(90, 91, 92), blocks.Delimiters(80, 81, 82)
MARKERS = blocks.Markers(image=IMAGE, audio=AUDIO)
ROWS = np.array(
    [
        [1, 90, 91, 91, 92, 5, 90, 91, 92, 0],
        [90, 91, 91, 91, 92, 80, 81, 81, 82, 5],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
    ]
)


def test_groups_by_hand():
    expected = [
        [-1, -1, 0, 0, -1, -1, -1, 1, -1, -1],
        [-1, 0, 0, 0, -1, -1, 1, 2, -1, -1],
        [-1] * 10,
    ]
    np.testing.assert_array_equal(blocks.groups(ROWS, MARKERS), expected)
    compiled = jax.jit(lambda tokens: blocks.groups(tokens, MARKERS, jnp))(ROWS)
    np.testing.assert_array_equal(compiled, expected)
    assert compiled.dtype == np.int32 == blocks.groups(ROWS, MARKERS).dtype
    ahead = blocks.Markers(image=IMAGE, audio=AUDIO, audio_looks_ahead=True)
    np.testing.assert_array_equal(
        blocks.groups(ROWS, ahead)[1], [-1, 0, 0, 0, -1, -1, 1, 1, -1, -1]
    )


def test_blocks_are_in_order():
    spans = blocks.find(ROWS[1].tolist(), MARKERS)
    assert spans == [blocks.Block(0, 5, IMAGE), blocks.Block(5, 9, AUDIO)]
    assert not blocks.find([], MARKERS)


@pytest.mark.parametrize(
    "ids, message",
    [
        ([1, 91, 92], "token 1, 91, .* stands outside"),
        ([1, 92], "token 1, 92, .* stands outside"),
        ([90, 91, 91], "2 soft tokens follow, then nothing"),
        ([90, 92, 5], "0 soft tokens follow, then 92"),
        ([90, 91, 5, 92], "1 soft tokens follow, then 5, expected some and the end 92"),
        ([90, 91, 82, 5], "1 soft tokens follow, then 82"),
        ([90, 90, 91, 92], "0 soft tokens follow, then 90"),
        ([90], "0 soft tokens follow, then nothing"),
    ],
)
def test_broken_rows_are_refused(ids: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        blocks.find(ids, MARKERS)
    with pytest.raises(ValueError):
        blocks.check_prompt(ids, MARKERS)


def test_a_prompt_does_not_end_in_a_soft_token():
    blocks.check_prompt([1, 90, 91, 92], MARKERS)
    with pytest.raises(ValueError, match="the prompt ends in a soft token"):
        blocks.check_prompt([1, 90, 91], MARKERS)


def test_ids_are_those_of_the_vocabulary():
    names = [*blocks.IMAGE_TOKENS, *blocks.AUDIO_TOKENS]
    tokenizer = train_bpe(["<start_of_image> a"], 300, further_controls=names)
    assert blocks.markers_of(tokenizer) == blocks.Markers(
        image=blocks.Delimiters(6, 7, 8), audio=blocks.Delimiters(9, 10, 11)
    )
    assert not {*range(6, 12)} & {*tokenizer.encode("<start_of_image><audio_soft_token>")}
    with pytest.raises(ValueError, match="has no <start_of_image> and no <image_soft_token>"):
        blocks.markers_of(train_bpe(["a"], 262))
    with pytest.raises(ValueError, match="ids of delimiters and soft tokens must differ"):
        blocks.Markers(image=blocks.Delimiters(1, 1, 2))
    assert blocks.Markers().image == (255_999, 262_144, 256_000)

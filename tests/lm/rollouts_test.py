"""Tests of lm/rollouts.py: measures of texts. `episodes_test.py` samples and scores some."""

import jax
import numpy as np

from kullback.lm import batches, rollouts

END = 1
text_metrics = jax.jit(rollouts.text_metrics, static_argnums=(1, 2))


def test_measures_of_texts_by_hand():
    # Two prompts of one token, two texts each; a 0 fills up.
    ids = np.array([[5, 2, 3, END, 0], [5, 2, 3, 2, 3], [6, END, 0, 0, 0], [6, 4, 4, 4, END]])
    lengths = np.array([4, 5, 2, 5])
    column = np.arange(5)[None]
    is_answer = (column >= 1) & (column < lengths[:, None])
    rows = batches.Sequences(ids, is_answer, column + 0 * ids, ids * 0, lengths)
    measured = text_metrics(rows, (END,), 2)
    np.testing.assert_array_equal(measured["answer_tokens"], [3, 4, 1, 4])
    np.testing.assert_array_equal(measured["truncated"], [0, 1, 0, 0])
    # 23 31 | 23 32 23: three of five differ; 44 44 41 and nothing: two of three.
    np.testing.assert_allclose(measured["diversity"], [3 / 5, 2 / 3])


def test_an_end_within_a_prompt_ends_nothing():
    ids = np.array([[END, 2, 3], [END, 2, END]])
    is_answer = np.array([[False, True, True]] * 2)
    rows = batches.Sequences(ids, is_answer, ids * 0, ids * 0, np.array([3, 3]))
    measured = text_metrics(rows, (END,), 2)
    np.testing.assert_array_equal(measured["truncated"], [1, 0])


def test_log_ratios_are_sums_over_the_tokens_of_an_answer():
    is_answer = np.array([[False, True, True, False], [False, False, True, True]])
    zeros = np.zeros(is_answer.shape, np.int32)
    rows = batches.Sequences(zeros, is_answer, zeros, zeros, np.array([3, 4]))
    drawn = np.where(is_answer, [[0, -1, -2, 0], [0, 0, -3, -4]], 0).astype(np.float32)
    episodes = rollouts.Episodes(rows, np.zeros(2, np.float32), drawn)
    other = np.array([[-2, -4, -9], [-9, -3, -5]], np.float32)  # Of prompts and padding any.
    np.testing.assert_array_equal(rollouts.log_ratios(episodes, other), [1 + 2, 0 + 1])

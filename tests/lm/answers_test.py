"""Tests of lm/answers.py, against the logits of whole sequences at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.lm import answers, batches, data, gemma
from tests.states import fresh_params

CONFIG = dataclasses.replace(gemma.PRESETS["tiny"], num_layers=2)
EXAMPLES = [data.Example((2, 5, 6), (7, 8, 1)), data.Example((2, 9), (3, 1))]


def test_oracle_all_logits_at_once():
    one, two = gemma.make(CONFIG), gemma.make(dataclasses.replace(CONFIG, num_layers=1))
    rows = batches.pad(EXAMPLES, 8, pad_id=0)

    def measure(
        logits: jax.Array, other_logits: jax.Array, labels: jax.Array
    ) -> dict[str, jax.Array]:
        at = jnp.arange(len(labels))
        return {
            "label": logits[at, labels],
            "both": jnp.stack([logits[:, 0], other_logits[:, 1]], -1),
        }

    @jax.jit
    def both_ways(params: Any, others: Any) -> tuple[Any, ...]:
        inputs = rows.tokens, rows.positions, rows.segments
        return (
            *answers.per_token(measure, rows, (one, params), (two, others), chunk=3),
            one.apply(params, *inputs)[:, :-1],
            two.apply(others, *inputs)[:, :-1],
        )

    given = fresh_params(one.init), fresh_params(two.init, 1)
    measures, is_answer, *whole = both_ways(*given)
    logits, other_logits = map(np.asarray, whole)
    # What follows the prompt: tokens 3 to 5 of the first row, 2 and 3 of the second.
    expected = np.zeros((2, 7), bool)
    expected[0, 2:5] = expected[1, 1:3] = True
    np.testing.assert_array_equal(is_answer, expected)
    label_logits = np.take_along_axis(logits, np.asarray(rows.tokens)[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(measures["label"], np.where(expected, label_logits, 0), atol=1e-5)
    both = np.stack([logits[..., 0], other_logits[..., 1]], -1)
    np.testing.assert_allclose(measures["both"], np.where(expected[..., None], both, 0), atol=1e-5)

"""Tests of experiments/reproductions/shape_encoder.py."""

import jax
import numpy as np
import pytest

from kullback.experiments.reproductions import shape_encoder, shapes, small_sight, students

SIZES = small_sight.Sizes(
    side=shapes.SIDE, patch=8, num_soft=16, encoder_width=16, encoder_layers=1, width=8, layers=1
)


def test_the_loss_is_that_of_both_heads():
    random = np.random.default_rng(0)
    pooled = random.normal(size=(3, 16, 5)).astype(np.float32)
    heads = {
        name: random.normal(size=(5, number)).astype(np.float32)
        for name, number in shape_encoder.LABELS.items()
    }
    kinds = random.integers(-1, 12, (3, 16)).astype(np.int32)
    total = 0.0
    for picture in range(3):
        for cell in range(16):
            for name, label in (("kinds", kinds[picture, cell] + 1), ("cells", cell)):
                logits = pooled[picture, cell].astype(float) @ heads[name].astype(float)
                total += np.logaddexp.reduce(logits) - logits[label]
    got = jax.jit(shape_encoder.labelled_loss)(pooled, heads, kinds)
    np.testing.assert_allclose(got, total / 48, rtol=1e-5)


@pytest.mark.slow
def test_an_encoder_learns_what_stands_where():
    """Patches of a cell each: of those that are drawn half are told, by how many are empty."""
    learning = shape_encoder.Learning(pictures=1_000, held_out=100, steps=300, learning_rate=4e-3)
    config = small_sight.make(SIZES, ("a", "b"), 32).vision
    losses: list[float] = []

    def tick(steps: int, loss: float) -> None:
        assert steps % students.STRETCH == 0
        losses.append(loss)

    encoder = shape_encoder.learn(SIZES, learning, config, (4, 7), 0, tick)
    assert encoder.right > 0.9 and losses[-1] < losses[0] / 2
    again = shape_encoder.learn(
        SIZES, shape_encoder.Learning(pictures=200, held_out=50, steps=0), config, (4, 7), 0
    )
    assert again.right < 0.5, "an encoder that has not learnt tells little"

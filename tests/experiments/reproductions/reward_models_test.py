"""Tests of experiments/reproductions/reward_models.py, on points as they are in warm."""

import jax
import numpy as np
import pytest

from kullback.core import types
from kullback.experiments.reproductions import reward_models, reward_toy
from kullback.lm import epochs, reward_model, warm


@pytest.mark.slow
def test_members_are_learners_of_their_own_settings():
    """Oracle: the plain learner with a member's own configuration, step by step."""
    config = reward_models.settings(8, (1e-2, 1e-3), (0.05, 0.1))
    model, rng = reward_toy.MODEL, np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 40, reward_toy.DIMENSIONS)).astype(np.float32)
    chosen[:, 0] += 1
    start = model.init(jax.random.key(7))
    members = reward_models.train(model, [start], (chosen, rejected), config, 0, 3, 10)
    learner = reward_model.learner(model, warm.member_config(config, 1))
    state, step = learner.init(jax.random.key(1))._replace(params=start), jax.jit(learner.step)
    for number in range(10):
        rows = epochs.indices(number, num_items=40, batch_size=8, seed=1)
        batch = types.Batch.of((chosen[rows], rejected[rows]))
        state, _ = step(state, batch, types.NO_CONSTANTS)
    alone = reward_models.split(members)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone[1], state.params)
    heads = [np.asarray(one["head"]["w"]) for one in (start, *alone)]
    assert len({head.tobytes() for head in heads}) == 4, "each has learnt, and they differ"


def test_best_of_is_picked_by_prompt():
    gold = np.array([[1.0, 2.0], [5.0, 3.0]])
    rows = reward_models.best_of({"a": -gold}, gold, (1, 2), lambda proxy, n: {"size": proxy.size})
    columns = [(row["reward"], row["n"], row["proxy"], row["gold"]) for row in rows]
    expected = [("a", 1, -2.75, 2.75), ("a", 2, -2, 2), ("gold", 1, 2.75, 2.75)]
    assert columns == [*expected, ("gold", 2, 3.5, 3.5)]
    assert list(rows[0]) == ["reward", "n", "size", "proxy", "gold"] and rows[0]["size"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_average_memorises_fewer_wrong_labels_than_an_ensemble(seed: int):
    """Observation 3 of the paper: 2,000 pairs, of which a quarter is wrong; six members.

    Of pairs that were learnt wrongly the average repeats fewer than the ensemble of predictions,
    and of right ones too; of pairs from elsewhere it knows as much. Members that start from
    networks of their own have no average.
    """
    sizes, keys = reward_toy.SIZES, jax.random.split(jax.random.key(seed))
    gold = reward_toy.draw_gold(keys[0], 0.0)
    data = reward_toy.draw(sizes, gold, seed)
    backbone = reward_toy.pretrain(sizes, gold, keys[1])
    start = reward_models.probed(reward_toy.MODEL.features, backbone, data)
    others = [reward_toy.MODEL.init(key) for key in keys]
    members, apart = (
        reward_models.train(
            reward_toy.MODEL, starts, data.train, sizes.population(), seed, count, sizes.steps
        )
        for starts, count in (([start], sizes.members), (others, 2))
    )
    of = {row["model"]: row for row in reward_models.ranked(data, members, reward_toy.margins_of)}
    assert of["average"]["corrupted"] < of["ensemble"]["corrupted"] - 0.05
    assert of["average"]["clean"] < of["ensemble"]["clean"]
    assert of["average"]["far"] >= of["ensemble"]["far"] - 0.01
    [half] = [
        r for r in reward_toy.connected(data, members) if (r["pairs"], r["share"]) == ("near", 0.5)
    ]
    assert half["weights"] >= half["mean_accuracy"] - 0.01
    lost = {row["model"]: row for row in reward_models.ranked(data, apart, reward_toy.margins_of)}[
        "average"
    ]
    assert lost["near"] < of["average"]["near"] - 0.03

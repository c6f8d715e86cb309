"""Tests of experiments/reproductions/played_games.py."""

import pathlib

import jax
import numpy as np
from PIL import Image, ImageSequence

from kullback.core import loops
from kullback.environments.minatar import games
from kullback.experiments.reproductions import played_games, players, small_sight
from kullback.lm import siglip

SIZES = small_sight.Sizes(
    side=10, patch=5, num_soft=4, encoder_width=8, encoder_layers=1, width=8, layers=1
)


def test_golden_captions():
    picture = np.full((160, 160, 3), 7, np.uint8)
    given = played_games.captioned(picture, 1, [0, 1, 0.5, 0, 0, 0])
    assert given.shape == (160 + played_games.CAPTION, 160, 3)
    assert (given[:160] == 7).all()
    # In the middle of its bar: all of its length, half of it, or one column.
    lengths = [
        int(np.sum(np.any(given[160 + 2 + 12 * n + 6, 40:] != games.BACKGROUND, -1)))
        for n in range(6)
    ]
    assert lengths == [1, 117, 59, 1, 1, 1]
    assert given[160 + 2 + 12 + 6, 40].tolist() == [250, 250, 250], "the word that is taken"


def test_scores_are_means():
    episodes = loops.Episodes(np.array([1.0, 3.0]), np.array([False, True]))
    assert played_games.score(episodes) == {"return": 2.0, "cut": 0.5}


def test_a_film_is_an_episode(tmp_path: pathlib.Path):
    player = players.make(SIZES, 1)
    key, init = jax.random.key(0), siglip.make(SIZES.encoder).init
    params = {"params": jax.jit(player.seer.decoder.init)(key), "encoder": jax.jit(init)(key)}
    environment, path = played_games.make("minatar/breakout", 1), tmp_path / "film.gif"
    path.write_bytes(b"an older one")
    count = played_games.film(player, params, environment, path, seed=3, limit=60)
    with Image.open(path) as film:
        assert len([*ImageSequence.Iterator(film)]) == count and film.size == (
            160,
            160 + played_games.CAPTION,
        )
        assert 2 < count <= 60
    random = played_games.evaluator(played_games.uniform(6), environment, 50)
    episodes = random(None, 0)
    assert episodes.returns.shape == (1,) and 0 <= float(episodes.returns[0]) < 10

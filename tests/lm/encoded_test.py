"""Tests of lm/encoded.py."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kullback.lm import encoded, interleaved, pictures, siglip, vision

VISION = vision.Config(
    encoder=siglip.Config(
        image_size=8, patch_size=2, embed_dim=6, num_layers=1, num_heads=2, hidden_dim=8
    ),
    num_soft=4,
)
PREPARATION = pictures.Config(side=8, pan_and_scan=True, min_crop_side=8)


@functools.cache
def params(seed: int = 0):
    random = np.random.default_rng(seed)
    like = jax.eval_shape(siglip.make(VISION.encoder).init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.4 * random.normal(size=x.shape), x.dtype), like)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Returns the numbers of images that were given to the encoder, a call each."""
    counts, pooled = [], vision.pooled

    def counted(config, params, images):
        jax.debug.callback(lambda: counts.append(len(images)))
        return pooled(config, params, images)

    monkeypatch.setattr(vision, "pooled", counted)
    return counts


def images_of(folder: pathlib.Path | None = None, seed: int = 0) -> encoded.Images:
    return encoded.Images(
        config=VISION, params=params(seed), preparation=PREPARATION, folder=folder, batch_size=2
    )


def draw(path: pathlib.Path, seed: int, width: int = 8) -> interleaved.Medium:
    """Writes a random image of a height of 8; returns the whole of it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return interleaved.Medium(str(path), 0, 4)


def test_no_image_is_encoded_twice(tmp_path, calls):
    one, two = draw(tmp_path / "1.png", 1), draw(tmp_path / "2.png", 2)
    again = draw(tmp_path / "again.bmp", 1)  # The same pixels in another file.
    kept = tmp_path / "kept"
    images = images_of(kept)
    got = images.features([one, two, again, one])
    assert got.shape == (4, 4, 6) and got.dtype == np.float32 and calls == [2]
    np.testing.assert_array_equal(got[[2, 3]], got[[0, 0]])
    pixels = np.stack([pictures.read(m.source).pixels for m in (one, two)])
    x = pictures.normalized(pixels, PREPARATION)
    np.testing.assert_allclose(got[:2], vision.pool(features(x), 4), atol=1e-5)
    np.testing.assert_array_equal(images.features([two]), got[1:2])
    assert calls == [2] and len(list(kept.iterdir())) == 2
    # Another process finds them on disk; another encoder does not take them.
    np.testing.assert_array_equal(images_of(kept).features([one, two]), got[:2])
    assert calls == [2]
    assert np.any(images_of(kept, 1).features([one]) != got[:1])
    assert calls == [2, 2] and images.features([]).shape == (0, 4, 6)


def features(x: np.ndarray) -> jax.Array:
    return jax.jit(siglip.make(VISION.encoder).apply)(params(), x)


def test_crops_are_images_of_their_own(tmp_path, calls):
    whole = draw(tmp_path / "wide.png", 3, 24)  # Three crops of 8 x 8.
    images = images_of()
    got = images.features([whole._replace(view=n) for n in range(4)])
    assert calls == [2, 2]
    crop = Image.open(whole.source).crop((8, 0, 16, 8))
    crop.save(tmp_path / "crop.png")
    alone = images.features([interleaved.Medium(str(tmp_path / "crop.png"), 0, 4)])
    np.testing.assert_array_equal(alone[0], got[2])
    assert calls == [2, 2]
    with pytest.raises(ValueError, match="has 3 crops, and crop 4 is asked for"):
        images.features([whole._replace(view=4)])


def test_what_cannot_be_read_is_named(tmp_path):
    kept = tmp_path / "kept"
    one = draw(tmp_path / "1.png", 1)
    images_of(kept).features([one])
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=f"{file.name}.* cannot be read"):
        images_of(kept).features([one])
    with pytest.raises(ValueError, match=r"none\.png is missing"):
        images_of().features([interleaved.Medium(str(tmp_path / "none.png"), 0, 4)])
    with pytest.raises(ValueError, match="a side of 9 pixels, and the encoder takes 8"):
        dataclasses.replace(images_of(), preparation=pictures.Config(side=9))
    with pytest.raises(ValueError, match="batch_size must be >= 1 image, got 0"):
        dataclasses.replace(images_of(), batch_size=0)


def test_the_fingerprint_is_of_what_is_computed():
    first = encoded.fingerprint(VISION, params())
    assert first != encoded.fingerprint(VISION, params(1))
    assert first != encoded.fingerprint(dataclasses.replace(VISION, num_soft=1), params())
    blocks = dataclasses.replace(VISION.encoder, query_block=3, remat=True)
    assert first == encoded.fingerprint(dataclasses.replace(VISION, encoder=blocks), params())
    half = dataclasses.replace(VISION.encoder, dtype="bfloat16")
    assert first != encoded.fingerprint(dataclasses.replace(VISION, encoder=half), params())

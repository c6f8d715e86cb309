"""Tests of experiments/report/language.py."""

import io
import pathlib

import numpy as np
from PIL import Image

from kullback.experiments.report import language, page


def test_the_images_of_a_text_are_shown_small(tmp_path: pathlib.Path):
    """What is missing, or no image, is left out; so are more than a few."""
    pixels = np.zeros((2 * language.SIDE, 4 * language.SIDE, 3), np.uint8)
    pixels[:, : pixels.shape[1] // 2] = 255
    Image.fromarray(pixels).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    names = [str(tmp_path / name) for name in ("large.png", "none.png", "text.png")]
    small = language.thumbnails([*names, 3])
    assert list(small) == names[:1]
    shown = np.asarray(Image.open(io.BytesIO(small[names[0]])))
    assert shown.shape == (language.SIDE // 2, language.SIDE, 3)
    assert np.all(shown[:, :90] == 255) and np.all(shown[:, -90:] == 0)
    assert language.thumbnails(None) == {}
    copies = []
    for n in range(language.PICTURES + 1):
        copies.append(str(tmp_path / f"{n}.png"))
        Image.fromarray(pixels[:1, :1]).save(copies[-1])
    assert list(language.thumbnails(copies)) == copies[:-1]
    out = page.Page(tmp_path, "title")
    out.folded("first", "text <b>", {'a"b.png': small[names[0]]})
    out.write()
    written = (tmp_path / page.INDEX).read_text()
    assert 'alt="a&quot;b.png"' in written and "text &lt;b&gt;" in written
    assert written.count("data:image/png;base64,") == 1

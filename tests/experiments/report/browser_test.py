"""A report in a real browser, headless, as wide as a phone and as a desk's."""

import json
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable

import PIL.Image
import pytest

from kullback.experiments import report
from kullback.experiments.runs import record, run_folder

WriteRun = Callable[..., pathlib.Path]
CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

# A frame as wide as the screen, for no window is narrower than 500 pixels. What the page in it
# finds becomes the title, which --dump-dom prints.
FRAME = """<!DOCTYPE html><script>
onmessage = (message) => { document.title = message.data; };
</script><iframe src="probed.html" style="border:0; width:%dpx; height:%dpx"></iframe>"""
# Runs in the page once it is loaded.
PROBE = """<script>window.addEventListener("load", () => {
  const root = document.documentElement, pictures = [...document.images];
  const sticking = [...document.body.children].filter(
    (part) => part.getBoundingClientRect().right > window.innerWidth + 1);
  const fetched = performance.getEntriesByType("resource").filter(
    (entry) => !entry.name.startsWith("data:"));
  parent.postMessage(JSON.stringify({
    width: window.innerWidth, scroll: root.scrollWidth, sticking: sticking.length,
    pictures: pictures.length, shown: pictures.filter((one) => one.naturalWidth > 0).length,
    widest: Math.max(...pictures.map((one) => one.getBoundingClientRect().width)),
    fetched: fetched.map((entry) => entry.name),
    tables: [...document.querySelectorAll(".scroll")].filter(
      (part) => part.scrollWidth > part.clientWidth).length,
  }), "*");
});</script></body>"""


def chromium(*arguments: str, profile: pathlib.Path) -> str:
    assert CHROMIUM is not None
    return subprocess.run(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--virtual-time-budget=5000", f"--user-data-dir={profile}", *arguments),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> pathlib.Path:
    """Writes a page with all kinds of parts."""
    folder = tmp_path_factory.mktemp("browser")
    for agent in ("dqn", "m-dqn"):
        for game in ("pong", "breakout"):
            write_run(folder / f"runs/{agent}-{game}", agent, f"atari/{game}", planned_steps=999)
    run = write_run(
        folder / "runs/sft",
        "sft",
        "tokens/arithmetic",
        seeds=(0,),
        extra=lambda seed, step: {"entropy": 1 / step},
        model="tiny",
    )
    texts = record.Record(run_folder.RunFolder(run), has_texts=True)
    texts.write_texts(400, 0, [{"greedy": True, "prompt": "1+1=", "completion": "x" * 3_000}])
    return report.write(
        [folder / "runs"],
        folder / "out",
        baseline="dqn",
        with_published=["munchausen", "dopamine"],
        say=lambda _: None,
    )


@pytest.mark.parametrize("width, height", [(390, 844), (1280, 900)])
def test_it_fits_and_fetches_nothing(
    tmp_path: pathlib.Path, page: pathlib.Path, width: int, height: int
):
    probed = tmp_path / "probed.html"
    # Everything unfolded, so that no text hides.
    text = page.read_text().replace("<details>", "<details open>")
    assert "<details open><summary>1+1=" in text
    probed.write_text(text.replace("</body>", PROBE))
    size = f"--window-size={width},{height}"
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % (width, height))
    dump = chromium("--dump-dom", f"file://{frame}", profile=tmp_path / "one")
    title = re.search("<title>(.*?)</title>", dump)
    assert title is not None
    facts = json.loads(title[1])
    assert facts["width"] == width
    assert facts["scroll"] <= width and facts["sticking"] == 0
    assert facts["pictures"] == facts["shown"] > 8 and facts["widest"] <= width
    assert facts["fetched"] == []
    assert facts["tables"] > 0 if width < 500 else True  # They scroll by themselves.
    picture = tmp_path / "shot.png"
    chromium(size, f"--screenshot={picture}", f"file://{page}", profile=tmp_path / "two")
    with PIL.Image.open(picture) as shot:
        assert shot.size == (width, height)
        assert len(shot.convert("L").getcolors() or ()) > 20  # Letters, not an empty page.

"""Tests of lm/interleaved.py."""

import json
import pathlib
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from kullback.lm import blocks, interleaved, pictures
from kullback.lm.interleaved import Audio, Image, Medium, Segment, Video
from kullback.lm.tokenizer import Tokenizer, load

REFERENCE = json.loads((pathlib.Path(__file__).parent / "fixtures" / "layouts.json").read_text())
# A text's ids are its letters'.
MARKERS = blocks.Markers(image=blocks.Delimiters(900, 901, 902))
HEARD = blocks.Markers(image=MARKERS.image, audio=blocks.Delimiters(910, 911, 912))
TEXTS = st.text("ab \n", min_size=1, max_size=5)
IMAGES = st.builds(Image, st.sampled_from("xyz"), st.integers(0, 2), st.integers(1, 4))
CLIPS = st.builds(Audio, st.sampled_from("xyz"), st.integers(1, 3))
CLOCKS = {0.0: "00:00", 59.9: "00:59", 60.0: "01:00"}
VIDEOS = st.integers(1, 3).flatmap(
    lambda n: st.builds(Video, st.just(tuple(range(n))), st.just(tuple(CLOCKS)[:n]), st.just(2))
)
IDS = st.lists(st.integers(200, 210), min_size=1, max_size=3).map(tuple)
SEGMENTS = st.lists(st.one_of(TEXTS, IDS, IMAGES, CLIPS, VIDEOS), min_size=1, max_size=6)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def spelled(segments: list[Segment]) -> str:
    """Returns a row as text: ids as numbers, a block as <source.view:tokens>."""
    text = ""
    for one in segments:
        match one:
            case Image(source, crops, tokens):
                whole, *parts = (f"\n\n<{source}.{n}:{tokens}>\n\n" for n in range(crops + 1))
                if parts:
                    text += f"Here is the original image {whole} and here are some crops to help "
                    whole = f"you see better {' '.join(parts)}"
                text += whole
            case Video(sources, times, tokens):
                pairs = zip(sources, times, strict=True)
                text += " ".join(f"{CLOCKS[time]} <{s}.0:{tokens}>" for s, time in pairs)
            case Audio(source, tokens):
                text += f"\n\n<{source}.0:{tokens}>\n\n"
            case str():
                text += one
            case _:
                text += "".join(f"[{i}]" for i in one)
    return text


def read_back(row: interleaved.Layout, markers: blocks.Markers) -> str:
    """Returns the same of ids and media."""
    text, at, media = "", 0, list(row.media)
    ids = row.ids.tolist()
    for block in [*blocks.find(ids, markers), None]:
        part = ids[at : len(ids) if block is None else block.begin]
        text += "".join(chr(i) if i < 200 else f"[{i}]" for i in part)
        if block is not None:
            medium = media.pop(0)
            assert block.end - block.begin - 2 == medium.tokens
            text += f"<{medium.source}.{medium.view}:{medium.tokens}>"
            at = block.end
    assert not media
    return text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(REFERENCE["tokenizer"]))
    return load(folder)


def segments_of(case: dict[str, Any], tokenizer: Tokenizer) -> list[Segment]:
    config = pictures.Config(pan_and_scan=case["pan_and_scan"])
    sizes = list(case["sizes"])
    segments: list[Segment] = []
    for part in case["parts"]:
        if part == "<start_of_image>":
            width, height = sizes.pop(0)
            boxes = pictures.crop_boxes(width, height, config)
            crops = len(boxes) if config.pan_and_scan else 0
            segments.append(Image("image", crops, REFERENCE["soft_tokens"]))
        else:
            control = tokenizer.controls.get(part)
            segments.append(part if control is None else (control,))
    return segments


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=range(len(REFERENCE["cases"])))
def test_ids_are_those_of_transformers(tokenizer: Tokenizer, case: dict[str, Any]):
    markers = blocks.markers_of(tokenizer)
    assert markers.image == (6, 8, 7) and markers.audio is None
    segments = segments_of(case, tokenizer)
    row = interleaved.layout(segments, tokenizer.encode, markers)
    assert row.ids.tolist() == case["ids"]


def test_newlines_may_stand_apart_or_not_at_all(tokenizer: Tokenizer):
    segments: list[Segment] = [(4,), "user\n", Image("x", 0, 2), "this?"]
    joined, apart, none = (
        interleaved.encode(segments, tokenizer.encode, blocks.markers_of(tokenizer, around)).ids
        for around in ("joined", "apart", "none")
    )
    image, text = [6, 8, 8, 7], tokenizer.encode
    assert joined == [4, *text("user\n\n\n"), *image, *text("\n\nthis?")]
    assert apart == [4, *text("user\n"), *text("\n\n"), *image, *text("\n\n"), *text("this?")]
    assert none == [4, *text("user\n"), *image, *text("this?")]
    assert joined[:3] == [4, 306, 271] and apart[:4] == [4, 306, 207, 265]
    with pytest.raises(ValueError, match="around must be joined, apart or none, got 'both'"):
        blocks.Markers(around="both")  # pyright: ignore[reportArgumentType]


def test_a_row_by_hand():
    image, clip = Image("cat.png", 0, 2), Audio("miaow.wav", 3)
    row = interleaved.layout([(2,), "a", image, image, clip], letters, HEARD)
    assert row.ids.tolist() == [
        *(2, 97, 10, 10, 900, 901, 901, 902, 10, 10, 10, 10, 900, 901, 901, 902),
        *(10, 10, 10, 10, 910, 911, 911, 911, 912, 10, 10),
    ]
    of_images = [-1] * 5 + [0, 0] + [-1] * 6 + [1, 1] + [-1] * 6
    assert row.groups.tolist() == [*of_images, 2, 3, 4, -1, -1, -1]
    assert row.positions.tolist() == list(range(27))
    is_special = np.isin(row.ids, [900, 901, 902, 910, 911, 912])
    np.testing.assert_array_equal(row.is_text, ~is_special)
    assert row.media == (
        Medium("cat.png", 0, 2),
        Medium("cat.png", 0, 2),
        Medium("miaow.wav", 0, 3),
    )
    assert row.ids.dtype == row.groups.dtype == row.positions.dtype == np.int32


def test_a_video_is_frames_behind_their_times():
    video = Video(("a", "b", "c"), (0.0, 59.9, 60.0), 1)
    row = interleaved.layout([(2,), "go ", video], letters, MARKERS)
    assert read_back(row, MARKERS) == "\x02go 00:00 <a.0:1> 00:59 <b.0:1> 01:00 <c.0:1>"
    assert interleaved.clock(6_005.5) == "100:05"
    assert interleaved.frame_indices(16) == list(range(16))
    assert interleaved.frame_indices(1) == [0] * 16
    assert interleaved.frame_indices(32) == list(range(1, 32, 2))
    assert interleaved.frame_indices(10, 3) == [1, 5, 8]


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(SEGMENTS)
def test_segments_come_back_from_ids(segments: list[Segment]):
    row = interleaved.layout(segments, letters, HEARD)
    assert read_back(row, HEARD) == spelled(segments)
    assert int((row.groups >= 0).sum()) == sum(medium.tokens for medium in row.media)


def test_counts_that_differ_are_refused():
    row = interleaved.encode(["a", Image("x", 0, 2), Image("y", 0, 2)], letters, MARKERS)
    with pytest.raises(ValueError, match=r"have 2 images, .* and 1 were given"):
        interleaved.of_ids(row.ids, row.media[:1], MARKERS)
    media = [row.media[0], row.media[1]._replace(tokens=3)]
    with pytest.raises(ValueError, match="clip 2 has 2 soft tokens, and 3 vectors"):
        interleaved.of_ids(row.ids, media, MARKERS)


@pytest.mark.parametrize(
    "segments, message",
    [
        ([Image("x", 0, 0)], "must have >= 1 soft tokens, got 0"),
        ([Video((), (), 1)], "a video of 0 frames has 0 times"),
        ([Video(("a", "b"), (1.0,), 1)], "a video of 2 frames has 1 times"),
        ([Video(("a", "b"), (2.0, 1.0), 1)], r"must not fall, got \[2\.0, 1\.0\]"),
        ([Video(("a",), (-1.0,), 1)], "must be finite and >= 0 seconds"),
        ([Audio("a", 3)], "takes no audio"),
        ([(5, 901)], "a segment of ids has 901"),
    ],
)
def test_other_segments_are_refused(segments: list[Segment], message: str):
    with pytest.raises(ValueError, match=message):
        interleaved.layout(segments, letters, MARKERS)

"""Tests of experiments/evaluate/generate.py and of `kullback generate`."""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from kullback.core.sampling import Sampling
from kullback.experiments import cli, interrupts
from kullback.experiments.commands import generate as generate_command
from kullback.experiments.evaluate import generate
from kullback.experiments.runs import exports, model_files, models
from kullback.lm import blocks, chat, forms, interleaved

PROMPTS = ("abca", "bcbcb", "abcabc")  # Of one width, hence of one program.
LETTERS = Sampling(top_k=20)  # All that is drawn is a letter or a digit, hence a token each.


@pytest.fixture(scope="module")
def checkpoint(untuned: pathlib.Path) -> model_files.Checkpoint:
    return models.load(untuned)


@pytest.fixture(scope="module")
def writer(checkpoint: model_files.Checkpoint) -> generate.Writer:
    return generate.Writer(checkpoint=checkpoint, max_new_tokens=20, sampling=LETTERS, seed=3)


@pytest.fixture(scope="module")
def greedy(checkpoint: model_files.Checkpoint) -> generate.Writer:
    """Writes greedily, as commands below do, whose programs these are."""
    return generate.Writer(
        checkpoint=checkpoint, max_new_tokens=18, sampling=Sampling(temperature=0)
    )


def ids(checkpoint: model_files.Checkpoint, *texts: str) -> list[tuple[int, ...]]:
    bpe = checkpoint.tokenizer
    return [(bpe.bos_id, *bpe.encode(text)) for text in texts]


def test_a_stop_text_ends_a_text_within_tokens_and_across_them(
    checkpoint: model_files.Checkpoint, writer: generate.Writer
):
    (prompt,) = ids(checkpoint, "abc")
    (whole,) = generate.complete(writer, [prompt])
    assert len(whole.text) == len(whole.ids) == 20 and not whole.is_complete
    stop = whole.text[3:6]
    assert stop not in whole.text[:5]
    pieces: list[str] = []
    stopping = generate.Writer(
        checkpoint=checkpoint,
        max_new_tokens=20,
        sampling=LETTERS,
        seed=3,
        stop_texts=("never", stop),
    )
    (short,) = generate.complete(
        stopping, [prompt], on_text=lambda number, text: pieces.append(text)
    )
    assert short.text == "".join(pieces) == whole.text[:3] and short.is_complete
    assert short.ids == whole.ids[:6]
    with pytest.raises(ValueError, match="a text to stop at must not be empty"):
        generate.Writer(checkpoint=checkpoint, max_new_tokens=1, stop_texts=("",))


@pytest.mark.slow
def test_prompts_in_batches_are_those_one_at_a_time(
    checkpoint: model_files.Checkpoint, greedy: generate.Writer
):
    """Greedily: rows that are idle, and other prompts beside one, do not matter."""
    prompts = ids(checkpoint, *PROMPTS)
    ended: dict[int, generate.Generated] = {}
    order: list[int] = []

    def on_end(number: int, generated: generate.Generated) -> None:
        ended[number] = generated
        order.append(number)

    greedy.write_all([prompts[n] for n in (2, 0, 1)], 2, on_end)
    assert sorted(order) == [0, 1, 2] and order[-1] == 0  # The longest comes last.
    for number, prompt in ((0, prompts[2]), (1, prompts[0]), (2, prompts[1])):
        assert [ended[number]] == generate.complete(greedy, [prompt])


@pytest.mark.parametrize(
    ("num_tokens", "most", "sizes"),
    [(1, 16, [1]), (40, 16, [1, 2, 4, 8, 16, 9]), (12, 3, [1, 2, 3, 3, 3])],
)
def test_the_first_piece_is_a_token(num_tokens: int, most: int, sizes: list[int]):
    ticks, got = zip(*generate.pieces(num_tokens, most), strict=True)
    assert [*got] == sizes
    assert [*ticks] == [sum(sizes[:n]) for n in range(len(sizes))]


def test_a_signal_ends_texts_where_they_are(
    checkpoint: model_files.Checkpoint, greedy: generate.Writer
):
    prompts = ids(checkpoint, *PROMPTS[:2])
    ended: dict[int, generate.Generated] = {}

    def interrupt(number: int, text: str) -> None:
        raise interrupts.Interrupted

    key = jax.random.key(0)
    with pytest.raises(interrupts.Interrupted):
        greedy.write(prompts, key, on_text=interrupt, on_end=ended.__setitem__)
    assert [*ended] == [0, 1]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("".join(f"{text}\n" for text in PROMPTS))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    status = cli.main(["generate", "--max-new-tokens=18", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_file_is_completed_line_by_line_and_kept(
    untuned: pathlib.Path,
    prompts: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "out.jsonl"
    given = ("--model", untuned, "--prompts", prompts, "--batch-size=2", "--temperature=0")
    status, printed, said = run(capsys, *given, "--out", out)
    assert status == 0 and out.read_text() == printed and "2 texts" in said
    lines = sorted(map(json.loads, printed.splitlines()), key=lambda line: line["number"])
    assert [line["prompt"] for line in lines] == [*PROMPTS]
    assert [line["number"] for line in lines] == [1, 2, 3]
    (line,) = lines[1:2]
    status, printed, _ = run(capsys, "--model", untuned, "--prompt", "bcbcb", "--temperature=0")
    assert (status, printed) == (0, line["completion"] + "\n")
    status, _, said = run(capsys, *given, "--out", out)
    assert status == 2 and "nothing is overwritten" in said
    status, _, said = run(capsys, "--model", untuned, "--prompt=a", "--out", tmp_path / "new")
    assert status == 2 and "--out goes with --prompts FILE" in said


@pytest.mark.slow
def test_half_precision_and_filters_are_flags(
    untuned: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    given = ("--model", untuned, "--prompt=bcbcb")
    more = ("--min-p=0.1", "--repetition-penalty=1.2", "--stop=x", "--stop=yz")
    status, _, said = run(capsys, *given, *more, "--model-flag", "dtype=bfloat16")
    assert status == 0
    halves = said.split(": ")[-1]
    _, _, said = run(capsys, *given, "--temperature=0")
    wholes = said.split(": ")[-1]
    assert float(wholes.split()[0]) == pytest.approx(2 * float(halves.split()[0]), rel=0.01)
    for wrong, message in (
        (
            "--model-flag=num_layers=3",
            "is as it was trained, but for dtype, storage, cache and remat",
        ),
        ("--model-flag=storage=int3", "storage must be float32 or int8 or int4 or q8_0"),
        ("--model-flag=storage=q4_0", "embedding: q4_0 takes 32 weights at a time"),
        ("--model-flag=dtype=int8", "dtype must be float32 or bfloat16, got 'int8'"),
        ("--min-p=2", "min_p must lie in [0, 1]"),
        ("--repetition-penalty=0", "repetition_penalty must lie in [0.01, 100]"),
        ("--stop=", "a text to stop at must not be empty"),
    ):
        status, _, said = run(capsys, *given, wrong)
        assert status == 2 and message in said and said.count("\n") == 1


@pytest.mark.slow
def test_a_model_that_sees_answers_about_images(
    sees: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """Its greedy text is that of full passes."""
    paths = []
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{n}.png"))
        Image.fromarray(pixels).save(paths[-1])
    command = ["generate", f"--model={sees}", "--prompt=ab", "--max-new-tokens=4", "--chat"]
    assert cli.main([*command, "--temperature=0", *(f"--image={path}" for path in paths)]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    checkpoint = models.load(sees, modality=forms.IMAGES)
    bpe, seen = checkpoint.tokenizer, checkpoint.images
    assert seen is not None and checkpoint.params is not None
    images = [interleaved.Image(path, 0, 4) for path in paths]
    ids = chat.continued((), "ab", bpe, shown=images)
    media = [view for image in images for view in interleaved.views(image)]
    options = argparse.Namespace(images=paths, clips=[], prompt="ab", chat=False)
    row = interleaved.encode([*images, "ab"], bpe.encode, blocks.markers_of(bpe))
    assert generate_command._question(options, checkpoint) == ((bpe.bos_id, *row.ids), (*media,))
    out = tmp_path / "out"
    exports.save(checkpoint, out, sorted(sees.glob("*token*")))
    again = models.load(out, modality=forms.IMAGES)
    jax.tree.map(np.testing.assert_array_equal, again.params, checkpoint.params)
    assert again.images is not None and again.images.config == seen.config
    pooled = seen.features(media)[None]
    apply = jax.jit(checkpoint.model.apply)
    for _ in range(4):
        padded = np.array([ids + [bpe.pad_id] * (32 - len(ids))], np.int32)
        logits = apply(checkpoint.params, padded, sensed=pooled)[0, len(ids) - 1]
        logits = logits.at[np.array(seen.config.unwritten_ids)].set(-np.inf)
        ids.append(int(np.argmax(logits)))
    assert bpe.decode(ids[-4:]) == text


def test_rows_of_prompts_name_their_images(
    sees: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """Side by side, each is answered as alone; a row without an image stands between."""
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    rows: list[dict[str, Any]] = [{"prompt": "ab", "images": [f"{n}.png"]} for n in range(2)]
    rows.insert(1, {"prompt": [{"role": "user", "content": "ab"}]})
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["generate", f"--model={sees}", "--max-new-tokens=4", "--temperature=0"]
    assert cli.main([*command, f"--prompts={file}"]) == 0
    lines = sorted(
        map(json.loads, capsys.readouterr().out.splitlines()), key=lambda line: line["number"]
    )
    assert [line.get("images") for line in lines] == [
        [str(tmp_path / "0.png")],
        None,
        [str(tmp_path / "1.png")],
    ]
    for n, number in ((0, 0), (1, 2)):
        alone = [*command, "--prompt=ab", "--chat", f"--image={tmp_path / f'{n}.png'}"]
        assert cli.main(alone) == 0
        assert capsys.readouterr().out == lines[number]["completion"] + "\n"


def test_images_are_for_models_that_see(
    sees: pathlib.Path,
    untuned: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    missing = f"--image={tmp_path / 'none.png'}"
    for arguments, message in (
        ([f"--model={untuned}", "--prompt=a", missing], "has no vision_config"),
        ([f"--model={sees}", "--prompt=a", missing], "none.png is missing"),
        ([f"--model={sees}", "--prompts=a.txt", missing], "--image goes with --prompt TEXT"),
    ):
        assert cli.main(["generate", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error

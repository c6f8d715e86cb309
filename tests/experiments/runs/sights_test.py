"""Tests of experiments/runs/sights.py and starts.py: runs that learn with images."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from kullback import experiments
from kullback.core import trees
from kullback.experiments import cli
from kullback.experiments.evaluate import evaluation, subjects
from kullback.experiments.runs import language_setup, models, opened, plans, resolved, sights
from kullback.lm import forms, vision
from tests import small_models
from tests.records import as_killed, repeated

SHORT = ("batch_size=4", "max_prompt_length=64", "max_new_tokens=4", "warmup_steps=0")
FAST = ("learning_rate=1e-2",)
EVALUATED: dict[str, Any] = {"eval_every": 4, "eval_episodes": 2}


def draw(path: pathlib.Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder of rows with no image, one and two; five pictures in six files."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "images").mkdir()
    for n in range(5):
        draw(folder / "images" / f"{n}.png", n)
    shutil.copy(folder / "images" / "0.png", folder / "images" / "again.png")
    items = [{"type": "text", "text": "ab"}, {"type": "image"}, {"type": "text", "text": "?"}]
    train: list[dict[str, Any]] = [
        {"prompt": "n", "images": [f"images/{n}.png"], "completion": str(n)} for n in range(3)
    ]
    train += [
        {"prompt": "n", "images": ["images/again.png"], "completion": "0"},
        {"prompt": "two", "images": ["images/1.png", "images/3.png"], "completion": "13"},
        {"prompt": "abc", "completion": "a"},
        {
            "messages": [
                {"role": "user", "content": items},
                {"role": "assistant", "content": "2"},
            ],
            "images": ["images/2.png"],
        },
    ]
    write_rows(folder / "train.jsonl", train)
    held_out = {"prompt": "n", "image": "images/4.png", "completion": "4"}
    write_rows(folder / "test.jsonl", [held_out, {"prompt": "abc", "completion": "b"}])
    return folder


def train(
    out: pathlib.Path,
    rows: pathlib.Path,
    model: pathlib.Path,
    algorithm: str = "sft",
    **fields: Any,
) -> pathlib.Path:
    settings = (*SHORT, *FAST, *fields.pop("settings", ()))
    given: dict[str, Any] = {"steps": 4, "log_every": 1, "checkpoint_every": 2, "quiet": True}
    given |= {"images": True, **fields}
    given["model"] = str(model)
    return experiments.train(algorithm, f"tokens/jsonl:{rows}", out=out, settings=settings, **given)


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Returns a list that gets the number of images each time that some are encoded."""
    counts: list[int] = []
    encode = sights.encoded.Images._encode

    def counted(images: Any, new: dict[str, Any]) -> None:
        counts.append(len(new))
        encode(images, new)

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KULLBACK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr(sights.encoded.Images, "_encode", counted)
        yield counts


class Tuned(NamedTuple):
    """A finished run."""

    path: pathlib.Path
    num_encoded: int  # Images that it encoded.
    num_kept: int  # Of which the features are on disk.


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    rows: pathlib.Path,
    sees: pathlib.Path,
    counts: list[int],
) -> Tuned:
    path = train(tmp_path_factory.mktemp("tuned") / "run", rows, sees, **EVALUATED)
    features = pathlib.Path(os.environ["KULLBACK_CACHE"], "images").glob("*.safetensors")
    return Tuned(path, sum(counts), len(list(features)))


@pytest.fixture(scope="module")
def tuned(finished: Tuned) -> pathlib.Path:
    return finished.path


def learnt(path: pathlib.Path, images: bool = True) -> Any:
    """Returns the parameters of a model or run."""
    return models.load(path, modality=forms.IMAGES if images else None).params


def equal(one: pathlib.Path, other: pathlib.Path) -> None:
    """Checks that two runs have learnt the same, to the last bit."""
    got, expected = (learnt(path) for path in (one, other))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert repeated(one) == repeated(other)


def test_a_decoder_learns_beside_what_it_sees_by(tuned: pathlib.Path, sees: pathlib.Path):
    config = json.loads((tuned / "config.json").read_text())
    start, end = models.load(sees, modality=forms.IMAGES), models.load(tuned, modality=forms.IMAGES)
    assert config["plan"]["images"] and start.images is not None and end.images is not None
    assert config[sights.ENCODER] == start.images.fingerprint == end.images.fingerprint
    assert config[sights.PROJECTOR] == trees.fingerprint(learnt(sees)[vision.PROJECTOR])
    equal_leaves = jax.tree.map(
        lambda a, b: bool(np.all(np.asarray(a) == np.asarray(b))), start.params, end.params
    )
    assert all(jax.tree.leaves(equal_leaves[vision.PROJECTOR]))
    assert not equal_leaves["embedding"]
    assert vision.PROJECTOR not in learnt(tuned, images=False), "text alone needs no projector"
    losses = [float(row["loss"]) for row in repeated(tuned)]
    assert losses[-1] < losses[0]
    lines = [json.loads(line) for line in (tuned / "samples.jsonl").read_text().splitlines()]
    assert [pathlib.Path(name).name for name in lines[0]["images"]] == ["4.png"]
    assert "images" not in lines[1], "the second row has none"


def test_the_loss_of_a_run_is_that_of_the_model_and_the_images(
    tuned: pathlib.Path, rows: pathlib.Path, sees: pathlib.Path
):
    """Its evaluation, from a full pass of one row without padding; other images give another."""
    checkpoint = models.load(tuned, modality=forms.IMAGES)
    assert checkpoint.images is not None
    subject = subjects.Subject(path=tuned, run=opened.open(tuned))
    evaluator = evaluation.evaluator_of(subject)
    example = evaluator.test[0]
    ids = np.array([[*example.prompt, *example.completion]], np.int32)
    pooled = checkpoint.images.features(example.media)[None]
    apply = jax.jit(checkpoint.model.apply)

    def nats(pooled: np.ndarray) -> float:
        logits = np.float64(apply(checkpoint.params, ids, sensed=pooled)[0])
        log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        at = np.arange(len(example.prompt) - 1, ids.shape[1] - 1)
        return -float(np.sum(log_p[at, ids[0, at + 1]]))

    got = evaluator.likelihoods({"params": checkpoint.params}, 2).nats[0]
    np.testing.assert_allclose(got, nats(pooled), rtol=1e-4)
    assert abs(nats(-pooled) - nats(pooled)) > 1e-4


def test_the_memory_that_is_announced_has_encoder_and_features(tuned: pathlib.Path):
    setup = language_setup.setup(resolved.of(opened.open(tuned)), tuned)
    needs = setup.needs(setup.setting)
    # Six files, and two images of each of four rows: [M, E] = [4, 6] floats each.
    assert needs.media == 4 * (6 + 4 * 2) * 4 * 6
    assert setup.sight is not None
    assert needs.frozen == trees.num_bytes((setup.sight.projector, setup.sight.images.params))
    assert "media 1.34 kB" in str(needs)


def test_no_image_is_encoded_twice(finished: Tuned):
    """Two files of one picture are one; learning and evaluations share the features."""
    assert finished.num_encoded == 5 == finished.num_kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("sft", ("learns_projector=True", "optimizer=adamw", "weight_decay=0.1")),
        ("sft", ("lora.rank=2", "quantize=int8")),
        ("sft", ("pack=True", "reduction=token", "quantize=int8", "micro_batches=2")),
        ("gkd", ("mixing=row", "student_fraction=0.5", "max_age=1")),
    ],
    ids=["projector", "adapters", "packed", "gkd"],
)
def test_runs_with_images_go_on_bit_by_bit(
    algorithm: str,
    settings: tuple[str, ...],
    rows: pathlib.Path,
    sees: pathlib.Path,
    tmp_path: pathlib.Path,
):
    more = {"teacher": str(small_models.that_sees(tmp_path / "teacher", 1, 24))}
    given = more if algorithm == "gkd" else {}
    whole = train(tmp_path / "run", rows, sees, algorithm, settings=settings, steps=6, **given)
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    equal(part, whole)


def test_a_run_that_was_killed_goes_on_bit_by_bit(
    tuned: pathlib.Path, tmp_path: pathlib.Path, counts: list[int]
):
    part = as_killed(tuned, tmp_path / "part", 2)
    counts.clear()
    experiments.resume(part, quiet=True)
    assert sum(counts) == 0, "the features are on disk"
    equal(part, tuned)


def test_a_projector_learns_if_it_is_asked_to(
    rows: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    path = train(tmp_path / "run", rows, sees, settings=("learns_projector=True",), steps=2)
    config = json.loads((path / "config.json").read_text())
    assert sights.ENCODER in config and sights.PROJECTOR not in config
    start, end = (learnt(x) for x in (sees, path))
    for name, leaf in start[vision.PROJECTOR].items():
        assert np.any(np.asarray(end[vision.PROJECTOR][name]) != np.asarray(leaf)), name
    assert vision.PROJECTOR not in learnt(path, images=False)
    # A run that begins with it sees by what it has learnt.
    given = {"model": str(path), "images": True, "settings": SHORT, "steps": 1}
    plan = plans.Plan(agent="sft", environment=f"tokens/jsonl:{rows}", **given)
    again = language_setup.setup(resolved.resolve(plan))
    assert again.sight is not None
    jax.tree.map(np.testing.assert_array_equal, again.sight.projector, end[vision.PROJECTOR])


@pytest.mark.slow
def test_a_student_learns_from_a_wider_teacher_by_shared_features(
    rows: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    """Some rows are the student's own, some are stored; adapters learn."""
    teacher = small_models.that_sees(tmp_path / "teacher", 1, 24)
    settings = ("mixing=row", "student_fraction=0.5", "max_age=1")
    path = train(
        *(tmp_path / "run", rows, sees, "gkd"),
        **{"teacher": str(teacher), "settings": settings, "steps": 2, "eval_every": 2},
    )
    assert np.isfinite(float(repeated(path)[-1]["teacher_distance"]))
    other = small_models.that_sees(tmp_path / "other")
    tensors = other / "preprocessor_config.json"
    tensors.write_text(tensors.read_text().replace("0.5", "0.25"))
    with pytest.raises(ValueError, match="see images by other encoders"):
        train(tmp_path / "no", rows, sees, "distill", teacher=str(other))


def set_in_folder(folder: pathlib.Path, **fields: Any) -> None:
    """Sets fields of a folder's preprocessor_config.json."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def cuts(path: pathlib.Path) -> bool:
    """Returns whether a model gives long images with crops."""
    images = models.load(path, modality=forms.IMAGES).images
    assert images is not None
    return images.preparation.pan_and_scan


def test_a_run_cuts_images_as_it_recorded_and_an_older_one_as_its_folder_says(
    tuned: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    folder, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(sees, folder)
    shutil.copytree(tuned, run)
    config = json.loads((run / "config.json").read_text())
    assert config["pan_and_scan"] is False and config["plan"]["pan_and_scan"] == "folder"
    config["plan"]["model"] = str(folder)
    for recorded, of_folder, expected in ((False, True, False), (True, False, True)):
        set_in_folder(folder, do_pan_and_scan=of_folder)
        (run / "config.json").write_text(json.dumps({**config, "pan_and_scan": recorded}))
        assert (cuts(folder), cuts(run)) == (of_folder, expected)
        del config["pan_and_scan"]  # As of an older version.
        (run / "config.json").write_text(json.dumps(config))
        assert cuts(run) == of_folder
        config["pan_and_scan"] = None
    (run / "config.json").write_text(json.dumps({**config, "pan_and_scan": "yes"}))
    with pytest.raises(ValueError, match="pan_and_scan must be true or false, got 'yes'"):
        cuts(run)


def test_a_finished_run_answers_and_is_written_whole(
    tuned: pathlib.Path,
    rows: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    image = f"--image={rows / 'images' / '4.png'}"
    command = ["generate", f"--model={tuned}", "--prompt=n", "--chat", "--max-new-tokens=4"]
    assert cli.main([*command, "--temperature=0", image]) == 0
    answer = capsys.readouterr().out
    out = tmp_path / "out"
    assert cli.main(["export", str(tuned), f"--out={out}"]) == 0
    one, other = (models.load(path, modality=forms.IMAGES) for path in (tuned, out))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.images is not None and other.images is not None
    assert one.images.fingerprint == other.images.fingerprint
    assert one.images.preparation == other.images.preparation
    capsys.readouterr()
    command[1] = f"--model={out}"
    assert cli.main([*command, "--temperature=0", image]) == 0
    assert capsys.readouterr().out == answer
    assert models.modality_of(tuned) == models.modality_of(out) == forms.IMAGES


@pytest.mark.slow
def test_a_run_is_evaluated_as_the_folder_that_it_is_exported_to(
    tuned: pathlib.Path,
    rows: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "out"
    assert cli.main(["export", str(tuned), f"--out={out}"]) == 0
    assert cli.main(["evaluate", str(tuned), "--episodes=2", "--samples=1"]) == 0
    written = (tuned / "evaluation-001.jsonl").read_text().splitlines()
    assert [len(json.loads(line).get("images", [])) for line in written] == [1, 0]
    of_folder = [str(out), f"tokens/jsonl:{rows}", "--images", "--max-new-tokens=4"]
    shown = capsys.readouterr().out
    assert cli.main(["evaluate", *of_folder, "--episodes=2", "--samples=1"]) == 0
    nats = [line for line in shown.splitlines() if "nats_per_token" in line]
    assert nats and nats[0] in capsys.readouterr().out


def test_what_a_run_sees_by_is_known_by_its_hash(
    tuned: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(sees, moved)
    shutil.copytree(sees, other)
    part = as_killed(tuned, tmp_path / "part", 2)
    kept = models.load(part, base=str(moved), modality=forms.IMAGES).params
    jax.tree.map(
        np.testing.assert_array_equal, kept, models.load(part, modality=forms.IMAGES).params
    )
    settings = other / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.25"))
    with pytest.raises(ValueError, match=r"encoder of images of .*other is not the one"):
        models.load(part, base=str(other), modality=forms.IMAGES)
    with pytest.raises(ValueError, match=r"the encoder .* has changed since the run began"):
        experiments.resume(part, base=str(other), quiet=True)
    config = json.loads((part / "config.json").read_text())
    config["plan"]["model"] = str(part)
    (part / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is its own base"):
        models.load(part, modality=forms.IMAGES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tiny"}, "the preset tiny has no encoder"),
        ({"settings": ("lora.rank=2", "learns_projector=True")}, "does not go with adapters"),
        ({"images": False, "settings": ("learns_projector=True",)}, "add --images"),
    ],
    ids=["preset", "adapters", "blind"],
)
def test_what_images_do_not_go_with(
    change: dict[str, Any],
    message: str,
    rows: pathlib.Path,
    sees: pathlib.Path,
    tmp_path: pathlib.Path,
):
    given = {"model": sees, **change}
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", rows, **given)


def test_rows_and_models_without_images_are_refused(
    tuned: pathlib.Path, rows: pathlib.Path, sees: pathlib.Path, refused: Any
):
    pathlib.Path("rows").mkdir()
    for name in ("train", "test"):
        write_rows(pathlib.Path("rows") / f"{name}.jsonl", [{"prompt": "a", "completion": "b"}])
    command = ["train", "sft", "tokens/jsonl:rows", f"--model={sees}", "--images"]
    assert "no row of tokens/jsonl:rows that is learnt from has any images" in refused(*command)
    assert "images is for language models" in refused("train", "dqn", "toy/chain", "--images")
    command = ["train", "--resume", tuned, "--images"]
    assert "a run cannot change its images" in refused(*command)

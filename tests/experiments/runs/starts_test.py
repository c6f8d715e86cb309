"""Tests of experiments/runs/starts.py: runs that learn with audio; sights_test.py has images."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.experiments import cli
from kullback.experiments.evaluate import evaluation, subjects
from kullback.experiments.runs import language_setup, models, opened, resolved
from kullback.lm import forms, hearing
from tests import clips
from tests.records import as_killed, repeated

SHORT = ("batch_size=4", "max_prompt_length=48", "max_new_tokens=4", "warmup_steps=0")
TINY = (
    "num_layers=1",
    "embed_dim=16",
    "num_heads=2",
    "num_kv_heads=1",
    "hidden_dim=16",
    "window=64",
)
HERTZ = {"low": 300, "high": 2400}


def write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder of rows with no clip, one and two."""
    folder = tmp_path_factory.mktemp("heard")
    for name, hertz in HERTZ.items():
        clips.write(folder / f"{name}.wav", hertz)
    clips.write(folder / "held.wav", 320)
    train: list[dict[str, Any]] = [
        {"prompt": "?", "audio": f"{name}.wav", "completion": name} for name in HERTZ
    ]
    train += [
        {"prompt": "both", "audios": ["low.wav", "high.wav"], "completion": "up"},
        {"prompt": "abc", "completion": "a"},
    ]
    write_rows(folder / "train.jsonl", train)
    held_out = {"prompt": "?", "audio": "held.wav", "completion": "low"}
    write_rows(folder / "test.jsonl", [held_out, {"prompt": "abc", "completion": "b"}])
    return folder


def train(
    out: pathlib.Path, rows: pathlib.Path, algorithm: str = "sft", **fields: Any
) -> pathlib.Path:
    settings = (*SHORT, "learning_rate=1e-2", *fields.pop("settings", ()))
    given: dict[str, Any] = {"steps": 4, "log_every": 1, "checkpoint_every": 2, "quiet": True}
    given |= {"audio": True, "model": "tiny", "settings": settings, **fields}
    given.setdefault("model_flags", TINY if given["model"] == "tiny" else ())
    return experiments.train(algorithm, f"tokens/jsonl:{rows}", out=out, **given)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, rows: pathlib.Path) -> pathlib.Path:
    evaluated: dict[str, Any] = {"eval_every": 4, "eval_episodes": 2}
    return train(tmp_path_factory.mktemp("tuned") / "run", rows, **evaluated)


def learnt(path: pathlib.Path) -> Any:
    """Returns the parameters of a run that hears."""
    return models.load(path, modality=forms.AUDIO).params


def test_an_encoder_of_sound_learns_with_its_decoder(tuned: pathlib.Path, rows: pathlib.Path):
    config = json.loads((tuned / "config.json").read_text())
    assert config["plan"]["audio"] and len(config["audio_sha256"]) == 64
    assert hearing.HEARING in learnt(tuned)
    text: Any = models.load(tuned).params
    assert hearing.HEARING not in text, "text alone needs none"
    losses = [float(row["loss"]) for row in repeated(tuned)]
    assert losses[-1] < losses[0]
    lines = [json.loads(line) for line in (tuned / "samples.jsonl").read_text().splitlines()]
    assert [pathlib.Path(name).name for name in lines[0]["audio"]] == ["held.wav"]
    assert "audio" not in lines[1], "the second row has none"
    setup = language_setup.setup(resolved.of(opened.open(tuned)), tuned)
    # Three clips, and two of each of four rows: a token of 16 frames and 64 bins each.
    assert setup.needs(setup.setting).media == 4 * (3 + 4 * 2) * 16 * 64


def test_the_loss_of_a_run_is_that_of_the_model_and_the_clips(tuned: pathlib.Path):
    """Its evaluation, from a full pass of one row without padding; other clips give another."""
    checkpoint = models.load(tuned, modality=forms.AUDIO)
    assert checkpoint.sounds is not None
    evaluator = evaluation.evaluator_of(subjects.Subject(path=tuned, run=opened.open(tuned)))
    example = evaluator.test[0]
    ids = np.array([[*example.prompt, *example.completion]], np.int32)
    sounds = checkpoint.sounds.fitted(example.media).features(example.media)
    given = jax.tree.map(lambda x: x[None], sounds)
    apply = jax.jit(checkpoint.model.apply)

    def nats(sensed: Any) -> float:
        logits = np.float64(apply(checkpoint.params, ids, sensed=sensed)[0])
        log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        at = np.arange(len(example.prompt) - 1, ids.shape[1] - 1)
        return -float(np.sum(log_p[at, ids[0, at + 1]]))

    got = evaluator.likelihoods({"params": checkpoint.params}, 2).nats[0]
    np.testing.assert_allclose(got, nats(given), rtol=1e-4)
    other = given._replace(features=-given.features)
    assert abs(nats(other) - nats(given)) > 1e-4


def test_a_run_that_was_killed_goes_on_bit_by_bit(tuned: pathlib.Path, tmp_path: pathlib.Path):
    part = as_killed(tuned, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, learnt(part), learnt(tuned))
    assert repeated(part) == repeated(tuned)


def test_a_clip_that_has_changed_is_refused(
    tuned: pathlib.Path, rows: pathlib.Path, tmp_path: pathlib.Path
):
    part = as_killed(tuned, tmp_path / "part", 2)
    clips.write(rows / "low.wav", 301)
    with pytest.raises(ValueError, match=r"the audio .* has changed since the run began"):
        experiments.resume(part, quiet=True)
    clips.write(rows / "low.wav", HERTZ["low"])


def test_a_run_that_hears_is_no_model_of_other_programs(
    tuned: pathlib.Path, tmp_path: pathlib.Path, refused: Any
):
    out, gguf = f"--out={tmp_path / 'out'}", f"--out={tmp_path / 'out.gguf'}"
    for command in (
        ("export", str(tuned), out),
        ("export", str(tuned), out, f"--adapter={tmp_path}"),
        ("export", str(tuned), gguf, "--format=gguf"),
        ("export", str(tuned), gguf, "--format=gguf", f"--adapter={tmp_path}"),
        ("quantize", str(tuned), out, "--format=int8"),
    ):
        assert "no other program has a place" in refused(*command), command


@pytest.mark.slow
def test_a_run_answers_about_a_clip(
    tuned: pathlib.Path,
    rows: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    command = ["generate", f"--model={tuned}", "--max-new-tokens=4", "--temperature=0"]
    clip = f"--audio={rows / 'low.wav'}"
    assert cli.main([*command, "--prompt=?", "--chat", clip]) == 0
    answer = capsys.readouterr().out.strip()
    prompts = rows / "prompts.jsonl"
    write_rows(prompts, [{"prompt": "?", "audio": "low.wav"}])
    out = tmp_path / "out.jsonl"
    assert cli.main([*command, f"--prompts={prompts}", f"--out={out}"]) == 0
    line = json.loads(out.read_text())
    assert line["completion"].strip() == answer
    assert [pathlib.Path(name).name for name in line["audio"]] == ["low.wav"]
    assert cli.main(["evaluate", str(tuned), "--episodes=2", "--samples=1"]) == 0


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_that_hears(
    tuned: pathlib.Path, rows: pathlib.Path, tmp_path: pathlib.Path
):
    """Some rows are the student's own; a decoder of text begins to hear; a run begins with one."""
    settings = ("mixing=row", "student_fraction=0.5", "max_age=1")
    path = train(
        *(tmp_path / "run", rows, "gkd"),
        **{"teacher": str(tuned), "settings": settings, "eval_every": 2},
    )
    part = as_killed(path, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    assert repeated(part) == repeated(path)
    assert np.isfinite(float(repeated(path)[-1]["teacher_distance"]))
    deaf = train(tmp_path / "deaf", rows, audio=False, model=str(tuned), steps=2)
    assert models.modality_of(deaf) is None
    again = train(tmp_path / "again", rows, model=str(deaf), num_seeds=2)
    assert hearing.HEARING in learnt(again)
    further = train(tmp_path / "further", rows, model=str(again), steps=2)
    assert hearing.HEARING in learnt(further)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": True}, "--images does not go with --audio yet"),
        ({"settings": ("lora.rank=2",)}, "--audio does not go with adapters"),
        ({"algorithm": "rlhf"}, "--audio is of sft and distillation yet, not of rlhf"),
        ({"algorithm": "reward-model"}, "--audio is of sft and distillation yet"),
    ],
    ids=["images", "adapters", "rewards", "reward-model"],
)
def test_what_audio_does_not_go_with(
    change: dict[str, Any], message: str, rows: pathlib.Path, tmp_path: pathlib.Path
):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", rows, **change)


def test_rows_and_models_without_audio_are_refused(
    tuned: pathlib.Path, untuned: pathlib.Path, refused: Any
):
    folder = pathlib.Path("rows")
    folder.mkdir()
    for name in ("train", "test"):
        write_rows(folder / f"{name}.jsonl", [{"prompt": "a", "completion": "b"}])
    command = ["train", "sft", "tokens/jsonl:rows", "--audio"]
    assert "any clips: name some in a column audio" in refused(*command, f"--model={tuned}")
    assert "hence no audio" in refused(*command, f"--model={untuned}")
    given = ["generate", "--prompt=a", "--audio=a.wav"]
    assert "hears nothing: audio needs a run" in refused(*given, f"--model={untuned}")
    assert "a.wav is missing; expected a WAV file" in refused(*given, f"--model={tuned}")

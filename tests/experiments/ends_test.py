"""Ends of text, from conversations through supervised tuning and rewards to an export."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core.sampling import Sampling
from kullback.experiments.evaluate import evaluation, generate, subjects
from kullback.experiments.runs import (
    exports,
    language_setup,
    models,
    opened,
    resolved,
    run_folder,
)
from kullback.lm import gemma, tokenizer
from kullback.lm.formats import hugging_face
from tests.states import fresh_params

SETTINGS = ("batch_size=8", "max_prompt_length=20", "max_new_tokens=6", "learning_rate=3e-2")
GIVEN: list[str] = []  # Texts that were handed to the reward.


def reward(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Rewards the text "0", and keeps all texts that it is given."""
    del prompts, references
    GIVEN.extend(texts)
    return [float(text == "0") for text in texts]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Makes the folder of a base model that names one end; its tokenizer has ends of turns, too."""
    bpe = tokenizer.train_bpe(["user 0\nmodel 0"], 262)
    config = dataclasses.replace(
        gemma.PRESETS["tiny"],
        **{"num_layers": 1, "embed_dim": 16, "hidden_dim": 16, "window": 16},
        vocab_size=bpe.vocab_size,
        eos_ids=(1,),
    )
    folder = tmp_path_factory.mktemp("base")
    files = tokenizer.save(bpe, folder / "words")
    params = fresh_params(gemma.make(config).init)
    hugging_face.save(folder / "model", config, params, files)
    return folder / "model"


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for split, numbers in (("train", range(8)), ("test", range(8, 10))):
        rows = [
            {"messages": [{"role": r, "content": t} for r, t in (("user", str(n)), ("model", "0"))]}
            for n in numbers
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"tokens/jsonl:{folder}"


def train(algorithm: str, task: str, out: pathlib.Path, model: pathlib.Path, **fields: Any):
    settings = (*SETTINGS, *fields.pop("settings", ()))
    return experiments.train(
        algorithm, task, out=out, model=str(model), settings=settings, quiet=True, **fields
    )


@pytest.fixture(scope="module")
def tuned(
    base: pathlib.Path, conversations: str, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    out = tmp_path_factory.mktemp("sft") / "run"
    return train("sft", conversations, out, base, steps=40)


@pytest.mark.slow
def test_a_model_ends_its_texts_where_its_configuration_or_its_tokenizer_says(
    base: pathlib.Path, tuned: pathlib.Path, tmp_path: pathlib.Path
):
    for path in (base, tuned):
        assert models.load(path).config.eos_ids == (1, 5)
    assert json.loads((tuned / "model.json").read_text())["eos_ids"] == [1, 5]
    exports.write_folder(tuned, tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "model" / name).read_text())["eos_token_id"] == [1, 5]
    subject = subjects.Subject(path=tuned, run=opened.open(tuned))
    report, _ = evaluation.run(subject, count=2, num_samples=1, out=tmp_path / "written.jsonl")
    assert report.estimates["truncated_greedy"].mean == 0
    evaluator, checkpoint = evaluation.evaluator_of(subject), subject.checkpoint
    writer = generate.Writer(
        checkpoint=checkpoint, max_new_tokens=6, sampling=Sampling(temperature=0)
    )
    (completion,) = generate.complete(writer, [evaluator.test[0].prompt])
    assert (completion.text, completion.ids[-1], completion.is_complete) == ("0", 5, True)
    greedy = evaluator.answers(
        {"params": checkpoint.params}, 1, jax.random.key(0), evaluator.greedy
    )
    assert greedy.texts == [completion.text]


@pytest.mark.slow
def test_nothing_after_the_end_is_scored_or_learnt(
    tuned: pathlib.Path, conversations: str, tmp_path: pathlib.Path
):
    GIVEN.clear()
    path = train(
        "rlhf",
        conversations,
        tmp_path / "run",
        tuned,
        steps=2,
        log_every=1,
        settings=("samples_per_prompt=4",),
        reward=f"python:{__name__}:reward",
    )
    assert GIVEN and GIVEN.count("0") > len(GIVEN) / 2, GIVEN
    rows = run_folder.RunFolder(path).rows()
    assert all(float(row["truncated"]) < 0.5 for row in rows)
    setup = language_setup.setup(resolved.of(opened.open(path, trust_code=True)), path)
    assert setup.actor is not None
    assert [note.split(":")[0] for note in setup.notes()] == ["memory"]  # And none of ends.
    written = setup.actor.episodes(
        {"params": models.load(path).params}, setup.splits.train[:2], jax.random.key(1)
    )
    tokens, is_answer = (
        np.asarray(written.sequences.tokens),
        np.asarray(written.sequences.is_answer),
    )
    for row, mask in zip(tokens, is_answer, strict=True):
        assert not set(row[mask][:-1].tolist()) & {1, 5}


@pytest.mark.slow
def test_a_run_that_began_with_fewer_ends_goes_on_so_and_says_it(
    tuned: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run"
    shutil.copytree(tuned, path)
    shape = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**shape, "eos_ids": [1]}))
    experiments.resume(path, steps=41)
    said = capsys.readouterr().out
    assert "this run's texts end with the ids [1] and do not with [5]" in said
    assert json.loads((path / "model.json").read_text())["eos_ids"] == [1]
    assert models.load(path).config.eos_ids == (1, 5)

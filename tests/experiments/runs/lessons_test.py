"""Tests of experiments/runs/lessons.py: runs whose task is a mixture."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.experiments.runs import language_setup, models, opened, plans, resolved
from tests.records import as_killed, repeated

pytestmark = pytest.mark.usefixtures("few_sums")
TINY = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4")
LETTERS = 5  # Rows of the second task.


def write(folder: pathlib.Path, start: float = 3) -> str:
    """Writes a mixture whose weights change over four steps, from sums to letters."""
    (folder / "letters").mkdir(exist_ok=True)
    rows = [
        {"prompt": "abc"[: 1 + n % 3] * (1 + n // 3), "completion": "x"} for n in range(LETTERS)
    ]
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "letters" / f"{split}.jsonl").write_text(text)
    tasks = [
        {"task": "tokens/arithmetic", "start": start, "end": 0},
        {"task": "tokens/jsonl:letters", "start": 1},
    ]
    (folder / "mixture.json").write_text(json.dumps({"tasks": tasks, "steps": 4}))
    return f"tokens/mixture:{folder / 'mixture.json'}"


def train(out: pathlib.Path, task: str, algorithm: str = "sft", **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {"steps": 6, "log_every": 1, "checkpoint_every": 2, "quiet": True}
    given |= {"model": "tiny", "model_flags": TINY, **fields}
    settings = (*SHORT, *given.pop("settings", ()))
    return experiments.train(algorithm, task, out=out, settings=settings, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """Returns a run of a mixture, and the mixture's name."""
    folder = tmp_path_factory.mktemp("mixed")
    task = write(folder)
    return train(folder / "run", task, eval_every=6, eval_episodes=4), task


def test_batches_have_the_shares_of_their_steps_and_a_killed_run_goes_on(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path
):
    run, _ = finished
    setup = language_setup.setup(resolved.of(opened.open(run)), run)
    source, tokenizer = setup.lessons.source(0), setup.evaluator.tokenizer
    assert source.stored is not None
    counts = []
    for step in range(8):
        texts = setup.evaluator.answer_texts(source.stored(step, 4))
        counts.append(sum(text == "x" for text in texts))
    # One letter of four rows at first, all from step 4 on; in between on a line.
    assert counts[0] == 1 and counts[4:] == [4] * 4 and counts == sorted(counts), counts
    first = [tokenizer.decode(example.prompt) for example in setup.evaluator.test[:2]]
    assert "+" in first[0] and "+" not in first[1], "an evaluation is of both"
    part = as_killed(run, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    assert repeated(part) == repeated(run)
    one, other = (models.load(path).params for path in (part, run))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_mixture_that_has_changed_is_refused(
    finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path
):
    run, task = finished
    part = as_killed(run, tmp_path / "part", 2)
    write(pathlib.Path(task.partition(":")[2]).parent, start=2)
    with pytest.raises(ValueError, match=r"the mixture .* has changed since the run began"):
        experiments.resume(part, quiet=True)
    write(pathlib.Path(task.partition(":")[2]).parent)


def test_prompts_that_are_answered_are_the_mixtures(
    finished: tuple[pathlib.Path, str],
):
    """Of GKD: from step 4 on none is a sum."""
    run, task = finished
    given = {"model": str(run), "teacher": str(run), "settings": (*SHORT, "student_fraction=1")}
    plan = plans.Plan(agent="gkd", environment=task, **given)
    source = language_setup.setup(resolved.resolve(plan)).lessons.source(0)
    assert source.sampling is not None
    assert [x.source for x in source.sampling.prompts(5, 4)] == [1] * 4
    assert 0 in [x.source for x in source.sampling.prompts(0, 4)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"algorithm": "rlhf", "model": "run"}, "which sft and distillation learn from, not rlhf"),
    ({"algorithm": "reward-model"}, "not reward-model yet"),
    ({"epochs": 2, "steps": 0}, "a mixture has no epochs"),
    ({"settings": ("pack=True", "reduction=token")}, "rows are drawn one by one"),
    ({"settings": ("batches_per_sort=2",)}, "rows are drawn one by one"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_a_mixture_does_not_go_with(
    change: dict[str, Any], message: str, finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path
):
    run, task = finished
    given = {**change}
    if given.get("model") == "run":
        given |= {"model": str(run), "model_flags": ()}
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", task, **given)

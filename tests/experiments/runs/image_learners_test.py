"""Learners of rewards and of pairs, and reward models, with images (experiments/runs/sights.py)."""

import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.experiments.runs import models, reward_models, sights
from kullback.lm import forms, vision
from tests.experiments.runs.sights_test import draw, write_rows
from tests.records import as_killed, repeated

pytestmark = pytest.mark.slow  # Each compiles programs of its own.
SHORT = ("batch_size=4", "max_prompt_length=64", "max_new_tokens=4", "warmup_steps=0")
SEEN: list[list[str]] = []  # Paths that the reward below was told.


def names_its_image(
    prompts: list[str], texts: list[str], references: list[str], images: list[list[str]]
) -> list[float]:
    """Returns 1 for texts that have the number of their image, and a tenth for each letter."""
    SEEN.extend(images)
    return [
        float(any(pathlib.Path(name).stem in text for name in named)) + 0.1 * len(text)
        for text, named in zip(texts, images, strict=True)
    ]


REWARD = f"python:{__name__}:names_its_image"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder with rows and pairs of one and two images each, or none."""
    folder = tmp_path_factory.mktemp("data")
    for n in range(4):
        draw(folder / f"{n}.png", n)
    rows: list[dict[str, Any]] = [
        {"prompt": "n", "images": [f"{n}.png"], "completion": str(n)} for n in range(3)
    ]
    rows += [{"prompt": "nn", "images": ["0.png", "1.png"], "completion": "1"}]
    held_out = [{"prompt": "n", "images": ["3.png"], "completion": "3"}]
    for name, some in (("rows", rows), ("pairs", rows)):
        (folder / name).mkdir()
        for n in range(4):
            draw(folder / name / f"{n}.png", n)
        for split, chosen in (("train", some), ("test", held_out)):
            if name == "pairs":
                chosen = [
                    {**{k: v for k, v in x.items() if k != "completion"}, **compared(x)}
                    for x in chosen
                ]
            write_rows(folder / name / f"{split}.jsonl", chosen)
    return folder


def compared(row: dict[str, Any]) -> dict[str, str]:
    return {"chosen": row["completion"], "rejected": "x"}


def train(
    out: pathlib.Path, algorithm: str, data: pathlib.Path, model: pathlib.Path, **fields: Any
) -> pathlib.Path:
    reads_pairs = algorithm in ("dpo", "reward-model", "warm")
    task = f"tokens/preferences:{data}/pairs" if reads_pairs else f"tokens/jsonl:{data}/rows"
    given: dict[str, Any] = {"steps": 4, "log_every": 1, "checkpoint_every": 2, "quiet": True}
    given |= {"images": True, "model": str(model), **fields}
    if not reads_pairs:
        given.setdefault("reward", REWARD)
    rate = "learning_rates=1e-3" if algorithm == "warm" else "learning_rate=1e-3"
    settings = (*SHORT, rate, *given.pop("settings", ()))
    return experiments.train(algorithm, task, out=out, settings=settings, **given)


def test_a_policy_is_rewarded_for_what_it_says_of_images(
    data: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    """What it drew with a cache has the probability that its start gives it in a full pass."""
    SEEN.clear()
    path = train(tmp_path / "run", "rlhf", data, sees, settings=("samples_per_prompt=2",), steps=2)
    assert {len(named) for named in SEEN} == {1, 2} and SEEN[0] == SEEN[1]
    assert all(pathlib.Path(name).is_file() for named in SEEN for name in named)
    rows = repeated(path)
    # It never draws two of the 265 ids, which have nearly equal probabilities: those that begin an
    # image, or are part of one. So each of four tokens is more probable than by the start.
    expected = 4 * math.log(265 / 263)
    np.testing.assert_allclose(float(rows[0]["kl_start"]), expected, atol=5e-3)
    assert abs(float(rows[-1]["kl_start"])) > abs(float(rows[0]["kl_start"]))
    line = json.loads((path / "samples.jsonl").read_text().splitlines()[0])
    assert line["images"] and not line["greedy"]


def test_a_reward_model_judges_answers_to_images(
    data: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    path = train(tmp_path / "run", "reward-model", data, sees, steps=2)
    config = json.loads((path / "config.json").read_text())
    assert {sights.ENCODER, sights.PROJECTOR, sights.MEDIA.format("images")} <= config.keys()
    start: Any = models.load(sees, modality=forms.IMAGES).params
    seeing: Any = reward_models.load(path, modality=forms.IMAGES).params
    blind: Any = reward_models.load(path).params
    got = seeing["decoder"][vision.PROJECTOR]
    jax.tree.map(np.testing.assert_array_equal, got, start[vision.PROJECTOR])
    assert vision.PROJECTOR not in blind["decoder"]
    with pytest.raises(ValueError, match="learns_projector=True is of policies"):
        train(tmp_path / "no", "reward-model", data, sees, settings=("learns_projector=True",))


def test_a_reward_model_that_sees_nothing_judges_no_policy_that_sees(
    data: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    rows = [{"prompt": "n", "chosen": "ab", "rejected": "b"}]
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", rows)
    experiments.train(
        "reward-model",
        f"tokens/preferences:{tmp_path}",
        model=str(sees),
        out=tmp_path / "blind",
        settings=SHORT,
        steps=1,
        quiet=True,
    )
    with pytest.raises(ValueError, match="trained without --images, and would judge"):
        reward = f"reward-model:{tmp_path / 'blind'}"
        train(tmp_path / "run", "rlhf", data, sees, reward=reward)


@pytest.mark.parametrize(
    ("algorithm", "settings", "fields"),
    [
        ("rlhf", ("samples_per_prompt=2", "drop_equal=true", "lag=1", "correction=truncate"), {}),
        ("rlhf", ("samples_per_prompt=2", "lora.rank=2"), {"frozen": "int8"}),
        ("rlef", ("learns_projector=true",), {}),
        ("bond", ("anchor_samples=3", "best_of=2", "estimator=counted"), {}),
        ("warp", ("members=2", "member_steps=1"), {}),
        ("online-dpo", (), {}),
        ("dpo", ("lora.rank=2",), {}),
        ("dpo", ("learns_projector=true",), {}),
        ("reward-model", ("probe_pairs=2", "quantize=none"), {}),
        ("warm", ("probe_pairs=2",), {"num_seeds": 2}),
    ],
    ids=["lag", "adapters", "value", "bond", "warp", "online", "dpo", "dpo-all", "reward", "warm"],
)
def test_learners_with_images_go_on_bit_by_bit(
    algorithm: str,
    settings: tuple[str, ...],
    fields: dict[str, Any],
    data: pathlib.Path,
    sees: pathlib.Path,
    tmp_path: pathlib.Path,
):
    whole = train(tmp_path / "run", algorithm, data, sees, settings=settings, **fields)
    assert all(np.isfinite(float(row["loss"])) for row in repeated(whole))
    if algorithm == "warm":
        assert len([*models.members(models.opened.open(whole), images=True)]) == 2
        return
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True, trust_code=True)
    assert repeated(part) == repeated(whole)
    if algorithm == "reward-model":
        of_run = reward_models.load
    else:
        of_run = models.load
    got, expected = (of_run(path, modality=forms.IMAGES).params for path in (part, whole))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    if algorithm == "warp":
        merged = models.load(whole / "merged-000004", modality=forms.IMAGES)
        assert merged.images is not None and (whole / "front.csv").is_file()


def test_a_policy_climbs_a_reward_model_that_sees(
    data: pathlib.Path, sees: pathlib.Path, tmp_path: pathlib.Path
):
    reward = train(tmp_path / "reward", "reward-model", data, sees)
    settings = ("samples_per_prompt=2",)
    path = train(
        *(tmp_path / "run", "rlhf", data, sees),
        **{"reward": f"reward-model:{reward}", "settings": settings, "eval_every": 2},
    )
    assert np.isfinite(float(repeated(path)[-1]["evaluation"]))
    from kullback.experiments import cli

    assert cli.main(["evaluate", str(reward), "--episodes=1"]) == 0
    assert cli.main(["evaluate", str(path), "--episodes=1", "--samples=1"]) == 0

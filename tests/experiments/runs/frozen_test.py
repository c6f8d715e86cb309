"""Tests of runs, and of models that are read, whose frozen weights have few bits in memory."""

import gc
import json
import pathlib
import weakref
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import mapped, platform, trees
from kullback.experiments import cli
from kullback.experiments.runs import (
    converted,
    exports,
    language_setup,
    model_files,
    models,
    plans,
    preferences,
    resolved,
)
from kullback.lm import narrow_weights, quantisation
from tests.experiments.runs import models_test
from tests.records import as_killed, repeated

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", "warmup_steps=0")
ADAPTERS = ("lora.rank=2", "lora.targets=query,down", "learning_rate=1e-2")
TASK = "tokens/arithmetic"
pytestmark = pytest.mark.usefixtures("few_sums")


def train(path: pathlib.Path, algorithm: str = "sft", **fields: Any) -> pathlib.Path:
    given = {"steps": 4, "log_every": 2, "checkpoint_every": 2, "quiet": True, **fields}
    settings = (*SHORT, *given.pop("settings", ()))
    environment = given.pop("environment", TASK)
    return experiments.train(algorithm, environment, out=path, settings=settings, **given)


def setup(**fields: Any) -> language_setup.Setup:
    return language_setup.setup(resolved.resolve(plans.Plan(environment=TASK, **fields)))


def config_of(path: pathlib.Path) -> Any:
    return json.loads((path / "config.json").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return train(tmp_path_factory.mktemp("base") / "run", steps=2, model="tiny", model_flags=MODEL)


@pytest.fixture(scope="module")
def run(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("adapters") / "run"
    return train(out, model=str(base), settings=ADAPTERS, frozen="int4")


def test_adapters_are_learnt_beside_a_base_in_few_bits(run: pathlib.Path, base: pathlib.Path):
    recorded = config_of(run)
    params = models.load(base).params
    assert recorded["plan"]["frozen"] == "int4"
    assert recorded["base_sha256"] == model_files.fingerprint(params)
    held = trees.named_leaves(quantisation.held(params, quantisation.of_storage("int4")))
    merged = trees.named_leaves(models.load(run).params)
    same = {name for name in held if np.array_equal(held[name], merged[name])}
    changed = held.keys() - same
    assert {name.rpartition("/")[2] for name in changed} == {"query", "down"}
    narrow = setup(
        agent="sft", model=str(base), settings=(*SHORT, *ADAPTERS), frozen="int4"
    ).constants.base
    jax.tree.map(
        np.testing.assert_array_equal, trees.named_leaves(narrow_weights.whole(narrow)), held
    )
    assert trees.num_bytes(narrow) < 0.3 * trees.num_bytes(params)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_bit_by_bit(run: pathlib.Path, tmp_path: pathlib.Path):
    part = as_killed(run, tmp_path / "part", 2)
    experiments.resume(part, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, models.load(part).params, models.load(run).params)
    assert repeated(part) == repeated(run)


@pytest.mark.parametrize(
    ("agent", "role", "fields"),
    [
        ("distill", "teacher", {"teacher": ""}),
        ("rlhf", "start", {"reward": "length", "settings": (*SHORT, "samples_per_prompt=2")}),
    ],
)
def test_models_that_are_read_have_few_bits_and_the_hash_of_what_was_read(
    agent: str, role: str, fields: dict[str, Any], base: pathlib.Path
):
    given = {"settings": SHORT, "model": str(base), "frozen": "bfloat16", **fields}
    built = setup(agent=agent, **(given | {name: str(base) for name in fields if name == role}))
    params = models.load(base).params
    narrow = getattr(built.constants, role)
    assert trees.num_bytes(narrow) < 0.6 * trees.num_bytes(params)
    assert built.details()[f"{role}_sha256"] == model_files.fingerprint(params)
    assert built.initial_params is not None  # What learns is whole.
    jax.tree.map(np.testing.assert_array_equal, built.initial_params(), params)


def test_the_base_of_a_reward_models_adapters_has_few_bits_and_the_hash_of_what_was_read(
    base: pathlib.Path, tmp_path: pathlib.Path
):
    environment = f"tokens/preferences:{pairs(tmp_path)}"
    given = plans.Plan(
        agent="reward-model",
        environment=environment,
        model=str(base),
        settings=(*SHORT, *ADAPTERS),
        frozen="int8",
    )
    built, params = preferences.setup(resolved.resolve(given)), models.load(base).params
    narrow = narrow_weights.narrowed(params, quantisation.of_storage("int8"))
    jax.tree.map(np.testing.assert_array_equal, built.base, narrow)
    assert built.details()["base_sha256"] == model_files.fingerprint(params)


def test_the_float_weights_of_a_base_in_few_bits_are_garbage_with_their_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """All of them: a norm alone would keep all pages of a file of the cache."""
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(converted, "LEAST_BYTES", 1)
    gguf = models_test.write_gguf(tmp_path / "m.gguf")
    models.load(gguf)  # Which writes it into the cache.
    load, open_bytes = models.load, mapped.open_bytes
    leaves, files = [], []

    def loaded(*given: Any, **fields: Any) -> model_files.Checkpoint:
        checkpoint = load(*given, **fields)
        leaves.extend(map(weakref.ref, jax.tree.leaves(checkpoint.params)))
        return checkpoint

    def opened(*given: Any, **fields: Any) -> np.ndarray:
        memory = open_bytes(*given, **fields)
        files.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(models, "load", loaded)
    monkeypatch.setattr(mapped, "open_bytes", opened)
    given = {"agent": "sft", "model": str(gguf), "settings": (*SHORT, *ADAPTERS)}
    whole = setup(**given)
    gc.collect()
    assert whole.base is not None and all(ref() is not None for ref in leaves)
    assert any(ref() is not None for ref in files)  # On a CPU the float base is its file's pages.

    def available(free: int) -> None:
        monkeypatch.setattr(platform, "available_memory", lambda: free)

    # Pages of a file are available memory as the system counts it.
    pages = platform.mapped_bytes(whole.frozen)
    odd = trees.num_bytes(whole.frozen) - pages  # Leaves that the file has at odd places.
    assert odd < 0.2 * pages
    least = whole.needs(whole.setting).total - odd
    available(least)
    whole.check()
    available(least - 1)
    with pytest.raises(ValueError, match="learning takes"):
        whole.check()
    del whole
    narrow = setup(**given, frozen="bfloat16")
    assert platform.mapped_bytes(narrow.frozen) == 0
    available(narrow.needs(narrow.setting).total - trees.num_bytes(narrow.frozen))
    narrow.check()
    gc.collect()
    assert narrow.base is not None
    assert not [x for ref in (*leaves, *files) if (x := ref()) is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "fields"),
    [
        ("gkd", {"teacher": ""}),
        ("rlhf", {"settings": ("samples_per_prompt=2",)}),
        ("rlhf", {"settings": ("samples_per_prompt=2", *ADAPTERS)}),
        (
            "warp",
            {
                "settings": (
                    *("samples_per_prompt=2", "members=2", "member_steps=2", *ADAPTERS),
                    "lora.shared_a=True",
                )
            },
        ),
    ],
    ids=["gkd", "rlhf", "adapters", "warp"],
)
def test_learners_learn_beside_few_bits(
    agent: str, fields: dict[str, Any], base: pathlib.Path, tmp_path: pathlib.Path
):
    given = {name: value or str(base) for name, value in fields.items()}
    path = train(tmp_path / "run", agent, model=str(base), frozen="int8", **given)
    assert all(np.isfinite(float(row["loss"])) for row in repeated(path))


def test_what_has_nothing_frozen_takes_no_format(base: pathlib.Path, tmp_path: pathlib.Path):
    def refuses(match: str, algorithm: str = "sft", **fields: Any) -> None:
        with pytest.raises(ValueError, match=match):
            train(tmp_path / "run", algorithm, **{"model": str(base), "frozen": "int8", **fields})

    refuses("this run of sft has none")
    refuses("goes with adapters here", "warp")
    refuses("leave one out", settings=(*ADAPTERS, "quantize=int8"))
    refuses("does not go with --mesh", mesh="1x1")
    refuses("frozen must be float32 or int8", frozen="int3")
    narrow = ("storage=int8",)
    refuses("what learns stays float32", frozen="float32", model_flags=narrow)
    refuses("what learns stays float32", frozen="float32", model="tiny", model_flags=narrow)
    refuses(
        r"of which reward-model has none: --set lora.rank",
        "reward-model",
        environment="tokens/preferences:" + str(pairs(tmp_path)),
    )


def pairs(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "pairs.jsonl"
    pair = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    path.write_text("".join(json.dumps(pair | {"prompt": f"{i}+1="}) + "\n" for i in range(40)))
    return path


def test_a_model_of_any_form_is_read_into_few_bits(
    base: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """A run's, a folder's, a GGUF file's, and those of the cache, are the same codes."""
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    flags = ("storage=int8",)
    exports.write_checkpoint(models.load(base), tmp_path / "folder")
    gguf = models_test.write_gguf(tmp_path / "m.gguf")
    for path in (base, tmp_path / "folder", gguf):
        whole, narrow = models.load(path), models.load(path, flags=flags)
        expected = narrow_weights.narrowed(whole.params, quantisation.of_storage("int8"))
        assert narrow.config.storage == "int8" and narrow.model.config == narrow.config
        jax.tree.map(np.testing.assert_array_equal, narrow.params, expected)
    monkeypatch.setattr(converted, "LEAST_BYTES", 1)
    kept = models.load(gguf, flags=flags)
    assert any((tmp_path / "cache").iterdir())
    jax.tree.map(np.testing.assert_array_equal, kept.params, expected)


def test_texts_are_written_with_few_bits(base: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    command = ["generate", "--model", str(base), "--prompt=1+1=", "--temperature=0"]
    assert cli.main([*command, "--max-new-tokens=4", "--model-flag=storage=bfloat16"]) == 0
    narrow = capsys.readouterr().out
    assert cli.main([*command, "--max-new-tokens=4"]) == 0
    assert narrow == capsys.readouterr().out  # So few digits decide no token here.

"""Tests of lm/folder_meaning.py, and of what `merging.merge` makes of it."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import averaging
from kullback.lm import folder_meaning, gemma, merging
from kullback.lm.formats import hugging_face
from kullback.lm.tokenizer import Tokenizer, save, train_bpe

CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], num_layers=1, embed_dim=8, hidden_dim=8, vocab_size=300, num_heads=2
)
TEXTS = ["one two three", "four five six seven", "eight nine ten"] * 3
TOKENIZER = train_bpe(TEXTS, 290)
# Another value of every field that leaves the shapes of all tensors as they are.
OTHERS: dict[str, Any] = {
    "window": 5,
    "query_scale": 9.0,
    "local_rope_theta": 7.0,
    "global_rope_theta": 8.0,
    "global_rope_factor": 2.0,
    "pattern": 1,
    "rms_epsilon": 1e-5,
    "context_length": 77,
    "bos_id": 3,
    "eos_ids": (1, 4),
    "pad_id": 5,
}


def params(config: gemma.Config, seed: int) -> Any:
    shapes = jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)


def export(
    folder: pathlib.Path,
    config: gemma.Config = CONFIG,
    seed: int = 0,
    tokenizer: Tokenizer | None = TOKENIZER,
) -> pathlib.Path:
    home = folder.with_name(folder.name + "-words")
    files = [] if tokenizer is None else save(tokenizer, home)
    hugging_face.save(folder, config, params(config, seed), files)
    return folder


def said(*folders: pathlib.Path) -> list[str]:
    return folder_meaning.differences(folders, [folder.name for folder in folders])


def test_every_field_is_compared_but_how_it_computes(tmp_path: pathlib.Path):
    """Fields that shapes decide aside, `OTHERS` has all that there are: a new one must be here."""
    one = export(tmp_path / "one")
    shapes = "vocab_size num_layers embed_dim num_heads num_kv_heads head_dim hidden_dim".split()
    names = {field.name for field in dataclasses.fields(gemma.Config)}
    assert names == {*shapes, *OTHERS, *folder_meaning.COMPUTE}
    for name, value in OTHERS.items():
        other = export(tmp_path / name, dataclasses.replace(CONFIG, **{name: value}))
        [line] = said(one, other)
        mine = getattr(CONFIG, name)
        # In config.json the scale is a whole number.
        mine, value = (int(x) if name == "query_scale" else x for x in (mine, value))
        if name == "eos_ids":  # With the end of a turn, which the tokenizer adds.
            mine, value = (1, 5), (1, 4, 5)
        assert line == f"{name}: {mine} in one/config.json, {value} in {name}/config.json"
    file = export(tmp_path / "same", dataclasses.replace(CONFIG, dtype="bfloat16")) / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({**fields, "transformers_version": "9", "torch_dtype": "float16"}))
    assert said(one, file.parent) == []


def test_tokens_are_compared_by_their_ids(tmp_path: pathlib.Path):
    one, none = export(tmp_path / "one"), export(tmp_path / "none", tokenizer=None)
    other = export(tmp_path / "other", tokenizer=train_bpe([t[::-1] for t in TEXTS], 290))
    differences = said(one, other)
    assert any(line.startswith("tokenizer: ") and "other" in line for line in differences)
    with pytest.raises(ValueError, match="models differ in tokenizer"):
        merging.merge([one, other], tmp_path / "out", merging.Config(method="mean"))
    with pytest.raises(ValueError, match="models differ in tokenizer"):
        merging.merge([one], tmp_path / "out", merging.Config(), base=other)
    assert said(one, none) == []  # Nothing is known of it.


def test_ends_of_the_tokenizer_may_stand_in_the_configuration_or_not(tmp_path: pathlib.Path):
    # A base has one end in its configuration, a run that was tuned from it both: they are one model
    # in this, as both are loaded with the ends of their tokenizer.
    one = export(tmp_path / "one")
    tuned = export(tmp_path / "tuned", dataclasses.replace(CONFIG, eos_ids=(1, 5)))
    assert said(one, tuned) == []
    none = export(tmp_path / "none", dataclasses.replace(CONFIG, eos_ids=(2,)), tokenizer=None)
    [line] = said(one, none)
    assert line.startswith("eos_ids: (1, 5) in one/config.json, (2,) in none")


def test_other_architectures_are_compared_key_by_key(tmp_path: pathlib.Path):
    folders = []
    for name, more in (("a", {}), ("b", {"hidden_act": "relu", "sub": {"x": 1}}), ("c", {})):
        (tmp_path / name).mkdir()
        fields = {"model_type": "bert", "hidden_act": "gelu", "sub": {"x": 2}, **more}
        (tmp_path / name / "config.json").write_text(json.dumps({**fields, "_name_or_path": name}))
        (tmp_path / name / "vocab.txt").write_text("b" if name == "c" else "a")
        folders.append(tmp_path / name)
    a, b, c = folders
    assert said(a, b) == [
        "hidden_act: gelu in a/config.json, relu in b/config.json",
        "sub.x: 2 in a/config.json, 1 in b/config.json",
    ]
    [line] = said(a, c)
    assert line.startswith("tokenizer (vocab.txt): ") and line.endswith("in c/vocab.txt")


@pytest.mark.parametrize("method", ["mean", "slerp"])
def test_padding_of_a_table_changes_nothing_of_a_merge(method: str, tmp_path: pathlib.Path):
    """Tables of 300 and 310 rows of one tokenizer, merged in either order."""
    config = merging.Config(method=method, group="tensor" if method == "slerp" else None)
    plain = [export(tmp_path / f"plain{seed}", seed=seed) for seed in range(2)]
    wide = dataclasses.replace(CONFIG, vocab_size=310)
    trees = [params(CONFIG, seed) for seed in range(2)]
    rows = np.random.default_rng(5).normal(size=(10, 8)).astype(np.float32)
    more = {**trees[1], "embedding": np.concatenate([trees[1]["embedding"], rows])}
    hugging_face.save(tmp_path / "wide", wide, more, sorted(plain[0].glob("tokenizer*")))
    merging.merge(plain, tmp_path / "expected", config)
    expected = hugging_face.load(tmp_path / "expected")[1]
    if method == "mean":
        np.testing.assert_allclose(
            expected["embedding"], averaging.mean(trees)["embedding"], atol=1e-6
        )
    merging.merge([plain[0], tmp_path / "wide"], tmp_path / "short", config)
    merging.merge([tmp_path / "wide", plain[0]], tmp_path / "long", config)
    short, long = (hugging_face.load(tmp_path / name)[1] for name in ("short", "long"))
    jax.tree.map(np.testing.assert_array_equal, short, expected)
    np.testing.assert_array_equal(long["embedding"][300:], rows)
    cut = {**long, "embedding": long["embedding"][:300]}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), cut, expected)
    shutil.rmtree(tmp_path / "short")
    for file in tmp_path.glob("wide/tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"vocab_size: 300 in .*310 in|models must have the same"):
        merging.merge([plain[0], tmp_path / "wide"], tmp_path / "short", config)

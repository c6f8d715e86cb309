"""Tests of lm/merging.py and lm/formats/tensor_files.py."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.core import averaging, files, flat_arrays
from kullback.lm import gemma, merging, tokenizer
from kullback.lm.formats import hugging_face, tensor_files

CONFIG = dataclasses.replace(  # Two periods of two layers, and one more: both are stacked.
    gemma.PRESETS["tiny"], num_layers=5, pattern=2, embed_dim=16, hidden_dim=24, vocab_size=32
)


def random_params(seed: int, dtype=np.float32):
    shapes = jax.eval_shape(gemma.make(CONFIG).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(dtype), shapes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """Exports a base and three models."""
    home = tmp_path_factory.mktemp("models")
    for seed in range(4):
        hugging_face.save(home / str(seed), CONFIG, random_params(seed))
    return [home / str(seed) for seed in range(4)]


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {n: t.data.reshape(t.shape) for n, t in tensor_files.open_folder(folder).items()}


def write(folder: pathlib.Path, tensors: dict[str, np.ndarray], **config) -> pathlib.Path:
    folder.mkdir()
    safetensors_numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shard(folder: pathlib.Path, out: pathlib.Path, names: list[list[str]]) -> pathlib.Path:
    """Writes the same model in several files."""
    tensors = tensors_of(folder)
    out.mkdir()
    where = {}
    for i, inside in enumerate(names):
        file = f"model-{i}.safetensors"
        safetensors_numpy.save_file({n: tensors[n].copy() for n in inside}, out / file)
        where |= dict.fromkeys(inside, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    shutil.copyfile(folder / "config.json", out / "config.json")
    return out


@pytest.mark.parametrize(
    ("group", "like"),
    # Of JAX, each operation of each shape is compiled.
    [
        *((group, np.asarray) for group in merging.GROUPS),
        pytest.param("layer", jnp.asarray, marks=pytest.mark.slow),
    ],
    ids=[*merging.GROUPS, "layer, jax"],
)
def test_slerp_in_memory_is_slerp_of_the_exported_folders(group, like, folders, tmp_path):
    config = merging.Config(method="slerp", group=group)
    report = merging.merge(folders[1:], tmp_path / "out", config, folders[0])
    base, *models = (jax.tree.map(like, random_params(seed)) for seed in range(4))
    group_of = merging.gemma_groups(group)
    expected = averaging.slerp(models, base, group_of=group_of)
    _, params, read = hugging_face.load(tmp_path / "out")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params, expected)
    num_tensors = 2 + 13 * CONFIG.num_layers
    assert report.num_tensors == read.num_tensors == num_tensors
    # Layers, the embedding and the last norm; or each tensor; or one.
    assert len(report.grams) == {"layer": 5 + 2, "tensor": num_tensors, "all": 1}[group]
    if group == "layer":
        cosines = averaging.cosines(models, base, group_of)
        for layer, name in enumerate(("periods/layer_0", "periods/layer_1") * 2):
            cosine = averaging.cosine(report.grams[f"model.layers.{layer}"])
            np.testing.assert_allclose(cosine, cosines[name][layer // 2], atol=1e-9)


@pytest.mark.parametrize(
    ("config", "has_base", "merge"),
    [
        (merging.Config(method="mean"), False, lambda b, m: averaging.mean(m)),
        (
            merging.Config(method="mean", weights=(1, 2, 5)),
            False,
            lambda b, m: averaging.mean(m, [1, 2, 5]),
        ),
        (
            merging.Config(method="ema", rate=0.25),
            False,
            lambda b, m: averaging.ema(averaging.ema(m[0], m[1], 0.25), m[2], 0.25),
        ),
        (
            merging.Config(method="liti", interpolation=0.3),
            True,
            lambda b, m: averaging.liti(b, averaging.mean(m), 0.3),
        ),
        (
            merging.Config(method="slerp", interpolation=0.3, group="all"),
            True,
            lambda b, m: averaging.liti(b, averaging.slerp(m, b, group_of=averaging.whole), 0.3),
        ),
        (
            merging.Config(method="slerp", group="tensor"),
            False,
            lambda b, m: averaging.slerp(m, group_of=merging.gemma_groups("tensor")),
        ),
    ],
    ids=["mean", "weighted", "ema", "liti", "slerp and liti", "slerp without a base"],
)
def test_each_method_is_that_of_memory(config, has_base, merge, folders, tmp_path):
    merging.merge(folders[1:], tmp_path / "out", config, folders[0] if has_base else None)
    base, *models = (random_params(seed) for seed in range(4))
    _, params, _ = hugging_face.load(tmp_path / "out")
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params, merge(base, models)
    )


def test_ends_are_the_models_bit_by_bit(folders, tmp_path):
    base, one, two, _ = folders
    for name, like, config in (
        ("first", one, merging.Config(t=0.0)),
        ("second", two, merging.Config(t=1.0)),
        ("base", base, merging.Config(interpolation=0.0)),
    ):
        merging.merge([one, two], tmp_path / name, config, base)
        written = (tmp_path / name / "model.safetensors").read_bytes()
        assert written == (like / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_types_are_kept_and_rounded_once(dtype, tmp_path):
    random = np.random.default_rng(0)
    numbers = [random.normal(size=(40, 50)).astype(jnp.dtype(dtype)) for _ in range(2)]
    models = [write(tmp_path / str(i), {"w": x}) for i, x in enumerate(numbers)]
    merging.merge(models, tmp_path / "out", merging.Config(method="mean"))
    merged = tensors_of(tmp_path / "out")["w"]
    expected = ((numbers[0].astype(np.float64) + numbers[1]) / 2).astype(jnp.dtype(dtype))
    assert merged.dtype == dtype
    np.testing.assert_array_equal(merged, expected)


def test_segments_and_blocks_join(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "SEGMENT", 100)
    monkeypatch.setattr(flat_arrays, "BLOCK", 32)
    random = np.random.default_rng(0)
    base, one, two = ({"w": random.normal(size=(33, 7)).astype(np.float32)} for _ in range(3))
    paths = [write(tmp_path / str(i), x) for i, x in enumerate((base, one, two))]
    counts = []
    config = merging.Config()
    merging.merge(paths[1:], tmp_path / "out", config, paths[0], lambda *x: counts.append(x))
    expected = averaging.slerp([one, two], base)
    np.testing.assert_allclose(tensors_of(tmp_path / "out")["w"], expected["w"], atol=1e-6)
    total = 2 * 33 * 7 * 4  # The angles, and what is written.
    assert [done for done, _ in counts] == [400, 800, 924, 1324, 1724, total]
    assert {of for _, of in counts} == {total}


def test_shards_are_those_of_the_first_model(folders, tmp_path):
    names = list(tensors_of(folders[1]))
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    sharded = shard(folders[1], tmp_path / "sharded", parts)
    config = merging.Config(group="all")
    merging.merge([sharded, folders[2]], tmp_path / "out", config, folders[0])
    merging.merge([folders[1], folders[2]], tmp_path / "whole", config, folders[0])
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == [
        "model-0.safetensors",
        "model-1.safetensors",
    ]
    one, two = (hugging_face.load(tmp_path / name) for name in ("out", "whole"))
    jax.tree.map(np.testing.assert_array_equal, one[1], two[1])
    assert one[2] == two[2]


def test_the_rest_of_the_folder_is_copied_but_no_other_weights(folders, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(folders[1], first)
    tokenizer.save(tokenizer.train_bpe(["one two"], 290), first)
    for name in ("tokenizer.model", "README.md", "pytorch_model.bin.index.json"):
        (first / name).write_text("{}")
    merging.merge([first, folders[2]], tmp_path / "out", merging.Config(method="mean"))
    expected = {"config.json", "generation_config.json", "model.safetensors"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == expected | {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}


def test_a_tied_head_is_merged_once(tmp_path):
    random = np.random.default_rng(0)
    models, plain = [], []
    for i in range(3):
        tensors = {
            name: random.normal(size=shape).astype(np.float32)
            for name, shape in (("model.embed_tokens.weight", (8, 4)), ("model.norm.weight", (4,)))
        }
        head = {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        with_head = tensors if i == 2 else tensors | head  # The last has none: as good.
        models.append(write(tmp_path / f"head-{i}", with_head, tie_word_embeddings=True))
        plain.append(write(tmp_path / f"plain-{i}", tensors, tie_word_embeddings=True))
    config = merging.Config(group="all")
    merging.merge(models, tmp_path / "out", config)
    merging.merge(plain, tmp_path / "plain", config)
    merged, expected = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "plain")
    assert list(merged) == list(expected)
    for name, tensor in merged.items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_a_head_that_is_not_what_it_is_tied_to_is_refused_and_one_of_its_own_is_merged(tmp_path):
    random = np.random.default_rng(0)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tensors = {name: random.normal(size=(8, 4)).astype(np.float32) for name in names}
    tied = write(tmp_path / "tied", tensors, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head.weight must equal model.embed_tokens.weight"):
        merging.merge([tied, tied], tmp_path / "out", merging.Config())
    free = write(tmp_path / "free", tensors, tie_word_embeddings=False)
    merging.merge([free, free], tmp_path / "out", merging.Config(method="mean"))
    assert set(tensors_of(tmp_path / "out")) == set(names)


def test_counters_are_copied_if_equal_and_refused_if_not(tmp_path):
    steps = np.arange(3)
    one, two, three = (
        write(tmp_path / str(i), {"steps": steps + (i == 2), "w": np.ones(2, np.float32) * i})
        for i in range(3)
    )
    merging.merge([one, two], tmp_path / "out", merging.Config(method="mean"))
    merged = safetensors_numpy.load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(merged["steps"], steps)
    np.testing.assert_array_equal(merged["w"], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"tensor 'steps', I64\[3\], differs between"):
        merging.merge([one, three], tmp_path / "other", merging.Config(method="mean"))


def test_settings_of_another_method_are_refused():
    for method, setting in (("mean", {"t": 0.5}), ("ema", {"weights": (1.0, 1.0), "rate": 0.1})):
        with pytest.raises(ValueError, match=f"not of {method}"):
            merging.Config(method=method, **setting)  # pyright: ignore[reportArgumentType]
    for group in merging.GROUPS:
        with pytest.raises(ValueError, match="group is of slerp, not of mean"):
            merging.Config(method="mean", group=group)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": np.ones(2, np.float32)}, r"'b' is F32\[3\] in .* and missing in"),
        ({"a": np.ones(2, np.float32), "b": np.ones(4, np.float32)}, r"'b' .* and F32\[4\] in"),
        ({"a": np.ones(2, np.float16), "b": np.ones(3, np.float32)}, r"'a' .* and F16\[2\] in"),
        (
            {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32), "c": np.ones(1)},
            r"'c' is missing in .* and F64\[1\] in",
        ),
    ],
)
def test_the_first_tensor_that_differs_is_named(tensors, message, tmp_path):
    like = write(tmp_path / "0", {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})
    other = write(tmp_path / "1", tensors)
    with pytest.raises(ValueError, match=message):
        merging.merge([like, other], tmp_path / "out", merging.Config(method="mean"))
    assert not (tmp_path / "out").exists()


def test_out_must_be_new(folders, tmp_path):
    config = merging.Config(method="mean")
    before = (folders[1] / "model.safetensors").read_bytes()
    link = tmp_path / "link"
    link.symlink_to(folders[1])
    for out in (folders[1], folders[2].parent / "other" / ".." / "2", link):
        with pytest.raises(ValueError, match="is one of the models"):
            merging.merge(folders[1:3], out, config)
    with pytest.raises(ValueError, match="is not empty"):
        merging.merge(folders[1:3], folders[0], config)
    assert (folders[1] / "model.safetensors").read_bytes() == before


def test_a_write_that_fails_leaves_what_was_there(folders, tmp_path, monkeypatch):
    write_at, calls = os.pwrite, []

    def full(descriptor, data, offset):
        calls.append(offset)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return write_at(descriptor, data, offset)

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            merging.merge(folders[1:3], tmp_path / "out", merging.Config())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())
    merging.merge(folders[1:3], tmp_path / "out", merging.Config())  # An empty folder is as new.
    assert hugging_face.load(tmp_path / "out")[2].num_tensors


def test_a_disk_that_is_full_is_seen_while_it_is_written(folders, tmp_path, monkeypatch):
    flushed = []

    def full(descriptor: int) -> None:
        flushed.append(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "FLUSHED", 1)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        merging.merge(folders[1:], tmp_path / "out", merging.Config())
    assert len(flushed) == 1 and not (tmp_path / "out").exists()


def test_damaged_folders_are_refused(folders, tmp_path):
    config = merging.Config(method="mean")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is missing: expected model"):
        merging.merge([folders[1], tmp_path / "empty"], tmp_path / "out", config)
    cut = tmp_path / "cut"
    shutil.copytree(folders[1], cut)
    os.truncate(cut / "model.safetensors", 4_000)
    with pytest.raises(files.CorruptError, match="cannot be read as safetensors"):
        merging.merge([folders[1], cut], tmp_path / "out", config)
    names = list(tensors_of(folders[1]))
    sharded = shard(folders[1], tmp_path / "sharded", [names[:3], names[3:]])
    index = sharded / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    for changed, message in (
        (where | {"more": "model-0.safetensors"}, "names tensors that are in no file: more"),
        (where | {names[0]: "model-1.safetensors"}, "has in model-1.safetensors"),
        (where | {names[0]: "../0/model.safetensors"}, "must be a name inside"),
        (where | {names[0]: "model.py"}, r"must name files of \.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=message):
            merging.merge([folders[1], sharded], tmp_path / "out", config)


def test_names_of_layers():
    names = ("model.layers.12.mlp.up_proj.weight", "h.3.attn.weight", "model.norm.weight")
    assert [merging.group_name("layer", name) for name in names] == [
        "model.layers.12",
        "h.3",
        "model.norm.weight",
    ]
    expert = "model.layers.1.experts.7.w"
    assert merging.group_name("layer", expert) == "model.layers.1"
    assert merging.group_name("tensor", expert) == expert
    assert merging.group_name("all", expert) == ""


@pytest.mark.parametrize(
    ("fields", "num_models", "has_base", "message"),
    [
        ({"method": "median"}, 2, False, "method must be one of mean, ema, slerp, liti"),
        ({"group": "head"}, 2, False, "group must be one of layer, tensor, all"),
        ({"method": "ema"}, 2, False, "rate is of ema and required there"),
        ({"method": "mean", "rate": 0.1}, 2, False, "rate is of ema"),
        ({"method": "ema", "rate": 1.5}, 2, False, "got 1.5"),
        ({"weights": (1.0, 2.0)}, 2, False, "weights is of mean and liti, not of slerp"),
        ({"method": "mean", "weights": (1.0,)}, 2, False, "got 1 for 2"),
        ({"method": "mean", "t": 0.5}, 2, False, "t is of slerp, not of mean"),
        ({"t": 0.5}, 3, False, "got 0.5 for 3"),
        ({"interpolation": -1.0}, 2, True, "interpolation must be finite and >= 0"),
        ({"interpolation": 0.3}, 2, False, "goes toward a base, and none is given"),
        ({"method": "liti"}, 2, False, "liti goes toward a base"),
        ({"method": "mean"}, 2, True, "mean takes no base"),
        ({"method": "mean"}, 1, False, "at least two models, got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, num_models, has_base, message):
    with pytest.raises(ValueError, match=message):
        merging.Config(**fields).check(num_models, has_base=has_base)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("method", ["mean", "slerp"])
def test_what_is_written_is_finite(method: str, dtype, tmp_path: pathlib.Path):
    config = merging.Config(method=method)
    one, two = np.ones((2, 6), np.float32)
    one[4] = np.nan
    models = [write(tmp_path / str(n), {"w": x.astype(dtype)}) for n, x in enumerate((two, one))]
    with pytest.raises(ValueError, match="number 4 of tensor 'w' is nan in model 2"):
        merging.merge(models, tmp_path / "out", config)
    assert not (tmp_path / "out").exists() and not [*tmp_path.glob(".tmp-*")]
    if method == "mean":  # What counts nothing may be anything.
        merging.merge(models, tmp_path / "out", merging.Config(method="mean", weights=(1, 0)))
        np.testing.assert_array_equal(tensors_of(tmp_path / "out")["w"], two.astype(dtype))


def test_what_overflows_in_the_merge_is_said(tmp_path: pathlib.Path):
    big = np.full(3, 6e4, np.float16)
    models = [write(tmp_path / str(n), {"w": x}) for n, x in enumerate((big, -big))]
    config = merging.Config(method="liti", interpolation=3)
    with pytest.raises(ValueError, match="number 0 of tensor 'w' is inf in the merge, and finite"):
        merging.merge(models[:1], tmp_path / "out", config, base=models[1])
    assert not (tmp_path / "out").exists()


def test_an_export_is_finite(tmp_path: pathlib.Path):
    params = random_params(0)
    params["periods"]["layer_1"]["feed_forward"]["up"][1, 2, 3] = np.inf  # Ours is [in, out].
    # As the file names it, and at the place in the file, whose matrices are [out, in].
    with pytest.raises(ValueError, match=r"'model.layers.3.mlp.up_proj.weight' is inf at \[3, 2\]"):
        hugging_face.save(tmp_path / "out", CONFIG, params)
    assert not (tmp_path / "out").exists()


def test_what_is_copied_are_files_of_listed_kinds_in_the_folder(folders, tmp_path):
    config = merging.Config(method="mean")
    (tmp_path / "key").write_text("secret")
    first = tmp_path / "first"
    shutil.copytree(folders[1], first)
    (first / "modeling.py").write_text("import os")
    (first / "notes.bin").symlink_to("../key")
    (first / "chat.jinja").write_text("{{ messages }}")
    (first / "vocab.txt").symlink_to("chat.jinja")
    report = merging.merge([first, folders[2]], tmp_path / "out", config, force=True)
    assert report.left_out == ["modeling.py"]
    kept = {"config.json", "generation_config.json", "chat.jinja", "vocab.txt", "model.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == kept
    for name in ("special_tokens_map.json", "README.txt", "tokenizer.model", "config.json"):
        (first / name).unlink(missing_ok=True)
        (first / name).symlink_to("../key")
        with pytest.raises(ValueError, match=f"{name} is a link out of the folder") as caught:
            merging.merge([first, folders[2]], tmp_path / "none", config, force=True)
        assert "secret" not in str(caught.value)
        assert not (tmp_path / "none").exists()
        (first / name).unlink()
        shutil.copyfile(folders[1] / "config.json", first / "config.json")


def test_shards_in_folders_of_a_folder(folders, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(folders[1], first)
    (first / "parts").mkdir()
    (first / "model.safetensors").rename(first / "parts" / "a.safetensors")
    where = dict.fromkeys(tensors_of(folders[1]), "parts/a.safetensors")
    (first / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    merging.merge([first, folders[1]], tmp_path / "out", merging.Config(method="mean"))
    assert (tmp_path / "out" / "parts" / "a.safetensors").is_file()
    for name, tensor in tensors_of(folders[1]).items():
        np.testing.assert_array_equal(tensors_of(tmp_path / "out")[name], tensor)

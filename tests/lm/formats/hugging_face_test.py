"""Tests of lm/formats/hugging_face.py; fixtures/ is written by tests/parity/write_fixtures.py."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.core import files
from kullback.lm import gemma
from kullback.lm.formats import hugging_face, hugging_face_config, tensor_files

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
NAMES = ("one_layer", "one_period", "scaled_rope", "transformers_5")
CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], num_layers=5, pattern=2, embed_dim=16, hidden_dim=24, vocab_size=32
)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Returns a folder as transformers writes it: a layer off the pattern, grouped queries."""
    return unpack("scaled_rope", tmp_path / "model")


def unpack(name: str, folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    shutil.copyfile(FIXTURES / f"{name}.json", folder / "config.json")
    shutil.copyfile(FIXTURES / f"{name}.safetensors", folder / "model.safetensors")
    return folder


def rewrite(folder: pathlib.Path, change) -> dict[str, np.ndarray]:
    """Writes `change` of the tensors in their place; returns the old ones."""
    path = folder / "model.safetensors"
    tensors = safetensors_numpy.load_file(path)
    safetensors_numpy.save_file(change(dict(tensors)), path)
    return tensors


def random_params(config: gemma.Config, dtype=np.float32):
    shapes = jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), dtype), shapes)


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_continuations_are_those_of_transformers(name, tmp_path):
    config, params, report = hugging_face.load(unpack(name, tmp_path / name))
    expected = np.load(FIXTURES / f"{name}.npz")
    tokens, greedy, gaps = (expected[key] for key in ("tokens", "greedy", "gaps"))
    length = tokens.shape[1]
    assert length > config.window
    assert report.num_tensors == 2 + 13 * config.num_layers and report.dtypes == ("F32",)
    apply = jax.jit(gemma.make(config).apply)
    with jax.default_matmul_precision("highest"):
        row = np.pad(tokens, ((0, 0), (0, len(greedy))))  # One shape for all that follows.
        logits = apply(params, row)[:, :length]
        np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)
        steps = int(np.argmax(np.append(gaps, 0) < 1e-3))  # Until the best two are as good.
        assert steps > 5
        for step in range(steps):
            row[0, length + step] = np.argmax(apply(params, row)[0, length + step - 1])
    np.testing.assert_array_equal(row[0, length : length + steps], greedy[:steps])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_reads_back_bit_by_bit(dtype, tmp_path):
    config = dataclasses.replace(CONFIG, dtype=dtype, eos_ids=(1, 7), global_rope_factor=8.0)
    params = random_params(config, dtype)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    hugging_face.save(tmp_path / "out", config, params, [tokenizer])
    got, loaded, report = hugging_face.load(tmp_path / "out", dtype)
    assert got == config
    assert_equal(loaded, params)
    assert jax.tree.leaves(loaded)[0].dtype == dtype
    assert report.dtypes == ({"float32": "F32", "bfloat16": "BF16"}[dtype],)
    assert report.num_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    written = safetensors_numpy.load_file(tmp_path / "out" / "model.safetensors")
    # Layer 2 is the first of the second period; their linear layers are [out, in].
    query = params["periods"]["layer_0"]["attention"]["query"][1]
    np.testing.assert_array_equal(
        written["model.layers.2.self_attn.q_proj.weight"].astype(np.float32),
        np.asarray(query.T, np.float32),
    )
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 2, "eos_token_id": [1, 7], "pad_token_id": 0}


def test_types_are_converted_as_numpy_does(folder):
    tensors = rewrite(folder, lambda t: {k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()})
    _, params, report = hugging_face.load(folder)
    assert report.dtypes == ("BF16",)
    expected = tensors["model.norm.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(params["final_norm"], expected)


def test_float64_is_read_as_float32(folder, caplog):
    tensors = rewrite(folder, lambda t: {k: v.astype(np.float64) / 3 for k, v in t.items()})
    _, params, report = hugging_face.load(folder)
    assert report.dtypes == ("F64",) and params["embedding"].dtype == "float32"
    expected = (tensors["model.embed_tokens.weight"].astype(np.float64) / 3).astype(np.float32)
    np.testing.assert_array_equal(params["embedding"], expected)
    assert (
        f"{folder}: its tensors of float64, {len(tensors)} of them, are read as float32"
        in caplog.text
    )
    rewrite(folder, lambda t: t | {"model.norm.weight": np.full(16, 1e300)})
    with pytest.raises(
        ValueError, match=r"model\.norm\.weight has numbers of float64 that float32"
    ):
        hugging_face.load(folder)


# Of transformers 4 and 5: the prefix of a multimodal model's text, its head and a tensor of its
# vision; and the fields that config.json has of the other version alone.
DIALECTS = {
    "4": (
        ("language_model.model.", "language_model.lm_head.weight", "vision_tower.x"),
        ("dtype", "rope_parameters", "layer_types"),
    ),
    "5": (
        ("model.language_model.", "lm_head.weight", "model.vision_tower.x"),
        (
            "torch_dtype",
            "rope_theta",
            "rope_local_base_freq",
            "rope_scaling",
            "sliding_window_pattern",
        ),
    ),
}


@pytest.mark.parametrize(
    ("version", "multimodal", "has_head"),
    [("4", True, True), ("4", False, False), ("5", True, False), ("5", False, True)],
)
def test_both_namings_of_transformers_are_read(version, multimodal, has_head, folder, caplog):
    config, expected, _ = hugging_face.load(folder)
    (prefix, head, vision), absent = DIALECTS[version]
    fields = hugging_face_config.to_json(config, "float32")
    fields = {name: value for name, value in fields.items() if name not in absent}
    if not multimodal:
        prefix, head = "model.", "lm_head.weight"
    else:
        fields = {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": fields,
            "vision_config": {"model_type": "siglip_vision_model"},
        }
    (folder / "config.json").write_text(json.dumps(fields))

    def change(tensors):
        renamed = {k.replace("model.", prefix, 1): v for k, v in tensors.items()}
        if has_head:
            renamed[head] = tensors["model.embed_tokens.weight"].copy()
        if multimodal:
            renamed[vision] = np.ones(2, np.float32)
        return renamed

    rewrite(folder, change)
    again, params, report = hugging_face.load(folder)
    assert again == config and config.global_rope_factor != 1
    assert_equal(params, expected)
    assert report.num_skipped == multimodal
    assert ("images are ignored: what reads them, 1 of its tensors" in caplog.text) == multimodal


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_multimodal_folders_are_read_without_their_vision(prefix, folder):
    _, expected, _ = hugging_face.load(folder)

    def change(tensors):
        renamed = {k.replace("model.", prefix, 1): v for k, v in tensors.items()}
        vision = ("vision_tower.vision_model.a", "model.vision_tower.b", "multi_modal_projector.c")
        return renamed | {name: np.ones(2, np.float32) for name in vision}

    rewrite(folder, change)
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "gemma3", "text_config": config, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(outer))
    _, params, report = hugging_face.load(folder)
    assert_equal(params, expected)
    assert report.num_skipped == 3


def test_shards_are_read_by_their_index(folder, caplog):
    _, expected, _ = hugging_face.load(folder)
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        safetensors_numpy.save_file({name: tensors[name] for name in part}, folder / shard)
    index = {
        "metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
        "weight_map": {name: shard for shard, part in shards.items() for name in part},
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    _, params, _ = hugging_face.load(folder)
    assert_equal(params, expected)
    index["metadata"]["total_size"] += 4
    path.write_text(json.dumps(index))
    # Other programs do not look at it, so that it may be off.
    assert_equal(hugging_face.load(folder)[1], expected)
    assert f"{path}: total_size is {index['metadata']['total_size']}, the files" in caplog.text
    caplog.clear()
    tensor_files.open_folder(folder)
    assert "total_size" in caplog.text
    index["metadata"] = {}
    index["weight_map"] |= {"model.more.weight": "a.safetensors"}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"in no file: model\.more\.weight"):
        hugging_face.load(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors is missing"):
        hugging_face.load(folder)


def test_an_index_leads_nowhere_but_into_its_folder(folder, tmp_path):
    _, expected, _ = hugging_face.load(folder)
    weights = folder / "model.safetensors"
    names = safetensors_numpy.load_file(weights)
    other = weights.rename(tmp_path / "other.safetensors")
    (folder / "link.safetensors").symlink_to("../other.safetensors")
    (folder / "parts").mkdir()
    index = folder / "model.safetensors.index.json"
    for file, message in (
        ("../other.safetensors", "must be a name inside"),
        (str(other), "must be a name inside"),
        ("link.safetensors", "is a link out of the folder"),
        ("parts/model.safetensors", "is missing"),
        ("config.json", r"must name files of \.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
        with pytest.raises(ValueError, match=message) as caught:
            hugging_face.load(folder)
        assert "\n" not in str(caught.value) and str(index) in str(caught.value)
    shutil.copyfile(other, folder / "parts" / "model.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "parts/model.safetensors")}))
    assert_equal(hugging_face.load(folder)[1], expected)
    index.unlink()
    for link in (weights, folder / "generation_config.json"):
        link.symlink_to("../other.safetensors")
        with pytest.raises(ValueError, match=f"{link.name} is a link out of the folder"):
            hugging_face.load(folder)
        link.unlink()
        if link is weights:
            weights.symlink_to("parts/model.safetensors")
            assert_equal(hugging_face.load(folder)[1], expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**15}, r"num_layers must lie in \[1, 1024\]"),
        (
            {"num_hidden_layers": 1000},
            r"num_hidden_layers is 1000, and the tensors are of \d layers",
        ),
        (
            {"vocab_size": 2**23},
            r"vocab_size is 8388608 and hidden_size 16, and model\.embed_tokens",
        ),
        ({"hidden_size": 2**17}, "hidden_size 131072, and"),
        ({"vocab_size": 2**60}, "vocab_size must lie in"),
        ({"intermediate_size": 2**20}, r"wrong shape: .*expected \[1048576, 16\]"),
        ({"num_attention_heads": 2**12}, "wrong shape: .*q_proj"),
        ({"head_dim": 2**14}, "wrong shape: .*q_norm"),
        ({"head_dim": 2**40}, "head_dim must lie in"),
        ({"sliding_window": 2**40}, "window must lie in"),
        ({"num_hidden_layers": 10**15, "layer_types": ["full_attention"]}, "layer_types"),
        ({"sliding_window_pattern": 10**15, "layer_types": None}, "pattern must lie in"),
    ],
)
def test_sizes_are_those_of_the_tensors_before_anything_is_made(
    fields, message, folder, monkeypatch
):
    file = folder / "config.json"
    config = {k: v for k, v in json.loads(file.read_text()).items() if k != "layer_types"}
    file.write_text(json.dumps(config | fields))
    monkeypatch.setattr(np, "empty", None)
    with pytest.raises(ValueError, match=message) as caught:
        hugging_face.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_of_the_hubs_cache_is_read(folder, tmp_path):
    _, expected, _ = hugging_face.load(folder)
    snapshot, blobs = (tmp_path / "cache" / name for name in ("snapshots/0a", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, blobs / path.stem)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.stem}")
    assert_equal(hugging_face.load(snapshot)[1], expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("model.norm.weight"), r"misses tensors: norm\.weight"),
        (lambda t: t.update({"model.x": np.ones(1, np.float32)}), r"unknown tensors: model\.x"),
        (lambda t: t.update({"other": np.ones(1, np.float32)}), "unknown tensors: other"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(3, np.float32)}),
            r"wrong shape: model\.norm\.weight \[3\], expected \[16\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(16, np.int8)}),
            r"no F64, F32, F16 or BF16: model\.norm\.weight I8",
        ),
        (
            lambda t: t.update({"language_model.model.norm.weight": np.ones(16, np.float32)}),
            "has both",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
            r"lm_head\.weight must equal the embedding",
        ),
    ],
    ids=["missing", "extra", "unknown", "misshapen", "type", "twice", "head"],
)
def test_tensors_that_do_not_belong_are_named(change, message, folder):
    def changed(tensors):
        change(tensors)
        return tensors

    rewrite(folder, changed)
    with pytest.raises(ValueError, match=message):
        hugging_face.load(folder)


def test_an_unembedding_that_is_the_embedding_is_taken(folder):
    _, expected, _ = hugging_face.load(folder)
    rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].copy()})
    assert_equal(hugging_face.load(folder)[1], expected)


def test_an_untied_model_without_its_head_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ValueError, match="tie_word_embeddings is false"):
        hugging_face.load(folder)


def test_a_file_that_is_cut_short_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(files.CorruptError, match="cannot be read as safetensors"):
        hugging_face.load(folder)


def test_each_parameter_goes_where_it_is_sent(folder):
    device = jax.devices()[0]
    paths = []

    def sharding(path: str):
        paths.append(path)
        return jax.sharding.SingleDeviceSharding(device)

    _, params, _ = hugging_face.load(folder, sharding=sharding)
    assert len(paths) == len(jax.tree.leaves(params))
    assert "periods/layer_0/attention/query" in paths and "embedding" in paths


def test_folders_in_use_and_wrong_params_are_refused(tmp_path):
    params = random_params(CONFIG)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(ValueError, match="is not empty"):
        hugging_face.save(tmp_path / "used", CONFIG, params)
    for wrong in (params | {"final_norm": np.ones(3)}, params | {"more": np.ones(3)}):
        with pytest.raises(ValueError, match="params are not those of the configuration"):
            hugging_face.save(tmp_path / "out", CONFIG, wrong)
    with pytest.raises(ValueError, match="must be a file of a tokenizer"):
        hugging_face.save(tmp_path / "out", CONFIG, params, [tmp_path / "none.json"])
    assert not (tmp_path / "out").exists()


MEASURE = """
import re, sys, jax, kullback.lm.formats.hugging_face as hf
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
jax.jit(lambda x: x + 1)(0).block_until_ready()
before = kilobytes("VmRSS")
_, params, _ = hf.load(sys.argv[1])
peak = kilobytes("VmHWM")
print(peak - before, sum(x.nbytes for x in jax.tree.leaves(params)) // 1024)
"""


@pytest.mark.slow
def test_loading_holds_the_weights_and_parts_of_a_tensor(tmp_path):
    config = dataclasses.replace(
        CONFIG, num_layers=12, pattern=6, vocab_size=160_000, embed_dim=256, hidden_dim=2048
    )
    hugging_face.save(tmp_path / "out", config, random_params(config, jnp.bfloat16))
    program = [sys.executable, "-c", MEASURE, str(tmp_path / "out")]
    out = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    peak, weights = (int(word) for word in out.split())
    assert weights > 200_000  # kB: else the interpreter's own would hide it.
    assert peak < weights + 150_000  # The table alone has 164_000.

"""Tests of core/weights.py."""

import json
import pathlib
import struct
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.core import files, trees, weights


def params() -> dict[str, dict[str, jax.Array]]:
    return {
        "mlp/~/linear_0": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)},
        "head": {"w": jnp.arange(6.0).reshape(3, 2).T},  # Not contiguous once NumPy.
    }


def test_round_trip_by_name(tmp_path: pathlib.Path):
    path = tmp_path / "params.safetensors"
    weights.export_params(path, params())
    flat = safetensors_numpy.load_file(path)
    assert set(flat) == {"mlp/~/linear_0/w", "mlp/~/linear_0/b", "head/w"}
    np.testing.assert_array_equal(flat["head/w"], [[0, 2, 4], [1, 3, 5]])
    got = weights.import_params(path, jax.eval_shape(params))
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, params())
    jax.tree.map(np.testing.assert_array_equal, got, params())


def test_views_are_written_as_they_look(tmp_path: pathlib.Path):
    path, array = tmp_path / "x", np.arange(6).reshape(2, 3)
    for view in (array.T, array[:, ::2], array[::-1]):
        weights.export_params(path, {"x": view})
        np.testing.assert_array_equal(weights.import_params(path, {"x": view})["x"], view)


def test_a_mismatch_names_the_leaf(tmp_path: pathlib.Path):
    path = tmp_path / "params.safetensors"
    weights.export_params(path, params())
    like = jax.eval_shape(params)
    like["head"]["w"] = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    with pytest.raises(ValueError, match=r"'head/w' of .* float32\[2, 3\], expected .*\[2, 4\]"):
        weights.import_params(path, like)


def write(path: pathlib.Path, header: str, data: bytes = b"", size: int | None = None):
    length = len(header) if size is None else size
    path.write_bytes(struct.pack("<Q", length) + header.encode() + data)


def entry(dtype: str, shape: list[int], end: int, begin: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry("F32", [2**40], 2**42)}, "not fully covered"),
        ({"a": entry("F32", [2**63, 2**63], 8)}, "overflow"),
        ({"a": entry("F32", [3], 8)}, "cannot be read"),
        ({"a": entry("F32", [2], 8), "b": entry("F32", [2], 8)}, "invalid offset"),
        ({"a": entry("F32", [2], 8, begin=4)}, "cannot be read"),
        ({"a": entry("F32", [-2], 8)}, "cannot be read"),
        ({"a": entry("F99", [2], 8)}, "cannot be read"),
        ({"a": entry("F32", [2], 8), "b": entry("F32", [0, 2**62], 8, begin=8)}, r"b\.shape must"),
        ({"a\n": entry("F32", [2], 8)}, r"must be printable, got 'a\\n'"),
        ([], "cannot be read"),
        ('{"a": %s, "a": %s}' % ((json.dumps(entry("F32", [2], 8)),) * 2), '"a" stands twice'),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_what_a_header_claims_is_held_against_the_file(header, message, tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    write(path, header if isinstance(header, str) else json.dumps(header), bytes(8))
    with pytest.raises(files.CorruptError, match=message) as caught:
        weights.read(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


def test_lengths_of_headers(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    for size in (2**63, 2**40, 10, 0):
        write(path, "{}", size=size)
        with pytest.raises(files.CorruptError, match="cannot be read as safetensors"):
            weights.read(path)
    path.write_bytes(b"")
    with pytest.raises(files.CorruptError, match="cannot be read as safetensors"):
        weights.read(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(files.CorruptError, match="git lfs pull"):
        weights.read(path)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "bool", "int8", "uint64"])
def test_tensors_are_as_they_were_written(dtype: str, tmp_path: pathlib.Path):
    path, array = tmp_path / "x.safetensors", np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    safetensors_numpy.save_file({"a": array, "none": np.zeros((0, 3), array.dtype)}, path)
    tensors = weights.read(path)
    assert tensors["a"].array.dtype == array.dtype and tensors["none"].array.shape == (0, 3)
    np.testing.assert_array_equal(tensors["a"].array, array)
    np.testing.assert_array_equal(tensors["a"].of_rows(1).array, array[:1])


def test_types_that_numpy_lacks_are_bytes(tmp_path: pathlib.Path):
    path = tmp_path / "x.safetensors"
    write(path, json.dumps({"a": entry("F4", [4], 2), "b": entry("F8_E4M3", [6], 8, 2)}), bytes(8))
    tensors = weights.read(path)
    assert [str(tensors[name]) for name in "ab"] == ["F4[4]", "F8_E4M3[6]"]
    assert [tensors[name].data.nbytes for name in "ab"] == [2, 6]
    with pytest.raises(ValueError, match="'a'"):
        weights.import_params(path, {"a": np.zeros(4), "b": np.zeros(6)})


def test_what_is_no_safetensors_is_refused(tmp_path: pathlib.Path):
    path = tmp_path / "params.safetensors"
    path.write_bytes(b"\x00" * 3)
    with pytest.raises(files.CorruptError, match=r"params\.safetensors"):
        weights.import_params(path, params())


def test_ready_parameters_are_the_file_and_may_be_written_to(tmp_path: pathlib.Path):
    path = tmp_path / "params.safetensors"
    weights.write_ready(path, jax.eval_shape(params), trees.named_leaves(params()).__getitem__)
    assert set(safetensors_numpy.load_file(path)) == set(trees.named_leaves(params()))
    sound = path.read_bytes()
    got = weights.ready_params(path, jax.eval_shape(params))
    jax.tree.map(np.testing.assert_array_equal, got, params())
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, params())
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The memory of a file may be refused as a gift.
        stepped = step(got)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y + 1), stepped, params())
    assert path.read_bytes() == sound
    jax.tree.map(
        np.testing.assert_array_equal, weights.ready_params(path, jax.eval_shape(params)), params()
    )
    path.write_bytes(sound[:-1])
    with pytest.raises(files.CorruptError, match=r"params\.safetensors cannot be read"):
        weights.ready_params(path, jax.eval_shape(params))

"""Tests of core/weights.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.core import files, weights


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


def test_what_is_no_safetensors_is_refused(tmp_path: pathlib.Path):
    path = tmp_path / "params.safetensors"
    path.write_bytes(b"\x00" * 3)
    with pytest.raises(files.CorruptError, match=r"params\.safetensors"):
        weights.import_params(path, params())

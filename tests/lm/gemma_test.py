"""Tests of lm/gemma.py."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import gemma
from tests.states import fresh_params

# Two periods and a layer more, each program small: local, global, local, global, local.
SMALL = dataclasses.replace(
    gemma.PRESETS["tiny"], num_layers=5, pattern=2, embed_dim=16, hidden_dim=24, window=4
)
# Of the specification: embedding and other parameters, local and global layers.
PUBLISHED = {
    "gemma3-270m": (167_772_160, 100_326_016, 15, 3),
    "gemma3-1b": (301_989_888, 697_896_064, 22, 4),
    "gemma3-4b": (671_252_480, 3_209_010_688, 29, 5),
    "gemma3-12b": (1_006_878_720, 10_759_155_456, 40, 8),
    "gemma3-27b": (1_409_630_208, 25_599_716_096, 52, 10),
}


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def model_of(config: gemma.Config) -> gemma.Model:
    """Returns the model with compiled functions."""
    model = gemma.make(config)
    return model._replace(
        features=jax.jit(model.features), apply=jax.jit(model.apply), decode=jax.jit(model.decode)
    )


@functools.cache
def params_of(config: gemma.Config):
    """Returns random parameters, including the scales of the norms."""
    leaves, tree = jax.tree.flatten(fresh_params(gemma.make(config).init))
    random = np.random.default_rng(1)
    leaves = [x + 0.2 * random.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, leaves)


def random_tokens(batch: int, length: int, config: gemma.Config = SMALL) -> np.ndarray:
    shape = batch, length
    return np.random.default_rng(2).integers(0, config.vocab_size, shape).astype(np.int32)


def oracle(config: gemma.Config, params, tokens: np.ndarray) -> np.ndarray:
    """Computes logits [T, V] of one row [T] by the definition, one head and one query at a time."""
    params = jax.tree.map(np.float64, params)
    h, group = config.head_dim, config.num_heads // config.num_kv_heads

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.rms_epsilon) * (1 + scale)

    def turn(x, is_global):
        theta = config.global_rope_theta if is_global else config.local_rope_theta
        factor = config.global_rope_factor if is_global else 1
        out = np.empty_like(x)
        for t in range(x.shape[0]):
            for j in range(h // 2):
                angle = t / factor * theta ** (-2 * j / h)
                # As a complex number: (x_j + i x_{j + H/2}) exp(i angle).
                z = (x[t, j] + 1j * x[t, j + h // 2]) * np.exp(1j * angle)
                out[t, j], out[t, j + h // 2] = z.real, z.imag
        return out

    def layer(x, p, is_global):
        a, y = p["attention"], norm(x, p["attention"]["pre_norm"])
        out = np.zeros((len(x), config.num_heads * h))
        for n in range(config.num_heads):
            head, shared = slice(n * h, n * h + h), slice(n // group * h, n // group * h + h)
            q = turn(norm(y @ a["query"][:, head], a["query_norm"]), is_global)
            k = turn(norm(y @ a["key"][:, shared], a["key_norm"]), is_global)
            v = y @ a["value"][:, shared]
            for t in range(len(x)):
                seen = slice(0 if is_global else max(0, t - config.window + 1), t + 1)
                weights = np.exp(q[t] @ k[seen].T / math.sqrt(config.query_scale))
                out[t, head] = weights / weights.sum() @ v[seen]
        x = x + norm(out @ a["output"], a["post_norm"])
        f, y = p["feed_forward"], norm(x, p["feed_forward"]["pre_norm"])
        z = y @ f["gate"]
        gelu = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return x + norm((gelu * (y @ f["up"])) @ f["down"], f["post_norm"])

    x = params["embedding"][tokens] * math.sqrt(config.embed_dim)
    for i in range(config.num_layers):
        period, place = divmod(i, config.pattern)
        if period < config.num_layers // config.pattern:
            stacked = params["periods"][f"layer_{place}"]
        else:
            stacked, period = params["remainder"][f"layer_{place}"], 0
        p = jax.tree.map(lambda leaf, period=period: leaf[period], stacked)
        x = layer(x, p, (i + 1) % config.pattern == 0)
    return norm(x, params["final_norm"]) @ params["embedding"].T


@pytest.mark.parametrize(
    ("depth", "pattern"),
    [
        (5, 2),
        *(pytest.param(n, 3, marks=pytest.mark.slow) for n in (2, 3)),
        *(pytest.param(n, 6, marks=pytest.mark.slow) for n in (1, 5, 6, 8, 26)),
    ],
)
def test_oracle_at_depths_on_and_off_the_pattern(depth, pattern):
    config = dataclasses.replace(
        SMALL, num_layers=depth, pattern=pattern, global_rope_factor=8.0, global_rope_theta=100.0
    )
    tokens = random_tokens(1, 9)
    got = model_of(config).apply(params_of(config), tokens)[0]
    np.testing.assert_allclose(got, oracle(config, params_of(config), tokens[0]), atol=2e-4)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_presets_have_the_published_sizes(name):
    embedding, other, num_local, num_global = PUBLISHED[name]
    config = gemma.PRESETS[name]
    assert gemma.num_params(config) == (embedding, other)
    assert gemma.num_params(config).total == embedding + other
    kinds = [config.is_global(i) for i in range(config.num_layers)]
    assert (kinds.count(False), kinds.count(True)) == (num_local, num_global)


@pytest.mark.parametrize("name", list(gemma.PRESETS))
def test_parameters_are_counted_as_they_are_drawn(name: str):
    config = gemma.PRESETS[name]
    shapes = jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    assert gemma.num_params(config).total == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_program_does_not_grow_with_depth():
    def sizes(function, *args):
        for depth in (4, 8, 16):
            config = dataclasses.replace(SMALL, num_layers=depth)
            model = gemma.make(config)
            params = jax.eval_shape(model.init, jax.random.key(0))
            yield len(jax.jit(function(model)).lower(params, *args, *cache(model)).as_text())

    cached = False

    def cache(model):
        return [model.init_cache(2, 16, np.full(2, 3), 3)] if cached else []

    full = list(sizes(lambda model: model.apply, random_tokens(2, 8)))
    assert max(full) < 1.1 * min(full)
    cached = True
    decode = list(sizes(lambda model: model.decode, random_tokens(2, 1)))
    assert max(decode) < 1.1 * min(decode)


@pytest.mark.parametrize(
    "chunks",
    [
        [6, 6],
        *(
            pytest.param(chunks, marks=pytest.mark.slow)
            for chunks in ([1] * 12, [12], [3, 9], [5, 1, 6])
        ),
    ],
)
def test_cached_decoding_is_the_full_pass(chunks):
    # Rows shorter than the window, of its length and longer, beside one another.
    w, steps = SMALL.window, 6
    lengths = np.array([1, w - 1, w, w + 1, 3 * w])
    prompt_length = 3 * w
    assert sum(chunks) == prompt_length
    model, params = model_of(SMALL), params_of(SMALL)
    tokens = random_tokens(5, prompt_length + steps)
    cache = model.init_cache(5, prompt_length + steps, lengths, prompt_length)
    got, at = [], 0
    for size in chunks + [1] * steps:
        features, cache = model.decode(params, tokens[:, at : at + size], cache)
        got.append(features)
        at += size
    got = np.concatenate(got, 1)
    assert cache.slot == at
    for row, length in enumerate(lengths):
        start = prompt_length - length
        # Each alone, padded on the right so that all have one shape.
        alone = np.pad(tokens[row, start:], (0, start))[None]
        expected = model.features(params, alone)[0, : length + steps]
        np.testing.assert_allclose(got[row, start:], expected, atol=2e-5)


def test_what_padding_holds_does_not_matter():
    model, params = model_of(SMALL), params_of(SMALL)
    tokens = random_tokens(5, 12)
    others = tokens.copy()
    others[:, :9] = 5
    last = []
    for x in (tokens, others):
        _, cache = model.decode(params, x[:, :6], model.init_cache(5, 18, np.full(5, 3), 12))
        last.append(model.decode(params, x[:, 6:], cache)[0][:, 3:])
    np.testing.assert_array_equal(*last)


def test_a_local_layer_sees_exactly_the_window():
    config = dataclasses.replace(SMALL, num_layers=1, pattern=6)
    model, params = model_of(config), params_of(config)
    tokens = random_tokens(1, 9)
    last = model.features(params, tokens)[0, -1]
    for back, seen in ((config.window - 1, True), (config.window, False)):
        other = tokens.copy()
        other[0, -1 - back] += 1 - 2 * (other[0, -1 - back] > 0)
        changed = bool(jnp.any(model.features(params, other)[0, -1] != last))
        assert changed == seen


def test_packed_texts_are_those_of_rows_of_their_own():
    model, params = model_of(SMALL), params_of(SMALL)
    tokens = random_tokens(2, 9)
    packed = np.concatenate([tokens[0], tokens[1, :7]])[None]
    segments = np.repeat([0, 1], [9, 7])[None]
    positions = np.concatenate([np.arange(9), np.arange(7)])[None]
    got = model.features(params, packed, positions, segments)[0]
    expected = model.features(params, tokens)
    np.testing.assert_allclose(got[:9], expected[0], atol=2e-5)
    np.testing.assert_allclose(got[9:], expected[1, :7], atol=2e-5)
    assert np.abs(model.features(params, packed, positions)[0, 9:] - got[9:]).max() > 1e-2


@pytest.mark.slow
def test_positions_matter_by_their_differences_alone():
    model, params = model_of(SMALL), params_of(SMALL)
    tokens = random_tokens(2, 9)
    positions = np.tile(np.arange(9), (2, 1))
    expected = model.features(params, tokens)
    got = model.features(params, tokens, positions + 7)
    np.testing.assert_allclose(got, expected, atol=5e-5)
    assert np.abs(model.features(params, tokens, 2 * positions) - expected).max() > 1e-2


@pytest.mark.slow
def test_the_factor_of_rope_divides_positions_of_global_layers():
    config = dataclasses.replace(SMALL, num_layers=1, pattern=1)
    scaled = dataclasses.replace(config, global_rope_factor=8.0)
    params, tokens = params_of(config), random_tokens(1, 9)
    positions = np.arange(9)[None]
    got = model_of(scaled).features(params, tokens, 8 * positions)
    np.testing.assert_allclose(got, model_of(config).features(params, tokens, positions), atol=2e-5)
    local = dataclasses.replace(SMALL, num_layers=1)
    scaled = dataclasses.replace(local, global_rope_factor=8.0)
    got = model_of(scaled).features(params_of(local), tokens)
    np.testing.assert_array_equal(got, model_of(local).features(params_of(local), tokens))


@pytest.mark.slow
def test_grouped_queries_are_heads_that_share_keys():
    config = dataclasses.replace(SMALL, num_layers=2)
    every = dataclasses.replace(config, num_kv_heads=config.num_heads)
    params, tokens = params_of(config), random_tokens(2, 9)
    repeats = config.num_heads // config.num_kv_heads

    def repeat(path, leaf):
        if path[-1].key not in ("key", "value"):
            return leaf
        heads = leaf.reshape(*leaf.shape[:2], config.num_kv_heads, config.head_dim)
        return np.repeat(heads, repeats, 2).reshape(*leaf.shape[:2], -1)  # n // (N / K).

    wide = jax.tree_util.tree_map_with_path(repeat, params)
    got = model_of(every).features(wide, tokens)
    np.testing.assert_allclose(got, model_of(config).features(params, tokens), atol=2e-5)


@pytest.mark.slow
def test_norms_of_queries_and_keys_undo_a_scale_of_their_weights():
    config = dataclasses.replace(SMALL, num_layers=2, rms_epsilon=1e-30)
    params, tokens = params_of(config), random_tokens(1, 9)

    def scale(path, leaf):
        return leaf * {"query": 3.0, "key": 0.2}.get(path[-1].key, 1.0)

    scaled = jax.tree_util.tree_map_with_path(scale, params)
    got = model_of(config).features(scaled, tokens)
    np.testing.assert_allclose(got, model_of(config).features(params, tokens), atol=2e-5)


def test_bfloat16_is_near():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    params, tokens = params_of(SMALL), random_tokens(2, 9)
    features = model_of(half).features(params, tokens)
    assert features.dtype == jnp.bfloat16
    got = gemma.make(half).unembed(params, features)
    assert got.dtype == jnp.float32
    whole = model_of(SMALL).features(params, tokens)
    expected = np.asarray(gemma.make(SMALL).unembed(params, whole))
    assert np.abs(got - expected).mean() < 0.03 * np.abs(expected).mean()


@pytest.mark.slow
def test_the_scale_of_embeddings_is_rounded_as_published():
    # sqrt(640) = 25.298 is 25.25 in bfloat16; 1.25 times that is 31.5 and not 31.625.
    config = dataclasses.replace(SMALL, num_layers=1, embed_dim=640, dtype="bfloat16")
    small = 2.0**-10
    params = jax.tree.map(jnp.zeros_like, params_of(config))
    params["embedding"] = jnp.zeros((config.vocab_size, 640)).at[:, 0].set(1.25 * small)
    params["final_norm"] = jnp.zeros(640)
    with_epsilon = dataclasses.replace(config, rms_epsilon=1.0)  # The norm is then nearly linear.
    got = gemma.make(with_epsilon).features(params, np.zeros((1, 1), np.int32))[0, 0, 0]
    expected = 31.5 * small / math.sqrt((31.5 * small) ** 2 / 640 + 1)
    assert got == jnp.asarray(expected, jnp.bfloat16)


def test_the_cache_has_the_bytes_of_the_formula():
    for max_length in (3, 4, 20):
        cache = gemma.make(SMALL).init_cache(3, max_length, np.ones(3), 2)
        leaves = jax.tree.leaves((cache.keys, cache.values))
        bytes_ = gemma.cache_bytes(SMALL, 3, max_length, 4)
        assert sum(leaf.nbytes for leaf in leaves) == bytes_
    # 3 rows of 4 bytes, keys and values of 2 heads of 8, 2 global layers and 3 local ones of 3.
    assert gemma.cache_bytes(SMALL, 3, 3, 4) == 3 * 4 * 2 * 2 * 8 * (2 * 3 + 3 * 3)
    # Published: 72,876,032 numbers at 32,768 tokens of the 1B model, of which 4 layers global.
    assert gemma.cache_bytes(gemma.PRESETS["gemma3-1b"], 1, 32_768, 1) == 72_876_032
    assert gemma.cache_bytes(gemma.PRESETS["gemma3-27b"], 1, 131_072, 2) == 2 * 5_586_812_928


@pytest.mark.slow
def test_models_side_by_side_are_each_by_itself():
    config = dataclasses.replace(SMALL, num_layers=1)
    model, params = gemma.make(config), params_of(config)
    tokens = random_tokens(2, 9)
    expected = model_of(config).apply(params, tokens)
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    got = jax.jit(jax.vmap(model.apply, (0, None)))(both, tokens)
    np.testing.assert_allclose(got[0], expected, atol=2e-5)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient():
    params, tokens = params_of(SMALL), random_tokens(1, 6)

    def gradient(remat: bool):
        model = gemma.make(dataclasses.replace(SMALL, remat=remat))
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, tokens)))))(params)

    plain, again = gradient(False), gradient(True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), plain, again)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(plain))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"window": 0}, r"window must lie in \[1, 2147483647\], got 0"),
        ({"window": 2**31}, "window must lie in"),
        ({"num_layers": 10**12}, r"num_layers must lie in \[1, 1024\], got 1000000000000"),
        ({"vocab_size": 2**32 - 2}, "vocab_size must lie in"),
        ({"embed_dim": 10**9}, "embed_dim must lie in"),
        ({"num_layers": 1023, "pattern": 1024}, "pattern must leave at most 128 layers"),
        ({"num_layers": 1023, "pattern": 200}, "which leaves 223"),
        ({"global_rope_theta": float("inf")}, "global_rope_theta must be > 0 and at most"),
        ({"eos_ids": ()}, "eos_ids must name"),
        ({"eos_ids": (1, 128)}, r"must lie in \[0, 128\), got 128"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"rms_epsilon": float("nan")}, "rms_epsilon must be > 0"),
        (
            {"rms_epsilon": 2**63 - 1},
            "rms_epsilon must be > 0 and at most 1.0, got 9223372036854775807",
        ),
        ({"query_scale": 10**30}, "query_scale must be > 0 and at most 2,147,483,647, got 10{30}"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("num_layers, window", [(2, 2), (1, 8)])
def test_a_token_beyond_the_cache_is_no_number(num_layers: int, window: int):
    """With a global layer, or with rings shorter than the window."""
    model = gemma.make(dataclasses.replace(SMALL, num_layers=num_layers, window=window))
    params, decode = params_of(model.config), jax.jit(model.decode)
    cache = model.init_cache(1, 3, np.ones(1), 1)
    is_number = []
    for _ in range(4):
        features, cache = decode(params, np.zeros((1, 1), np.int32), cache)
        is_number.append(bool(np.all(np.isfinite(features))))
    assert is_number == [True, True, True, False]


def test_a_ring_of_a_whole_window_never_ends():
    model = gemma.make(dataclasses.replace(SMALL, num_layers=1, window=2))
    params, decode = params_of(model.config), jax.jit(model.decode)
    cache = model.init_cache(1, 3, np.ones(1), 1)
    for _ in range(5):
        features, cache = decode(params, np.zeros((1, 1), np.int32), cache)
        assert np.all(np.isfinite(features))


def test_caches_that_make_no_sense_are_refused():
    model = gemma.make(SMALL)
    with pytest.raises(ValueError, match="prompt_length must lie in"):
        model.init_cache(2, 4, np.ones(2), 5)
    with pytest.raises(ValueError, match=r"lengths must be of shape \(2,\)"):
        model.init_cache(2, 4, np.ones(3), 4)
    with pytest.raises(ValueError, match="max_length"):
        model.decode(params_of(SMALL), random_tokens(2, 6), model.init_cache(2, 5, np.ones(2), 3))

"""Tests of lm/lora.py and lm/adapters.py: updates of low rank, and learners of these alone."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import averaging, trees, types
from kullback.lm import (
    adapters,
    batches,
    gemma,
    gkd,
    lora,
    merging,
    optimizers,
    reward_model,
    rlhf,
    sft,
    tuning,
    warm,
    warp,
)
from kullback.lm.data import Example
from tests import states

CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"],
    **dict(vocab_size=24, num_layers=2, pattern=1, embed_dim=16, hidden_dim=12, window=4),
)
IDS = 6, 3
LORA = lora.Config(rank=2, alpha=3.0, train_tokens=IDS)
BASE, MODEL = gemma.make(CONFIG), gemma.make(CONFIG, LORA)
LEARNING = tuning.Config(
    batch_size=4, max_prompt_length=4, max_new_tokens=6, warmup_steps=0, chunk=8, lora=LORA
)
TOKENS = np.random.default_rng(1).integers(3, 24, (2, 9))  # Some of them are IDS.
apply, apply_base = jax.jit(MODEL.apply), jax.jit(BASE.apply)
merge = jax.jit(functools.partial(lora.merged, CONFIG, LORA))


@functools.cache
def base() -> Any:
    return states.fresh_params(BASE.init)


@functools.cache
def frozen() -> Any:
    """Returns the constants: the base, and which rows learn."""
    return trees.joined(base(), lora.row_ids(IDS))


@functools.cache
def drawn() -> Any:
    """Returns adapters as they begin."""
    return jax.jit(MODEL.init)(jax.random.key(1))


@functools.cache
def trained() -> Any:
    """Returns adapters that change the model."""
    random = np.random.default_rng(2)
    return jax.tree.map(lambda x: np.float32(x + 0.3 * random.normal(size=x.shape)), drawn())


@functools.cache
def rows() -> types.Batch:
    rng = np.random.default_rng(0)
    examples = [
        Example(tuple(rng.integers(3, 24, p)), (*rng.integers(3, 24, c), 1))
        for p, c in ((1, 2), (4, 5), (2, 1), (3, 4))
    ]
    return types.Batch.of(batches.pad(examples, 10, 0))


@functools.cache
def learner() -> tuple[types.Learner, types.LearnerState, Callable[..., Any]]:
    """Returns a learner of adapters by Adam, its first state, and its step as a program."""
    learning = dataclasses.replace(LEARNING, micro_batches=2)
    learns = sft.make(BASE, sft.Config(learning=learning)).learner
    return learns, states.begun(learns, drawn()), jax.jit(learns.step)


def loss_of(logits: jax.Array) -> jax.Array:
    """Returns the loss of `rows` from all logits: a mean over texts of means over tokens."""
    batch = rows()
    labels, answers = batch.data.tokens[:, 1:], batch.data.is_answer[:, 1:]
    log_p = jax.nn.log_softmax(logits[:, :-1])
    of_labels = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    return -jnp.mean(jnp.sum(of_labels * answers, 1) / answers.sum(1))


@pytest.mark.slow
def test_at_first_the_model_is_its_base_bit_for_bit():
    joined = trees.joined(frozen(), drawn())
    expected = apply_base(base(), TOKENS)
    np.testing.assert_array_equal(apply(joined, TOKENS), expected)
    changed = np.asarray(apply(trees.joined(frozen(), trained()), TOKENS))
    assert np.abs(changed - expected).max() > 0.1


def test_merged_equals_factored():
    joined = trees.joined(frozen(), trained())
    merged = merge(base(), trees.joined(lora.row_ids(IDS), trained()))
    expected = np.asarray(apply(joined, TOKENS))
    got = apply_base(merged, TOKENS)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    assert jax.tree.structure(merged) == jax.tree.structure(base())
    # Decoding with a cache reads adapters too.
    cache = MODEL.init_cache(2, 9, np.full(2, 9), 9)
    features, _ = jax.jit(MODEL.decode)(joined, TOKENS, cache)
    logits = features @ np.asarray(merged["embedding"]).T
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_product_is_that_of_the_definition():
    """In float64, to 1e-6 of its size; A's and B's of one scale by alpha / sqrt(r) as well."""
    rng, settings = np.random.default_rng(0), lora.Config(rank=4, alpha=5.0, rslora=True)
    x, w, a, b = (rng.normal(size=s) for s in ((7, 6), (6, 5), (6, 4), (4, 5)))
    with jax.enable_x64(True):
        update = hk.without_apply_rng(hk.transform(lambda x: lora.update(x, 5, settings)))
        got = x @ w + update.apply({"~": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}, x)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, x @ (w + 5 / 2 * a @ b), rtol=1e-6)


@pytest.mark.slow
def test_gradients_at_first_are_those_of_the_definition():
    """dB = s A^T x^T g, from the gradient x^T g of the whole matrix; dA = 0 as B = 0."""

    def of_adapters(learnt: Any) -> Any:
        return jnp.sum(jnp.square(MODEL.features(trees.joined(frozen(), learnt), TOKENS)))

    def of_base(params: Any) -> Any:
        return jnp.sum(jnp.square(BASE.features(params, TOKENS)))

    gradient, whole = jax.jit(jax.grad(of_adapters))(drawn()), jax.jit(jax.grad(of_base))(base())
    for name in ("query", "down"):
        path = f"{lora.TARGETS[name]}/{name}"
        layers = (x["periods"]["layer_0"] for x in (drawn(), gradient, whole))
        of_drawn, of_gradient, of_whole = layers
        factors, of_factors = of_drawn[path], of_gradient[path]
        of_matrix = of_whole[lora.TARGETS[name]][name]  # x^T g.
        expected = LORA.scale * np.einsum("pir,pio->pro", factors["a"], of_matrix)
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(of_factors["b"], expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(of_factors["a"], np.zeros_like(factors["a"]))


def test_a_is_drawn_as_peft_draws_it_and_b_is_zero():
    for path, leaf in trees.named_leaves(drawn()).items():
        if path.endswith(("/b", "/update")):
            assert not np.any(leaf)
            continue
        bound = 1 / np.sqrt(leaf.shape[1])
        assert 0.7 * bound < np.abs(leaf).max() <= bound
        assert leaf.shape[2] == LORA.rank


def test_parameters_are_counted_from_shapes():
    assert lora.num_params(CONFIG, LORA) == sum(x.size for x in jax.tree.leaves(drawn()))
    some = dataclasses.replace(LORA, targets=("value", "down"), train_tokens=())
    few = jax.eval_shape(gemma.make(CONFIG, some).init, jax.random.key(0))
    assert lora.num_params(CONFIG, some) == sum(x.size for x in jax.tree.leaves(few))
    # 501,760 a layer, 26 layers: counted by hand from the published widths.
    assert lora.num_params(gemma.PRESETS["gemma3-1b"], lora.Config(rank=16)) == 13_045_760


@pytest.mark.slow
def test_only_adapters_are_learnt():
    learns, first, step = learner()
    constants = types.Constants(base=frozen())
    shapes = jax.eval_shape(learns.init, jax.random.key(3))
    assert jax.tree.structure(shapes.params) == jax.tree.structure(drawn())
    state, losses = first, []
    for _ in range(3):
        state, feedback = step(state, rows(), constants)
        losses.append(float(feedback.metrics["loss"]))
    assert losses[2] < losses[0]
    # Step 0 is the base's.
    of_base = jax.jit(loss_of)(apply_base(base(), rows().data.tokens))
    np.testing.assert_allclose(losses[0], of_base, rtol=1e-6)
    assert all(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(*map(jax.tree.leaves, (first.params, state.params)), strict=True)
    )
    moments = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in moments) < 2.1 * lora.num_params(CONFIG, LORA)
    agent = sft.make(BASE, sft.Config(learning=LEARNING))
    acting = agent.actor_params(state, np.asarray(3), True, constants)["params"]
    assert acting["embedding"] is base()["embedding"]


def test_the_gradient_is_that_of_whole_parameters():
    """Whatever the head does without its gradient: by autodiff through all logits."""

    def loss(learnt: Any) -> Any:
        return loss_of(MODEL.apply(trees.joined(frozen(), learnt), rows().data.tokens))

    gradient = jax.jit(jax.grad(loss))(trained())
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    _, first, step = learner()
    after, _ = step(first._replace(params=trained()), rows(), types.Constants(base=frozen()))
    # The first moment of Adam after one step, of which 0.9 is kept.
    moment = optax.tree_utils.tree_get(after.opt_state, "mu")
    for m, g in zip(*map(jax.tree.leaves, (moment, gradient)), strict=True):
        expected = 0.1 * np.asarray(g) / max(norm, 1.0)
        np.testing.assert_allclose(m, expected, rtol=1e-3, atol=2e-6)


@pytest.mark.slow
def test_rows_that_learn_are_read_and_written_and_all_others_are_the_bases():
    """The head's row of a token is the row that reads it, and gradients are those of whole rows."""

    constants = frozen()

    def of_rows(learnt: Any) -> Any:
        return jnp.sum(jnp.sin(MODEL.apply(trees.joined(constants, learnt), TOKENS)))

    def of_base(params: Any) -> Any:
        return jnp.sum(jnp.sin(BASE.apply(params, TOKENS)))

    assert set(IDS) <= set(TOKENS.reshape(-1))
    got = jax.jit(jax.grad(of_rows))(drawn())[lora.ROWS]["update"]
    whole = np.asarray(jax.jit(jax.grad(of_base))(base())["embedding"])
    np.testing.assert_allclose(got, LORA.scale * whole[np.asarray(IDS)], rtol=1e-3, atol=1e-4)
    assert np.abs(whole[np.asarray(IDS)]).max() > 0.1
    of_adapters = trees.joined(lora.row_ids(IDS), trained())
    table, old = (np.asarray(x["embedding"]) for x in (merge(base(), of_adapters), base()))
    changed = np.any(table != old, 1)
    assert sorted(IDS) == list(np.flatnonzero(changed))
    update = LORA.scale * trained()[lora.ROWS]["update"]
    np.testing.assert_allclose((table - old)[np.asarray(IDS)], update, atol=1e-6)


@pytest.mark.slow
def test_dropout_is_of_the_adapters_inputs_alone():
    """Its mean over many keys is the update without it, row by row, and the base is left whole."""
    settings = dataclasses.replace(LORA, dropout=0.5)
    x, keys = jnp.ones((2, 3, 5)), jax.random.split(jax.random.key(0), (400, 2))

    @functools.partial(jax.jit, static_argnums=1)
    def drop(keys: jax.Array, name: str) -> jax.Array:
        return jax.vmap(lambda k: lora.dropped(x, k, name, settings))(keys)

    dropped = np.asarray(drop(keys, "query"))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    np.testing.assert_allclose(np.mean(dropped, 0), x, atol=0.2)
    other = np.asarray(drop(keys, "down"))[0]
    assert np.any(other != dropped[0]) and np.any(dropped[0, 0] != dropped[0, 1])
    learning = dataclasses.replace(LEARNING, lora=settings)
    agent, constants = sft.make(BASE, sft.Config(learning=learning)), types.Constants(base=frozen())
    state = learner()[1]

    @jax.jit  # Without what it learns, which takes longest to compile.
    def loss(params: Any, steps: jax.Array) -> jax.Array:
        before = state._replace(params=params, steps=steps)
        return agent.learner.step(before, rows(), constants)[1].metrics["loss"]

    losses = [float(loss(of, np.int32(n))) for of in (drawn(), trained()) for n in (0, 1)]
    assert losses[0] == losses[1] and losses[2] != losses[3]
    for make in (
        lambda: gkd.Config(learning=learning, student_fraction=0.5),
        lambda: rlhf.Config(learning=learning, samples_per_prompt=2),
    ):
        with pytest.raises(ValueError, match=r"lora.dropout=0.5 is of stored texts"):
            make()
    gkd.Config(learning=learning, student_fraction=0.0)


def test_padding_rows_of_the_embedding_stay_padding():
    padded = adapters.adapted(BASE._replace(num_ids=20), LORA)
    assert padded.num_ids == 20
    assert adapters.adapted(BASE, lora.Config()) is BASE


def test_both_factors_decay():
    assert all(jax.tree.leaves(optimizers.decays(drawn())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank must be >= 0"),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"targets": ()}, "got none"),
        ({"targets": ("query", "query")}, "each once"),
        ({"targets": ("embedding",)}, "some of query, key"),
        ({"train_tokens": ("<eos>", 7)}, r"train_tokens=<eos>,7 .* set lora.rank"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        lora.Config(**settings)


SHARED = lora.Config(rank=3, alpha=6.0, shared_a=True, train_tokens=IDS)


@functools.cache
def one_a() -> Any:
    factors = jax.jit(functools.partial(lora.shared_factors, CONFIG, SHARED))(jax.random.key(5))
    return jax.tree.map(np.asarray, factors)


@functools.cache
def shared() -> Any:
    return trees.joined(one_a(), lora.row_ids(IDS))


def test_one_a_has_orthonormal_columns_and_b_alone_is_learnt():
    for leaf in jax.tree.leaves(one_a()):
        products = np.einsum("pir,pis->prs", leaf, leaf)
        np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-6)
    learnt = jax.eval_shape(gemma.make(CONFIG, SHARED).init, jax.random.key(0))
    assert {path.rpartition("/")[2] for path in trees.named_leaves(learnt)} == {"b", "update"}
    assert lora.num_params(CONFIG, SHARED) == sum(x.size for x in jax.tree.leaves(learnt))
    with pytest.raises(ValueError, match="no orthonormal columns of 12 inputs"):
        lora.shared_factors(CONFIG, dataclasses.replace(SHARED, rank=13), jax.random.key(0))


merge_shared = jax.jit(functools.partial(lora.merged, CONFIG, SHARED))


@pytest.mark.parametrize("group", ["layer", "all"])
def test_averages_of_b_are_averages_of_models(group: str):
    """Of two policies tuned from one base: their mean, moving average, slerp and its LITI."""
    rng, start = np.random.default_rng(0), jax.tree.map(np.zeros_like, only_b())
    one, other = (jax.tree.map(lambda x: rng.normal(size=x.shape), start) for _ in range(2))

    def model(b: Any) -> Any:
        return jax.tree.map(np.asarray, merge_shared(base(), trees.joined(shared(), b)))

    group_of = merging.gemma_groups(group)
    pairs = {
        "mean": lambda a, b, _: averaging.mean([a, b], [1, 2]),
        "ema": lambda a, b, _: averaging.ema(a, b, 0.1),
        "slerp": lambda a, b, c: averaging.slerp([a, b], c, t=0.4, group_of=group_of),
        "liti": lambda a, _, c: averaging.liti(c, a, 0.3),
    }
    for average in pairs.values():
        got, expected = model(average(one, other, start)), average(*map(model, (one, other, start)))
        for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


@functools.cache
def only_b() -> Any:
    return jax.tree.map(
        lambda x: np.zeros(x.shape),
        jax.eval_shape(gemma.make(CONFIG, SHARED).init, jax.random.key(0)),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda learning: rlhf.Config(reference="moving-average", learning=learning),
        lambda learning: warp.Config(member=rlhf.Config(learning=learning)),
        lambda learning: warm.Config(reward=reward_model.Config(learning=learning)),
    ],
)
def test_what_averages_needs_one_a(make: Any):
    learning = tuning.Config(learning_rate=4e-5, lora=lora.Config(rank=2))
    with pytest.raises(ValueError, match=r"lora\.shared_a=true"):
        make(learning)
    make(dataclasses.replace(learning, lora=SHARED))

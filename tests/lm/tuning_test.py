"""Tests of lm/tuning.py, lm/sft.py and lm/gkd.py: the learners of language models."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kullback.core import regularizers, types
from kullback.lm import batches, chunked, gemma, gkd, layers, quantisation, sft, tuning
from kullback.lm.data import Example
from tests.states import begun, fresh_params

SIZE = 4  # Rows of a batch.
CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], vocab_size=24, num_layers=1, embed_dim=16, hidden_dim=16, window=4
)
MODEL = gemma.make(CONFIG)
LEARNING = tuning.Config(
    batch_size=SIZE, max_prompt_length=4, max_new_tokens=6, warmup_steps=0, chunk=8
)


@functools.cache
def rows(pack: bool = False) -> types.Batch:
    """Returns examples of unequal lengths, one a row, or the same ones packed in two rows."""
    rng = np.random.default_rng(0)
    examples = [
        Example(tuple(rng.integers(3, 24, p)), (*rng.integers(3, 24, c), 1))
        for p, c in ((1, 2), (4, 5), (2, 1), (3, 4))
    ]
    if pack:
        data = batches.pack([examples[:2], examples[2:]], 16, 0)
    else:
        data = batches.pad(examples, 10, 0)
    ones = np.ones(len(data.tokens), np.float32)
    return types.Batch(data, np.arange(len(ones), dtype=np.int32), ones / len(ones), ones)


@functools.cache
def params(seed: int) -> Any:
    return fresh_params(MODEL.init, seed)


@functools.cache
def sft_of(learning: tuning.Config) -> types.Agent:
    return sft.make(MODEL, sft.Config(learning=learning))


@functools.cache
def program(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the compiled step of a learner, which tests of one agent share."""
    return jax.jit(step)


def step(agent: types.Agent, batch: types.Batch, teacher: Any = None, seed: int = 0) -> Any:
    """Returns state and feedback of one learner step from `params(seed)`."""
    state = begun(agent.learner, params(seed))
    return program(agent.learner.step)(state, batch, types.Constants(teacher=teacher))


def close(a: Any, b: Any, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_sft_is_cross_entropy_of_the_answers():
    """Oracle: the definition, a token at a time, in float64."""
    batch = rows()
    logits = np.asarray(jax.jit(MODEL.apply)(params(0), batch.data.tokens), np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
    means, right, lengths = [], [], []
    for b in range(SIZE):
        at = np.flatnonzero(batch.data.is_answer[b])
        tokens = batch.data.tokens[b, at]
        means.append(
            np.mean([-log_p[b, t - 1, token] for t, token in zip(at, tokens, strict=True)])
        )
        right.append(np.mean(logits[b, at - 1].argmax(-1) == tokens))
        lengths.append(len(at))
    _, feedback = step(sft_of(LEARNING), batch)
    metrics = feedback.metrics
    np.testing.assert_allclose(metrics["loss"], np.mean(means), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], right, atol=1e-6)
    np.testing.assert_array_equal(metrics["answer_tokens"], lengths)
    np.testing.assert_array_equal(metrics["truncated"], np.zeros(SIZE))


@pytest.mark.slow
def test_bfloat16_computes_and_float32_learns():
    """Parameters, their updates and the loss are float32; the products in between are not."""
    half = gemma.make(dataclasses.replace(CONFIG, dtype="bfloat16", remat=True))
    assert half.features(params(0), rows().data.tokens).dtype == jnp.bfloat16
    whole_state, whole = step(sft.make(MODEL, sft.Config(learning=LEARNING)), rows())
    state, feedback = step(sft.make(half, sft.Config(learning=LEARNING)), rows())
    for leaf in jax.tree.leaves((state.params, feedback.metrics["loss"])):
        assert leaf.dtype == jnp.float32
    loss = float(feedback.metrics["loss"])
    assert loss != float(whole.metrics["loss"])
    np.testing.assert_allclose(loss, whole.metrics["loss"], rtol=2e-2)
    first_moments = [s.opt_state[1][0].mu for s in (whole_state, state)]  # 0.1 x the gradients.
    exact, rounded = (
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(m)]) for m in first_moments
    )
    cosine = exact @ rounded / jnp.linalg.norm(exact) / jnp.linalg.norm(rounded)
    assert float(cosine) > 0.999


def test_a_row_without_its_end_counts_as_truncated():
    batch = rows()
    data = batch.data._replace(tokens=np.where(batch.data.tokens == 1, 5, batch.data.tokens))
    _, feedback = step(sft_of(LEARNING), batch._replace(data=data))
    np.testing.assert_array_equal(feedback.metrics["truncated"], np.ones(SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sequence", pytest.param("token", marks=pytest.mark.slow)])
def test_micro_batches_add_up_to_the_batch(reduction):
    ends = []
    for count in (1, 4):
        learning = dataclasses.replace(LEARNING, micro_batches=count, reduction=reduction)
        state, feedback = step(sft_of(learning), rows())
        ends.append((state.params, feedback.metrics))
    for end in ends[1:]:
        # Adam divides by the size of a gradient, so that the sign of a tiny one is all.
        close(end[1], ends[0][1], 1e-6)
        close(end[0], ends[0][0], 1e-4)


@pytest.mark.slow
def test_packed_rows_learn_what_unpacked_ones_do():
    learning = dataclasses.replace(LEARNING, reduction="token")
    packed = dataclasses.replace(learning, batch_size=2)
    one, plain = step(sft_of(learning), rows())
    other, dense = step(sft_of(packed), rows(pack=True))
    np.testing.assert_allclose(plain.metrics["loss"], dense.metrics["loss"], rtol=1e-5)
    close(one.params, other.params, 1e-4)


def test_packing_is_refused_where_it_would_learn_something_else():
    with pytest.raises(ValueError, match="pack=True needs reduction=token, got sequence"):
        dataclasses.replace(LEARNING, pack=True)
    packed = dataclasses.replace(LEARNING, pack=True, reduction="token")
    with pytest.raises(ValueError, match=r"pack=True needs student_fraction=0, got 0\.5"):
        gkd.Config(student_fraction=0.5, learning=packed)
    gkd.Config(student_fraction=0.0, learning=packed)


@pytest.mark.slow
def test_any_divergence_generates_a_loss_and_an_entropy():
    logits = MODEL.apply(params(0), rows().data.tokens)
    is_answer = np.asarray(rows().data.is_answer)[:, 1:]
    values = {}
    for name in ("kl", "alpha-1.5", "jensen_shannon"):
        config = sft.Config(divergence=name, learning=LEARNING)
        metrics = step(sft.make(MODEL, config), rows())[1].metrics
        values[name], f = float(metrics["loss"]), regularizers.named(name)
        losses = np.asarray(regularizers.loss(logits[:, :-1], rows().data.tokens[:, 1:], f))
        means = [losses[b, is_answer[b]].mean() for b in range(SIZE)]
        np.testing.assert_allclose(values[name], np.mean(means), rtol=1e-4)
        p = np.asarray(regularizers.softargmax(logits[:, :-1], f))
        entropies = -np.sum(p * np.log(np.where(p > 0, p, 1)), -1)
        means = [entropies[b, is_answer[b]].mean() for b in range(SIZE)]
        np.testing.assert_allclose(metrics["entropy"], means, rtol=1e-4)
    assert len(set(values.values())) == 3


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd-0.5", "fenchel_young-alpha-1.5"])
@pytest.mark.slow
def test_gkd_learns_from_its_teacher(name):
    config = gkd.Config(divergence=name, learning=LEARNING)
    agent = gkd.make(MODEL, MODEL, config)
    state, same = step(agent, rows(), params(0))
    one = float(step(agent, rows(), params(1))[1].metrics["loss"])
    other = float(step(agent, rows(), params(2))[1].metrics["loss"])
    assert one > 1e-3 and abs(one - other) > 1e-4, "two teachers give two losses"
    if not name.startswith("fenchel"):  # Its link is not softmax: equal logits are no optimum.
        np.testing.assert_allclose(same.metrics["loss"], 0, atol=1e-6)
    assert np.all(np.asarray(same.metrics["teacher_top_16"]) <= 1 + 1e-6)
    del state


@pytest.mark.parametrize("targets", ["set", "counts", "top-k"])
@pytest.mark.slow
def test_gkd_learns_from_a_few_of_its_teachers_tokens(targets):
    def after(**settings: Any) -> types.LearnerState:
        config = gkd.Config(targets=targets, learning=LEARNING, **settings)
        return step(gkd.make(MODEL, MODEL, config), rows(), params(1))[0]

    few, same, more = (after(num_targets=n) for n in (4, 4, 9))
    jax.tree.map(np.testing.assert_array_equal, few.params, same.params)
    gap = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), few.params, more.params)
    assert max(jax.tree.leaves(gap)) > 1e-6, "the number of targets counts"


@pytest.mark.slow
def test_all_of_the_targets_are_the_whole_loss():
    # Without replacement of nothing: with the top V - 1 and the tail, KL is that of all of V.
    vocab_size = MODEL.config.vocab_size
    whole = gkd.Config(learning=LEARNING)
    top = gkd.Config(targets="top-k", num_targets=vocab_size - 1, learning=LEARNING)
    losses = [
        step(gkd.make(MODEL, MODEL, c), rows(), params(1))[1].metrics["loss"] for c in (whole, top)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_sparse_teacher_is_read_by_its_own_operator():
    alpha = regularizers.named("alpha-1.5")
    teacher = jax.tree.map(lambda x: 3.0 * x, params(1))
    config = gkd.Config(learning=LEARNING)
    agent = gkd.make(MODEL, MODEL, config, teacher_divergence=alpha)
    metrics = step(agent, rows(), teacher)[1].metrics
    r = rows().data
    p, q = (
        regularizers.softargmax(MODEL.apply(x, r.tokens, r.positions, r.segments)[:, :-1], f)
        for x, f in ((teacher, alpha), (params(0), regularizers.kl))
    )
    assert np.any(np.asarray(p) == 0)
    per_token = np.sum(scipy.special.rel_entr(np.asarray(p), np.asarray(q)), -1)
    is_answer = r.is_answer[:, 1:]
    means = np.sum(np.where(is_answer, per_token, 0), 1) / np.sum(is_answer, 1)
    np.testing.assert_allclose(np.mean(metrics["loss"]), np.mean(means), rtol=1e-4)
    with pytest.raises(ValueError, match="reverse_kl is infinite where the teacher"):
        gkd.make(MODEL, MODEL, gkd.Config(divergence="reverse_kl"), teacher_divergence=alpha)


@pytest.mark.parametrize(("name", "f"), [("reverse_kl", "kl"), ("fenchel_young-gan", "gan")])
@pytest.mark.slow
def test_a_student_samples_by_the_operator_of_its_loss(name: str, f: str):
    config = gkd.Config(divergence=name, learning=LEARNING)
    assert config.output_divergence == f
    acts = gkd.make(MODEL, MODEL, config).policy
    prompts = batches.pad_prompts([(3, 4)] * SIZE, 2, 0)
    acting = {"params": jax.tree.map(lambda x: 3.0 * x, params(0))}
    state = acts.initial_state(acting, prompts, 4)
    action, _, extras = acts.step(acting, prompts.tokens[:, -1], state, jax.random.key(0))
    logits = MODEL.apply(acting["params"], prompts.tokens)[:, -1]
    p = np.asarray(regularizers.softargmax(logits, regularizers.named(f)))
    expected = np.log(p[np.arange(SIZE), np.asarray(action)])
    np.testing.assert_allclose(extras["log_probability"], expected, rtol=1e-3)


def test_gkd_brings_the_student_to_its_teacher():
    learning = dataclasses.replace(LEARNING, learning_rate=1e-2)
    agent = gkd.make(MODEL, MODEL, gkd.Config(learning=learning))
    state = begun(agent.learner, params(0))
    learn = jax.jit(agent.learner.step)
    losses = []
    for _ in range(60):
        state, feedback = learn(state, rows(), types.Constants(teacher=params(1)))
        losses.append(float(feedback.metrics["loss"]))
    assert losses[-1] < losses[0] / 10


def test_the_teacher_gets_no_gradient():
    agent = gkd.make(MODEL, MODEL, gkd.Config(learning=LEARNING))
    state = begun(agent.learner, params(0))

    def loss(teacher: Any) -> jax.Array:
        constants = types.Constants(teacher=teacher)
        return jnp.sum(agent.learner.step(state, rows(), constants)[1].metrics["loss"])

    jax.tree.map(
        lambda x: np.testing.assert_array_equal(x, np.zeros(x.shape)),
        jax.jit(jax.grad(loss))(params(1)),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tuning.Config(batch_size=4, micro_batches=3), "micro_batches=3 must divide"),
        (lambda: tuning.Config(chunk=0), "chunk must be >= 1, got 0"),
        (lambda: gkd.Config(targets="set", divergence="jsd-0.5"), "got 'jsd-0.5'; targets=top-k"),
        (lambda: gkd.Config(targets="top-k", num_targets=0), "num_targets must be >= 1, got 0"),
        (lambda: gkd.Config(num_targets=-5), "num_targets must be >= 1, got -5"),
        (
            lambda: gkd.make(MODEL, MODEL, gkd.Config(targets="top-k", num_targets=999)),
            "num_targets must be < [0-9]*, the vocabulary, got 999",
        ),
        (lambda: tuning.Config(learning_rate=0.0), "learning_rate must be > 0"),
        (lambda: tuning.Config(warmup_steps=-1), "warmup_steps must be >= 0"),
        (lambda: gkd.Config(student_fraction=1.5), "student_fraction must lie in"),
        (lambda: gkd.Config(divergence="kll"), "unknown distillation loss 'kll'"),
        (lambda: gkd.Config(temperature=0.0), "temperature must be > 0"),
        (lambda: sft.Config(divergence="x"), "unknown divergence 'x'"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("num_classes", [16, 100, 4_096, 4_099, 4_112])
def test_top_k_is_that_of_a_sort(num_classes: int):
    x = np.random.default_rng(0).integers(0, 500, (7, num_classes)).astype(np.float32)  # Ties too.
    expected = -np.sort(-x, -1)[:, :16]
    np.testing.assert_array_equal(jax.jit(tuning.top_k, static_argnums=1)(x, 16), expected)


def temporaries() -> tuple[int, int]:
    """Returns bytes of temporaries of a learner step, and of parameters."""
    config = dataclasses.replace(CONFIG, vocab_size=32_768)
    agent = sft.make(gemma.make(config), config=sft.Config(learning=LEARNING))
    state = jax.eval_shape(agent.learner.init, jax.random.key(0))
    compiled = jax.jit(agent.learner.step, donate_argnums=0).lower(state, rows()).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes, sum(4 * x.size for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_a_step_takes_its_gradients_and_little_more(monkeypatch: pytest.MonkeyPatch):
    """The embedding is nearly all of this model; its gradient comes of two uses."""
    before, size = temporaries()
    monkeypatch.setattr(layers, "LARGE", 2**20)
    monkeypatch.setattr(chunked, "LOGIT_BYTES", 2**18)
    monkeypatch.setattr(chunked, "BLOCK_BYTES", 2**18)
    after, _ = temporaries()
    assert before > 2 * size
    assert after < 1.3 * size + 3 * 2**18


@pytest.mark.slow
@pytest.mark.parametrize("formats", [("int4", "none"), ("sfp8", "int8")])
def test_learning_in_few_bits_is_that_of_float_numbers_at_what_is_held(formats: tuple[Any, Any]):
    plain = dataclasses.replace(LEARNING, optimizer="sgd", max_grad_norm=1e9, learning_rate=0.1)
    few_bits = dataclasses.replace(plain, quantize=formats[0], quantize_table=formats[1])
    held = quantisation.held(params(0), few_bits.scheme)
    assert few_bits.scheme == formats and not np.array_equal(
        *(tree["remainder"]["layer_0"]["feed_forward"]["up"] for tree in (held, params(0)))
    )
    moved, losses = [], []
    for learning, start in ((few_bits, params(0)), (plain, held)):
        agent = sft_of(learning)
        state = begun(agent.learner, start)
        acting = agent.actor_params(state, jnp.int32(0), False, types.Constants())["params"]
        close(acting, held, 0)  # It acts by the numbers with which it learns.
        after, feedback = program(agent.learner.step)(state, rows(), types.Constants())
        moved.append(jax.tree.map(lambda x, y: x - y, after.params, start))
        losses.append(np.asarray(feedback.metrics["loss"]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    close(moved[0], moved[1], 1e-7)
    assert np.abs(moved[0]["remainder"]["layer_0"]["feed_forward"]["up"]).max() > 1e-5

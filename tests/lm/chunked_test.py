"""Tests of lm/chunked.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import regularizers
from kullback.lm import chunked, distillation, distillation_targets

N, D, V = 10, 4, 7


def unembed(embedding: jax.Array, features: jax.Array) -> jax.Array:
    return features @ embedding.T


def arrays(seed: int) -> tuple[jax.Array, jax.Array]:
    """Returns an embedding [V, D] and features [N, D]."""
    rng = np.random.default_rng(seed)
    embedding, features = rng.normal(size=(V, D)), rng.normal(size=(N, D))
    return jnp.asarray(embedding, jnp.float32), jnp.asarray(features, jnp.float32)


WEIGHTS = jnp.asarray(np.random.default_rng(2).normal(size=N), jnp.float32)
IS_ANSWER = jnp.asarray([0, 1, 1, 0, 0, 1, 0, 1, 0, 0], bool)
LOSSES = {
    "labels": functools.partial(regularizers.loss, divergence=regularizers.kl),
    "sparse": distillation_targets.sparse_cross_entropy,
    "top_k": distillation_targets.top_k_loss(regularizers.reverse_kl),
    "kl": distillation.named("kl"),
    "jsd-0.5": distillation.named("jsd-0.5"),
    "fenchel_young": distillation.named("fenchel_young-alpha-1.5"),
}


def target_of(name: str):
    """Returns a target of the loss for the chunked and for the plain computation."""
    embedding, features = arrays(1)
    logits = unembed(embedding, features)
    log_probs = jax.nn.log_softmax(logits)
    if name == "labels":
        target = jnp.argmax(logits, -1)
    elif name == "sparse":
        draw = jax.jit(distillation_targets.sampled_targets, static_argnums=2)
        target = draw(jax.random.key(0), log_probs, 3)
    elif name == "top_k":
        target = distillation_targets.top_k_targets(log_probs, 2)
    else:
        return chunked.Head(unembed, embedding, features), logits
    return target, target


@pytest.mark.parametrize(
    "name, chunk, is_answer",
    [
        ("labels", 4, None),
        ("sparse", 3, IS_ANSWER),
        ("kl", 1, None),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in (
                *((name, 4, None) for name in LOSSES if name not in {"kl", "labels"}),
                *(("kl", chunk, mask) for chunk, mask in ((3, IS_ANSWER), (5, None))),
                ("kl", 99, IS_ANSWER),
            )
        ),
    ],
)
def test_equals_the_loss_of_all_logits(name: str, chunk: int, is_answer: jax.Array | None):
    target, plain_target = target_of(name)
    mask = jnp.ones(N, bool) if is_answer is None else is_answer

    def whole(embedding, features):
        losses = LOSSES[name](unembed(embedding, features), plain_target)
        return jnp.sum(WEIGHTS * jnp.where(mask, losses, 0)), jnp.where(mask, losses, 0)

    def in_chunks(embedding, features):
        student = chunked.Head(unembed, embedding, features)
        return chunked.weighted_loss(
            measured(LOSSES[name]), WEIGHTS, student, target, chunk=chunk, is_answer=is_answer
        )

    def values(embedding, features):
        student = chunked.Head(unembed, embedding, features)
        losses = chunked.token_losses(
            LOSSES[name], student, target, chunk=chunk, is_answer=is_answer
        )
        return losses, in_chunks(embedding, features)

    @jax.jit
    def every_way(*heads):
        return gradients(whole)(*heads), gradients(in_chunks)(*heads), values(*heads)

    of_whole, in_parts, (losses, (plain_value, plain)) = every_way(*arrays(0))
    (total, expected), expected_gradients = of_whole
    (value, got), got_gradients = in_parts
    for result in (got, plain, losses):
        np.testing.assert_allclose(result, expected, atol=1e-6)
    np.testing.assert_allclose([value, plain_value], [total] * 2, rtol=1e-5, atol=1e-5)
    for x, y in zip(got_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
        assert np.max(abs(y)) > 0.1


def measured(loss):
    """Returns a measure whose metric is the loss itself."""

    def measure(*arguments):
        losses = loss(*arguments)
        return losses, losses

    return measure


def gradients(loss):
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def test_targets_are_constants():
    embedding, features = arrays(0)

    def loss(teacher_embedding, teacher_features):
        student = chunked.Head(unembed, embedding, features)
        teacher = chunked.Head(unembed, teacher_embedding, teacher_features)
        # A loss that would pass a gradient on.
        distance = lambda mine, other: jnp.sum(jnp.square(mine - other), -1)  # noqa: E731
        losses = measured(distance)
        return chunked.weighted_loss(losses, WEIGHTS, student, teacher, chunk=4)[0]

    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(*arrays(1)):
        assert not np.any(gradient)


def test_the_gradient_is_scaled_by_what_follows():
    def loss(embedding, features, scale):
        student = chunked.Head(unembed, embedding, features)
        labels = jnp.arange(N) % V
        value, _ = chunked.weighted_loss(
            measured(LOSSES["labels"]), WEIGHTS, student, labels, chunk=4, is_answer=IS_ANSWER
        )
        return scale * value

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    one, three = (gradient(*arrays(0), scale) for scale in (1.0, 3.0))
    for x, y in zip(one, three, strict=True):
        np.testing.assert_allclose(3 * x, y, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_the_gradient_is_summed_in_blocks_of_rows(rows: int, monkeypatch: pytest.MonkeyPatch):
    """Of 7 rows, the last block is smaller, as large, or the only one."""

    def loss(embedding, features):
        student = chunked.Head(unembed, embedding, features)
        labels = jnp.arange(N) % V
        return chunked.weighted_loss(
            measured(LOSSES["labels"]), WEIGHTS, student, labels, chunk=4, is_answer=IS_ANSWER
        )

    @jax.jit
    def both_ways(*heads):
        expected = gradients(loss)(*heads)[1]
        with monkeypatch.context() as patched:
            patched.setattr(chunked, "BLOCK_BYTES", rows * D * 4)
            return expected, gradients(lambda *heads: loss(*heads))(*heads)[1]

    expected, got = both_ways(*arrays(0))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_a_frozen_head_passes_its_gradient_to_the_features_alone():
    def result(is_frozen: bool):
        def loss(embedding, features):
            student = chunked.Head(unembed, embedding, features, is_frozen)
            return chunked.weighted_loss(
                measured(LOSSES["labels"]), WEIGHTS, student, jnp.arange(N) % V, chunk=4
            )

        return jax.jit(gradients(loss))(*arrays(0))

    (value, _), of_learnt = result(False)
    (same, _), of_frozen = result(True)
    assert value == same and not np.any(of_frozen[0])
    np.testing.assert_array_equal(of_frozen[1], of_learnt[1])


def test_a_chunk_has_fewer_tokens_where_the_vocabulary_is_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunked, "LOGIT_BYTES", 3 * V * 4)
    shapes = []

    def loss(logits, labels):
        shapes.append(logits.shape)
        return LOSSES["labels"](logits, labels)

    student = chunked.Head(unembed, *arrays(0))
    losses = chunked.token_losses(loss, student, jnp.arange(N) % V, chunk=5)
    assert losses.shape == (N,) and set(shapes) == {(3, V)}


@pytest.mark.parametrize(("is_frozen", "tokens"), [(True, 2), (False, 5)])
def test_the_logits_of_all_heads_share_the_memory_where_one_is_frozen(
    is_frozen: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chunked, "LOGIT_BYTES", 5 * V * 4)
    shapes = []

    def measure(logits, teacher):
        shapes.append(logits.shape)
        return jnp.sum(logits * teacher, -1), {}

    heads = (chunked.Head(unembed, *arrays(n), is_frozen and n == 0) for n in (0, 1))
    jax.eval_shape(lambda: chunked.weighted_loss(measure, WEIGHTS, *heads, chunk=9))
    assert set(shapes) == {(tokens, V)}


def test_trees_of_several_targets():
    embedding, features = arrays(0)
    teacher = chunked.Head(unembed, *arrays(1))
    labels, keys = jnp.arange(N) % V, jax.random.split(jax.random.key(0), N)

    def losses(logits, teacher_logits, labels, keys):
        log_p = jax.nn.log_softmax(teacher_logits)
        draw = lambda key, log_p: distillation_targets.sampled_targets(key, log_p, 3)  # noqa: E731
        return {
            "labels": LOSSES["labels"](logits, labels),
            "targets": jax.vmap(draw)(keys, log_p),
        }

    student = chunked.Head(unembed, embedding, features)
    run = functools.partial(chunked.token_losses, losses, student, teacher, labels, keys)
    whole, parts = (jax.jit(functools.partial(run, chunk=chunk))() for chunk in (N, 3))
    assert whole["targets"].ids.shape == (N, 3)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_chunks_without_an_answer_are_not_computed():
    seen = []

    def loss(logits, labels):
        jax.debug.callback(lambda labels: seen.append(labels.tolist()), labels)
        return jnp.sum(logits, -1)

    student = chunked.Head(unembed, *arrays(0))
    run = functools.partial(chunked.token_losses, loss, student, jnp.arange(N), chunk=3)
    jax.block_until_ready(jax.jit(lambda: run(is_answer=IS_ANSWER))())
    jax.effects_barrier()
    # The four answers (tokens 1, 2, 5 and 7) fill two of the four chunks.
    assert sorted(seen) == [[1, 2, 5], [7, 0, 3]]
    none = jax.jit(lambda: run(is_answer=jnp.zeros(N, bool)))()
    jax.effects_barrier()
    assert len(seen) == 2 and not np.any(none)


def temporaries(num_tokens: int, name: str, mask: bool, is_chunked: bool = True) -> int:
    """Returns bytes of the temporaries of a loss with its gradient, at Gemma's vocabulary."""
    vocab_size, chunk, width = 262_144, 64, 8
    per_token = distillation.named(name)

    def loss(embedding, features, teacher_embedding, teacher_features, is_answer):
        student = chunked.Head(unembed, embedding, features)
        teacher = chunked.Head(unembed, teacher_embedding, teacher_features)
        if not is_chunked:
            logits = (unembed(head.params, head.features) for head in (student, teacher))
            return jnp.sum(jnp.where(is_answer, per_token(*logits), 0))
        only = is_answer if mask else None
        weights = is_answer.astype(jnp.float32)
        return chunked.weighted_loss(
            measured(per_token), weights, student, teacher, chunk=chunk, is_answer=only
        )[0]

    embedding = jax.ShapeDtypeStruct((vocab_size, width), jnp.float32)
    features = jax.ShapeDtypeStruct((num_tokens, width), jnp.float32)
    is_answer = jax.ShapeDtypeStruct((num_tokens,), bool)
    evaluate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    program = evaluate.lower(embedding, features, embedding, features, is_answer).compile()
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("name, mask", [("kl", False), ("jsd-0.5", True)])
def test_temporaries_do_not_grow_with_the_tokens(name: str, mask: bool):
    few, many = (temporaries(n, name, mask) for n in (256, 4096))
    logits = 64 * 262_144 * 4  # Bytes, of a chunk.
    assert logits < few < 12 * logits
    # What is kept for a token is its features, never anything of V.
    assert many - few < 3840 * 300
    # All logits at once grow by 1 MB a token.
    assert temporaries(256, name, mask, is_chunked=False) > 2 * few


def test_wrong_sizes_are_refused():
    embedding, features = arrays(0)
    student = chunked.Head(unembed, embedding, features)
    loss = LOSSES["labels"]
    with pytest.raises(ValueError, match="chunk must be >= 1 token, got 0"):
        chunked.token_losses(loss, student, jnp.arange(N), chunk=0)
    with pytest.raises(ValueError, match="no tokens"):
        empty = chunked.Head(unembed, embedding, features[:0])
        chunked.token_losses(loss, empty, jnp.arange(0), chunk=4)
    with pytest.raises(ValueError, match=r"10 tokens, .* shape \(9,\)"):
        chunked.token_losses(loss, student, jnp.arange(9), chunk=4)
    with pytest.raises(ValueError, match=r"10 tokens, .* shape \(11,\)"):
        chunked.token_losses(loss, student, jnp.arange(N), chunk=4, is_answer=jnp.ones(N + 1, bool))

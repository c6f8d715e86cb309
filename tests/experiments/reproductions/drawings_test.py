"""Tests of experiments/reproductions/drawings.py."""

import functools

import jax
import numpy as np
import pytest

from kullback.core import types
from kullback.experiments.reproductions import digits, drawings, small_models, small_sight
from kullback.lm import image_codes, image_grammar, rlhf

SIZES = small_sight.Sizes(
    side=8, patch=4, num_soft=4, encoder_width=8, encoder_layers=1, width=8, layers=1
)
CODER = image_codes.Config(side=8, patch=4, num_codes=6, code_dim=4, hidden=8)
TEXTS = [drawings.ANY, *drawings.DRAW]


@functools.cache
def seer() -> small_sight.Seer:
    codes = CODER.num_codes, CODER.length
    return small_sight.make(SIZES, TEXTS * 2, 24, codes)


@functools.cache
def start() -> types.Params:
    return jax.jit(seer().decoder.init)(jax.random.key(0))


def test_a_drawing_stands_behind_what_asks_for_it():
    ids, codes = drawings.ids_of(seer()), np.array([[0, 5, 2, 2], [1, 1, 1, 1]])
    first, second = drawings.examples(seer(), ["draw 7", drawings.ANY], codes)
    bos, text = seer().tokenizer.bos_id, seer().tokenizer.encode
    assert first.prompt == (bos, *text("draw 7"), ids.begin)
    assert second.prompt == (bos, *text("draw any"), ids.begin)
    assert first.completion == (*(ids.first + c for c in (0, 5, 2, 2)), ids.end)
    row = [*first.prompt, *first.completion]
    np.testing.assert_array_equal(image_grammar.images(row, ids), codes[:1])
    requests = drawings.prompts(seer(), ["draw 7", drawings.ANY])
    assert requests.tokens[0, -len(first.prompt) :].tolist() == [*first.prompt]
    assert requests.tokens.shape == drawings.prompts(seer(), ["draw 1"]).tokens.repeat(2, 0).shape


def test_inside_an_image_codes_alone_have_probability():
    ids, model = (
        drawings.ids_of(seer()),
        drawings.codes_alone(seer().decoder, drawings.ids_of(seer())),
    )
    requests = drawings.prompts(seer(), ["draw 3"])

    @jax.jit
    def logits_of(params: types.Params, tokens: types.Array) -> list[jax.Array]:
        by_features = model.unembed(params, model.features(params, tokens))
        every = model.apply(params, tokens), by_features, seer().decoder.apply(params, tokens)
        return [logits[0, -1] for logits in every]

    got, by_features, of_all = (
        np.asarray(x, np.float64) for x in logits_of(start(), requests.tokens)
    )
    expected = np.exp(of_all[ids.first :]) / np.exp(of_all[ids.first :]).sum()
    for logits in (got, by_features):
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(p[ids.first :], expected, rtol=1e-4)
        assert p[: ids.first].sum() == 0


@pytest.mark.slow
def test_guidance_is_away_from_what_says_nothing():
    """The first code is drawn from l_any + scale (l_digit - l_any), of codes alone."""
    requests = drawings.prompts(seer(), ["draw 1"] * 256)
    plain, guided = (drawings.writer(seer(), scale) for scale in (1.0, 4.0))
    ids, key = drawings.ids_of(seer()), jax.random.key(2)
    codes = {"plain": plain(start(), requests, key), "guided": guided(start(), requests, key)}
    apply = jax.jit(seer().decoder.apply)
    of_one, of_any = (
        np.asarray(apply(start(), np.array([drawings.prompt(seer(), text)])), np.float64)[0, -1]
        for text in ("draw 1", drawings.ANY)
    )
    for name, scale in (("plain", 1.0), ("guided", 4.0)):
        logits = (of_any + scale * (of_one - of_any))[ids.first :]
        expected = np.exp(logits) / np.exp(logits).sum()
        drawn = np.asarray(codes[name])
        assert drawn.shape == (256, CODER.length) and 0 <= drawn.min() <= drawn.max() < 6
        share = np.bincount(drawn[:, 0], minlength=6) / 256
        np.testing.assert_allclose(share, expected, atol=0.1)


@pytest.mark.slow
def test_a_policy_climbs_its_judge_and_rewards_are_the_judges():
    config = rlhf.Config(
        samples_per_prompt=8,
        kl_coefficient=0.0,
        learning=small_models.learning(64, 8, CODER.length, 1e-2),
    )
    coder = image_codes.make(CODER)
    of_coder = coder.learner.init(jax.random.key(3))
    vectors = jax.random.normal(jax.random.key(4), of_coder.aux.vectors.shape)
    paper = drawings.Paper(coder, of_coder.params, of_coder.aux._replace(vectors=vectors))
    random = np.random.default_rng(0)
    rater = {"out": 3 * random.normal(size=(64, 10)), "out_bias": np.zeros(10)}
    climber = drawings.climber(seer(), coder, config)
    state = climber.learner.init(jax.random.key(5))
    labels = np.arange(8, dtype=np.int32)
    requests = drawings.prompts(seer(), [drawings.DRAW[n] for n in labels])
    items = drawings.Asked(requests, labels)
    items = jax.tree.map(lambda x: np.repeat(x[None], 60, 0), items)
    constants, with_what = types.Constants(start=state.params), (paper.params, paper.book)
    learnt, reports = climber.run(state, constants, items, jax.random.key(6), rater, with_what)
    rewards = np.asarray(reports["reward"])
    assert rewards[-10:].mean() > rewards[:10].mean() + 0.3
    assert reports["kl"][-1] > 0.01
    # Of new drawings, by the definition.
    write = drawings.writer(seer(), 1.0)
    requests = drawings.prompts(seer(), [drawings.DRAW[n] for n in np.repeat(labels, 32)])
    pixels = paper.pixels(np.asarray(write(learnt.params, requests, jax.random.key(7))))
    told = digits.told(rater, digits.Digits(pixels, np.repeat(labels, 32)))
    np.testing.assert_allclose(-told["nats"], rewards[-10:].mean(), atol=0.25)

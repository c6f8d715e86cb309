"""Digits that a small decoder draws: codes of pictures, which follow a text, and how they learn.

A picture is 16 codes of a learnt codebook (lm/image_codes.py), ids behind those of the text. A row
of what is drawn is

    <bos> draw 7 begin, code ... code, end

and its prompt ends where the codes begin. "draw any" says no digit, and is what guidance leads away
from (lm/image_policy.py).

N pictures, L codes of one, S pixels of a side.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, rollout, types
from kullback.environments import tokens
from kullback.experiments.reproductions import digits, small_models, small_sight, students
from kullback.lm import (
    batches,
    completions,
    data,
    gemma,
    image_codes,
    image_grammar,
    image_policy,
    rlhf,
    rollouts,
)

ANY = "draw any"
DRAW = tuple(f"draw {n}" for n in range(digits.NUM_DIGITS))


class Paper(NamedTuple):
    """The means by which pictures are drawn: a coder that has learnt; functions are compiled."""

    coder: image_codes.Coder
    params: types.Params
    book: image_codes.Codebook

    def codes(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the codes of pictures [N, S, S], int32 [N, L]."""
        return np.asarray(_program(self.coder.encode)(self.params, self.book, pixels[..., None]))

    def pixels(self, codes: np.ndarray) -> np.ndarray:
        """Returns the pictures of codes int32 [N, L], float32 [N, S, S]."""
        return np.asarray(_program(self.coder.decode)(self.params, self.book, codes))[..., 0]


_program = functools.cache(jax.jit)


@functools.cache
def _coder(config: image_codes.Config) -> tuple[image_codes.Coder, small_models.Trainer]:
    coder = image_codes.make(config)
    return coder, small_models.trainer(coder.learner)


def paper(
    config: image_codes.Config,
    pixels: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    tick: students.Tick = students.ignore,
) -> Paper:
    """Returns a coder that has learnt from pictures, [N, S, S]."""
    coder, trainer = _coder(config)
    state, key = trainer.learner.init(jax.random.key(seed)), jax.random.key(seed)
    for first in range(0, steps, students.STRETCH):
        count = min(students.STRETCH, steps - first)
        items = small_models.take(pixels[..., None], count, batch_size, seed, first)
        state, losses = trainer.run(state, types.NO_CONSTANTS, items, key)
        tick(first + count, float(jnp.mean(losses)))
    return Paper(coder, state.params, state.aux)


def ids_of(seer: small_sight.Seer) -> image_grammar.Ids:
    """Returns the ids of the images that a decoder writes."""
    assert seer.writes is not None, "a decoder that draws has codes in its vocabulary"
    return seer.writes


def prompt(seer: small_sight.Seer, text: str) -> tuple[int, ...]:
    """Returns the ids of what asks for a drawing, up to where its codes begin."""
    return seer.tokenizer.bos_id, *seer.tokenizer.encode(text), ids_of(seer).begin


def examples(seer: small_sight.Seer, texts: Sequence[str], codes: np.ndarray) -> list[data.Example]:
    """Returns drawings, int32 [N, L], behind the texts that ask for them, to learn from."""
    written = image_grammar.written(codes, ids_of(seer))
    given = functools.cache(functools.partial(prompt, seer))
    return [
        data.Example(given(text), tuple(row[1:].tolist()))
        for text, row in zip(texts, written, strict=True)
    ]


def prompts(seer: small_sight.Seer, texts: Sequence[str]) -> batches.Prompts:
    """Returns what asks for drawings, [N, P]; P is the same for all texts."""
    width = max(len(prompt(seer, text)) for text in (ANY, *DRAW))
    return batches.pad_prompts([prompt(seer, text) for text in texts], width, seer.tokenizer.pad_id)


# (params, what asks [N, P], a key) -> codes, int32 [N, L].
Write = Callable[[types.Params, batches.Prompts, types.Key], jax.Array]


def writer(seer: small_sight.Seer, guidance_scale: float) -> Write:
    """Returns what draws by the grammar of images, led away from "draw any" by a scale; compiled.

    A scale of 1 is without guidance.
    """
    ids = ids_of(seer)
    policy = image_policy.language_model(seer.decoder, ids, guidance_scale=guidance_scale)
    horizon = ids.length + 1

    @jax.jit
    def write(params: types.Params, requests: batches.Prompts, key: types.Key) -> jax.Array:
        rows, width = requests.tokens.shape
        context: Any = requests
        if guidance_scale != 1:
            context = image_policy.Guidance(requests, prompts(seer, [ANY] * rows))
        place = tokens.make_batch(
            requests.tokens,
            requests.lengths,
            horizon=horizon,
            vocab_size=ids.total,
            stop_tokens=(ids.end,),
        )
        acting = {"params": params}
        start = rollout.start(policy, place, acting, key, context, width + horizon)
        trajectory, _ = rollout.rollout(policy, place, acting, start, key, horizon)
        return trajectory.action.T[:, : ids.length] - ids.first

    return write


def codes_alone(model: gemma.Model, ids: image_grammar.Ids) -> gemma.Model:
    """Returns the model of what stands inside an image: its codes, other ids have no probability.

    It is the grammar's distribution there, so that the probabilities of what a policy draws are
    those that its learner takes the gradient of.
    """

    def alone(logits: jax.Array) -> jax.Array:
        # Finite, as p ln p of what has no probability is to be 0.
        return jnp.where(jnp.arange(logits.shape[-1]) >= ids.first, logits, -1e9)

    def unembed(params: types.Params, features: jax.Array) -> jax.Array:
        return alone(model.unembed(params, features))

    def apply(*inputs: Any, **images: Any) -> jax.Array:
        return alone(model.apply(*inputs, **images))

    return model._replace(unembed=unembed, apply=apply)


class Asked(NamedTuple):
    """Prompts of drawings, and the digits that they ask for."""

    prompts: batches.Prompts  # [B, P].
    labels: types.Array  # int32, [B].


class Climber(NamedTuple):
    """A policy that learns to draw by a judge, compiled for all seeds."""

    learner: types.Learner
    # (state, constants, `Asked` of each step, key, judge, the paper's params and book) -> the state
    # and reports, see `learners.scan`.
    run: Any


def climber(seer: small_sight.Seer, coder: image_codes.Coder, config: rlhf.Config) -> Climber:
    """Returns reinforcement learning of drawings; the reward is a judge's log-probability, nats.

    Args:
      seer: the decoder.
      coder: of the pictures.
      config: settings; `max_new_tokens` are the codes of an image.
    """
    ids, group = ids_of(seer), config.samples_per_prompt
    agent = rlhf.make(codes_alone(seer.decoder, ids), config=config)
    sampler = completions.of_policy(agent.policy, seer.decoder, ids.length, group)

    def report(feedback: types.Feedback, data: rollouts.Episodes) -> dict[str, jax.Array]:
        kl = jnp.mean(feedback.metrics["kl_start"])
        return {"reward": jnp.mean(data.rewards), "kl": kl}

    @jax.jit
    def run(
        state: types.LearnerState,
        constants: types.Constants,
        items: Asked,
        key: types.Key,
        rater: types.Params,
        drawn_with: tuple[types.Params, image_codes.Codebook],
    ) -> tuple[types.LearnerState, dict[str, jax.Array]]:
        def reward(labels: Any, completion: tokens.Completion, prompts: Any) -> jax.Array:
            del prompts
            pixels = coder.decode(*drawn_with, completion.tokens - ids.first)[..., 0]
            log_p = digits.log_policy(rater, pixels)
            return jnp.take_along_axis(log_p, jnp.repeat(labels, group)[:, None], 1)[:, 0]

        def texts(
            state: types.LearnerState, constants: types.Constants, item: Asked, key: types.Key
        ) -> rollouts.Episodes:
            acting, labels = agent.actor_params(state, state.steps, False, constants), item.labels
            return rollouts.sample(sampler, reward, acting, item.prompts, key, labels)

        return learners.scan(agent.learner, texts, report)(state, constants, items, key)

    return Climber(agent.learner, run)

"""What reproductions with small language models share: models, sampling, learning, distances.

An arm learns in one compiled program a stretch: `learn` scans over learner steps whose sequences
are stored, or sampled within the scan. B rows, P tokens of a prompt, T of a completion, n steps.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import regularizers, rollout, types
from kullback.environments import tokens
from kullback.lm import batches, distillation, gemma, policy

# (acting params, prompts, key) -> prompts and what was written after them.
Sampler = Callable[[types.Params, batches.Prompts, types.Key], batches.Sequences]
# (params of the student, those of the teacher, item, key) -> B rows to learn from.
Rows = Callable[[types.Params, types.Params, Any, types.Key], batches.Sequences]


def decoder(vocab_size: int, width: int, num_layers: int, context: int) -> gemma.Config:
    """A small Gemma whose layers all see the whole context."""
    return gemma.Config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        embed_dim=width,
        num_heads=4,
        num_kv_heads=4,
        head_dim=max(2, width // 8 * 2),
        hidden_dim=2 * width,
        window=context,
        query_scale=float(max(2, width // 8 * 2)),
        pattern=num_layers,  # One period, so that no layer's weights are copied out of a stack.
        context_length=context,
    )


def untied(model: gemma.Model, scale: float, branch: float = 1.0) -> gemma.Model:
    """The model with a random head of its own; its logits have a standard deviation of `scale`.

    The logits of a random model whose head is its embedding say above all: the same token again.

    Args:
      model: whose layers stay.
      scale: of the head.
      branch: of what a layer's attention and feed-forward net each add, where the embedding of the
        last token is 1: the less, the simpler is the model's language.
    """
    shape = model.config.vocab_size, model.config.embed_dim

    def init(key: types.Key) -> types.Params:
        key, head_key = jax.random.split(key)
        head = scale / math.sqrt(shape[1]) * jax.random.normal(head_key, shape)
        params = jax.tree_util.tree_map_with_path(_set_branch, model.init(key))
        return {**params, "head": head}

    def _set_branch(path: Any, leaf: jax.Array) -> jax.Array:
        is_scale = "post_" in jax.tree_util.keystr(path)  # Of a norm, as 1 + w.
        return leaf + branch - 1 if is_scale else leaf

    def unembed(params: types.Params, features: jax.Array) -> jax.Array:
        return jnp.einsum("...d,vd->...v", features, params["head"])

    def apply(params: types.Params, *inputs: Any) -> jax.Array:
        return unembed(params, model.features(params, *inputs))

    return model._replace(init=init, unembed=unembed, apply=apply)


def sampler(
    model: gemma.Model,
    horizon: int,
    stop_tokens: tuple[int, ...],
    divergence: regularizers.Divergence = regularizers.kl,
) -> Sampler:
    """Draws completions of at most `horizon` tokens at temperature 1; to be compiled."""
    acts = policy.language_model(model, divergence=divergence)

    def sample(params: types.Params, prompts: batches.Prompts, key: types.Key) -> batches.Sequences:
        environment = tokens.make_batch(
            prompts.tokens,
            prompts.lengths,
            horizon=horizon,
            vocab_size=model.config.vocab_size,
            stop_tokens=stop_tokens,
        )
        acting, length = {"params": params}, prompts.tokens.shape[1] + horizon
        state = rollout.start(acts, environment, acting, key, prompts, length)
        trajectory, _ = rollout.rollout(acts, environment, acting, state, key, horizon)
        made = tokens.completions(trajectory, stop_tokens)
        return batches.join(prompts, made.tokens, made.is_answer)

    return sample


def learn(learner: types.Learner, rows: Rows) -> Callable[..., Any]:
    """The compiled (state, teacher's params, items [n, ...], key) -> (state, losses [n]).

    Each of n learner steps learns from what `rows` makes of an item; sampling folds the number of
    the step into the key, so that the length of a stretch changes nothing.
    """

    def step(constants: types.Params, key: types.Key, state: types.LearnerState, item: Any) -> Any:
        made = rows(state.params, constants, item, jax.random.fold_in(key, state.steps))
        ones = jnp.ones(len(made.lengths))
        batch = types.Batch(made, jnp.arange(len(ones)), ones / len(ones), ones)
        state, feedback = learner.step(state, batch, constants)
        return state, feedback.metrics["loss"]

    @jax.jit
    def run(
        state: types.LearnerState, constants: types.Params, items: Any, key: types.Key
    ) -> tuple[types.LearnerState, jax.Array]:
        return jax.lax.scan(functools.partial(step, constants, key), state, items)

    return run


def stored(
    student: types.Params, teacher: types.Params, item: Any, key: types.Key
) -> batches.Sequences:
    """`Rows` of a data set: the item is they."""
    del student, teacher, key
    return item


def take(data: Any, steps: int, batch_size: int, seed: int, first: int = 0) -> Any:
    """Items of steps `first` to `first + steps`: each row once an epoch, [steps, B, ...]."""
    num = len(jax.tree.leaves(data)[0])
    indices = np.stack(
        [
            batches.indices(step, num_items=num, batch_size=batch_size, seed=seed)
            for step in range(first, first + steps)
        ]
    )
    return jax.tree.map(lambda x: jnp.asarray(x)[indices], data)


def sequence_distance(
    logits: jax.Array,
    reference: jax.Array,
    rows: batches.Sequences,
    divergence: distillation.TokenDivergence = regularizers.kl,
) -> jax.Array:
    """Divergence of next tokens summed over each answer, in nats, [B].

    With KL and answers that the reference model wrote, its mean is KL(reference || model) of
    whole sequences, by the chain rule, and no draw but that of the prefixes is in it:

        E_{y ~ p} [ln p(y) - ln q(y)] = E_{y ~ p} sum_n KL(p(. | y_<n) || q(. | y_<n))

    Args:
      logits: of the model on the rows, [B, P + T, V].
      reference: of the reference model, the same shape.
      rows: tokens and what of them is the answer.
      divergence: of log-distributions (reference, model), [..., V] -> [...].
    """
    both = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    aligned = distillation.align(both, jnp.asarray(rows.tokens), jnp.asarray(rows.is_answer))
    (log_p, log_q), _, is_answer = aligned
    return jnp.sum(jnp.where(is_answer, divergence(log_p, log_q), 0), 1)

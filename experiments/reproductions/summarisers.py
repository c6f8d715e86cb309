"""Policies that choose sentences: a noisy start, RLEF of it, and best of N; see rlef.py.

What they are asked, and what answers are worth, is in extractive.py. B rows, K sentences of a
prompt, N papers, S sentences of a paper's pool, n learner steps or prompts.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import files, learners, types
from kullback.experiments import entailment
from kullback.experiments.reproductions import extractive, small_models, study
from kullback.lm import (
    answers,
    batches,
    best_of_n,
    completions,
    rlef,
    rollouts,
    sft,
    value_network,
)
from kullback.lm.entailment import faithfulness, scorers

SPLITS: tuple[faithfulness.Split, ...] = ("train", "test")


def ask_about_pools(
    role: str,
    folder: str,
    settings: entailment.Config,
    least_area: float,
    sizes: extractive.Sizes,
    journal: study.Journal,
) -> study.Rows:
    """Returns P of each paper's pool by a model of entailment, trained first where none is given.

    What was trained is deleted once it has said all that it will be asked.

    Raises:
      ValueError: if it has not learnt, see `entailment.require_learnt`.
    """
    trained, done = journal.path(f"{role}-model"), 0
    if not folder:
        done = settings.num_steps
        if not trained.exists():
            entailment.train(trained, settings, quiet=True)
    entailment.require_learnt(folder or trained, least_area)
    model = scorers.load(folder or trained)
    rows: study.Rows = []
    for split in SPLITS:
        papers = extractive.read(split, sizes)
        before = done + len(rows)
        p = extractive.pool_probabilities(
            papers, model.log_probability, lambda count, before=before: journal.tick(before + count)
        )
        named = zip(papers.names, p.tolist(), strict=True)
        rows += [{"split": split, "paper": name, "p": of_paper} for name, of_paper in named]
    if not folder:
        files.remove(trained)
    return rows


def opinions(rows: study.Rows, sizes: extractive.Sizes) -> Iterator[study.Row]:
    """Yields the mean P of each model of entailment, by where the sentences are from."""
    for model in study.distinct(rows, "model"):
        for split in SPLITS:
            p = study.column(rows, "p", model=model, split=split)
            papers = extractive.read(split, sizes)
            for number, group in enumerate(extractive.GROUPS):
                of_group = p[papers.is_there & (papers.group == number)]
                row = {"model": model, "split": split, "sentences": group, "count": len(of_group)}
                row |= {"mean_p": float(of_group.mean())}
                yield {**row, "share_above_half": float((of_group > 0.5).mean())}


class Item(NamedTuple):
    """Prompts of a step of reinforcement learning, and P of their sentences."""

    prompts: batches.Prompts  # [B, P].
    of_sentences: types.Array  # float32, [B, K]: P by the reward.


class Summarisers(NamedTuple):
    """Papers with P of their sentences, and the programs of policies; for all seeds."""

    sizes: extractive.Sizes
    train: extractive.Papers
    held_out: extractive.Papers
    train_probabilities: np.ndarray  # [N, S]: P by the reward.
    questions: extractive.Questions  # About held-out papers.
    prompts: batches.Prompts  # The same as tokens, [n, P].
    of_sentences: dict[str, np.ndarray]  # By model of entailment: P of what they show, [n, K].
    sample: Callable[..., batches.Sequences]  # (acting params, prompts, key) -> with answers.
    log_probabilities: Callable[..., jax.Array]
    start: Callable[[int], types.Params]  # Of a seed: a decoder that has learnt noisy choices.
    trainers: dict[float, small_models.Trainer]  # RLEF by alpha.


def make(
    sizes: extractive.Sizes,
    roles: Sequence[str],
    algorithms: Mapping[float, rlef.Config],
    journal: study.Journal,
) -> Summarisers:
    """Returns the summarisers, once the models of entailment have been asked.

    Args:
      sizes: of everything.
      roles: parts in which their answers are kept; "reward" is learnt from.
      algorithms: settings of RLEF, by alpha.
      journal: that has these parts.
    """
    train, held_out = (extractive.read(split, sizes) for split in SPLITS)
    rows_by_role = {role: journal.kept(role) for role in roles}
    questions = extractive.ask(held_out, sizes, sizes.prompts, np.random.default_rng(1))
    of_sentences = {
        role: extractive.table(questions, study.column(rows, "p", split="test"))
        for role, rows in rows_by_role.items()
    }
    model, learning = sizes.model(), sizes.learning(sizes.start_rate)
    sampler = completions.sampler(model, sizes.horizon, stop_tokens=(extractive.EOS,))
    log_probabilities = functools.partial(answers.log_probabilities, model, chunk=learning.chunk)
    learner = sft.make(model, sft.Config(learning=learning)).learner
    tuner = small_models.trainer(learner)
    summarisers = Summarisers(
        sizes=sizes,
        train=train,
        held_out=held_out,
        train_probabilities=study.column(rows_by_role["reward"], "p", split="train"),
        questions=questions,
        prompts=extractive.prompts(held_out, questions, sizes),
        of_sentences=of_sentences,
        sample=jax.jit(sampler.sequences),
        log_probabilities=jax.jit(log_probabilities),
        start=functools.cache(lambda seed: supervised(tuner, train, sizes, seed, journal)),
        trainers={},
    )
    trainers = {
        a: trainer(summarisers, rlef.make(model, config).learner)
        for a, config in algorithms.items()
    }
    return summarisers._replace(trainers=trainers)


def in_steps(items: Any, steps: int) -> Any:
    """Returns items [n B, ...] as those of n steps, [n, B, ...]."""
    return jax.tree.map(lambda x: x.reshape(steps, -1, *x.shape[1:]), items)


def supervised(
    tuner: small_models.Trainer,
    papers: extractive.Papers,
    sizes: extractive.Sizes,
    seed: int,
    journal: study.Journal,
) -> types.Params:
    """Returns a decoder that was drawn, and has learnt noisy choices."""
    rng = np.random.default_rng([seed, 0])
    questions = extractive.ask(papers, sizes, sizes.start_steps * sizes.batch_size, rng)
    items = in_steps(extractive.imitated(papers, questions, sizes, rng), sizes.start_steps)
    key = jax.random.key(seed)
    state, losses = tuner.run(tuner.learner.init(key), types.NO_CONSTANTS, items, key)
    journal.tick(sizes.start_steps, float(losses[-1]))
    return state.params


def trainer(summarisers: Summarisers, learner: types.Learner) -> small_models.Trainer:
    """Returns RLEF by the table of the reward: sampling, scores and learning in one program."""

    def rows(
        state: types.LearnerState, constants: types.Constants, item: Item, key: types.Key
    ) -> rollouts.Episodes:
        del constants
        texts = summarisers.sample({"params": state.params}, item.prompts, key)
        choices = extractive.choices(texts, summarisers.sizes)
        scores = extractive.reward(item.of_sentences, *choices, summarisers.sizes)
        # What has just been sampled has the probabilities of the parameters that sampled it.
        drawn = jnp.pad(summarisers.log_probabilities(state.params, texts), ((0, 0), (1, 0)))
        return rollouts.Episodes(texts, scores, drawn)

    def report(feedback: types.Feedback, episodes: rollouts.Episodes) -> dict[str, jax.Array]:
        kl = feedback.metrics["kl_start"].mean()
        return {"reward": jnp.asarray(episodes.rewards).mean(), "kl": kl}

    return small_models.Trainer(learner, jax.jit(learners.scan(learner, rows, report)))


def learn(
    summarisers: Summarisers, alpha: float, seed: int, measurements: int, journal: study.Journal
) -> Iterator[study.Row]:
    """Trains a policy by RLEF; yields a row a measurement."""
    sizes, start = summarisers.sizes, summarisers.start(seed)
    learner, run = summarisers.trainers[alpha]
    key = jax.random.fold_in(jax.random.key(seed), 1)
    fresh = learner.init(jax.random.key(seed))
    state = learners.with_params(fresh, value_network.with_value(start))
    stretch = sizes.steps // measurements
    for number in range(measurements):
        rng = np.random.default_rng([seed, 1, number])
        questions = extractive.ask(summarisers.train, sizes, stretch * sizes.batch_size, rng)
        of_sentences = extractive.table(questions, summarisers.train_probabilities)
        item = Item(extractive.prompts(summarisers.train, questions, sizes), of_sentences)
        constants = types.Constants(start=start)
        state, metrics = run(state, constants, in_steps(item, stretch), key)
        done = (number + 1) * stretch
        row = {"arm": f"alpha {alpha:g}", "alpha": alpha, "seed": seed, "step": done}
        row |= measure(summarisers, state.params, seed)
        training_reward = float(metrics["reward"][-min(stretch, 20) :].mean())
        yield {**row, "training_reward": training_reward}
        journal.tick(done, row["reward"], "reward")


def start_and_best(
    summarisers: Summarisers, seed: int, counts: Sequence[int], journal: study.Journal
) -> Iterator[study.Row]:
    """Yields rows of the start, and of the best of N of its texts by the reward.

    Args:
      summarisers: of all seeds.
      seed: of the start.
      counts: N, ascending.
      journal: told how far the start is, by itself.
    """
    del journal
    sizes, params = summarisers.sizes, summarisers.start(seed)
    empty = {"alpha": None, "seed": seed, "step": 0, "training_reward": None}
    yield {"arm": "start", **empty, **measure(summarisers, params, seed)}
    key = jax.random.fold_in(jax.random.key(seed), 2)
    texts: list[tuple[np.ndarray, ...]] = []
    for n in range(counts[-1]):  # One of each prompt at a time.
        of_n = jax.random.fold_in(key, n)
        one = summarisers.sample({"params": params}, summarisers.prompts, of_n)
        places, is_choice = extractive.choices(one, sizes)
        scores = extractive.reward(summarisers.of_sentences["reward"], places, is_choice, sizes)
        texts.append((np.asarray(scores), np.asarray(places), np.asarray(is_choice)))
    for n in counts:
        scores, places, is_choice = (
            np.stack(x, 1).reshape(n * sizes.prompts, -1) for x in zip(*texts[:n], strict=True)
        )
        best = best_of_n.choose(scores[:, 0], n)
        row = {"arm": f"best of {n}", **empty}
        row |= describe(summarisers, places[best], is_choice[best])
        yield {**row, "kl": best_of_n.kl_bound(n)}


def measure(summarisers: Summarisers, params: types.Params, seed: int) -> dict[str, float]:
    """Returns means over a text of each held-out prompt, by the same numbers for all policies."""
    key = jax.random.fold_in(jax.random.key(seed), 3)
    texts = summarisers.sample({"params": params}, summarisers.prompts, key)
    places, is_choice = extractive.choices(texts, summarisers.sizes)
    log_p, log_start = (
        summarisers.log_probabilities(p, texts) for p in (params, summarisers.start(seed))
    )
    kl = float(jnp.mean(jnp.sum(log_p - log_start, 1)))
    return {**describe(summarisers, np.asarray(places), np.asarray(is_choice)), "kl": kl}


def describe(
    summarisers: Summarisers, places: np.ndarray, is_choice: np.ndarray
) -> dict[str, float]:
    """Returns means of what answers to the held-out prompts are worth, and are like."""
    answers = jnp.asarray(places), jnp.asarray(is_choice), summarisers.sizes
    p = {role: extractive.probability(x, *answers) for role, x in summarisers.of_sentences.items()}
    return {
        "entailment": float(p["reward"].mean()),
        "control": float(p["control"].mean()),
        "reward": float(extractive.reward(summarisers.of_sentences["reward"], *answers).mean()),
        **extractive.describe(summarisers.held_out, summarisers.questions, places, is_choice),
    }

"""Policies that choose sentences: a noisy start, RLEF of it, and best of N; see rlef.py.

What they are asked, and what answers are worth, is in extractive.py. B rows, K sentences of a
prompt, N papers, S sentences of a paper's pool, n learner steps or prompts.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import files, learners, types
from kullback.experiments import entailment as training
from kullback.experiments import reproduce
from kullback.experiments.reproductions import extractive
from kullback.lm import answers, batches, best_of_n, completions, gemma, rlef, rlhf, rollouts, sft
from kullback.lm.entailment import scorers

SIZES = extractive.Sizes()
Kind = Literal["encoder", "embeddings"]
ROLES: dict[str, Kind] = {"reward": "encoder", "control": "embeddings"}  # Which model is which.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, the models of entailment, and sizes."""

    seeds: int = 3
    regularisations: tuple[float, ...] = (0.1, 0.5)  # alpha in [0, 1].
    best_of: tuple[int, ...] = (4, 16)  # N, beside the one of equal budget.
    # Folders of `kullback entailment`; "" trains one here, by so many steps.
    reward: str = ""
    control: str = ""
    reward_steps: int = 240
    control_steps: int = 3_000
    measurements: int = 8  # Of each policy as it learns, evenly spaced.
    sizes: extractive.Sizes = SIZES

    def __post_init__(self) -> None:
        for name in ("seeds", "measurements"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.sizes.steps % self.measurements:
            raise ValueError(
                f"measurements={self.measurements} must divide sizes.steps={self.sizes.steps}"
            )
        if len(set(self.regularisations)) < 2:
            raise ValueError(
                f"regularisations need two values or more, got {self.regularisations}: they are "
                "compared"
            )
        for role in ROLES:
            self.judge(role)
        for alpha in self.regularisations:
            self.algorithm(alpha)
        for n in self.best_of:
            best_of_n.kl_bound(n)

    def algorithm(self, alpha: float) -> rlef.Config:
        """RLEF of a pull alpha."""
        return rlef.Config(
            regularisation=alpha,
            value_learning_rate=self.sizes.value_rate,
            learning=self.sizes.learning(self.sizes.learning_rate),
        )

    def judge(self, role: str) -> training.Config:
        """How a model of entailment is trained."""
        steps = self.reward_steps if role == "reward" else self.control_steps
        return training.Config(kind=ROLES[role], steps=steps)

    @property
    def equal_budget(self) -> int:
        """N by which the held-out prompts are answered with as many texts as a policy learns of."""
        return max(1, self.sizes.steps * self.sizes.batch_size // self.sizes.prompts)


class Scene(NamedTuple):
    """Papers, their sentences' P by model, and the programs of all seeds."""

    config: Config
    train: extractive.Papers
    held_out: extractive.Papers
    probabilities: dict[str, dict[str, np.ndarray]]  # By role and split, [N, S].
    asked: extractive.Asked  # Held-out prompts.
    model: gemma.Model
    sample: Callable[..., batches.Sequences]  # (acting params, prompts, key) -> with answers.
    log_probabilities: Callable[..., jax.Array]
    tuner: types.Learner
    tune: Callable[..., Any]

    def of_sentences(self, role: str) -> np.ndarray:
        """P of the sentences of the held-out prompts, [n, K]."""
        return extractive.table(self.held_out, self.asked, self.probabilities[role]["test"])


def make(config: Config, work: reproduce.Work) -> Scene:
    """Reads the papers, trains and asks the models of entailment, and builds the programs."""
    sizes = config.sizes
    papers = {split: extractive.read(split, sizes) for split in ("train", "test")}
    for role in ROLES:
        folder = getattr(config, role)
        if folder and not pathlib.Path(folder).is_dir():
            raise ValueError(
                f"{role} must be a folder that `kullback entailment` has written, or empty to "
                f"train one here, got {folder}"
            )
    probabilities = {}
    for role in ROLES:
        part = functools.partial(tabulated, config, role, papers, work)
        rows = work.part(role, model_steps(config, role), part)
        probabilities[role] = {
            split: np.array([row["p"] for row in rows if row["split"] == split]) for split in papers
        }
    model, learning = sizes.model(), sizes.learning(sizes.start_rate)
    tuner = sft.make(model, sft.Config(learning=learning)).learner
    return Scene(
        config=config,
        train=papers["train"],
        held_out=papers["test"],
        probabilities=probabilities,
        asked=extractive.ask(papers["test"], sizes, sizes.prompts, np.random.default_rng(1)),
        model=model,
        sample=jax.jit(
            completions.sampler(model, sizes.horizon, stop_tokens=(extractive.EOS,)).sequences
        ),
        log_probabilities=jax.jit(
            functools.partial(answers.log_probabilities, model, chunk=learning.chunk)
        ),
        tuner=tuner,
        tune=jax.jit(learners.scan(tuner, learners.stored)),
    )


def tabulated(
    config: Config, role: str, papers: dict[str, extractive.Papers], work: reproduce.Work
) -> reproduce.Rows:
    """P of each paper's pool by a model of entailment, which is trained first where none is given.

    What was trained is deleted once it has said all that it will be asked.
    """
    given, trained = getattr(config, role), work.path(f"{role}-model")
    if not given and not trained.exists():
        training.train(trained, config.judge(role), quiet=True)
    model = scorers.load(given or trained)
    done = model_steps(config, role) - sum(len(some.names) for some in papers.values())
    rows: reproduce.Rows = []
    for split, some in papers.items():
        tick = functools.partial(_tick, work, done + len(rows))
        found = extractive.scored(some, model.log_probability, tick)
        rows += [
            {"split": split, "paper": name, "p": p}
            for name, p in zip(some.names, found.tolist(), strict=True)
        ]
    if not given:
        files.remove(trained)
    return rows


def opinions(scene: Scene) -> reproduce.Rows:
    """Mean P of each model of entailment, by where the sentences are from."""
    rows: reproduce.Rows = []
    for role, by_split in scene.probabilities.items():
        for split, papers in (("train", scene.train), ("test", scene.held_out)):
            groups = {
                name: papers.is_there & (papers.group == number)
                for number, name in enumerate(extractive.GROUPS)
            }
            rows += [
                {
                    "model": role,
                    "split": split,
                    "sentences": group,
                    "count": int(mask.sum()),
                    "mean_p": float(by_split[split][mask].mean()),
                    "share_above_half": float((by_split[split][mask] > 0.5).mean()),
                }
                for group, mask in groups.items()
            ]
    return rows


def supervised(scene: Scene, seed: int, work: reproduce.Work) -> types.Params:
    """A start: a decoder that was drawn, and has learnt noisy choices."""
    sizes, rng = scene.config.sizes, np.random.default_rng([seed, 0])
    asked = extractive.ask(scene.train, sizes, sizes.start_steps * sizes.batch_size, rng)
    rows = extractive.imitated(scene.train, asked, sizes, rng)
    items = jax.tree.map(lambda x: x.reshape(sizes.start_steps, -1, *x.shape[1:]), rows)
    key = jax.random.key(seed)
    state, losses = scene.tune(scene.tuner.init(key), types.NO_CONSTANTS, items, key)
    work.tick(sizes.start_steps, float(losses[-1]))
    return state.params


class Item(NamedTuple):
    """What a step of reinforcement learning is given."""

    prompts: batches.Prompts  # [B, P].
    of_sentences: types.Array  # float32, [B, K]: P by the reward.


class Program(NamedTuple):
    """RLEF, and many of its steps as one compiled program."""

    learner: types.Learner
    # (state, constants, items [n, ...], key) -> (state, metrics, [n] each).
    run: Callable[..., Any]


def learner(scene: Scene, alpha: float) -> Program:
    """RLEF by the table of the reward: sampling, scores and learning in one program."""
    sizes = scene.config.sizes
    learns = rlef.make(scene.model, scene.config.algorithm(alpha)).learner

    def rows(
        state: types.LearnerState, constants: types.Constants, item: Item, key: types.Key
    ) -> rollouts.Episodes:
        del constants
        made = scene.sample({"params": state.params}, item.prompts, key)
        scores = extractive.reward(item.of_sentences, *extractive.choices(made, sizes), sizes)
        # What has just been sampled has the probabilities of the parameters that sampled it.
        drawn = jnp.pad(scene.log_probabilities(state.params, made), ((0, 0), (1, 0)))
        return rollouts.Episodes(made, scores, drawn)

    def report(feedback: types.Feedback, episodes: rollouts.Episodes) -> dict[str, jax.Array]:
        kl = feedback.metrics["kl_start"].mean()
        return {"reward": jnp.asarray(episodes.rewards).mean(), "kl": kl}

    return Program(learns, jax.jit(learners.scan(learns, rows, report)))


def learnt(
    scene: Scene,
    program: Program,
    start: Callable[[int], types.Params],
    alpha: float,
    seed: int,
    work: reproduce.Work,
) -> reproduce.Rows:
    """A policy as it learns, a row a measurement."""
    config, sizes = scene.config, scene.config.sizes
    key = jax.random.fold_in(jax.random.key(seed), 1)
    state = learners.with_params(
        program.learner.init(jax.random.key(seed)), rlhf.with_value(start(seed))
    )
    stretch, rows = sizes.steps // config.measurements, []
    for number in range(config.measurements):
        rng = np.random.default_rng([seed, 1, number])
        asked = extractive.ask(scene.train, sizes, stretch * sizes.batch_size, rng)
        of_sentences = extractive.table(scene.train, asked, scene.probabilities["reward"]["train"])
        item = Item(extractive.prompts(scene.train, asked, sizes), of_sentences)
        items = jax.tree.map(lambda x: x.reshape(stretch, -1, *x.shape[1:]), item)
        state, metrics = program.run(state, types.Constants(start=start(seed)), items, key)
        done = (number + 1) * stretch
        row = {"arm": f"alpha {alpha:g}", "alpha": alpha, "seed": seed, "step": done}
        training_reward = float(metrics["reward"][-min(stretch, 20) :].mean())
        row |= measures(scene, state.params, start(seed), seed)
        rows.append({**row, "training_reward": training_reward})
        work.tick(done, row["reward"], "reward")
    return rows


def at_start(scene: Scene, start: Callable[[int], types.Params], seed: int) -> reproduce.Rows:
    """The start, and the best of N of its texts by the reward."""
    config, sizes, params = scene.config, scene.config.sizes, start(seed)
    found = {"alpha": None, "seed": seed, "step": 0, "training_reward": None}
    rows = [{"arm": "start", **found, **measures(scene, params, params, seed)}]
    of_sentences = scene.of_sentences("reward")
    key = jax.random.fold_in(jax.random.key(seed), 2)
    prompts = extractive.prompts(scene.held_out, scene.asked, sizes)
    counts = sorted({*config.best_of, config.equal_budget})
    texts: list[tuple[np.ndarray, ...]] = []
    for n in range(counts[-1]):  # One of each prompt at a time.
        made = scene.sample({"params": params}, prompts, jax.random.fold_in(key, n))
        places, is_choice = extractive.choices(made, sizes)
        scores = extractive.reward(of_sentences, places, is_choice, sizes)
        texts.append((np.asarray(scores), np.asarray(places), np.asarray(is_choice)))
    for n in counts:
        scores, places, is_choice = (
            np.stack(x, 1).reshape(n * sizes.prompts, -1) for x in zip(*texts[:n], strict=True)
        )
        best = best_of_n.choose(scores[:, 0], n)
        judged = described(scene, places[best], is_choice[best])
        row = {"arm": f"best of {n}", **found, **judged}
        rows.append({**row, "kl": best_of_n.kl_bound(n)})
    return rows


def measures(
    scene: Scene, params: types.Params, start: types.Params, seed: int
) -> dict[str, float]:
    """Of a text of each held-out prompt; the same random numbers whatever the policy."""
    sizes, key = scene.config.sizes, jax.random.fold_in(jax.random.key(seed), 3)
    prompts = extractive.prompts(scene.held_out, scene.asked, sizes)
    made = scene.sample({"params": params}, prompts, key)
    places, is_choice = extractive.choices(made, sizes)
    ratio = scene.log_probabilities(params, made) - scene.log_probabilities(start, made)
    found = described(scene, np.asarray(places), np.asarray(is_choice))
    return {**found, "kl": float(jnp.mean(jnp.sum(ratio, 1)))}


def described(scene: Scene, places: np.ndarray, is_choice: np.ndarray) -> dict[str, float]:
    """Means of what answers to the held-out prompts are worth, and of what they are like."""
    sizes, answers = scene.config.sizes, (jnp.asarray(places), jnp.asarray(is_choice))
    by_role = {role: scene.of_sentences(role) for role in ROLES}
    p = {role: extractive.probability(x, *answers, sizes) for role, x in by_role.items()}
    return {
        "entailment": float(p["reward"].mean()),
        "control": float(p["control"].mean()),
        "reward": float(extractive.reward(by_role["reward"], *answers, sizes).mean()),
        **extractive.measured(scene.held_out, scene.asked, places, is_choice),
    }


def model_steps(config: Config, role: str) -> int:
    """Of training, where there is one, and a step a paper, of which train and test have 100."""
    return (0 if getattr(config, role) else config.judge(role).num_steps) + 200


def _tick(work: reproduce.Work, before: int, done: int) -> None:
    work.tick(before + done)

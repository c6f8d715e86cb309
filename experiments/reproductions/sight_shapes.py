"""`kullback reproduce sight-shapes`: a small decoder that counts what it sees, and then further.

Gemma 3 sees by a frozen SigLIP encoder and a projector that learns (Gemma Team 2025,
https://arxiv.org/abs/2503.19786); it was tuned by reinforcement learning after supervised learning.
Neither its data nor its vision's share in its scores is published, and this is the shape of it in
small: pictures of coloured shapes, questions of counting and of relation (shapes.py).

An encoder of SigLIP's form learns which shape stands where, and is frozen. A decoder learns to
answer, with its projector (SFT); no colour occurs more often than `most` times there, though discs
and all shapes together do, so that larger numbers are no strangers. The first question is whether
it sees: whether it is right of held-out pictures, and with the pictures of other rows no
more often than the best answer without any. The second is whether REINFORCE with leave-one-out
baselines, whose reward is 1 for the right answer, takes it to counts of a colour that no
demonstration had, beyond the policy that it starts from, and beyond one that learnt from the
demonstrations for as many texts more.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, ranges, types
from kullback.experiments.reproductions import (
    charts,
    judging,
    setups,
    shape_encoder,
    shapes,
    small_models,
    small_senses,
    small_sight,
    students,
    study,
)
from kullback.lm import completions, data, rlhf, rollouts, sft, tuning

CELLS = shapes.CELLS**2
ENCODER = shape_encoder.Learning()
SIGHT = small_sight.Sizes(side=shapes.SIDE, patch=4, num_soft=CELLS)
KINDS = shapes.KINDS  # Of questions that are learnt from demonstrations.
COUNTS = "colours-up-to"  # Counts of them, up to `largest`.
SFT, LONGER, RLOO = "sft", "sft-longer", "rloo"
MODELS = {SFT: "SFT", LONGER: "SFT, as many texts more", RLOO: "RLOO"}
MARGIN = 0.05  # Of the share of right answers; less is no difference that matters.
STREAMS = {name: n for n, name in enumerate(("learnt", "held out", "policy", "figure"), 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the models, their data, and how long each learns."""

    sight: small_sight.Sizes = SIGHT
    encoder: shape_encoder.Learning = ENCODER
    pictures: int = 30_000  # With a question each, to learn from.
    steps: int = 4_000  # Of SFT.
    batch_size: int = 64
    learning_rate: float = 2e-3
    most: int = 4  # Of a colour in these; at least 3, for a picture of nine.
    largest: int = 7  # Of a shape in these, and of a colour where a policy learns by its reward.
    policy_pictures: int = 8_000
    policy_steps: int = 300
    policy_batch: int = 256  # Texts: prompts times samples of each.
    samples_per_prompt: int = 8
    policy_rate: float = 3e-4
    kl_coefficient: float = 0.01
    held_out: int = 1_000  # Questions of each kind; the `counts` are twice as many.
    records: int = 10  # Of the reward, as the policy learns.
    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        ranges.at_least(0, self, "first_seed")
        ranges.at_least(1, self, "pictures", "policy_pictures", "steps")
        ranges.at_least(1, self, "records", "seeds")
        ranges.at_least(shapes.MOST_SHAPES, self, "held_out")
        ranges.inside(f"[3, {shapes.MOST_SHAPES - 1}]", self, "most")
        ranges.inside(f"[{self.most + 1}, {shapes.MOST_SHAPES}]", self, "largest")
        ranges.multiples("records", self, "policy_steps")
        if (self.sight.side, self.sight.num_soft) != (shapes.SIDE, CELLS):
            raise ValueError(
                f"pictures have {shapes.SIDE} pixels of a side and {CELLS} cells, a soft token "
                f"each, got side={self.sight.side} and num_soft={self.sight.num_soft}"
            )
        _ = self.policy(8, 2)

    def learning(self, prompt: int, horizon: int, *, longer: bool = False) -> tuning.Config:
        """Returns the settings of SFT on rows of so many tokens; its rate falls to 0, linearly.

        What goes on for longer begins at the rate of the policy.
        """
        rate, steps = self.learning_rate, self.steps
        if longer:
            rate, steps = self.policy_rate, self.longer_steps
        falls = {"schedule": "linear", "decay_steps": steps, "warmup_steps": min(20, steps // 10)}
        return small_models.learning(self.batch_size, prompt, horizon, rate, **falls)

    def policy(self, prompt: int, horizon: int) -> rlhf.Config:
        """Returns the settings of reinforcement learning."""
        rate = self.policy_rate
        return rlhf.Config(
            samples_per_prompt=self.samples_per_prompt,
            kl_coefficient=self.kl_coefficient,
            learning=small_models.learning(self.policy_batch, prompt, horizon, rate),
        )

    @property
    def longer_steps(self) -> int:
        """Learner steps of SFT with as many texts as the policy learns from."""
        return max(1, self.policy_steps * self.policy_batch // self.batch_size)


class Rows(NamedTuple):
    """Rows of pictures and questions, as a decoder reads them."""

    questions: Sequence[shapes.Row]
    examples: Sequence[data.Example]
    pooled: np.ndarray  # [N, 1, M, E].


class World:
    """The models of a configuration and their programs, of all seeds."""

    def __init__(self, config: Config):
        """Trains a tokenizer, and builds models."""
        self.config = config
        texts = [*shapes.questions(), *shapes.ANSWERS]
        length = 2 + CELLS + max(map(len, texts))  # Of bytes, at most.
        self.seer = small_sight.make(config.sight, texts * 2, length)
        every = self.seer.examples([(q, a) for q in shapes.questions() for a in shapes.ANSWERS])
        self.width = max(len(example.prompt) for example in every)
        self.horizon = max(len(example.completion) for example in every)
        self.is_right = jax.jit(functools.partial(small_senses.is_right, self.seer))

    @functools.cached_property
    def tuners(self) -> dict[str, small_models.Trainer]:
        """The trainers of SFT, and of what goes on for longer."""

        def tuner(*, longer: bool) -> small_models.Trainer:
            learning = self.config.learning(self.width, self.horizon, longer=longer)
            tuned = sft.make(self.seer.decoder, sft.Config(learning=learning))
            return small_models.trainer(tuned.learner)

        return {SFT: tuner(longer=False), LONGER: tuner(longer=True)}

    @functools.cached_property
    def agent(self) -> types.Agent[rollouts.OnPolicy]:
        """The agent of reinforcement learning."""
        return rlhf.make(self.seer.decoder, config=self.config.policy(self.width, self.horizon))

    @functools.cached_property
    def climb(self) -> Any:
        """Its compiled steps, see `learners.scan`; items are `small_sight.Prompted`."""
        agent, group = self.agent, self.config.samples_per_prompt
        sampler = completions.of_policy(agent.policy, self.seer.decoder, self.horizon, group)

        def texts(
            state: types.LearnerState,
            constants: types.Constants,
            item: small_sight.Prompted,
            key: types.Key,
        ) -> rollouts.Episodes:
            acting = agent.actor_params(state, state.steps, False, constants)
            return rollouts.sample(
                sampler, small_sight.exact, acting, item.prompts, key, item.answers
            )

        def report(feedback: types.Feedback, data: rollouts.Episodes) -> dict[str, jax.Array]:
            kl = jnp.mean(feedback.metrics["kl_start"])
            return {"reward": jnp.mean(data.rewards), "kl": kl}

        return jax.jit(learners.scan(agent.learner, texts, report))

    def encode(self, encoder: types.Params, questions: Sequence[shapes.Row], seed: Any) -> Rows:
        """Draws the pictures of questions, encodes each once, and returns all as rows."""
        random, parts = np.random.default_rng(seed), list[np.ndarray]()
        for first in range(0, len(questions), 1_000):
            kinds = np.stack([row.kinds for row in questions[first : first + 1_000]])
            pixels = shapes.drawn(kinds, random)
            parts.append(small_sight.encoded(self.seer.vision, encoder, pixels))
        examples = self.seer.examples([(row.question, row.answer) for row in questions])
        return Rows(questions, examples, np.concatenate(parts))

    def setup(self, rows: Rows) -> setups.Setup:
        """Returns the set-up of SFT on rows."""
        learning = self.config.learning(self.width, self.horizon)
        return small_sight.setup(self.seer, learning, rows.examples, rows.pooled)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.width + self.horizon

    def right(self, params: types.Params, rows: Rows, *, shuffled: bool = False) -> np.ndarray:
        """Returns which greedy answers are right, bool [N]; shuffled ones see another row's."""
        pooled = np.roll(rows.pooled, 1, 0) if shuffled else rows.pooled
        given = small_senses.sequences(self.seer, rows.examples, pooled, self.length)
        return np.asarray(self.is_right(params, given))


def learn_policy(
    world: World, start: types.Params, rows: Rows, seed: int, tick: students.Tick
) -> tuple[types.Params, study.Rows]:
    """Returns a policy that has learnt by reward, and rows of reward and distance on its way."""
    config, size = world.config, (world.width, world.horizon)
    items = small_sight.prompted(world.seer, rows.examples, rows.pooled, *size)
    state = learners.with_params(world.agent.learner.init(jax.random.key(seed)), start)
    constants, key = types.Constants(start=start), jax.random.fold_in(jax.random.key(seed), 1)
    stretch = config.policy_steps // config.records
    prompts, records = config.policy_batch // config.samples_per_prompt, list[study.Row]()
    for first in range(0, config.policy_steps, stretch):
        part = small_models.take(items, stretch, prompts, seed, first)
        state, reports = world.climb(state, constants, part, key)
        means = {name: float(jnp.mean(x)) for name, x in reports.items()}
        records.append({"step": first + stretch, **means})
        tick(first + stretch, means["reward"])
    return state.params, records


def compute(config: Config, world: World, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields the rows of all tables of a seed: encoder, SFT, longer SFT and RLOO."""

    def random(stream: str) -> np.random.Generator:
        return np.random.default_rng([seed, STREAMS[stream]])

    def after(steps: int, metric: str = "loss") -> students.Tick:
        return lambda done, value: journal.tick(steps + done, value, metric)

    limits = config.most, config.largest

    learnt = shape_encoder.learn(
        config.sight, config.encoder, world.seer.vision, limits, seed, after(0)
    )
    encoder = learnt.params
    yield from study.tagged("encoder", [{"cells_right": learnt.right}])
    shown = shapes.learnt(random("learnt"), config.pictures, *limits)
    setup, done = world.setup(world.encode(encoder, shown, [seed, 10])), config.encoder.steps
    start = students.learn(setup, world.tuners[SFT], config.steps, seed, tick=after(done))
    done, more = done + config.steps, config.longer_steps
    longer = students.learn(setup, world.tuners[LONGER], more, seed, start=start, tick=after(done))
    done, draws = done + more, random("policy")
    further = shapes.counts_up_to(draws, config.policy_pictures, *limits)
    rewarded = world.encode(encoder, further, [seed, 11])
    policy, records = learn_policy(world, start, rewarded, seed, after(done, "reward"))
    yield from study.tagged("policy", records)

    draws, held_out = random("held out"), config.held_out
    new = {k: [shapes.question(draws, k, *limits) for _ in range(held_out)] for k in KINDS}
    new[COUNTS] = shapes.counts_up_to(draws, 2 * held_out, *limits)
    for number, (kind, questions) in enumerate(new.items()):
        rows = world.encode(encoder, questions, [seed, 12 + number])
        known = rewarded.questions if kind == COUNTS else shown
        guess = float(np.mean(shapes.guessed(known, questions)))
        for model, params in {SFT: start, LONGER: longer, RLOO: policy}.items():
            right = world.right(params, rows)
            row = {"model": model, "questions": kind, "right": float(np.mean(right))}
            row["shuffled"] = float(np.mean(world.right(params, rows, shuffled=True)))
            yield from study.tagged("answers", [{**row, "guessed": guess}])
            if kind == COUNTS:
                yield from study.tagged("counts", by_count(config, model, questions, right))


def by_count(
    config: Config, model: str, questions: Sequence[shapes.Row], right: np.ndarray
) -> Iterator[study.Row]:
    """Yields the share of right answers, bool [N], of each count."""
    counts = np.array([row.number for row in questions])
    for count in range(config.largest + 1):
        share = float(np.mean(right[counts == count]))
        yield {"model": model, "count": count, "right": share}


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields an arm a seed."""
    world = functools.cache(lambda: World(config))
    steps = config.encoder.steps + config.steps + config.longer_steps + config.policy_steps

    def run(seed: int, journal: study.Journal) -> Iterator[study.Row]:
        return compute(config, world(), seed, journal)

    for seed in study.seeds_of(config):
        part = functools.partial(run, seed)
        yield study.Arm(f"seed-{seed}", steps, part, columns={"seed": seed})


def of_kinds(rows: study.Rows, model: str, column: str) -> np.ndarray:
    """Returns a column of a model, a mean over the kinds that were demonstrated, [seeds]."""
    return np.mean([study.column(rows, column, model=model, questions=k) for k in KINDS], 0)


def beyond(config: Config, rows: study.Rows, model: str) -> np.ndarray:
    """Returns the share of right answers of counts that no demonstration had, [seeds]."""
    numbers = range(config.most + 1, config.largest + 1)
    return np.mean([study.column(rows, "right", model=model, count=n) for n in numbers], 0)


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges whether the decoder sees, and whether it counts further by its reward."""
    rows, counts = tables["answers"], tables["counts"]
    right, shuffled, guess = (of_kinds(rows, SFT, n) for n in ("right", "shuffled", "guessed"))
    claim = "SFT: more than 0.9 of the answers about new pictures are right (share)"
    yield judging.headline(judging.above(claim, right, 0.9))
    claim = "SFT: with other rows' pictures as many are right as without any (difference)"
    yield judging.headline(judging.equal(claim, MARGIN, shuffled - guess, shared="the rows"))
    shared, of_rloo = "encoder and start", beyond(config, counts, RLOO)
    for model in (SFT, LONGER):
        claim = f"counts of {config.most + 1} to {config.largest}: RLOO above {MODELS[model]}"
        more = of_rloo - beyond(config, counts, model)
        check = judging.above(f"{claim} (difference)", more, shared=shared)
        yield judging.headline(check) if model == SFT else check
    further = functools.partial(study.column, rows, questions=COUNTS)
    claim = f"RLOO: with other rows' pictures as many counts up to {config.largest} are right as "
    lost = further("shuffled", model=RLOO) - further("guessed", model=RLOO)
    yield judging.equal(f"{claim}without any (difference)", MARGIN, lost, shared="the rows")
    kept = study.column(rows, "right", model=RLOO, questions="colours")
    kept = kept - study.column(rows, "right", model=SFT, questions="colours")
    claim = f"RLOO costs at most {MARGIN:g} of the counts that were demonstrated ({MARGIN:g} less "
    yield judging.above(f"{claim}what it costs)", MARGIN + kept, shared=shared)
    for model, label in MODELS.items():
        by_kind = {
            kind: study.column(rows, "right", model=model, questions=kind)
            for kind in (*KINDS, COUNTS)
        }
        said = judging.means({**by_kind, "beyond": beyond(config, counts, model)})
        yield judging.reported(f"{label}: right answers by kind", said)
    told = study.column(tables["encoder"], "cells_right")
    yield judging.reported("encoder: cells that it tells right", judging.mean(told))
    last = study.by_seed(tables["policy"], "kl")[:, -1]
    yield judging.reported("RLOO: KL to its start at the end, nats a text", judging.mean(last))


def pictures(config: Config) -> charts.Grid:
    """Returns pictures with their questions and answers, of each kind."""
    random = np.random.default_rng([config.first_seed, STREAMS["figure"]])
    rows = [shapes.question(random, k, config.most, config.largest) for k in (*KINDS, *KINDS[-1:])]
    further = range(config.most + 1, config.largest + 1)
    rows += [shapes.count(random, further, config.most, 0) for _ in range(3)]
    pixels = shapes.drawn(np.stack([row.kinds for row in rows]), random)
    panels = [
        charts.Panel(
            marks=[charts.Pixels(x)], axes={"title": f"{row.question} {row.answer}"}, legend=None
        )
        for x, row in zip(pixels, rows, strict=True)
    ]
    return charts.Grid(panels=panels, columns=4, width=2.6, height=2.6, title_size=8)


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns right answers by kind, with and without the right picture, and by the count."""
    rows, counts, policy = tables["answers"], tables["counts"], tables["policy"]
    bars: list[charts.Mark] = []
    for n, (column, label) in enumerate(
        {"right": "its picture", "shuffled": "another", "guessed": "none: the best guess"}.items()
    ):
        samples = [study.column(rows, column, model=SFT, questions=kind) for kind in KINDS]
        bars.append(charts.beside(n, 3, samples, label, span=0.81))
    lines: list[charts.Mark] = [charts.Level(config.most + 0.5, {"color": "0.6"}, True)]
    for n, (model, label) in enumerate(MODELS.items()):
        y = study.by_seed(counts, "right", model=model)
        style = {"color": f"C{n}"}
        lines.append(charts.Seeds(range(config.largest + 1), y, label, style, {"alpha": 0.4}))
    steps, rewards = (study.by_seed(policy, name) for name in ("step", "reward"))
    axes = {"title": "SFT, new pictures", "ylabel": "right answers", "ylim": (0, 1.02)}
    axes |= {"xticks": range(len(KINDS)), "xticklabels": KINDS}
    over = {"title": "how many of a colour", "xlabel": f"count; SFT saw {config.most} at most"}
    climbing = {"title": "RLOO", "xlabel": "learner steps", "ylabel": "reward"}
    return charts.Grid(
        panels=[
            charts.Panel(marks=bars, axes=axes, legend={"fontsize": 8}),
            charts.Panel(marks=lines, axes={**over, "ylim": (0, 1.02)}, legend={"fontsize": 8}),
            charts.Panel(marks=[charts.Seeds(steps[0], rewards)], axes=climbing, legend=None),
        ],
        width=4.0,
        title_size=10,
    )


def seconds(config: Config) -> float:
    """Estimates compiling, pictures, and steps by their rows, on 2 CPU cores."""
    encoder = 0.04 * config.encoder.batch_size / 64 * config.encoder.steps
    tuned = 0.035 * config.batch_size / 64 * (config.steps + config.longer_steps)
    policy = 0.25 * config.policy_batch / 256 * config.policy_steps
    return 60 + config.seeds * (20 + encoder + tuned + policy)


STUDY = study.Study(
    claim="A decoder that sees by a frozen encoder answers questions of pictures because it looks, "
    "and by a reward alone it counts beyond its demonstrations.",
    source="Gemma Team 2025, arXiv:2503.19786, in shape",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: study.split(rows, "answers", "counts", "policy", "encoder"),
    claims=claims,
    figures=lambda config, tables: {
        "sight_shapes": panels(config, tables),
        "pictures": pictures(config),
    },
    seconds=seconds,
)

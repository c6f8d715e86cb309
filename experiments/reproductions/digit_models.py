"""A decoder that reads digits and draws them, and its judges; see sight_digits.py, which judges.

N pictures, L codes of one, M soft tokens, E features of one, P tokens of a prompt.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, ranges, types
from kullback.experiments.reproductions import (
    digits,
    drawings,
    setups,
    small_models,
    small_senses,
    small_sight,
    students,
    study,
)
from kullback.lm import data, image_codes, rlhf, sft, siglip, tuning

# The encoder stays as it was drawn: a soft token has all of its 4 x 4 pixels.
SIGHT = small_sight.Sizes(
    side=digits.SIDE, patch=4, num_soft=4, encoder_layers=1, width=64, layers=3
)
CODER = image_codes.Config(side=digits.SIDE, patch=2, num_codes=32, hidden=32)
JUDGE, CONTROL = digits.Judging(), digits.Judging(hidden=128, weight_decay=1.0)
READ = "digit?"
PLAIN, GUIDED = "plain", "guided"
MANY, FEW, CONTROL_JUDGE = "many", "few", "control"
JUDGES = {
    MANY: "the judge of many digits",
    FEW: "the judge of few",
    CONTROL_JUDGE: "the control",
}
CLIMBED = (MANY, FEW)  # Judges that policies learn by.
STREAMS = {name: n for n, name in enumerate(("split", "varied", "any"), 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the models, shares of the digits, and how long each learns."""

    sight: small_sight.Sizes = SIGHT
    coder: image_codes.Config = CODER
    rewarding: digits.Judging = JUDGE  # The judges that policies learn by.
    control: digits.Judging = CONTROL  # And the one that nothing learns by.
    learnt: int = 800  # Digits that decoder and codebook learn from.
    judged: int = 300  # That the judge of many does.
    few: int = 30  # Of these, those that the judge of few does.
    controlled: int = 400  # That the control does.
    held_out: int = 297  # Of which answers are judged.
    copies: int = 20  # Variants of each digit that the decoder learns from.
    coder_steps: int = 1_000
    coder_batch: int = 64
    steps: int = 2_000  # Of SFT.
    batch_size: int = 64  # Rows: readings and drawings.
    learning_rate: float = 2e-3
    unasked: float = 0.15  # Share of drawings that are learnt behind "draw any".
    guidance: float = 2.0  # Scale of classifier-free guidance; 1 is none.
    policy_steps: int = 200  # By each judge.
    policy_batch: int = 256  # Drawings: prompts times samples of each.
    samples_per_prompt: int = 16
    policy_rate: float = 3e-4
    kl_coefficient: float = 0.01
    drawn: int = 1_000  # Drawings that are judged each time.
    records: int = 10  # Of these, as the policy learns.
    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "learnt", "judged", "controlled", "copies", "coder_steps")
        ranges.at_least(1, self, "coder_batch", "steps", "policy_steps", "records", "seeds")
        ranges.at_least(2, self, "held_out", "drawn")
        ranges.at_least(0, self, "first_seed")
        ranges.inside("[1, judged]", self, "few")
        ranges.inside("(0, 1)", self, "unasked")
        ranges.inside("(1, inf)", self, "guidance")
        ranges.multiples("records", self, "policy_steps")
        ranges.multiples(digits.NUM_DIGITS, self, "drawn")
        if sum(self.shares) > digits.NUM_PICTURES:
            raise ValueError(
                f"learnt, judged, controlled and held_out share no digit of the "
                f"{digits.NUM_PICTURES} that there are, got {' + '.join(map(str, self.shares))}"
            )
        sides = self.sight.side, self.coder.side
        if sides != (digits.SIDE, digits.SIDE) or self.coder.channels != 1:
            raise ValueError(
                f"digits are grey, of {digits.SIDE} pixels a side, got sight.side={sides[0]}, "
                f"coder.side={sides[1]} and coder.channels={self.coder.channels}"
            )
        _ = self.policy(4)

    @property
    def shares(self) -> tuple[int, int, int, int]:
        """Digits of each part."""
        return self.learnt, self.judged, self.controlled, self.held_out

    def learning(self, prompt: int, horizon: int) -> tuning.Config:
        """Returns the settings of SFT on rows of so many tokens; its rate falls to 0, linearly."""
        steps = self.steps
        falls = {"schedule": "linear", "decay_steps": steps, "warmup_steps": min(20, steps // 10)}
        return small_models.learning(self.batch_size, prompt, horizon, self.learning_rate, **falls)

    def policy(self, prompt: int) -> rlhf.Config:
        """Returns the settings of reinforcement learning, of prompts of so many tokens."""
        sizes = self.policy_batch, prompt, self.coder.length
        return rlhf.Config(
            samples_per_prompt=self.samples_per_prompt,
            kl_coefficient=self.kl_coefficient,
            learning=small_models.learning(*sizes, self.policy_rate),
        )


class Parts(NamedTuple):
    """All that a seed has before its decoder learns."""

    learnt: digits.Digits  # All variants.
    held_out: digits.Digits
    judges: dict[str, types.Params]  # By the names of `JUDGES`.
    paper: drawings.Paper
    encoder: types.Params
    codes: np.ndarray  # Of what is learnt, int32 [N, L].


class World:
    """The models of a configuration and their programs, of all seeds."""

    def __init__(self, config: Config):
        """Reads the digits, trains a tokenizer, and builds the decoder."""
        self.config, self.digits = config, digits.load()
        answers = [str(n) for n in range(digits.NUM_DIGITS)]
        texts = [READ, drawings.ANY, *drawings.DRAW, *answers]
        codes = config.coder.num_codes, config.coder.length
        longest = max(map(len, texts)) + config.sight.num_soft + config.coder.length + 4
        self.seer = small_sight.make(config.sight, texts * 2, longest, codes)
        self.answers = [(READ, answer) for answer in answers]
        self.requests = drawings.prompts(self.seer, drawings.DRAW)  # [10, P].
        self.prompt = max(len(self.seer.prompt(READ)), self.requests.tokens.shape[1])
        self.horizon = config.coder.length + 1
        self.is_right = jax.jit(functools.partial(small_senses.is_right, self.seer))

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.horizon

    @functools.cached_property
    def tuner(self) -> small_models.Trainer:
        """The trainer of SFT."""
        learning = self.config.learning(self.prompt, self.horizon)
        return small_models.trainer(
            sft.make(self.seer.decoder, sft.Config(learning=learning)).learner
        )

    @functools.cached_property
    def climber(self) -> drawings.Climber:
        """Reinforcement learning of drawings."""
        coder, config = image_codes.make(self.config.coder), self.config
        return drawings.climber(self.seer, coder, config.policy(self.requests.tokens.shape[1]))

    @functools.cached_property
    def writers(self) -> dict[str, drawings.Write]:
        """The two ways of drawing, without guidance and with it."""
        scales = {PLAIN: 1.0, GUIDED: self.config.guidance}
        return {way: drawings.writer(self.seer, scale) for way, scale in scales.items()}

    def parts(self, seed: int, tick: students.Tick) -> Parts:
        """Splits the digits, and lets judges and codebook learn."""
        config = self.config
        random = _random(seed, "split")
        mine, judged, controlled, held_out = digits.split(self.digits, config.shares, random)
        learnt = digits.varied(mine, config.copies, _random(seed, "varied"))
        judges = {
            MANY: digits.train_judge(config.rewarding, judged, seed, 1),
            FEW: digits.train_judge(config.rewarding, judged.part(slice(config.few)), seed, 1),
            CONTROL_JUDGE: digits.train_judge(config.control, controlled, seed, 2),
        }
        sizes = {"steps": config.coder_steps, "batch_size": config.coder_batch}
        paper = drawings.paper(config.coder, learnt.pixels, **sizes, seed=seed, tick=tick)
        encoder = jax.jit(siglip.make(config.sight.encoder).init)(jax.random.key(seed))
        return Parts(learnt, held_out, judges, paper, encoder, paper.codes(learnt.pixels))

    def pooled(self, encoder: types.Params, given: digits.Digits) -> np.ndarray:
        """Returns the features of pictures, [N, 1, M, E]."""
        return small_sight.encoded(self.seer.vision, encoder, digits.as_bytes(given.pixels))

    def readings(self, labels: np.ndarray) -> list[data.Example]:
        """Returns rows that say which digit is seen."""
        answers = self.seer.examples(self.answers)
        return [answers[label] for label in labels]

    def setup(self, parts: Parts, seed: int) -> setups.Setup:
        """Returns the set-up of SFT: a reading and a drawing of each picture."""
        labels, pooled = parts.learnt.labels, self.pooled(parts.encoder, parts.learnt)
        says_none = _random(seed, "any").random(len(labels)) < self.config.unasked
        texts = [
            drawings.ANY if none else drawings.DRAW[label]
            for label, none in zip(labels, says_none, strict=True)
        ]
        drawn = drawings.examples(self.seer, texts, parts.codes)
        return small_sight.setup(
            self.seer,
            self.config.learning(self.prompt, self.horizon),
            [*self.readings(labels), *drawn],
            # No image stands in a row that is drawn, and none is read.
            np.concatenate([pooled, np.zeros_like(pooled)]),
        )

    def right(self, params: types.Params, parts: Parts, *, shuffled: bool = False) -> float:
        """Returns the share of held-out digits that are read; shuffled ones see another row's."""
        pooled = self.pooled(parts.encoder, parts.held_out)
        pooled = np.roll(pooled, 1, 0) if shuffled else pooled
        examples = self.readings(parts.held_out.labels)
        given = small_senses.sequences(self.seer, examples, pooled, self.length)
        return float(np.mean(np.asarray(self.is_right(params, given))))

    def draw(self, params: types.Params, parts: Parts, way: str, seed: int) -> np.ndarray:
        """Returns the codes of as many drawings of each digit, in turn, int32 [N, L]."""
        labels = np.arange(self.config.drawn) % digits.NUM_DIGITS
        requests = jax.tree.map(lambda x: x[labels], self.requests)
        return np.asarray(self.writers[way](params, requests, jax.random.key(seed)))


def _random(seed: int, stream: str) -> np.random.Generator:
    return np.random.default_rng([seed, STREAMS[stream]])


def judged(parts: Parts, codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns what all judges say of pictures, and how these are spread.

    `distance` is Frechet's to the held-out digits, of the control's hidden features; `distinct` the
    share of the drawings that differ from all before, `copied` that of those which are, code by
    code, a picture that was learnt from.
    """
    pictures, control = (
        digits.Digits(parts.paper.pixels(codes), labels),
        parts.judges[CONTROL_JUDGE],
    )
    row = {
        f"{name}_{what}": value
        for name, rater in parts.judges.items()
        for what, value in digits.told(rater, pictures).items()
    }
    known, drawn = {tuple(x) for x in parts.codes}, [tuple(x) for x in codes]
    features = (digits.features(control, x) for x in (pictures.pixels, parts.held_out.pixels))
    row["distance"] = image_codes.frechet_distance(*(np.asarray(x) for x in features))
    row["distinct"] = len(set(drawn)) / len(drawn)
    row["copied"] = float(np.mean([x in known for x in drawn]))
    return row


def learn_policy(
    world: World,
    start: types.Params,
    parts: Parts,
    by: str,
    seed: int,
    tick: students.Tick = students.ignore,
) -> tuple[types.Params, study.Rows]:
    """Returns a policy that has learnt by one of the judges, and rows of its drawings meanwhile."""
    config, climber = world.config, world.climber
    state = learners.with_params(climber.learner.init(jax.random.key(seed)), start)
    constants, key = types.Constants(start=start), jax.random.fold_in(jax.random.key(seed), 1)
    stretch = config.policy_steps // config.records
    num_prompts, labels = config.policy_batch // config.samples_per_prompt, np.arange(10)
    repeats = np.resize(labels, 10 * num_prompts)  # Each digit as often as another.
    items = drawings.Asked(
        jax.tree.map(lambda x: x[repeats], world.requests), repeats.astype(np.int32)
    )
    drawn_with, rater = (parts.paper.params, parts.paper.book), parts.judges[by]
    drawn = np.arange(config.drawn) % digits.NUM_DIGITS

    def row(step: int, kl: float) -> study.Row:
        codes = world.draw(state.params, parts, PLAIN, seed)
        return {"step": step, "kl": kl, **judged(parts, codes, drawn)}

    rows = [row(0, 0.0)]
    for first in range(0, config.policy_steps, stretch):
        part = small_models.take(items, stretch, num_prompts, seed, first)
        state, reports = climber.run(state, constants, part, key, rater, drawn_with)
        means = {name: float(jnp.mean(x)) for name, x in reports.items()}
        rows.append(row(first + stretch, means["kl"]))
        tick(first + stretch, means["reward"])
    return state.params, rows

"""`kullback reproduce hearing-words`: a small decoder that tells words and tones apart by ear.

Gemini 1.0 takes features of sound beside text, and its authors name what a transcript loses, such
as the tone of a voice (Gemini Team, 2023, https://arxiv.org/abs/2312.11805, section 2). Neither its
encoder nor its data are published, and this is the shape of it in small: words of three vowels that
a voice says, and questions of which word it was, and whether its pitch rose or fell (spoken.py).

Clips become log-mel features (lm/audio.py), and an encoder of these learns with the decoder, from
the beginning (lm/hearing.py). The first question is whether it hears: whether it is right of new
clips, and with the clips of other rows no more often than the best answer without any. The second
is whether it hears vowels, or knows words: a share of the words is in no clip that it learns from.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, types
from kullback.experiments.reproductions import (
    charts,
    judging,
    small_models,
    small_senses,
    spoken,
    students,
    study,
)
from kullback.lm import (
    audio,
    batches,
    blocks,
    data,
    gemma,
    hearing,
    interleaved,
    sft,
    tokenizer,
    tuning,
)

KNOWN, TONE, NEW = "word", "tone", "new word"
KINDS = (KNOWN, TONE, NEW)  # Of questions; the words of the last are in no clip that is learnt.
MARGIN = 0.05  # Of the share of right answers; less is no difference that matters.
STREAMS = {name: n for n, name in enumerate(("words", "learnt", "held out", "figure"), 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the model, its data, and how long it learns."""

    bins: int = 64  # Of the features.
    encoder_width: int = 64  # A multiple of 4.
    encoder_layers: int = 2
    width: int = 64  # Of the decoder, a multiple of 8.
    layers: int = 2
    clips: int = 4_000  # With a question each, to learn from.
    steps: int = 1_500  # Of SFT.
    batch_size: int = 64
    learning_rate: float = 2e-3  # It falls to 0, linearly.
    new_share: float = 0.2  # Of the words, of which no clip is learnt from.
    held_out: int = 1_000  # Clips of each kind of question.
    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        ranges.at_least(0, self, "first_seed")
        ranges.at_least(1, self, "bins", "encoder_layers", "layers", "clips", "steps", "seeds")
        ranges.at_least(2, self, "held_out")
        ranges.multiples(4, self, "encoder_width")
        ranges.multiples(8, self, "width")
        ranges.inside("(0, 1)", self, "new_share")
        _ = self.learning(8, 2)

    @property
    def encoder(self) -> hearing.Config:
        """The encoder's shape."""
        return hearing.Config(
            bins=self.bins,
            most_tokens=spoken.TOKENS,
            embed_dim=self.encoder_width,
            num_layers=self.encoder_layers,
            num_heads=4,
            hidden_dim=4 * self.encoder_width,
        )

    def learning(self, prompt: int, horizon: int) -> tuning.Config:
        """Returns the settings of SFT on rows of so many tokens."""
        warmup = min(20, self.steps // 10)
        falls = {"schedule": "linear", "decay_steps": self.steps, "warmup_steps": warmup}
        return small_models.learning(self.batch_size, prompt, horizon, self.learning_rate, **falls)


class Rows(NamedTuple):
    """Rows of clips and questions, as a decoder reads them."""

    questions: Sequence[spoken.Row]
    examples: Sequence[data.Example]
    clips: hearing.Clips  # [N, 1, A, M].


class World:
    """The model of a configuration and its programs, of all seeds."""

    def __init__(self, config: Config):
        """Trains a tokenizer, and builds the model."""
        self.config = config
        texts = [*spoken.texts()]
        self.tokenizer = tokenizer.train_bpe(texts, 265, further_controls=blocks.AUDIO_TOKENS)
        markers = dataclasses.replace(blocks.markers_of(self.tokenizer), around="none")
        self.markers = markers
        longest = 3 + spoken.TOKENS + 2 + 2 * max(map(len, texts))  # Of bytes, at most.
        shape = small_models.decoder(
            self.tokenizer.vocab_size, config.width, config.layers, longest
        )
        decoder = gemma.make(small_models.speaking(shape, self.tokenizer))
        self.decoder = hearing.hearing(decoder, config.encoder, markers)
        answers = (*spoken.WORDS, *spoken.TONES)
        self.width = max(len(self.prompt(q, spoken.TOKENS)) for q in spoken.QUESTIONS.values())
        self.horizon = 1 + max(len(self.tokenizer.encode(answer)) for answer in answers)
        self.is_right = jax.jit(functools.partial(small_senses.is_right, self))

    def prompt(self, question: str, tokens: int) -> tuple[int, ...]:
        """Returns the ids of a clip of so many soft tokens and a question behind it."""
        clip = interleaved.Audio("", tokens)
        segments = [(self.tokenizer.bos_id,), clip, question]
        return tuple(interleaved.encode(segments, self.tokenizer.encode, self.markers).ids)

    @functools.cached_property
    def trainer(self) -> small_models.Trainer:
        """The trainer of SFT."""
        learning = self.config.learning(self.width, self.horizon)
        return small_models.trainer(sft.make(self.decoder, sft.Config(learning=learning)).learner)

    def rows(self, questions: Sequence[spoken.Row], clips: hearing.Clips) -> Rows:
        """Returns questions as rows, each behind its clip, [N, 1, A, M]."""
        tokens = -(-np.asarray(clips.frames)[:, 0] // audio.FRAMES_PER_TOKEN)
        examples = [
            example
            for row, count in zip(questions, tokens.tolist(), strict=True)
            for example in small_senses.examples(
                self,
                functools.partial(self.prompt, tokens=count),
                [(row.question, row.answer)],
            )
        ]
        return Rows(questions, examples, clips)

    def sequences(self, rows: Rows) -> batches.Sequences:
        """Returns rows as a learner takes them, [N, T]."""
        length = self.width + self.horizon
        return small_senses.sequences(self, rows.examples, rows.clips, length)

    def right(self, params: types.Params, rows: Rows, *, shuffled: bool = False) -> np.ndarray:
        """Returns which greedy answers are right, bool [N]; shuffled ones hear another row's."""
        if shuffled:
            clips = jax.tree.map(lambda x: np.roll(x, 1, 0), rows.clips)
            rows = self.rows(rows.questions, clips)
        return np.asarray(self.is_right(params, self.sequences(rows)))


def learn(world: World, rows: Rows, seed: int, tick: students.Tick) -> types.Params:
    """Returns a model that has learnt from rows."""
    config, trainer, key = world.config, world.trainer, jax.random.key(seed)
    state = trainer.learner.init(key)
    sequences = world.sequences(rows)
    for first in range(0, config.steps, students.STRETCH):
        steps = min(students.STRETCH, config.steps - first)
        items = small_models.take(sequences, steps, config.batch_size, seed, first)
        state, losses = trainer.run(state, types.NO_CONSTANTS, items, key)
        tick(first + steps, float(jnp.mean(losses)))
    return state.params


def guessed(learnt: Sequence[spoken.Row], questions: Sequence[spoken.Row]) -> float:
    """Returns the share of questions that the answer which was learnt most often is right of."""
    answers = [row.answer for row in learnt if row.about == questions[0].about]
    best = max(sorted({*answers}), key=answers.count)
    return float(np.mean([row.answer == best for row in questions]))


def compute(config: Config, world: World, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields a row for each kind of questions of a seed."""

    def random(stream: str) -> np.random.Generator:
        return np.random.default_rng([seed, STREAMS[stream]])

    known, new = spoken.held_out(random("words"), config.new_share)
    draws = random("learnt")
    shown = spoken.drawn(draws, known, config.clips)
    rows = world.rows(shown, spoken.clips(draws, shown, config.bins))
    params = learn(world, rows, seed, journal.tick)
    draws = random("held out")
    for kind in KINDS:
        vocabulary, about = (new, KNOWN) if kind == NEW else (known, kind)
        questions = spoken.drawn(draws, vocabulary, config.held_out, about)
        heard = world.rows(questions, spoken.clips(draws, questions, config.bins))
        row: study.Row = {"questions": kind, "right": float(np.mean(world.right(params, heard)))}
        row["shuffled"] = float(np.mean(world.right(params, heard, shuffled=True)))
        yield {**row, "guessed": guessed(shown, questions)}


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields an arm a seed."""
    world = functools.cache(lambda: World(config))

    def run(seed: int, journal: study.Journal) -> Iterator[study.Row]:
        return compute(config, world(), seed, journal)

    for seed in study.seeds_of(config):
        part = functools.partial(run, seed)
        yield study.Arm(f"seed-{seed}", config.steps, part, columns={"seed": seed})


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges whether the decoder hears, and whether it hears vowels in words that are new."""
    rows = tables["answers"]

    def column(name: str, kind: str) -> np.ndarray:
        return study.column(rows, name, questions=kind)

    both = np.mean([column("right", kind) for kind in (KNOWN, TONE)], 0)
    claim = "more than 0.9 of the answers about new clips are right (share, words and tones alike)"
    yield judging.headline(judging.above(claim, both, 0.9))
    for kind in (KNOWN, TONE):
        lost = column("shuffled", kind) - column("guessed", kind)
        claim = f"{kind}: with other rows' clips as many are right as without any (difference)"
        yield judging.headline(judging.equal(claim, MARGIN, lost, shared="the rows"))
    claim = "new word: more than 0.8 of the words that no clip had are right (share)"
    yield judging.above(claim, column("right", NEW), 0.8)
    for name in ("right", "shuffled", "guessed"):
        said = judging.means({kind: column(name, kind) for kind in KINDS})
        yield judging.reported(f"{name} answers by kind", said)


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns right answers by kind, with and without the right clip, and clips as features."""
    rows, bars = tables["answers"], list[charts.Mark]()
    labels = {"right": "its clip", "shuffled": "another", "guessed": "none: the best guess"}
    for n, (column, label) in enumerate(labels.items()):
        samples = [study.column(rows, column, questions=kind) for kind in KINDS]
        bars.append(charts.beside(n, len(labels), samples, label, span=0.81))
    axes = {
        "title": "new clips",
        "ylabel": "right answers",
        "ylim": (0, 1.4),
    }  # The legend is above the bars.
    axes |= {"xticks": range(len(KINDS)), "xticklabels": KINDS, "yticks": np.linspace(0, 1, 6)}
    shown = [charts.Panel(marks=bars, axes=axes, legend={"fontsize": 8, "loc": "upper left"})]
    draws = np.random.default_rng([config.first_seed, STREAMS["figure"]])
    for tone in spoken.TONES:
        row = spoken.Row("aiu", tone, TONE)
        clips = spoken.clips(draws, [row], 64)
        image = clips.features[0, 0, : clips.frames[0, 0]].T[::-1]
        scaled = np.clip(255 * (image - image.min()) / np.ptp(image), 0, 255).astype(np.uint8)
        pixels = np.repeat(scaled[..., None], 3, -1)
        title = {"title": f"{row.word}, {tone}: log-mel features"}
        shown.append(charts.Panel(marks=[charts.Pixels(pixels)], axes=title, legend=None))
    return charts.Grid(panels=shown, width=4.0, title_size=10)


def seconds(config: Config) -> float:
    """Estimates compiling, clips, and steps by their rows, on 2 CPU cores."""
    clips = 0.01 * (config.clips + len(KINDS) * config.held_out)
    return 30 + config.seeds * (clips + 0.03 * config.batch_size / 64 * config.steps)


STUDY = study.Study(
    claim="A decoder whose encoder of sound learns with it tells words and the tone of a voice "
    "apart because it hears them.",
    source="Gemini Team 2023, arXiv:2312.11805, in shape",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: {"answers": rows},
    claims=claims,
    figures=lambda config, tables: {"hearing_words": panels(config, tables)},
    seconds=seconds,
)

"""`kullback reproduce sight-minatar`: a language model plays MinAtar.

A frame is an image, an action a word, and a tick one pass of the decoder over the words' ids alone
(players.py). Its teacher is an agent of games that this library trains, M-DQN (Vieillard et al.
2020, https://arxiv.org/abs/2007.14430), whose policy softmax(q / tau) is the next token's
distribution in GKD (Agarwal et al. 2024, https://arxiv.org/abs/2306.13649): on the student's games
(lambda 1), or on the teacher's (lambda 0, behaviour cloning). The student of lambda 1 then learns
from the game's reward. Ours; no paper has the numbers.

The encoder of frames is frozen as it was drawn: its patches keep all that a frame has, and what it
means is the decoder's and its projector's to learn. All play by drawing their actions, so that a
student is compared with the distribution that it learnt; greedy returns stand beside. As a control
the student sees the frames of the game in the next row.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kullback.core import policies, ranges, types
from kullback.experiments.reproductions import (
    agent_runs,
    charts,
    judging,
    played_games,
    players,
    small_sight,
    students,
    study,
)
from kullback.lm import siglip

# Four soft tokens a frame, of 5 x 5 cells each: a fifth of the time of 25 of 2 x 2, from which
# students learnt no faster by the frame.
SIGHT = small_sight.Sizes(
    side=10, patch=5, num_soft=4, encoder_width=96, encoder_layers=1, width=48, layers=2
)
DISTILLATION, IMPROVEMENT = players.Distillation(), players.Improvement()
RANDOM, TEACHER, CLONED, GKD, RL = "random", "teacher", "lambda 0", "lambda 1", "RL"
LABELS = {
    RANDOM: "random",
    TEACHER: "M-DQN, the teacher",
    CLONED: "behaviour cloning",
    GKD: "GKD",
    RL: "GKD, then RL",
}
DRAWN, GREEDY, BLIND = "drawn", "greedy", "another game's frames"
FILM = "sight_minatar"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The game, the models, and how long each learns."""

    game: str = "minatar/breakout"
    teacher_steps: int = 500_000  # Agent steps of M-DQN.
    sight: small_sight.Sizes = SIGHT
    scale: int = 1  # Pixels of a cell's side.
    num_envs: int = 64  # Games side by side, B.
    steps: int = 150_000  # Frames that each student is distilled on.
    distillation: players.Distillation = DISTILLATION
    policy_steps: int = 400_000  # Frames of reinforcement learning.
    improvement: players.Improvement = IMPROVEMENT
    episodes: int = 64  # Of an evaluation.
    limit: int = 1_000  # Frames after which an episode of evaluation is cut.
    film: int = 300  # Frames of the film at most.
    records: int = 10  # Of the return while learning.
    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "teacher_steps", "scale", "num_envs", "steps", "policy_steps")
        ranges.at_least(1, self, "episodes", "limit", "film", "records", "seeds")
        ranges.at_least(0, self, "first_seed")
        if not self.game.startswith("minatar/"):
            raise ValueError(
                f"game must be one of minatar, whose actions are words, got {self.game}"
            )
        agent_runs.random_score(self.game)
        if self.sight.side != 10 * self.scale:
            raise ValueError(
                f"sight.side must be the 10 cells of {self.scale} pixels of a frame, got "
                f"{self.sight.side}"
            )
        for learning in (self.distillation, self.improvement):
            learning.iteration.num_items(self.num_envs)

    @property
    def teacher(self) -> agent_runs.Arm:
        """The runs of the teachers, one a seed."""
        return agent_runs.Arm(
            TEACHER,
            "m-dqn",
            self.game,
            self.seeds,
            self.teacher_steps,
            (f"temperature={self.distillation.temperature}",),
            first_seed=self.first_seed,
        )


class World:
    """The player of a configuration, and the programs of all seeds."""

    def __init__(self, config: Config):
        """Builds the models."""
        self.config = config
        self.player = players.make(config.sight, config.scale)
        self.games = functools.cache(functools.partial(played_games.make, config.game))

    def encoder(self, seed: int) -> types.Params:
        """Draws the encoder of a seed."""
        return siglip.make(self.config.sight.encoder).init(jax.random.key(seed))

    @functools.cached_property
    def students(self) -> dict[str, types.Policy]:
        """The policies of players, by the way in which they act."""
        return {
            DRAWN: players.policy(self.player),
            GREEDY: players.policy(self.player, greedy=True),
            BLIND: players.policy(self.player, sees=False),
        }

    @functools.cached_property
    def plays(self) -> dict[str, Any]:
        """Evaluators of these, by the same names."""
        return {name: self.evaluator(policy) for name, policy in self.students.items()}

    def evaluator(self, policy: types.Policy) -> Any:
        """Returns the evaluator of a policy, see `played_games.evaluator`."""
        games = self.games(self.config.episodes)
        return played_games.evaluator(policy, games, self.config.limit)

    def scores(self, label: str, params: Any, seed: int) -> Iterator[study.Row]:
        """Yields the returns of a player in all ways of acting."""
        for way, play in self.plays.items():
            yield {"player": label, "acts": way, **played_games.score(play(params, seed))}

    def scores_of_teacher(self, teacher: played_games.Teacher, seed: int) -> Iterator[study.Row]:
        """Yields the returns of a teacher that draws or is greedy, and of a random policy."""
        tau = self.config.distillation.temperature
        drawn = {"params": teacher.params, "temperature": np.float32(tau)}
        uniform = played_games.uniform(self.games(1).spec.num_actions)
        for label, way, policy, params in (
            (TEACHER, DRAWN, policies.softmax(teacher.values), drawn),
            (TEACHER, GREEDY, teacher.greedy, teacher.acting),
            (RANDOM, DRAWN, uniform, None),
        ):
            episodes = self.evaluator(policy)(params, seed)
            yield {"player": label, "acts": way, **played_games.score(episodes)}


def compute(config: Config, world: World, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields the rows of a seed: returns of all players, and curves of those that learn."""
    run = journal.path(f"{config.teacher.part}.run")
    teacher, encoder = played_games.teacher_of(run, seed), world.encoder(seed)
    yield from study.tagged("returns", world.scores_of_teacher(teacher, seed))
    games, done = world.games(config.num_envs), 0
    learnt: dict[str, types.Params] = {}

    def learn(label: str, agent: Any, steps: int, **given: Any) -> Iterator[study.Row]:
        constants = types.Constants(base=encoder, teacher=given.pop("teacher", None))
        tick: students.Tick = lambda n, value: journal.tick(done + n, value, "return")  # noqa: E731
        learnt[label], rows = played_games.learn(
            *(agent, games, constants),
            **{"seed": seed, "steps": steps, "records": config.records, "tick": tick, **given},
        )
        yield from study.tagged("curves", [{"player": label, **row} for row in rows])

    for label, num_own in {CLONED: 0, GKD: config.num_envs}.items():
        how = config.distillation
        agent = players.distilled(world.player, teacher.values, how, num_own)
        yield from learn(label, agent, config.steps, teacher=teacher.params)
        done += config.steps
        acting = {"params": learnt[label], "encoder": encoder}
        yield from study.tagged("returns", world.scores(label, acting, seed))
    agent = players.improved(world.player, config.improvement)
    start = players.with_value(learnt[GKD], config.sight.width)
    yield from learn(RL, agent, config.policy_steps, start=start)
    acting = {**learnt[RL], "encoder": encoder}
    yield from study.tagged("returns", world.scores(RL, acting, seed))
    if seed == config.first_seed:
        path = journal.path(f"{FILM}.gif")
        played_games.film(
            *(world.player, acting, world.games(1), path), seed=seed, limit=config.film
        )


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields the teachers' runs, then an arm a seed."""
    world, runs = functools.cache(lambda: World(config)), config.teacher
    train = functools.partial(agent_runs.train, runs)
    yield study.Arm(runs.part, runs.seeds * runs.steps, train, "teachers")

    def run(seed: int, journal: study.Journal) -> Iterator[study.Row]:
        return compute(config, world(), seed, journal)

    steps = 2 * config.steps + config.policy_steps
    for seed in study.seeds_of(config):
        part = functools.partial(run, seed)
        yield study.Arm(f"seed-{seed}", steps, part, columns={"seed": seed})


def returns(rows: study.Rows, player: str, acts: str = DRAWN) -> np.ndarray:
    """Returns the mean returns of a player, [seeds]."""
    return study.column(rows, "return", player=player, acts=acts)


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges what the student keeps of its teacher, whose games it learns from, and its reward."""
    del config
    rows, shared = tables["returns"], "teacher and encoder"
    of = functools.partial(returns, rows)
    random, gkd = of(RANDOM), of(GKD)
    more = gkd - (random + of(TEACHER)) / 2
    claim = "GKD keeps more than half of what its teacher gains over a random policy (return more)"
    yield judging.headline(judging.above(claim, more, shared=shared))
    claim = "GKD on the student's games returns more than behaviour cloning (difference)"
    yield judging.headline(judging.above(claim, gkd - of(CLONED), shared=shared))
    claim = "reinforcement learning raises the return of the student (difference)"
    yield judging.headline(judging.above(claim, of(RL) - gkd, shared=shared))
    claim = "with its reward the student returns more than its teacher, drawn (difference)"
    yield judging.above(claim, of(RL) - of(TEACHER), shared=shared)
    claim = "with its reward the student returns more than its teacher, greedy (difference)"
    yield judging.above(claim, of(RL) - of(TEACHER, GREEDY), shared=shared)
    claim = "GKD returns more by its own frames than by another game's (difference)"
    yield judging.above(claim, gkd - of(GKD, BLIND), shared=shared)
    for way in (DRAWN, GREEDY, BLIND):
        by_player = {
            label: of(player, way)
            for player, label in LABELS.items()
            if study.where(rows, player=player, acts=way)
        }
        yield judging.reported(f"returns, {way}", judging.means(by_player))
    cut = {label: study.column(rows, "cut", player=p) for p, label in LABELS.items()}
    most = max(float(np.max(share)) for share in cut.values())
    yield judging.reported("share of episodes that were cut, at most", f"{most:.3g}")


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns the returns of all players, and their curves while they learn."""
    rows, curves = tables["returns"], tables["curves"]
    bars: list[charts.Mark] = []
    for n, way in enumerate((DRAWN, GREEDY, BLIND)):
        present = [p for p in LABELS if study.where(rows, player=p, acts=way)]
        at = np.array([list(LABELS).index(p) for p in present])
        samples = [returns(rows, player, way) for player in present]
        bars.append(charts.beside(n, 3, samples, way, at=at, span=0.81))
    lines: list[charts.Mark] = []
    for n, player in enumerate((CLONED, GKD, RL)):
        frames, y = (
            study.by_seed(curves, name, player=player) for name in ("frames", "return_mean")
        )
        start = config.steps if player == RL else 0
        style = {"color": f"C{n}"}
        label = "the teacher's games" if player == CLONED else LABELS[player]
        lines.append(charts.Seeds(frames[0] + start, y.astype(float), label, style, {"alpha": 0.4}))
    names = ["random", "M-DQN", "BC", "GKD", "RL"]
    axes = {"title": config.game, "ylabel": "return", "xticks": range(len(names))}
    over = {"title": "while learning", "xlabel": "frames", "ylabel": "return of its games"}
    return charts.Grid(
        panels=[
            charts.Panel(marks=bars, axes={**axes, "xticklabels": names}, legend={"fontsize": 8}),
            charts.Panel(marks=lines, axes=over, legend={"fontsize": 8}),
        ],
        width=5.0,
        title_size=10,
    )


def seconds(config: Config) -> float:
    """Estimates compiling, the teachers, and frames that are seen and learnt from."""
    of_teacher = agent_runs.seconds_of([config.teacher])
    frames = 2 * config.steps + 2 * config.policy_steps
    return 90 + of_teacher + config.seeds * (120 + frames / 6_000)


STUDY = study.Study(
    claim="A language model that sees a game's frames learns to play from an agent's action "
    "values, best on games of its own, and goes on by the game's reward.",
    source="Agarwal et al. 2024, arXiv:2306.13649, across agents and language models; ours",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: study.split(rows, "teachers", "returns", "curves"),
    claims=claims,
    figures=lambda config, tables: {"sight_minatar": panels(config, tables)},
    films=lambda config: (FILM,),
    seconds=seconds,
)

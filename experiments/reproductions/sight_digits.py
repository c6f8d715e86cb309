"""`kullback reproduce sight-digits`: a small decoder that reads digits and draws them.

Gemini takes images among text, and writes them as discrete tokens of the same sequence (Gemini Team
2023, https://arxiv.org/abs/2312.11805); sizes, codebook and learning are not published. This is the
shape of it in small, on real digits of 8 x 8 pixels (digits.py): one decoder learns "digit?" behind
soft tokens of a picture, and "draw 7", behind which the codes of a picture come (drawings.py).

Four parts of the digits share none: what the decoder and its codebook learn from, what the judges
do, what the control does, and what is held out. Drawings are judged by the control, of which
nothing learns. Then the decoder learns on by REINFORCE with leave-one-out baselines; its reward is
the log-probability that a linear judge gives to the digit that was asked for: one that has learnt
from many digits, or from few of the same. Whether a judge is hacked is seen by the control: what
the one takes for the digit, and the other does not.
"""

import functools
from collections.abc import Iterator

import numpy as np

from kullback.experiments.reproductions import (
    charts,
    digit_models,
    digits,
    drawings,
    judging,
    students,
    study,
)
from kullback.experiments.reproductions.digit_models import (
    CLIMBED,
    CONTROL_JUDGE,
    FEW,
    GUIDED,
    JUDGES,
    MANY,
    PLAIN,
    Config,
)

REAL, CODED, SFT = "real", "coded", "sft"
# By the judge that one learnt from, or how else it came.
MODELS = {REAL: "held out", SFT: "SFT", MANY: "RLOO, many", FEW: "RLOO, few"}
PICTURES = ((REAL, CODED), (SFT, PLAIN), (SFT, GUIDED), (MANY, PLAIN), (FEW, PLAIN))
SPREAD = {  # See `judged`.
    "distance": "Frechet distance to held-out digits, of the control's hidden features",
    "distinct": "share of different pictures",
    "copied": "share of pictures that are, code by code, one that was learnt from",
}
MARGIN = 0.05  # Of the share of right answers; less is no difference that matters.


def compute(
    config: Config, world: digit_models.World, seed: int, journal: study.Journal
) -> Iterator[study.Row]:
    """Yields the rows of all tables of a seed: judges, SFT, and drawings as a policy learns."""

    def after(steps: int, metric: str = "loss") -> students.Tick:
        return lambda done, value: journal.tick(steps + done, value, metric)

    parts = world.parts(seed, after(0))
    for name, rater in parts.judges.items():
        yield from study.tagged("judges", [{"judge": name, **digits.told(rater, parts.held_out)}])
    setup, done = world.setup(parts, seed), config.coder_steps
    start = students.learn(setup, world.tuner, config.steps, seed, tick=after(done))
    done += config.steps
    models = {SFT: start}
    for by in CLIMBED:
        tick = after(done, "reward")
        models[by], records = digit_models.learn_policy(world, start, parts, by, seed, tick)
        yield from study.tagged("policy", [{"model": by, **row} for row in records])
        done += config.policy_steps
    guessed = float(np.mean(parts.held_out.labels == np.bincount(parts.learnt.labels).argmax()))
    for model, params in models.items():
        row = {"model": model, "right": world.right(params, parts), "guessed": guessed}
        row["shuffled"] = world.right(params, parts, shuffled=True)
        yield from study.tagged("readings", [row])
    labels = np.arange(config.drawn) % digits.NUM_DIGITS
    drawn = {(REAL, CODED): (parts.paper.codes(parts.held_out.pixels), parts.held_out.labels)}
    for model, way in PICTURES[1:]:
        drawn[model, way] = world.draw(models[model], parts, way, seed), labels
    for (model, way), (codes, shown) in drawn.items():
        at = {"model": model, "way": way}
        yield from study.tagged("drawings", [{**at, **digit_models.judged(parts, codes, shown)}])
        if seed == config.first_seed:
            first = [int(np.argmax(shown == n)) for n in range(digits.NUM_DIGITS)]
            yield from study.tagged("shown", [{**at, "strip": _strip(parts.paper, codes[first])}])


def _strip(paper: drawings.Paper, codes: np.ndarray) -> str:
    """Returns pictures in one row, as a text of bytes in hexadecimal."""
    grey = digits.as_bytes(paper.pixels(codes))[..., 0]  # [n, S, S].
    return grey.swapaxes(0, 1).tobytes().hex()


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields an arm a seed."""
    world = functools.cache(lambda: digit_models.World(config))
    steps = config.coder_steps + config.steps + len(CLIMBED) * config.policy_steps

    def run(seed: int, journal: study.Journal) -> Iterator[study.Row]:
        return compute(config, world(), seed, journal)

    for seed in study.seeds_of(config):
        part = functools.partial(run, seed)
        yield study.Arm(f"seed-{seed}", steps, part, columns={"seed": seed})


def risen(policy: study.Rows, model: str, judge_name: str) -> np.ndarray:
    """Returns by how many nats a judge's log-probability rose as a policy learnt, [seeds]."""
    nats = study.by_seed(policy, f"{judge_name}_nats", model=model)
    return nats[:, 0] - nats[:, -1]


def hacked(policy: study.Rows, model: str) -> np.ndarray:
    """Returns the share of a policy's drawings that its judge alone takes for the digit, [seeds].

    It is the share by its judge, less that by the control. Of real digits the control tells more,
    so that this is no lack of the control's.
    """
    of_judge, of_control = (
        study.by_seed(policy, f"{name}_right", model=model)[:, -1]
        for name in (model, CONTROL_JUDGE)
    )
    return of_judge - of_control


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges reading, drawing, and what a judge's reward buys by another judge."""
    del config
    readings, drawn, policy = tables["readings"], tables["drawings"], tables["policy"]
    read = functools.partial(study.column, readings, model=SFT)
    by_control = functools.partial(study.column, drawn, "control_right")
    claim = "more than 0.9 of held-out digits are read (share)"
    yield judging.headline(judging.above(claim, read("right"), 0.9))
    claim = "with other rows' pictures as many are read as without any (difference)"
    lost = read("shuffled") - read("guessed")
    yield judging.headline(judging.equal(claim, MARGIN, lost, shared="the rows"))
    claim = "more than 0.8 of guided drawings show the digit that was asked for, by the control"
    guided = by_control(model=SFT, way=GUIDED)
    yield judging.headline(judging.above(f"{claim} (share)", guided, 0.8))
    claim = "guidance has more of them show it, by the control (difference)"
    more = guided - by_control(model=SFT, way=PLAIN)
    yield judging.above(claim, more, shared="the decoder")
    for by in CLIMBED:
        claim = f"by {JUDGES[by]}: RLOO raises its log-probability (nats)"
        yield judging.above(claim, risen(policy, by, by), shared="the decoder")
        claim = f"by {JUDGES[by]}: after RLOO it takes more drawings for the digit than the control"
        check = judging.above(f"{claim} (share more)", hacked(policy, by), shared="the drawings")
        yield judging.headline(check) if by == FEW else check
        claim = f"by {JUDGES[by]}: RLOO has more drawings show the digit, by the control"
        right = study.by_seed(policy, "control_right", model=by)
        more = right[:, -1] - right[:, 0]
        yield judging.above(f"{claim} (difference)", more, shared="the decoder")
    claim = "the judge of few digits is hacked more than the one of many (share more)"
    more = hacked(policy, FEW) - hacked(policy, MANY)
    yield judging.above(claim, more, shared="decoder and digits")
    yield from reports(tables)


def reports(tables: study.Tables) -> Iterator[judging.Check]:
    """Yields figures that are not judged."""
    drawn, policy = tables["drawings"], tables["policy"]
    told = {name: study.column(tables["judges"], "right", judge=name) for name in JUDGES}
    yield judging.reported("held-out digits that judges tell", judging.means(told))
    after = {MODELS[by]: study.column(tables["readings"], "right", model=by) for by in CLIMBED}
    yield judging.reported("held-out digits that are read after RLOO", judging.means(after))
    for name, label in JUDGES.items():
        shares = {
            f"{MODELS[model]}, {way}": study.column(drawn, f"{name}_right", model=model, way=way)
            for model, way in PICTURES
        }
        yield judging.reported(f"pictures that show their digit, by {label}", judging.means(shares))
    for column, said in SPREAD.items():
        values = {
            f"{MODELS[model]}, {way}": study.column(drawn, column, model=model, way=way)
            for model, way in PICTURES
        }
        yield judging.reported(said, judging.means(values))
    for by in CLIMBED:
        rises = {label: risen(policy, by, name) for name, label in JUDGES.items()}
        claim = f"{MODELS[by]}: nats by which log-probabilities rise"
        yield judging.reported(claim, judging.means(rises))
    last = {MODELS[by]: study.by_seed(policy, "kl", model=by)[:, -1] for by in CLIMBED}
    yield judging.reported("KL to the start at the end, nats a drawing", judging.means(last))


def pictures(tables: study.Tables) -> charts.Grid:
    """Returns a drawing of each digit of the first seed, in each way."""
    panels = []
    for model, way in PICTURES:
        [row] = study.where(tables["shown"], model=model, way=way)
        grey = np.frombuffer(bytes.fromhex(row["strip"]), np.uint8).reshape(digits.SIDE, -1)
        pixels = np.repeat(grey[..., None], 3, -1)
        axes = {"title": f"{MODELS[model]}, {way}"}
        panels.append(charts.Panel(marks=[charts.Pixels(pixels)], axes=axes, legend=None))
    return charts.Grid(panels=panels, columns=1, width=6.0, height=1.0, title_size=9)


def panels(tables: study.Tables) -> charts.Grid:
    """Returns what is read, what drawings show by both judges, and these as the policy learns."""
    readings, drawn, policy = tables["readings"], tables["drawings"], tables["policy"]
    columns = {"right": "its picture", "shuffled": "another", "guessed": "none"}
    samples = [study.column(readings, name, model=SFT) for name in columns]
    read: list[charts.Mark] = [charts.SeedBars(range(len(columns)), samples)]
    bars = list[charts.Mark]()
    for n, (name, label) in enumerate(JUDGES.items()):
        samples = [
            study.column(drawn, f"{name}_right", model=model, way=way) for model, way in PICTURES
        ]
        bars.append(charts.beside(n, len(JUDGES), samples, label))
    share = {"ylim": (0, 1.02)}
    of_read = {"title": "digits that are read", "xticks": range(3), **share}
    of_drawn = {"title": "pictures that show their digit", "xticks": range(len(PICTURES))}
    of_drawn |= {"ylim": (0, 1.45), "yticks": np.linspace(0, 1, 6)}  # The legend is above the bars.
    names = [f"{MODELS[model]},\n{way}" for model, way in PICTURES]
    return charts.Grid(
        panels=[
            charts.Panel(
                marks=read, axes={**of_read, "xticklabels": [*columns.values()]}, legend=None
            ),
            charts.Panel(
                marks=bars,
                axes={**of_drawn, "xticklabels": names},
                finish=lambda axes: axes.tick_params("x", labelsize=7),
                legend={"fontsize": 8, "loc": "upper left"},
            ),
            *(climb(policy, by) for by in CLIMBED),
        ],
        columns=2,
        title_size=10,
    )


def climb(policy: study.Rows, by: str) -> charts.Panel:
    """Returns the share of drawings that show their digit by each judge, as a policy learns."""
    lines = list[charts.Mark]()
    for n, (name, label) in enumerate(JUDGES.items()):
        steps, right = (
            study.by_seed(policy, column, model=by) for column in ("step", f"{name}_right")
        )
        style = {"color": f"C{n}"}
        lines.append(charts.Seeds(steps[0], right, label, style, {"alpha": 0.4}))
    axes = {"title": f"{MODELS[by]}: drawings that show their digit", "xlabel": "learner steps"}
    return charts.Panel(marks=lines, axes=axes, legend={"fontsize": 8})


def seconds(config: Config) -> float:
    """Estimates compiling, and steps by their rows, on 2 CPU cores."""
    coder = 0.015 * config.coder_batch / 64 * config.coder_steps
    tuned = 0.075 * config.batch_size / 64 * config.steps
    policy = 0.35 * config.policy_batch / 256 * config.policy_steps
    return 90 + config.seeds * (40 + coder + tuned + len(CLIMBED) * policy)


def before(config: Config) -> Iterator[str]:
    """Yields nothing: the digits are there, or ValueError says what brings them."""
    del config
    digits.load()
    yield from ()


STUDY = study.Study(
    claim="One decoder reads digits and draws them; a judge that it learns by comes to believe "
    "more of its drawings than one that it does not learn by.",
    source="Gemini Team 2023, arXiv:2312.11805, in shape",
    config=Config(),
    before=before,
    arms=arms,
    tables=lambda config, rows: study.split(
        rows, "judges", "readings", "drawings", "policy", "shown"
    ),
    claims=claims,
    figures=lambda config, tables: {"sight_digits": panels(tables), "drawings": pictures(tables)},
    seconds=seconds,
)

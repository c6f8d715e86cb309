"""`kullback reproduce rlef`: reinforcement learning with entailment as the reward, in small.

Roit et al., "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment
Feedback" (RLEF), ACL 2023, https://arxiv.org/abs/2306.00186: summaries become more entailed by
their document the weaker the pull alpha to the supervised start is, at the price of ROUGE.

Real papers (extractive.py), a small policy, and two models of entailment that are trained here: the
"encoder" is the reward, the "embeddings" judge what it led to and are never learnt from. Policies
learn on the papers that the models of entailment learnt from too, and are measured on others. The
start imitates choices of which 40% are wrong, so that there is room. Best of N stands beside them,
at several N and at the one that draws as many texts from the start as a policy draws to learn.

That entailment grows as alpha falls is judged. The price in ROUGE is not seen here: most of what is
not entailed is of other papers, and who leaves it out comes nearer to the experts' summaries too.
What ROUGE, length, copying and the control do is reported.
"""

import functools
import itertools

import numpy as np
from matplotlib.figure import Figure

from kullback.core import types
from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import study, summarisers

# Columns that are reported, and what they are.
COLUMNS = {
    "entailment": "mean P(entailment) by the reward",
    "control": "mean P(entailment) by the control",
    "kl": "nats from the start, of best of N at most",
    "rouge_l": "ROUGE-L against the experts' summaries",
    "words": "words of a summary",
    "sentences": "sentences of a summary",
    "coverage": "coverage: share of its words that stand in the document",
    "density": "density: mean squared length of what is copied",
    "inside": "share of sentences that are of the document",
    "own": "share of sentences that are of the paper",
    "repeated": "share of sentences that were chosen before",
}


def run(config: summarisers.Config, work: reproduce.Work) -> reproduce.Found:
    """Models of entailment, then starts, policies, and best of N."""
    scene = summarisers.make(config, work)
    programs = {alpha: summarisers.learner(scene, alpha) for alpha in config.regularisations}

    @functools.cache
    def start(seed: int) -> types.Params:
        return summarisers.supervised(scene, seed, work)

    rows: reproduce.Rows = []
    for seed in range(config.seeds):
        part = functools.partial(summarisers.at_start, scene, start, seed)
        rows += work.part(f"start-{seed}", config.sizes.start_steps, part)
        for alpha in config.regularisations:
            part = functools.partial(
                summarisers.learnt, scene, programs[alpha], start, alpha, seed, work
            )
            rows += work.part(f"alpha-{alpha:g}-{seed}", config.sizes.steps, part)
    tables = {"rlef": rows, "judges": summarisers.opinions(scene)}
    return reproduce.Found(tables, {"rlef": draw(config, rows)}, judge(config, rows))


def judge(config: summarisers.Config, rows: reproduce.Rows) -> list[reproduce.Check]:
    """Whether entailment grows as alpha falls; pairs of arms share seeds."""
    ends = final(config, rows)
    checks: list[reproduce.Check] = []
    order = ["start", *(f"alpha {a:g}" for a in sorted(config.regularisations, reverse=True))]
    for less, more in itertools.pairwise(order):
        gain = ends[more]["entailment"] - ends[less]["entailment"]
        claim = f"{more} entails more than {less} (difference of mean P by the reward)"
        checks.append(study.above(claim, gain.tolist()))
    for arm in order[1:]:
        growth = {role: ends[arm][c] - ends["start"][c] for role, c in _BY_ROLE.items()}
        evidence = "; ".join(f"{role} {statistics.t_interval(x)}" for role, x in growth.items())
        claim = f"{arm}: growth of P since the start, which the control should share in part"
        checks.append(reproduce.Check(claim, None, evidence))
    for column, what in COLUMNS.items():
        said = "; ".join(f"{arm} {statistics.t_interval(x[column])}" for arm, x in ends.items())
        checks.append(reproduce.Check(what, None, said))
    return checks


_BY_ROLE = {"reward": "entailment", "control": "control"}  # Columns.


def final(config: summarisers.Config, rows: reproduce.Rows) -> dict[str, dict[str, np.ndarray]]:
    """Columns at the end of each arm, [seeds]."""
    last = [row for row in rows if row["step"] in (0, config.sizes.steps)]
    return {
        arm: {
            column: np.array([row[column] for row in last if row["arm"] == arm])
            for column in COLUMNS
        }
        for arm in dict.fromkeys(row["arm"] for row in last)
    }


def draw(config: summarisers.Config, rows: reproduce.Rows) -> Figure:
    """What policies gain and lose on their way from the start, and best of N; means over seeds."""
    panels = {
        "entailment": ("kl", "mean P(entailment) by the reward"),
        "control": ("kl", "mean P(entailment) by the control"),
        "rouge_l": ("entailment", "ROUGE-L against the experts"),
        "words": ("entailment", "words of a summary"),
        "coverage": ("entailment", "coverage in the document"),
        "own": ("entailment", "share of sentences of the paper"),
    }
    labels = {
        "kl": "nats from the start (best of N: at most)",
        "entailment": "mean P(entailment) by the reward",
    }
    drawn = reproduce.figure(3, 2, width=4.0, height=3.2)

    def means(arm: str, column: str) -> np.ndarray:
        steps = sorted({row["step"] for row in rows if row["arm"] == arm})
        of_arm = [[r[column] for r in rows if (r["arm"], r["step"]) == (arm, s)] for s in steps]
        return np.array(of_arm, np.float64).mean(1)

    arms = [f"alpha {alpha:g}" for alpha in sorted(config.regularisations, reverse=True)]
    best = [f"best of {n}" for n in sorted({*config.best_of, config.equal_budget})]
    for axes, (y, (x, title)) in zip(drawn.axes, panels.items(), strict=True):
        for number, arm in enumerate(arms):
            at, value = (np.concatenate([means("start", c), means(arm, c)]) for c in (x, y))
            axes.plot(at, value, "o-", color=f"C{number}", markersize=3, label=arm)
        at, value = ([means(arm, c)[0] for arm in best] for c in (x, y))
        axes.plot(at, value, "k^", markersize=5, label="best of N")
        for arm, place in zip(best, zip(at, value, strict=True), strict=True):
            label = arm.removeprefix("best of ")
            axes.annotate(label, place, (-5, 2), textcoords="offset points", fontsize=7, ha="right")
        axes.plot(means("start", x), means("start", y), "ks", markersize=6, label="start")
        axes.set_xlabel(labels[x], fontsize=8)
        axes.set_title(title, fontsize=9)
    drawn.axes[0].legend(fontsize=7)
    return drawn


def steps(config: summarisers.Config) -> int:
    """Of models of entailment, and learner steps."""
    of_seed = config.sizes.start_steps + len(config.regularisations) * config.sizes.steps
    return (
        sum(summarisers.model_steps(config, role) for role in summarisers.ROLES)
        + config.seeds * of_seed
    )


def seconds(config: summarisers.Config) -> float:
    """On two cores: models of entailment learn and are asked; programs compile; policies learn."""
    found = 0.0 if config.reward else 1.4 * config.reward_steps
    found += 0.0 if config.control else 50 + 0.003 * config.control_steps
    found += 80 + 20
    sizes = config.sizes
    of_seed = 0.008 * sizes.start_steps + 0.02 * len(config.regularisations) * sizes.steps
    return found + config.seeds * of_seed


REPRODUCTION = reproduce.Reproduction(
    claim="With entailment as the reward, summaries are more entailed by their document the weaker "
    "the pull to the supervised start is.",
    source="Roit et al. 2023, arXiv:2306.00186",
    config=summarisers.Config(),
    steps=steps,
    seconds=seconds,
    run=run,
)

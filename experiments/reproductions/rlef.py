"""`kullback reproduce rlef`: reinforcement learning with entailment as the reward, in small.

Roit et al., "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment
Feedback" (RLEF), ACL 2023, https://arxiv.org/abs/2306.00186: summaries become more entailed by
their document the weaker the pull alpha to the supervised start is, at the price of ROUGE.

Real papers (extractive.py), a small policy, and two models of entailment that are trained here: the
"encoder" is the reward, the "embeddings" judge what it led to and are never learnt from. Policies
learn on the papers that the models of entailment learnt from too, and are measured on others. The
start imitates choices of which 40% are wrong, so that there is room. Best of N stands beside them,
at several N and at the one that draws as many texts from the start as a policy draws to learn.

That the reward grows as alpha falls is what it is climbed for, and is reported. Two headlines are
judged: that policies have more of the control, which they never learn from, than best of N at equal
KL (whose KL is at most ln N - (N - 1) / N, and is taken for that, which favours the policies where
texts repeat), and that ROUGE is the price.
There is no such price where most of what is not entailed is of other papers: who leaves it out
comes nearer to the experts' summaries too. What length and copying do is reported.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from kullback.core import ranges
from kullback.experiments import entailment
from kullback.experiments.reproductions import charts, extractive, judging, study, summarisers
from kullback.lm import best_of_n, rlef

ROLES: dict[str, Literal["encoder", "embeddings"]] = {"reward": "encoder", "control": "embeddings"}
SHARED = "the start and its prompts"  # Of arms with one seed.
PAPERS = 200  # Of both splits, a step each.
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
# Panels: what is shown over what.
PANELS = {
    "entailment": ("kl", "mean P(entailment) by the reward"),
    "control": ("kl", "mean P(entailment) by the control"),
    "rouge_l": ("entailment", "ROUGE-L against the experts"),
    "words": ("entailment", "words of a summary"),
    "coverage": ("entailment", "coverage in the document"),
    "own": ("entailment", "share of sentences of the paper"),
}
X_LABELS = {
    "kl": "nats from the start (best of N: at most)",
    "entailment": "mean P(entailment) by the reward",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of all that is varied, models of entailment, and sizes."""

    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.
    regularisations: tuple[float, ...] = (0.1, 0.5)  # alpha in [0, 1].
    best_of: tuple[int, ...] = (2, 4, 8, 16, 32)  # N, beside the one of equal budget.
    # Folders of `kullback entailment`; "" trains one here, by so many steps.
    reward: str = ""
    control: str = ""
    reward_steps: int = 240
    control_steps: int = 3_000
    least_area: float = 0.65  # Of both under the ROC curve; a study without judges ends.
    measurements: int = 8  # Of each policy as it learns, evenly spaced.
    sizes: extractive.Sizes = extractive.SIZES

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "measurements")
        ranges.at_least(0, self, "first_seed")
        ranges.inside("[0, 1]", self, "least_area")
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
            self.training(role)
        for alpha in self.regularisations:
            self.algorithm(alpha)
        for n in self.best_of:
            best_of_n.kl_bound(n)

    def algorithm(self, alpha: float) -> rlef.Config:
        """Returns settings of RLEF with a pull alpha."""
        return rlef.Config(
            regularisation=alpha,
            value_learning_rate=self.sizes.value_rate,
            learning=self.sizes.learning(self.sizes.learning_rate),
        )

    def training(self, role: str) -> entailment.Config:
        """Returns how a model of entailment is trained."""
        return entailment.Config(kind=ROLES[role], steps=getattr(self, f"{role}_steps"))

    @property
    def counts(self) -> list[int]:
        """Texts of each held-out prompt, N, the most as many as a policy learns from."""
        budget = self.sizes.steps * self.sizes.batch_size // self.sizes.prompts
        return sorted({*self.best_of, max(1, budget)})

    @property
    def order(self) -> list[str]:
        """The arms whose entailment should grow from one to the next."""
        alphas = sorted(self.regularisations, reverse=True)
        return ["start", *(f"alpha {alpha:g}" for alpha in alphas)]


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields models of entailment, then, of each seed, the start with best of N, and policies."""
    sizes = config.sizes
    for role in ROLES:
        folder, settings = getattr(config, role), config.training(role)
        if folder and not pathlib.Path(folder).is_dir():
            raise ValueError(
                f"{role} must be a folder that `kullback entailment` has written, or empty to "
                f"train one here, got {folder}"
            )
        steps = PAPERS + (0 if folder else settings.num_steps)
        given = role, folder, settings, config.least_area, sizes
        ask = functools.partial(summarisers.ask_about_pools, *given)
        yield study.Arm(role, steps, ask, "asked", {"model": role})
    algorithms = {alpha: config.algorithm(alpha) for alpha in config.regularisations}
    make = functools.cache(functools.partial(summarisers.make, sizes, [*ROLES], algorithms))

    def rows_of(compute: Callable[..., Any], *given: Any) -> Callable[..., Any]:
        return lambda journal: compute(make(journal), *given, journal)

    for seed in study.seeds_of(config):
        rows = rows_of(summarisers.start_and_best, seed, config.counts)
        yield study.Arm(f"start-{seed}", sizes.start_steps, rows, "rlef")
        for alpha in config.regularisations:
            rows = rows_of(summarisers.learn, alpha, seed, config.measurements)
            yield study.Arm(f"alpha-{alpha:g}-{seed}", sizes.steps, rows, "rlef")


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns measurements, and what the models of entailment think of papers."""
    by_table = study.split(rows, "rlef", "asked")
    judges = [*summarisers.opinions(by_table["asked"], config.sizes)]
    return {"rlef": by_table["rlef"], "judges": judges}


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges policies by the control against best of N, and by ROUGE; reports the rest."""
    rows = [row for row in tables["rlef"] if row["step"] in (0, config.sizes.steps)]
    end = {
        arm: {column: study.column(rows, column, arm=arm) for column in COLUMNS}
        for arm in study.distinct(rows, "arm")
    }
    best = [end[arm] for arm in ("start", *(f"best of {n}" for n in config.counts))]
    for arm in config.order[1:]:
        claim = f"{arm}: P by the control is above that of best of N at equal KL (difference)"
        least, most = 0.0, float(best[-1]["kl"].min())
        if is_between := bool(np.all((end[arm]["kl"] >= least) & (end[arm]["kl"] <= most))):
            check = judging.above(claim, end[arm]["control"] - at_kl(best, end[arm]), shared=SHARED)
        else:
            check = judging.reported(f"{arm}: its KL, beyond that of best of N", end[arm]["kl"])
        yield judging.headline(check) if is_between else check
        rouge = end["start"]["rouge_l"] - end[arm]["rouge_l"]
        claim = f"{arm}: ROUGE-L falls from the start (difference)"
        yield judging.headline(judging.above(claim, rouge, shared=SHARED))
    for less, more in itertools.pairwise(config.order):
        yield judging.reported(
            f"{more} entails more than {less} (difference of mean P by the reward)",
            judging.mean(end[more]["entailment"] - end[less]["entailment"]),
        )
    for arm in config.order[1:]:
        of_role = {"reward": "entailment", "control": "control"}
        growth = {role: end[arm][c] - end["start"][c] for role, c in of_role.items()}
        claim = f"{arm}: growth of P since the start, which the control should share in part"
        yield judging.reported(claim, judging.means(growth, "; "))
    for column, what in COLUMNS.items():
        yield judging.reported(what, judging.means({a: x[column] for a, x in end.items()}, "; "))


def at_kl(best: list[dict[str, np.ndarray]], policy: dict[str, np.ndarray]) -> np.ndarray:
    """Returns P by the control of best of N at the KL of a policy, [seeds].

    Between two N it is a line over the root of KL, as what is gained grows about with it: Gao,
    Schulman & Hilton, "Scaling laws for reward model overoptimization", ICML 2023.
    """
    kl, control = (np.stack([arm[name] for arm in best], 1) for name in ("kl", "control"))
    each = zip(np.sqrt(policy["kl"]), np.sqrt(kl), control, strict=True)
    return np.array([np.interp(at, x, y) for at, x, y in each])


def panel(config: Config, rows: study.Rows, y: str) -> charts.Panel:
    """Returns what policies gain or lose on their way from the start, and best of N; means."""
    x, title = PANELS[y]

    def means(arm: str) -> np.ndarray:
        return np.array([study.by_seed(rows, column, arm=arm).mean(0) for column in (x, y)])

    marks: list[charts.Mark] = []
    start = means("start")
    for number, arm in enumerate(config.order[1:]):
        style = {"marker": "o", "color": f"C{number}", "markersize": 3}
        marks.append(charts.Line(*np.hstack([start, means(arm)]), label=arm, style=style))
    best = np.hstack([means(f"best of {n}") for n in config.counts])
    points = {"color": "k", "ls": "None"}
    marks.append(charts.Line(*best, label="best of N", style={**points, "marker": "^", "ms": 5}))
    beside = {"xytext": (-5, 2), "textcoords": "offset points", "fontsize": 7, "ha": "right"}
    marks.append(charts.Notes(*best, texts=[str(n) for n in config.counts], style=beside))
    marks.append(charts.Line(*start, label="start", style={**points, "marker": "s", "ms": 6}))
    return charts.Panel(
        marks=marks,
        axes={"xlabel": X_LABELS[x], "title": title},
        legend={"fontsize": 7} if y == "entailment" else None,
        finish=lambda axes: axes.xaxis.label.set_fontsize(8),
    )


def figures(config: Config, tables: study.Tables) -> dict[str, charts.Grid]:
    """Returns a panel a measure."""
    panels = [panel(config, tables["rlef"], column) for column in PANELS]
    return {"rlef": charts.Grid(panels=panels, columns=3, width=4.0, height=3.2, title_size=9)}


def seconds(config: Config) -> float:
    """Estimates models of entailment, which learn and are asked, compiling, and policies."""
    total = 0.0 if config.reward else 1.4 * config.reward_steps
    total += 0.0 if config.control else 50 + 0.003 * config.control_steps
    sizes = config.sizes
    of_seed = 0.008 * sizes.start_steps + 0.02 * len(config.regularisations) * sizes.steps
    return total + 80 + 20 + config.seeds * of_seed


STUDY = study.Study(
    claim="With entailment as the reward, summaries are more entailed by their document the weaker "
    "the pull to the supervised start is.",
    source="Roit et al. 2023, arXiv:2306.00186",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=figures,
    seconds=seconds,
)

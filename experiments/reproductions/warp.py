"""`kullback reproduce warp`: averages of weights, and what reward they buy at what distance.

Rame et al., "WARP: On the Benefits of Weight Averaged Rewarded Policies", 2024,
https://arxiv.org/abs/2406.16768. Policies of letters (letters.py), whose reward is known, learn by
REINFORCE with a KL to a fixed start, two strengths of it, or to a moving average of themselves. Two
of the latter are merged, spherically and linearly, and the merge is interpolated toward the
supervised start: the front. A second iteration starts on the way to the first merge. KL is to the
supervised start, of whole texts in nats, on held-out prompts.

There are two policies: a perceptron ("toy") and a small decoder. Where the paper has a Gemma of 7
billion parameters and thousands of steps at a rate of 1e-6, task vectors are nearly orthogonal;
here runs are short and their gradients little noisy, and their cosines are far above 0. What
follows of orthogonality in the paper is therefore reported and not judged. What is judged needs
none of it: the merge is as good as its members, and the front lies above its chord. Areas are those
under straight lines between records: a run with a weak fixed anchor goes most of its way before
the first of them, and has more area than that.
"""

import functools
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import curves, merged_policies, study
from kullback.experiments.reproductions.merged_policies import FIXED, LAMBDAS, MOVING, Config, Sizes

ORTHOGONAL = 0.2  # Cosines below it, of every seed, count as about 0.
NAMES = {
    "fixed-strong": "fixed anchor, strong",
    "fixed-weak": "fixed anchor, weak",
    "moving": "moving anchor, one run",
    "one-1": "that run toward the start",
    "lerp-1": "linear merge, iteration 1",
    "slerp-1": "spherical merge, iteration 1",
    "slerp-2": "spherical merge, iteration 2",
}

# What is compared, and the arm whose area is taken from the other's.
COMPARED = (
    ("a moving anchor above the weak fixed one", "moving", "fixed-weak"),
    ("a moving anchor above the strong fixed one", "moving", "fixed-strong"),
    ("the merge's front above the run with a moving anchor", "slerp-1", "moving"),
    ("the merge's front above one run toward the start", "slerp-1", "one-1"),
    ("the spherical front above the linear one", "slerp-1", "lerp-1"),
    ("the second iteration's front above the first's", "slerp-2", "slerp-1"),
)


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """Both policies, all arms, all seeds."""
    points: reproduce.Rows = []
    merges: reproduce.Rows = []
    for name in ("toy", "decoder"):
        lab = merged_policies.make(config, name, getattr(config, name))
        for seed in range(config.seeds):
            for arm in FIXED:
                compute = functools.partial(merged_policies.anchored, config, lab, arm, seed, work)
                points += work.part(f"{name}-{arm}-{seed}", lab.sizes.member_steps, compute)
            compute = functools.partial(merged_policies.averaged, config, lab, seed, work)
            rows = work.part(f"{name}-warp-{seed}", _steps_of_warp(config, lab.sizes), compute)
            points += [row for row in rows if row["table"] == "points"]
            merges += [row for row in rows if row["table"] == "merges"]
    for row in (*points, *merges):
        row.pop("table", None)
    areas = measured_areas(config, points)
    tables = {"points": points, "merges": merges, "areas": areas}
    figures = {"fronts": draw(config, points), "merges": draw_merges(points)}
    return reproduce.Found(tables, figures, judge(config, points, merges, areas))


def measured_areas(config: Config, points: reproduce.Rows) -> reproduce.Rows:
    """The area of each curve and front, and of fronts that above their chord."""
    rows: reproduce.Rows = []
    for policy in dict.fromkeys(row["policy"] for row in points):
        for seed in range(config.seeds):
            for arm in _arms(points):
                kl, reward = _curve(points, policy, seed, arm)
                reference = config.reference_kl, float(reward[0])
                rows.append(
                    {
                        "policy": policy,
                        "seed": seed,
                        "arm": arm,
                        "reference_kl": reference[0],
                        "reference_reward": reference[1],
                        "area": curves.front_area(*curves.filled(kl, reward), reference),
                        "above_chord": curves.above_chord(kl, reward),
                    }
                )
    return rows


def _arms(points: reproduce.Rows) -> list[str]:
    """Runs and fronts; merges by lambda are neither."""
    every = dict.fromkeys(row["arm"] for row in points)
    return [arm for arm in every if not arm.endswith("-by-lambda")]


def _curve(
    points: reproduce.Rows, policy: str, seed: int, arm: str
) -> tuple[np.ndarray, np.ndarray]:
    wanted = policy, seed, arm
    own = [row for row in points if (row["policy"], row["seed"], row["arm"]) == wanted]
    return np.array([row["kl"] for row in own]), np.array([row["reward"] for row in own])


def judge(
    config: Config, points: reproduce.Rows, merges: reproduce.Rows, areas: reproduce.Rows
) -> list[reproduce.Check]:
    """What needs no orthogonality is judged, of the first iteration; the rest is reported."""
    checks: list[reproduce.Check] = []
    for policy in dict.fromkeys(row["policy"] for row in merges):
        first = [row for row in merges if row["policy"] == policy and row["iteration"] == 1]
        own = [row for row in areas if row["policy"] == policy]
        checks += judge_merge(policy, first, own)
        checks += report(config, policy, first, own)
        ends = [_ends(points, policy, config.seeds, f"slerp-{n}") for n in (1, 2)]
        if len(ends[1]):
            claim = f"{policy}: reward of the second iteration's merge, above the first's"
            checks.append(_difference(claim, ends[1] - ends[0]))
            gaps = [
                _above(np.linspace(0, first[0][-1], 200), second, first).mean()
                for first, second in (
                    [_curve(points, policy, seed, f"slerp-{n}") for n in (1, 2)]
                    for seed in range(config.seeds)
                )
            ]
            claim = f"{policy}: the second iteration's front above the first's, mean at equal KL"
            checks.append(_difference(claim, np.array(gaps)))
    return checks


def judge_merge(
    policy: str, merges: reproduce.Rows, areas: reproduce.Rows
) -> list[reproduce.Check]:
    """The merge of an iteration against its members, a row a seed, and its front."""

    def of(column: str) -> np.ndarray:
        return np.array([row[column] for row in merges])

    runs, errors = (of("reward_one") + of("reward_two")) / 2, of("identity_error")
    return [
        study.above(
            f"{policy}: the spherical merge's reward is no more than 0.02 below the mean of its "
            "two runs (difference)",
            of("reward_slerp") - runs,
            -0.02,
        ),
        study.above(
            f"{policy}: nor more than 0.01 below the linear merge's (difference)",
            of("reward_slerp") - of("reward_lerp"),
            -0.01,
        ),
        study.above(
            f"{policy}: the spherical merge is farther from the start (nats more than the linear)",
            of("kl_slerp") - of("kl_lerp"),
        ),
        study.above(
            f"{policy}: the front from the start to the merge lies above its chord (reward times "
            "nats)",
            _area(areas, "slerp-1", "above_chord"),
        ),
        study.every(
            f"{policy}: half-way, a spherical task vector is the linear one over cos(Omega/2)",
            (errors < 1e-4).tolist(),
            f"greatest error {errors.max():.1e} of the greatest move",
        ),
    ]


def report(
    config: Config, policy: str, merges: reproduce.Rows, areas: reproduce.Rows
) -> list[reproduce.Check]:
    """How task vectors lie, a row a seed, and what areas there are."""

    def of(column: str) -> np.ndarray:
        return np.array([row[column] for row in merges])

    arms = dict.fromkeys(row["arm"] for row in areas)
    said = ", ".join(f"{NAMES.get(a, a)} {statistics.t_interval(_area(areas, a))}" for a in arms)
    whole = of("cosine_whole")
    lie = (
        f"whole {statistics.t_interval(whole)}, layers and tensors "
        f"{of('cosine_least').min():.2f} to {of('cosine_most').max():.2f}: orthogonality "
        f"{'is' if abs(whole).max() < ORTHOGONAL else 'is not'} reproduced"
    )
    checks = [
        reproduce.Check(
            f"{policy}: cosines of the two runs' task vectors (the paper: about 0)",
            None,
            lie,
        ),
        reproduce.Check(
            f"{policy}: area of each front up to {config.reference_kl:g} nats, above the reward "
            "of the start",
            None,
            said,
        ),
    ]
    for what, one, other in COMPARED:
        if len(_area(areas, one)):
            values = _area(areas, one) - _area(areas, other)
            checks.append(_difference(f"{policy}: {what}, area", values))
    return checks


def _area(areas: reproduce.Rows, arm: str, column: str = "area") -> np.ndarray:
    return np.array([row[column] for row in areas if row["arm"] == arm])


def _ends(points: reproduce.Rows, policy: str, seeds: int, arm: str) -> np.ndarray:
    found = [_curve(points, policy, seed, arm)[1] for seed in range(seeds)]
    return np.array([reward[-1] for reward in found if len(reward)])


def _difference(claim: str, values: np.ndarray) -> reproduce.Check:
    return reproduce.Check(f"{claim} (difference)", None, str(statistics.t_interval(values)))


def draw(config: Config, points: reproduce.Rows) -> Figure:
    """Runs and a front, reward over KL, and what fronts have above one run's; a policy a row."""
    policies = list(dict.fromkeys(row["policy"] for row in points))
    drawn = reproduce.figure(2, len(policies), width=5.2, height=3.9)
    for number, policy in enumerate(policies):
        runs, fronts = drawn.axes[2 * number : 2 * number + 2]
        found = {
            arm: [_curve(points, policy, seed, arm) for seed in range(config.seeds)]
            for arm in _arms(points)
        }
        for arm in (*FIXED, MOVING, "slerp-1"):
            style = _style(arm)
            for kl, reward in found[arm]:
                runs.plot(kl, reward, color=style["color"], lw=0.7, alpha=0.35)
            runs.plot(*np.mean(found[arm], 0), label=NAMES[arm], markersize=4, **style)
        runs.axvline(config.reference_kl, color="0.6", lw=0.8, ls=":")
        runs.set(ylabel="reward")
        runs.set_title(f"{policy}: runs by learner steps, a front by eta", fontsize=10)
        fronts.axhline(0, color=_style("one-1")["color"], lw=1.2, label=NAMES["one-1"])
        for arm in [arm for arm in found if arm.startswith(("lerp", "slerp"))]:
            style, gains = _style(arm), []
            least = min(kl[-1] for kl, _ in found["one-1"])
            for one, other in zip(found["one-1"], found[arm], strict=True):
                at = np.linspace(0, one[0][-1], 200)
                fronts.plot(at, _above(at, other, one), color=style["color"], lw=0.7, alpha=0.35)
                gains.append(_above(np.linspace(0, least, 200), other, one))
            label = NAMES.get(arm, arm)
            line = {"color": style["color"], "lw": 1.8, "label": label}
            fronts.plot(np.linspace(0, least, 200), np.mean(gains, 0), **line)
        fronts.set(ylabel="reward above that of one run, at equal KL")
        fronts.set_title(f"{policy}: fronts from the start to the merge", fontsize=10)
        for axes in (runs, fronts):
            axes.set_xlabel("KL to the supervised start, nats of a text")
            axes.legend(fontsize=7, loc="best")
    return drawn


def _above(at: np.ndarray, one: tuple[Any, Any], other: tuple[Any, Any]) -> np.ndarray:
    """How much more reward the one front has at each KL; both rise."""
    return np.interp(at, *one) - np.interp(at, *other)


def _style(arm: str) -> dict[str, Any]:
    number = list(NAMES).index(arm) if arm in NAMES else len(NAMES)
    is_front = arm not in (*FIXED, MOVING)
    return {"color": f"C{number}", "marker": "o" if is_front else ".", "lw": 1.6}


def draw_merges(points: reproduce.Rows) -> Figure:
    """Reward and KL of merges by lambda, less the line between both runs; a policy a row."""
    policies = list(dict.fromkeys(row["policy"] for row in points))
    drawn = reproduce.figure(2, len(policies), width=4.6, height=3.2)
    for number, policy in enumerate(policies):
        for axes, column in zip(drawn.axes[2 * number :][:2], ("reward", "kl"), strict=True):
            for way, color in (("slerp", "C5"), ("lerp", "C4")):
                wanted = policy, f"{way}-by-lambda"
                own = [row for row in points if (row["policy"], row["arm"]) == wanted]
                seeds = sorted({row["seed"] for row in own})
                values = np.array([[r[column] for r in own if r["seed"] == s] for s in seeds])
                line = values[:, :1] + np.array(LAMBDAS)[None] * (values[:, -1:] - values[:, :1])
                values = values - line
                axes.plot(LAMBDAS, values.T, color=color, lw=0.7, alpha=0.35)
                label = {"slerp": "spherical", "lerp": "linear"}[way]
                axes.plot(LAMBDAS, values.mean(0), "o-", color=color, label=label, markersize=4)
            what = {"reward": "reward", "kl": "KL to the start, nats"}[column]
            axes.set(xlabel="lambda, from the first run to the second", ylabel=what)
            axes.set_title(f"{policy}: above the line between the runs", fontsize=10)
            axes.legend(fontsize=8)
    return drawn


def _steps_of_warp(config: Config, sizes: Sizes) -> int:
    return config.iterations * config.algorithm(sizes).iteration_steps


def steps(config: Config) -> int:
    """Learner steps of all runs."""
    each = [
        len(FIXED) * sizes.member_steps + _steps_of_warp(config, sizes)
        for sizes in (config.toy, config.decoder)
    ]
    return config.seeds * sum(each)


def seconds(config: Config) -> float:
    """On two cores: compiling, and steps by their texts."""
    found = 100.0
    for sizes, cost in ((config.toy, 0.01), (config.decoder, 0.05)):
        own = len(FIXED) * sizes.member_steps + _steps_of_warp(config, sizes)
        found += config.seeds * own * cost * sizes.batch_size / 128
    return found


REPRODUCTION = reproduce.Reproduction(
    claim="Averages of a policy's weights, while it learns, between runs and toward the start, buy "
    "more reward at less distance.",
    source="Rame et al. 2024, arXiv:2406.16768",
    config=Config(),
    steps=steps,
    seconds=seconds,
    run=run,
)

"""`kullback reproduce teacher-hacking`: a student that nears its teacher and leaves the truth.

Tiapkin et al., "On Teacher Hacking in Language Model Distillation", ICML 2025,
https://arxiv.org/abs/2502.02671, with models of fifty to eighty thousand parameters. A
random model is the truth, the oracle. Teacher and student are fine-tuned on its samples, the
teacher to the point of overfitting; then the student is distilled from the teacher on more prompts.
Only whose completions it learns from differs: the teacher's, sampled once (offline) or at every
visit of a prompt, or its own. On prompts that nothing was learnt from,

    golden = KL(oracle || student),  proxy = KL(teacher || student),  of whole sequences, in nats.

Where the paper has T5 models and texts, here are 16 tokens, prompts of 4 and completions of 12 of
them; there is no end of sequence.
"""

import functools
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import hacking, study
from kullback.experiments.reproductions.hacking import Arm, Config
from kullback.lm import power_law


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """All arms with all seeds."""
    models = hacking.make_models(config)
    prepared = functools.cache(lambda seed: hacking.prepare(config, models, seed))
    rows: reproduce.Rows = []
    for seed in range(config.seeds):
        for arm in hacking.arms(config):

            def compute(arm: Arm = arm, seed: int = seed) -> reproduce.Rows:
                return hacking.distil(config, models, prepared(seed), arm, seed, work)

            rows += work.part(f"{arm.name}-{seed}", config.epochs * config.epoch_steps, compute)
    ends = [summary(rows, arm.name, s) for arm in hacking.arms(config) for s in range(config.seeds)]
    figures = {"teacher_hacking": draw(config, rows, ends)}
    return reproduce.Found({"curves": rows, "summary": ends}, figures, judge(config, ends))


def summary(rows: reproduce.Rows, arm: str, seed: int) -> dict[str, Any]:
    """Where an arm ended, and whether its proxy left its power law."""
    own = [row for row in rows if row["arm"] == arm and row["seed"] == seed]
    golden, proxy, steps = ([row[name] for row in own] for name in ("golden", "proxy", "step"))
    best = int(np.argmin(golden))
    even = [i for i, row in enumerate(own) if row["is_evenly_spaced"]]
    curve = [steps[i] for i in even], [proxy[i] for i in even]
    first, law = power_law.departure(*curve), power_law.early(*curve)
    late = [i for i in even if steps[i] >= 0.3 * steps[-1]]
    return {
        "arm": arm,
        "seed": seed,
        "golden_end": golden[-1],
        "golden_least": golden[best],
        "golden_rise": golden[-1] / golden[best],
        "step_of_golden_least": steps[best],
        "proxy_end": proxy[-1],
        "proxy_fall_since": proxy[best] - proxy[-1],
        "proxy_always_falls": bool(np.all(np.diff(proxy) < 0)),
        "train_loss_end": own[-1]["train_loss"],
        "golden_of_teacher": own[-1]["golden_of_teacher"],
        "left_power_law_at_step": -1 if first is None else steps[even[first]],
        "law_scale": law.value(1),
        "law_exponent": law.exponent,
        "late_exponent": _exponent([steps[i] for i in late], [proxy[i] for i in late]),
    }


def _exponent(steps: list[int], proxy: list[float]) -> float:
    return power_law.fit(steps, proxy).exponent if len(steps) >= 3 else float("nan")


def judge(config: Config, ends: reproduce.Rows) -> list[reproduce.Check]:
    """The paper's statements, each over the seeds; pairs of arms have seeds in common."""

    def of(arm: str, column: str) -> np.ndarray:
        return np.array([row[column] for row in ends if row["arm"] == arm])

    def less(what: str, arm: str, than: str, column: str) -> reproduce.Check:
        difference = of(than, column) - of(arm, column)
        return study.above(f"{arm}: {what} than {than} (difference)", difference.tolist())

    checks: list[reproduce.Check] = []
    if "offline" in config.sources:
        checks += [
            study.above(
                "offline: golden turns up, ending above 1.05 times its least",
                of("offline", "golden_rise").tolist(),
                1.05,
            ),
            study.above(
                "offline: proxy falls all the same from there to the end (by nats)",
                of("offline", "proxy_fall_since").tolist(),
            ),
            study.every(
                "offline: proxy falls from each checkpoint to the next",
                of("offline", "proxy_always_falls").tolist(),
                f"{statistics.t_interval(of('offline', 'proxy_end'))} nats at the end",
            ),
        ]
        for online in (source for source in config.sources if source != "offline"):
            checks += [
                less("golden rises less, as a ratio,", online, "offline", "golden_rise"),
                less("a lower golden at the end", online, "offline", "golden_end"),
                less("a lower proxy at the end", online, "offline", "proxy_end"),
                less("a lower training loss at the end", "offline", online, "train_loss_end"),
                study.above(
                    f"offline: in the last 70% of the steps the exponent of proxy is below 0.6 of "
                    f"{online}'s (0.6 of that, less it)",
                    (0.6 * of(online, "late_exponent") - of("offline", "late_exponent")).tolist(),
                ),
            ]
    for source in config.sources:
        left, least = (of(source, c) for c in ("left_power_law_at_step", "step_of_golden_least"))
        is_offline = source == "offline"
        claim = "proxy leaves its power law" if is_offline else "proxy keeps to its power law"
        evidence = f"left at step {left.tolist()}, -1 for never; golden least at {least.tolist()}"
        checks.append(
            study.every(f"{source}: {claim}", ((left >= 0) == is_offline).tolist(), evidence)
        )
    for few, many, why in _data_pairs(config):
        checks.append(less(why, many, few, "golden_end"))
    teacher = of(hacking.arms(config)[0].name, "golden_of_teacher")
    return [
        *checks,
        reproduce.Check("golden of the teacher", None, str(statistics.t_interval(teacher))),
    ]


def _data_pairs(config: Config) -> list[tuple[str, str, str]]:
    """Arms of which the second should end with the lower golden, and why."""
    named = {
        (arm.prompts, arm.completions): arm.name for arm in hacking.arms(config) if "-" in arm.name
    }
    pairs = []
    if len(config.diversity) > 1:
        few, many = (config.prompts // d for d in (max(config.diversity), min(config.diversity)))
        ends = (few, max(config.diversity)), (many, min(config.diversity))
        pairs.append((*(named[end] for end in ends), "with more prompts a lower golden"))
    if len(config.budget) > 1:
        prompts = max(1, config.prompts // 4)
        ends = (prompts, min(config.budget)), (prompts, max(config.budget))
        pairs.append((*(named[end] for end in ends), "with more completions a lower golden"))
    return pairs


def draw(config: Config, rows: reproduce.Rows, ends: reproduce.Rows) -> Figure:
    """Golden over proxy, and golden, proxy and training loss over steps; a line a seed."""
    drawn = reproduce.figure(2, 2, width=5.0, height=3.6)
    over, golden, proxy, loss = drawn.axes
    for number, arm in enumerate(hacking.arms(config)):
        for seed in range(config.seeds):
            own = [r for r in rows if r["arm"] == arm.name and r["seed"] == seed]
            style: dict[str, Any] = {"color": f"C{number}", "alpha": 0.85, "lw": 1.2}
            label = arm.name if seed == 0 else None
            columns = {name: [row[name] for row in own] for name in own[0]}
            over.plot(columns["proxy"], columns["golden"], label=label, **style)
            over.plot(columns["proxy"][-1], columns["golden"][-1], "o", markersize=4, **style)
            steps = columns["step"][1:]
            for axes, name in ((golden, "golden"), (proxy, "proxy"), (loss, "train_loss")):
                axes.plot(steps, columns[name][1:], **style)
    for row in ends:
        left = row["left_power_law_at_step"]
        if left >= 0:
            last = config.epochs * config.epoch_steps
            at = np.array([0.05 * last, left, last])
            law = row["law_scale"] * at ** -row["law_exponent"]
            proxy.plot(at, law, "k:", marker="x", markevery=[1], lw=1, markersize=5)
    over.set(
        xlabel="proxy, nats", ylabel="golden, nats", title="Golden over proxy (a dot: the end)"
    )
    over.legend(fontsize=8)
    golden.set(title="Golden: distance to the oracle", ylabel="nats a sequence")
    proxy.set(title="Proxy: distance to the teacher (x: off its law)", ylabel="nats a sequence")
    loss.set(title="Training loss", ylabel="nats a token")
    for axes in (golden, proxy, loss):
        axes.set(xscale="log", xlabel="learner step")
    for axes in (over, proxy, loss, golden):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(ticker.ScalarFormatter())
        axes.yaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.tick_params(axis="both", which="both", labelsize=7)
        axes.title.set_fontsize(10)
    loss.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))  # It has decades.
    over.set_xscale("log")
    over.xaxis.set_minor_formatter(ticker.ScalarFormatter())
    over.xaxis.set_major_formatter(ticker.ScalarFormatter())
    return drawn


def steps(config: Config) -> int:
    """Learner steps of all arms."""
    return config.seeds * len(hacking.arms(config)) * config.epochs * config.epoch_steps


REPRODUCTION = reproduce.Reproduction(
    claim="A student distilled from fixed sequences of its teacher goes on nearing the teacher "
    "while it leaves the truth; sequences sampled anew mitigate it, and a departure from the power "
    "law shows it.",
    source="Tiapkin et al. 2025, arXiv:2502.02671",
    config=Config(),
    steps=steps,
    # Compiling, then 0.03 s a step of 64 sequences, a third of it sampling.
    seconds=lambda config: 40 + steps(config) * 0.03 * config.batch_size / 64,
    run=run,
)

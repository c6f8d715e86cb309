"""`kullback reproduce pipeline`: what each stage of a post-training gives, by leaving it out.

The stages by which Gemma 3 was tuned (Gemma Team 2025, section 3,
https://arxiv.org/abs/2503.19786), as far as they are published: distillation, averaged reward
models (WARM), best-of-N distillation (BOND) and averaged policies (WARP). Its "improved versions"
of these are not published, and this is none of them. A small student of sums with exact answers
goes through all stages, and then without each: what is lost in gold, which is whether sums are
right, and which only the labels of the reward models' pairs have seen, some of them wrong.

A stage that is left out is replaced by what it began with: WARP by one member of as many steps,
WARM by one reward model.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kullback.core import ranges
from kullback.experiments.pipelines import running, summary
from kullback.experiments.reproductions import charts, judging, study

TASK = "tokens/arithmetic"
LENGTHS = {"max_prompt_length": 8, "max_new_tokens": 4}
ROUNDED = "bits"  # The stage of few bits, which is the whole pipeline's alone.
# Pipelines by the stages that they go without; all but the first are compared with it.
WHOLE = "all"
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    WHOLE: (),
    "distillation": ("distilled", ROUNDED),
    "WARM": ("rewards", ROUNDED),
    "WARP": ("policy", ROUNDED),
    "reinforcement learning": ("policy", "member", ROUNDED),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, and the sizes of stages."""

    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.
    teacher_width: int = 64  # Hidden units; twice as many in the teacher's feed-forward layers.
    teacher_steps: int = 3_000
    start_steps: int = 1_500  # Of the student, before it is distilled.
    distilled_steps: int = 1_500
    prompts: int = 4_000  # Whose two answers are labelled.
    swapped: float = 0.1  # Share of wrong labels, in [0, 1/2).
    reward_models: int = 4  # Of the average, at least 2.
    reward_steps: int = 300
    policy_steps: int = 200  # Of each of WARP's two members, and half of what one alone has.
    policy_rate: float = 1e-4
    episodes: int = 500  # Held-out sums.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "teacher_steps", "start_steps", "distilled_steps")
        ranges.at_least(1, self, "prompts", "reward_steps", "policy_steps", "episodes")
        ranges.at_least(0, self, "first_seed")
        ranges.at_least(2, self, "reward_models")
        ranges.inside("[0, 0.5)", self, "swapped")
        ranges.inside("(0, inf)", self, "policy_rate")
        ranges.multiples(8, self, "teacher_width")


def contents(config: Config, seed: int) -> dict[str, Any]:
    """Returns the pipeline of a seed, as its file would have it."""

    def train(agent: str, model: str, steps: int, **more: Any) -> dict[str, Any]:
        settings = {**LENGTHS, **more.pop("settings", {})}
        named = {"agent": agent, "environment": TASK, "model": model, "steps": steps}
        return {"run": "train", "seed": seed, **named, "settings": settings, **more}

    width = {"embed_dim": config.teacher_width, "hidden_dim": 2 * config.teacher_width}
    supervised = {"batch_size": 64, "learning_rate": 3e-3}
    pairs = {"environment": "tokens/preferences:{pairs}", "settings": {"batch_size": 32}}
    rate = {"member.learning.learning_rate": config.policy_rate}
    reward = "reward-model:{rewards}"
    members = {"members": 2, "member_steps": config.policy_steps}
    return {
        "stage": {
            "teacher": train(
                *("sft", "tiny", config.teacher_steps),
                model_flags={**width, "num_layers": 3},
                settings=supervised,
            ),
            "start": train(
                *("sft", "tiny", config.start_steps),
                tokenizer="{teacher}",
                model_flags={"num_layers": 2},
                settings=supervised,
            ),
            "distilled": train(
                *("gkd", "{start}", config.distilled_steps),
                teacher="{teacher}",
                settings={"batch_size": 64, "learning_rate": 1e-3},
            ),
            "pairs": {
                **{"run": "label", "model": "{distilled}", "reward": "exact+0.1*math"},
                **{"prompts": config.prompts, "swapped": config.swapped, "seed": seed},
            },
            "single": train("reward-model", "{distilled}", config.reward_steps, **pairs),
            "rewards": {
                **train("warm", "{distilled}", config.reward_steps, **pairs),
                **{"num_seeds": config.reward_models, "instead": "{single}"},
            },
            "member": train(
                *("bond", "{distilled}", 2 * config.policy_steps),
                reward=reward,
                settings={"batch_size": 96, "learning_rate": config.policy_rate},
            ),
            "policy": {
                **train(
                    *("warp-bond", "{distilled}", 2 * config.policy_steps),
                    reward=reward,
                    settings={**members, "member.learning.batch_size": 96, **rate},
                ),
                "instead": "{member}",
            },
            ROUNDED: {"run": "quantize", "model": "{policy}", "format": "q4_0", "table": "q8_0"},
        },
        "report": {
            **{"task": TASK, "reward": "exact", "start": "{start}"},
            **{"episodes": config.episodes, "samples": 2, **LENGTHS},
        },
    }


def compare(config: Config, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields the stages of all pipelines of a seed; what they share is done once."""
    folder, share = journal.path(f"pipelines-{seed}"), STEPS // len(LEFT_OUT)
    for number, (name, left_out) in enumerate(LEFT_OUT.items()):

        def tick(stages: int, of: int, number: int = number) -> None:
            journal.tick(number * share + stages * share // of)

        running.run(
            contents(config, seed),
            out=folder,
            without=left_out,
            quiet=True,
            say=lambda line: None,
            tick=tick,
        )
        by_stage = summary.read(folder, left_out)
        for stage, measured in by_stage.items():
            means = {
                column: float(np.mean(measured.columns[measure]))
                for column, measure in COLUMNS.items()
            }
            yield {"without": name, "stage": stage, **means}
        last = float(np.mean([*by_stage.values()][-1].columns["reward"]))
        journal.tick((number + 1) * share, last, "gold")


# Columns of the table, and their measures: the report's reward is gold here.
COLUMNS = {"gold": "reward", **{name: name for name in ("kl_start", "tokens", "diversity")}}
STEPS = 20  # Processes of a seed, about.


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields all pipelines, by seed."""
    for seed in study.seeds_of(config):
        run = functools.partial(compare, config, seed)
        yield study.Arm(f"{seed}", STEPS, run, columns={"seed": seed})


def final(rows: study.Rows, name: str, column: str = "gold") -> np.ndarray:
    """Returns a column of the last model in float of a pipeline, [seeds]."""
    stages = study.where(rows, without=name)
    last = [
        [row for row in study.where(stages, seed=seed) if row["stage"] != ROUNDED][-1]
        for seed in study.distinct(stages, "seed")
    ]
    return np.array([row[column] for row in last])


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges what is lost in gold where a stage is left out."""
    del config
    rows, shared = tables["stages"], "teacher and student, and the stages before"
    whole = final(rows, WHOLE)
    for name in LEFT_OUT:
        if name != WHOLE:
            lost = whole - final(rows, name)
            check = judging.above(
                f"without {name} fewer sums are right at the end (share that is lost)",
                lost,
                shared=shared,
            )
            yield judging.headline(check)
    rounded = study.column(rows, "gold", without=WHOLE, stage=ROUNDED)
    check = judging.above(
        "four bits cost at most 0.02 of the sums (0.02 less their cost)",
        0.02 - (whole - rounded),
        shared=shared,
    )
    yield check
    for column in COLUMNS:
        by_name = {name: final(rows, name, column) for name in LEFT_OUT}
        yield judging.reported(f"{column} of the last model in float", judging.means(by_name))
    steps = study.distinct(study.where(rows, without=WHOLE), "stage")
    of_stages = {s: study.column(rows, "gold", without=WHOLE, stage=s) for s in steps}
    yield judging.reported("gold along the stages", judging.means(of_stages))


def figures(config: Config, tables: study.Tables) -> dict[str, charts.Grid]:
    """Returns gold along the stages of each pipeline, and at its end over the KL to the start."""
    del config
    rows = tables["stages"]
    marks: list[charts.Mark] = []
    for number, name in enumerate(LEFT_OUT):
        kl, gold = (final(rows, name, column) for column in ("kl_start", "gold"))
        style = {"color": f"C{number}", "marker": "o", "linestyle": ""}
        marks.append(charts.Line(kl, gold, name if name == WHOLE else f"without {name}", style))
    axes = {
        "xlabel": "KL to the student's start, nats of a text",
        "ylabel": "sums that are right",
        "title": "the last model in float; a dot a seed",
    }
    return {"pipeline": charts.Grid(panels=[charts.Panel(marks=marks, axes=axes)])}


STUDY = study.Study(
    claim="Distillation, averaged reward models, reinforcement learning and averaged policies each "
    "make the tuned model better.",
    source="Gemma Team 2025, arXiv:2503.19786, section 3",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: {"stages": rows},
    claims=claims,
    figures=figures,
    # Of a first seed, measured: 75 s the teacher, 29 the start, 44 distillation, 34 and 86 reward
    # models, 92 BOND and 89 WARP, each less 8 s for its process.
    seconds=lambda config: (
        config.seeds
        * (
            12.8 * STEPS
            + 0.022 * config.teacher_steps
            + 0.014 * config.start_steps
            + 0.024 * config.distilled_steps
            + 0.01 * 5 * config.reward_models * config.reward_steps
            + 0.16 * 5 * config.policy_steps
        )
    ),
)

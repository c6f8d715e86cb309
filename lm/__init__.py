"""Language models as policies: one file an algorithm, one line here, which `kullback` lists."""

import dataclasses
from typing import Any

from kullback.core import registry

__all__ = ["ALGORITHMS", "Entry"]


@dataclasses.dataclass(frozen=True)
class Entry(registry.Entry):
    """An algorithm, made of (model, config) or (model, teacher, config), and what it needs."""

    has_teacher: bool = False  # Whether it always has a teacher.
    may_distil: bool = False  # Whether a weight of distillation > 0 gives it a teacher.
    reads_pairs: bool = False  # Whether it learns from pairs of answers.
    is_judge: bool = False  # Whether it learns a reward model, and no policy.
    takes_reward: bool = False  # Whether it learns from rewards of its own samples.
    is_population: bool = False  # Whether its seeds are members, to be averaged into one model.
    # Whether texts may be written ahead of learning, as its configuration's `ahead` says.
    may_write_ahead: bool = False
    leaves_front: bool = False  # Whether it runs whole iterations, and ends in a front of policies.


def _entry(module: str, description: str, **more: Any) -> Entry:
    return Entry(f"kullback.lm.{module}", description, **more)


# Algorithms by the name that commands know them by.
ALGORITHMS: dict[str, Entry] = {
    "sft": _entry("sft", "Supervised fine-tuning, with any f-divergence's loss"),
    "distill": _entry(
        "gkd", "Distillation on fixed sequences", presets_name="offline_presets", has_teacher=True
    ),
    "gkd": _entry(
        "gkd",
        "Generalised knowledge distillation, Agarwal et al. 2024",
        has_teacher=True,
        may_write_ahead=True,
    ),
    "rlhf": _entry(
        "rlhf",
        "REINFORCE, PPO, GRPO and kin with a KL to a start or average, Ahmadian et al. 2024",
        takes_reward=True,
        may_distil=True,
        may_write_ahead=True,
    ),
    "rlef": _entry(
        "rlef",
        "Actor and critic for entailed summaries, Roit et al. 2023",
        takes_reward=True,
        may_write_ahead=True,
    ),
    "bond": _entry(
        "bond",
        "The best of N of a moving anchor by comparisons alone, Sessa et al. 2024",
        takes_reward=True,
    ),
    "warp": _entry(
        "warp",
        "Policies averaged while, between and after they learn, Rame et al. 2024",
        takes_reward=True,
        may_write_ahead=True,
        leaves_front=True,
    ),
    "warp-bond": _entry(
        "warp",
        "WARP, whose members learn by BOND instead",
        presets_name="bond_presets",
        takes_reward=True,
        leaves_front=True,
    ),
    "dpo": _entry(
        "dpo",
        "Direct preference optimisation with any f-divergence, Rafailov et al. 2023",
        reads_pairs=True,
    ),
    "online-dpo": _entry(
        "online_dpo",
        "DPO on the policy's own answers, ranked by a reward; Guo et al. 2024",
        takes_reward=True,
    ),
    "reward-model": _entry(
        "reward_model",
        "Rewards of preferences: a head on a decoder, Bradley & Terry 1952",
        reads_pairs=True,
        is_judge=True,
    ),
    "warm": _entry(
        "warm",
        "Weight-averaged reward models, a member a seed; Rame et al. 2024",
        reads_pairs=True,
        is_judge=True,
        is_population=True,
    ),
}

"""Value-based deep RL: one file an algorithm, one line here, which `kullback` lists."""

from typing import Any

from kullback.core.registry import Entry

__all__ = ["AGENTS", "Entry"]


def _entry(module: str, description: str, **more: Any) -> Entry:
    return Entry(f"kullback.agents.{module}", description, **more)


MANY = {"atari": 128, "minatar": 128}  # PQN's rows.

# Entries by name; each makes an agent from (torso or None, spec, config).
AGENTS: dict[str, Entry] = {
    "al-dqn": _entry("advantage_learning", "Advantage learning, Bellemare et al. 2016"),
    "btr": _entry("btr", "Beyond the Rainbow, Clark et al. 2025", num_envs={"atari": 64}),
    "c51": _entry("c51", "Distribution of the return on 51 atoms, Bellemare et al. 2017"),
    "dcpi": _entry("dcpi", "Deep conservative policy iteration, Vieillard et al. 2020"),
    "double-dqn": _entry("double_dqn", "Double DQN, van Hasselt et al. 2016"),
    "dqn": _entry("dqn", "Deep Q-network, Mnih et al. 2015, with Adam"),
    "iqn": _entry("iqn", "Implicit quantile networks, Dabney et al. 2018"),
    "m-dqn": _entry("munchausen", "Munchausen DQN, Vieillard et al. 2020"),
    "m-iqn": _entry("munchausen_iqn", "Munchausen IQN, Vieillard et al. 2020"),
    "m-pqn": _entry(
        "munchausen_pqn", "PQN with Munchausen's log-policy in its reward; ours", num_envs=MANY
    ),
    "md-dqn": _entry(
        "md_dqn", "Mirror descent: KL to the last policy, and entropy; Vieillard et al. 2020"
    ),
    "mo-dqn": _entry(
        "momentum_dqn", "Momentum DQN: greedy for an average of values; Vieillard et al. 2020"
    ),
    "politex-dqn": _entry(
        "politex_dqn", "Dual averaging: softmax of an average of values; Vieillard et al. 2020"
    ),
    "pqn": _entry(
        "pqn", "Parallelised Q-learning without replay, Gallici et al. 2024", num_envs=MANY
    ),
    "qr-dqn": _entry("qr_dqn", "Quantile regression DQN, Dabney et al. 2018"),
    "rainbow": _entry("rainbow", "C51, three steps, prioritised replay; Hessel et al. 2018"),
    "soft-dqn": _entry(
        "munchausen", "DQN with an entropy bonus: M-DQN of alpha 0", presets_name="soft_presets"
    ),
}

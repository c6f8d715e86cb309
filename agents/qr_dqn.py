"""QR-DQN: learns quantiles of the return at fixed fractions, by quantile regression.

Dabney et al., "Distributional reinforcement learning with quantile regression", AAAI 2018,
https://arxiv.org/abs/1710.10044. Its target is `iqn_target`, of iqn.py, of N fixed quantiles.
"""

import dataclasses

from kullback.agents import distributional, iqn, q_learning, quantile
from kullback.core import heads, networks, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of QR-DQN; the defaults are the paper's for Atari."""

    num_quantiles: int = 200  # N.
    huber_threshold: float = 1.0  # kappa.
    learning: distributional.Config = distributional.Config()

    def __post_init__(self) -> None:
        if self.num_quantiles < 1:
            raise ValueError(f"num_quantiles must be >= 1, got {self.num_quantiles}")
        if not self.huber_threshold > 0:
            raise ValueError(f"huber_threshold must be > 0, got {self.huber_threshold}")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; other sources are in q_learning.

    The paper: Adam at 5e-5 with epsilon 0.01 / 32, which are the family's. Dopamine's QR-DQN has
    three-step returns and prioritised replay too; the paper, and these settings, have neither.
    """
    learning = distributional.presets(family)
    if family == "gym":  # Ceron & Castro's: 51 quantiles too.
        learning = dataclasses.replace(learning, learning_rate=1e-4)
    if family == "toy":  # Ours, as for IQN.
        replay = dataclasses.replace(learning.replay, n_step=3)
        learning = dataclasses.replace(learning, replay=replay)
    # 1. Dopamine has 200 on MinAtar; 8 here, as for IQN: losses are of 8 x 8 pairs, not 40,000.
    num_quantiles = {"atari": 200, "gym": 51}.get(family, 8)
    return Config(num_quantiles=num_quantiles, learning=learning)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a QR-DQN agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()
    n = config.num_quantiles
    network = heads.quantiles(
        torso or networks.torso(config.learning.torso, spec), spec.num_actions, n
    )
    return quantile.make(
        iqn.iqn_target,
        network,
        spec,
        config.learning,
        samples=quantile.Samples(online=n, target=n, policy=n),
        kappa=config.huber_threshold,
        algorithm=config,
    )

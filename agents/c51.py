"""C51: learns the distribution of the return, as masses on 51 atoms, instead of its mean.

Bellemare, Dabney & Munos, "A distributional perspective on reinforcement learning", ICML 2017,
https://arxiv.org/abs/1707.06887. The equation is `categorical_target`, in categorical.py.
"""

import dataclasses

from kullback.agents import categorical, distributional, q_learning
from kullback.core import heads, networks, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of C51; the defaults are the paper's for Atari."""

    atoms: categorical.Atoms = categorical.Atoms()
    learning: distributional.Config = distributional.Config(learning_rate=2.5e-4)


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; other sources are in q_learning."""
    learning = distributional.presets(family)
    if family == "atari":  # The paper's, and Dopamine's: Adam at 2.5e-4, epsilon 0.01 / 32.
        learning = dataclasses.replace(learning, learning_rate=2.5e-4)
    if family == "gym":  # Ceron & Castro's for distributions on classic control.
        learning = dataclasses.replace(learning, learning_rate=1e-4)
    return Config(atoms=categorical.presets(family), learning=learning)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a C51 agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()
    network = heads.categorical(
        torso or networks.torso(config.learning.torso, spec),
        spec.num_actions,
        config.atoms.num_atoms,
    )
    return categorical.make(network, spec, config.atoms, config.learning, algorithm=config)

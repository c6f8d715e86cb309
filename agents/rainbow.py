"""Rainbow: C51 with three-step returns and prioritised replay; dueling, double and noisy by flags.

Hessel et al., AAAI 2018, https://arxiv.org/abs/1710.02298. The default is Dopamine's variant, with
which M-DQN and M-IQN were compared: Castro et al. 2018, https://arxiv.org/abs/1812.06110. It has no
dueling networks, double Q-learning or noisy layers; `full` adds them.
"""

import dataclasses
from typing import Literal

from kullback.agents import categorical, distributional, q_learning
from kullback.core import heads, networks, ranges, replay, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of Rainbow; the defaults are Dopamine's for Atari."""

    atoms: categorical.Atoms = categorical.Atoms()
    dueling: bool = False  # Whether values and advantages have separate heads.
    double: bool = False  # Whether online values select the action that the target evaluates.
    noise: float = 0.0  # sigma_0 of noisy layers in the head (full: 0.5); 0 has none.
    hidden: int = 512  # Units of the head's hidden layer; 0 is none.
    # Priority of an item in the replay: its loss in Dopamine; in Hessel et al. the KL divergence,
    # which is the loss minus the entropy of its target.
    priority: Literal["cross_entropy", "divergence"] = "cross_entropy"
    learning: distributional.Config = distributional.Config(
        learning_rate=6.25e-5,
        adam_epsilon=1.5e-4,
        replay=replay.Config(
            n_step=3, priority_exponent=0.5, importance_exponent=0.5, importance_exponent_final=0.5
        ),
    )

    def __post_init__(self) -> None:
        if self.priority not in ("cross_entropy", "divergence"):
            raise ValueError(f"priority must be cross_entropy or divergence, got {self.priority}")
        ranges.inside("[0, inf]", self, "noise", "hidden")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for "atari", "minatar", "gym" or "toy"; other sources are in q_learning."""
    learning = distributional.presets(family)
    # Dopamine: draws in proportion to the root of the loss, and a constant exponent of 0.5.
    prioritized = dataclasses.replace(
        learning.replay,
        n_step=3,
        priority_exponent=0.5,
        importance_exponent=0.5,
        importance_exponent_final=0.5,
    )
    learning = dataclasses.replace(learning, replay=prioritized)
    if family == "atari":
        learning = dataclasses.replace(learning, learning_rate=6.25e-5, adam_epsilon=1.5e-4)
    if family == "gym":  # Ceron & Castro's.
        learning = dataclasses.replace(learning, learning_rate=1e-4)
    torso: networks.TorsoName = "minatar_conv" if family == "minatar" else learning.torso
    learning = dataclasses.replace(learning, torso=torso)
    # On MinAtar Young & Tian's 128 units; on vectors the torso has the layers.
    hidden = {"atari": 512, "minatar": 128}.get(family, 0)
    return Config(atoms=categorical.presets(family), hidden=hidden, learning=learning)


def full(config: Config) -> Config:
    """Returns `config` with all that Hessel et al. combine.

    The exponent of the importance weights rises from 0.4 to 1, over 200 million frames unless
    `importance_learner_steps` says otherwise, and noisy layers replace epsilon in exploration.
    """
    annealed = dataclasses.replace(
        config.learning.replay, importance_exponent=0.4, importance_exponent_final=1.0
    )
    learning = dataclasses.replace(
        config.learning,
        replay=annealed,
        epsilon=0.0,
        epsilon_decay_env_steps=0,
        epsilon_evaluate=0.0,
    )
    return dataclasses.replace(
        config, dueling=True, double=True, noise=0.5, priority="divergence", learning=learning
    )


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a Rainbow agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.
    """
    config = config or Config()
    named = config.learning.torso
    network = heads.categorical(
        torso or networks.torso(named, spec, hidden=config.hidden == 0),
        spec.num_actions,
        config.atoms.num_atoms,
        hidden=config.hidden,
        dueling=config.dueling,
        noise=config.noise,
    )
    return categorical.make(
        network,
        spec,
        config.atoms,
        config.learning,
        double=config.double,
        priority=config.priority,
        algorithm=config,
    )

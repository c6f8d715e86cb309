"""Beyond the Rainbow (BTR): Munchausen IQN with what Rainbow has, and a residual torso.

Clark et al., ICML 2025, https://arxiv.org/abs/2411.03820. To Rainbow's prioritised replay, three
steps, dueling networks and noisy layers it adds implicit quantiles, Munchausen's bonus, IMPALA's
torso with spectral normalisation and a last maximum over few cells, and it learns from large
batches of many emulators. Each part is a field, so that an ablation is a setting
(examples/btr_ablations.toml). With the others off it is M-IQN, and without the bonus too IQN.

Where the authors' code differs from the text, the defaults are the code's, which drew the published
curves: the bonus has the online network's log-policy (text: the target's), priorities are absolute
errors, not losses, the importance exponent is that of the priorities, and epsilon falls
exponentially (text: linearly).
"""

import dataclasses
import functools
from typing import Literal

from kullback.agents import distributional, iqn, munchausen, munchausen_iqn, q_learning, quantile
from kullback.core import heads, impala, networks, regularizers, replay, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of BTR; the defaults are those of the paper and its code for Atari."""

    munchausen_bonus: bool = True  # Whether the target has it; without, the target is IQN's.
    temperature: float = 0.03  # tau > 0, in units of (clipped) reward.
    log_policy_scale: float = 0.9  # alpha in [0, 1].
    log_policy_min: float = -1.0  # l_0 < 0, floor of tau ln(pi), in the same units.
    regularizer: str = "kl"  # f, as in munchausen.py.
    # The network whose log-policy the bonus is: online in the code, target in the text.
    log_policy_of: Literal["online", "target"] = "online"
    # Whether the distribution is learnt; without, the mean is, by half of Huber's loss: as one
    # quantile, at the fraction 1/2.
    implicit_quantiles: bool = True
    huber_threshold: float = 1.0  # kappa.
    samples: quantile.Samples = quantile.Samples(online=8, target=8, policy=8)
    # Whether the policy at s_t is of the N' quantiles of the target, not of K others.
    shares_samples: bool = True
    network: quantile.Implicit = quantile.Implicit(first_cosine=0)
    dueling: bool = True  # Whether values and advantages have separate streams.
    noise: float = 0.5  # sigma_0 of noisy layers in the streams; 0 has none.
    # The torso, where `learning.torso` is "impala" or "impala_small".
    residual: impala.Config = impala.Config()
    # Priority of an item in the replay: sum_i mean_j |y_j - z_i| in the code, or the loss.
    priority: Literal["error", "loss"] = "error"
    learning: distributional.Config = distributional.Config(
        torso="impala",
        learning_rate=1e-4,
        adam_epsilon=0.005 / 256,
        max_gradient_norm=10.0,
        target_period=500,  # 32,000 agent steps.
        # In the code epsilon is 0.01 + 0.99 exp(-t / 2e6) after t agent steps; the text has 8
        # million frames, 2e6 agent steps, for all of it. Both: 0 from half of 200 million frames.
        epsilon_decay="exponential",
        epsilon_decay_env_steps=2_000_000,
        epsilon_zero_env_steps=25_000_000,
        epsilon_evaluate=0.01,  # Until 125 million frames; here until 100 million.
        replay=replay.Config(
            capacity=2**20,
            min_replay_size=200_000,
            batch_size=256,
            samples_per_update=64,  # One gradient step a tick of 64 emulators.
            n_step=3,
            discount=0.997,
            priority_exponent=0.2,
            # The code has a setting of 0.45, reads it nowhere, and raises to -0.2 throughout.
            importance_exponent=0.2,
            importance_exponent_final=0.2,
        ),
    )

    def __post_init__(self) -> None:
        munchausen.check(self)
        if self.log_policy_of not in ("online", "target"):
            raise ValueError(f"log_policy_of must be online or target, got {self.log_policy_of}")
        if self.priority not in ("error", "loss"):
            raise ValueError(f"priority must be error or loss, got {self.priority}")
        if not self.huber_threshold > 0:
            raise ValueError(f"huber_threshold must be > 0, got {self.huber_threshold}")
        if self.noise < 0:
            raise ValueError(f"noise must be >= 0, got {self.noise}; the paper: 0.5")


def presets(family: q_learning.Family) -> Config:
    """Returns settings for a family of environments; comments give the source of each value.

    Raises:
      ValueError: for a family that has none.
    """
    if family == "atari":
        return Config()  # The paper's Table D6, but for what the code has otherwise, see there.
    # The others are ours: the paper has no such experiments. They have BTR's parts, three steps,
    # priorities and clipping, and what IQN and M-IQN have there: torso, discount, exploration.
    samples, implicit, learning = iqn.shared_presets(family)
    implicit = dataclasses.replace(implicit, first_cosine=0)
    prioritized = dataclasses.replace(
        learning.replay,
        n_step=3,
        priority_exponent=0.2,
        importance_exponent=0.2,
        importance_exponent_final=0.2,
    )
    learning = dataclasses.replace(learning, max_gradient_norm=10.0, replay=prioritized)
    if family == "minatar":
        learning = dataclasses.replace(
            learning,
            torso="impala_small",
            learning_rate=2.5e-4,  # That of DQN there.
            adam_epsilon=0.005 / 64,  # As on Atari, 0.005 over the size of a batch.
            target_period=500,  # As on Atari, in learner steps.
            # As on Atari, four items are drawn for an agent step.
            replay=dataclasses.replace(
                prioritized, capacity=131_072, batch_size=64, samples_per_update=16
            ),
        )
    return Config(samples=samples, network=implicit, residual=impala.SMALL, learning=learning)


def make(
    torso: networks.Torso | None, spec: types.Spec, config: Config | None = None
) -> types.Agent:
    """Returns a BTR agent.

    `torso` maps observations [B, ...] to features [B, D]; None takes the one that `config` names.

    It acts epsilon-greedily on the mean of K quantiles, with noise; in evaluation without.
    """
    config = config or Config()
    divergence = regularizers.named(config.regularizer)
    target, entropy = iqn.iqn_target, q_learning.greedy_entropy
    if config.munchausen_bonus:
        target = functools.partial(
            munchausen_iqn.munchausen_iqn_target,
            tau=config.temperature,
            alpha=config.log_policy_scale,
            l_0=config.log_policy_min,
            divergence=divergence,
        )
        entropy = functools.partial(
            munchausen.policy_entropy, tau=config.temperature, divergence=divergence
        )
    return quantile.make(
        target,
        _network(torso, spec, config),
        spec,
        config.learning,
        samples=config.samples,
        kappa=config.huber_threshold,
        entropy=entropy,
        bonus_of=config.log_policy_of,
        shares_samples=config.shares_samples,
        priority=config.priority,
        algorithm=config,
    )


def _network(
    torso: networks.Torso | None, spec: types.Spec, config: Config
) -> heads.QuantileNetwork:
    """Returns the network: torso, implicit quantiles or one quantile, and streams."""
    implicit = config.network
    torso = torso or networks.torso(
        config.learning.torso, spec, hidden=implicit.hidden == 0, residual=config.residual
    )
    streams = {"hidden": implicit.hidden, "dueling": config.dueling, "noise": config.noise}
    if not config.implicit_quantiles:
        return heads.quantiles(torso, spec.num_actions, 1, **streams)
    return heads.implicit_quantiles(
        torso,
        spec.num_actions,
        num_cosines=implicit.num_cosines,
        first_cosine=implicit.first_cosine,
        **streams,
    )

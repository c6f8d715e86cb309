"""RLEF: an actor and a critic learn summaries that their document entails.

Roit et al., "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment
Feedback", ACL 2023, https://arxiv.org/abs/2306.00186. The reward is given a token at a time,

    r_n = (1 - alpha) [y_n ends the text] r_NLI(x, y) + alpha log (pi_SL(y_n | ..) / pi(y_n | ..))

with r_NLI the log-probability that document x entails the whole text y, and pi_SL the supervised
model that learning starts from, which is frozen. A value network, initialised as the supervised
model with a new head, predicts the return after each prefix. The advantage of the policy is the
return minus that value; the value learns by one-step bootstrapping:

    A_n = G_n - V(y_<n, x),  G_n = sum_{m >= n} r_m
    L_V = mean (V(y_<n, x) - r_n - V(y_<=n, x))^2,  the second V constant, 0 after the last token

Any reward may take the place of r_NLI. A text that the horizon cuts is scored as it is.
"""

import dataclasses

from kullback.core import sampling_ahead, types
from kullback.lm import gemma, rlhf, rollouts, surrogate, tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of RLEF; values marked as ours are not from the paper."""

    # alpha in [0, 1]; ours. The optimum is pi_SL exp(r_NLI / beta) with beta = alpha / (1 - alpha):
    # pi_SL times a power of the probability of entailment.
    regularisation: float = 0.1
    temperature: float = 1.0  # Temperature of policy and reference alike, see rlhf.py.
    return_lambda: float = 1.0  # lambda of the returns G_n.
    value_lambda: float = 0.0  # lambda of the value's targets; 0 is one step, 1 is G_n.
    value_learning_rate: float = 1e-4  # Step size of the value's Adam; ours.
    truncation_penalty: float = 0.0  # Cost of a cut text, in units of (1 - alpha) r_NLI.
    # Texts that an older policy wrote, while the one before this learnt; as of `rlhf.Config`.
    correction: surrogate.Correction = "none"
    correction_limit: float = 2.0  # C >= 1 of the weights that correct for it.
    # Learner steps >= 0 by which the policy that writes a batch is older than the one that learns.
    lag: int = 0
    shards: int = 1  # Parts >= 1 of a batch's prompts, each written apart; with a lag (ours).
    learning: tuning.Config = tuning.Config(learning_rate=1e-5)  # Ours.

    def __post_init__(self) -> None:
        if not 0 <= self.regularisation <= 1:
            raise ValueError(
                f"regularisation (alpha) must lie in [0, 1], got {self.regularisation}; 0 is the "
                "entailment alone, 1 imitates the start"
            )
        self.objective()

    @property
    def output_divergence(self) -> str:
        """Name of f of the policy's softargmax_f: KL, for softmax."""
        return "kl"

    @property
    def penalty(self) -> tuple[str, float]:
        """Name and value of the setting that weighs the KL penalty."""
        return "regularisation", self.regularisation

    @property
    def ahead(self) -> sampling_ahead.Ahead:
        """How far ahead of learning texts are written."""
        return sampling_ahead.Ahead(self.lag, self.shards)

    def objective(self) -> rlhf.Config:
        """Returns the settings in terms of `rlhf.Config`."""
        return rlhf.Config(
            samples_per_prompt=1,
            baseline="value",
            reward_weight=1 - self.regularisation,
            kl_coefficient=self.regularisation,
            kl_estimator="k1",
            kl_placement="reward",
            reference="fixed",
            temperature=self.temperature,
            return_lambda=self.return_lambda,
            value_lambda=self.value_lambda,
            value_learning_rate=self.value_learning_rate,
            truncation_penalty=self.truncation_penalty,
            correction=self.correction,
            correction_limit=self.correction_limit,
            lag=self.lag,
            shards=self.shards,
            learning=self.learning,
        )


def presets(family: str) -> Config:
    """Returns settings for "tokens"."""
    del family
    return Config()


def make(model: gemma.Model, config: Config | None = None) -> types.Agent[rollouts.OnPolicy]:
    """Returns the RLEF agent of `model`; constants and metrics are those of `rlhf.make`."""
    config = config or Config()
    return rlhf.make(model, config=config.objective(), algorithm=config)

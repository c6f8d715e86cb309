"""RLEF: summaries that their document entails, by an actor and a critic.

Roit et al., "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment
Feedback", ACL 2023, https://arxiv.org/abs/2306.00186. The reward is given a token at a time,

    r_n = (1 - alpha) [y_n ends the text] r_NLI(x, y) + alpha log (pi_SL(y_n | ..) / pi(y_n | ..))

with r_NLI the log-probability that document x entails the whole text y, pi_SL the supervised start,
which does not change, and alpha small for a weak pull to it. A value network of its own, which
starts as the supervised model under a new head, predicts the return after each prefix; the policy
learns by the return less that value, the value by one-step bootstrapping:

    A_n = G_n - V(y_<n, x),  G_n = sum_{m >= n} r_m
    L_V = mean (V(y_<n, x) - r_n - V(y_<=n, x))^2,  the second V constant, 0 after the last token

Any reward may stand for r_NLI. A text that the horizon cuts is scored as it is.
"""

import dataclasses

from kullback.core import types
from kullback.lm import gemma, rlhf, tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of RLEF; of those that the paper is not at hand for, ours are said to be."""

    regularisation: float = 0.1  # alpha in [0, 1]; ours. The optimum is pi_SL exp(r_NLI / beta),
    # beta = alpha / (1 - alpha): the start times a power of the probability of entailment.
    temperature: float = 1.0  # Of policy and reference alike, see rlhf.py.
    return_lambda: float = 1.0  # Of the returns G_n.
    value_lambda: float = 0.0  # Of the value's targets; 0 is one step, 1 is G_n.
    value_learning_rate: float = 1e-4  # Of Adam; ours.
    truncation_penalty: float = 0.0  # Units of (1 - alpha) r_NLI that a cut text costs.
    learning: tuning.Config = tuning.Config(learning_rate=1e-5)  # Ours.

    def __post_init__(self) -> None:
        if not 0 <= self.regularisation <= 1:
            raise ValueError(
                f"regularisation (alpha) must lie in [0, 1], got {self.regularisation}; 0 is the "
                "entailment alone, 1 imitates the start"
            )
        self.objective()

    @property
    def operator(self) -> str:
        """Name of f of the policy's operator: softmax."""
        return "kl"

    def objective(self) -> rlhf.Config:
        """The same in terms of REINFORCE."""
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
            learning=self.learning,
        )


def presets(family: str) -> Config:
    """Settings for "tokens"."""
    del family
    return Config()


def make(model: gemma.Model, config: Config | None = None) -> types.Agent[rlhf.OnPolicy]:
    """RLEF of `model`; constants and metrics are those of `rlhf.make`."""
    config = config or Config()
    return rlhf.make(model, config=config.objective(), algorithm=config)

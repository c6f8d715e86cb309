"""The variants of policy gradients of language models, by name: values of the settings of rlhf.py.

Sources of the rows: leave-one-out, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740; PPO,
Schulman et al. 2017, https://arxiv.org/abs/1707.06347, and TRL's defaults for language models;
GRPO, Shao et al. 2024, https://arxiv.org/abs/2402.03300; Dr. GRPO, Liu et al. 2025,
https://arxiv.org/abs/2503.20783; DAPO, Yu et al. 2025, https://arxiv.org/abs/2503.14476; GSPO,
Zheng et al. 2025, https://arxiv.org/abs/2507.18071; CISPO, MiniMax 2025,
https://arxiv.org/abs/2506.13585. Learning rates, batches and lengths are none of a variant's.
"""

from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["VARIANTS", "Name"]

# Names of variants.
Name = Literal["reinforce", "rloo", "ppo", "grpo", "dr-grpo", "dapo", "gspo", "cispo"]

_REINFORCE: Mapping[str, Any] = {
    "baseline": "leave-one-out",
    "scale_by_deviation": True,
    "kl_coefficient": 0.05,  # TRL's RLOOConfig.
    "kl_estimator": "k1",
    "kl_placement": "reward",
    "ratio": "none",
    "detach_ratio": False,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "normalisation": "none",
    "epochs": 1,
    "return_lambda": 1.0,
    "value_lambda": 1.0,
    "value_clip": 0.0,
    "drop_equal": False,
    "oversample": 1,
    "truncation_penalty": 0.0,
    "overlong_fraction": 0.0,
}
_GRPO: Mapping[str, Any] = {
    **_REINFORCE,
    "baseline": "group",
    "kl_coefficient": 0.04,  # The paper, section 4.2.
    "kl_estimator": "k3",
    "kl_placement": "loss",
    "ratio": "token",
    "normalisation": "length",
}
_WITHOUT_KL: Mapping[str, Any] = {**_GRPO, "kl_coefficient": 0.0}

# Values of settings, by the name of a variant; those given beside a name win.
VARIANTS: Mapping[Name, Mapping[str, Any]] = {
    "reinforce": _REINFORCE,
    # A text is one action, whose ratio is bounded as in TRL's RLOOConfig.
    "rloo": {**_REINFORCE, "ratio": "product"},
    "ppo": {
        **_REINFORCE,
        "baseline": "value",
        "ratio": "token",
        "normalisation": "tokens",
        "epochs": 4,  # TRL's PPOConfig; so are the lambdas and the clipped value.
        "return_lambda": 0.95,
        "value_lambda": 0.95,
        "value_clip": 0.2,
    },
    "grpo": _GRPO,
    # Neither of the two divisions that bias the gradient.
    "dr-grpo": {**_WITHOUT_KL, "scale_by_deviation": False, "normalisation": "constant"},
    "dapo": {
        **_WITHOUT_KL,
        "clip_high": 0.28,
        "normalisation": "tokens",
        "drop_equal": True,
        "oversample": 2,  # Ours: the paper samples until the batch is full.
        "truncation_penalty": 1.0,  # Equation 13.
        "overlong_fraction": 0.2,  # 4,096 of 20,480 tokens.
    },
    "gspo": {**_WITHOUT_KL, "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    # Ratios up to 5 (TRL's epsilon_high for it), and none too small.
    "cispo": {
        **_WITHOUT_KL,
        "detach_ratio": True,
        "clip_low": 0.0,
        "clip_high": 4.0,
        "normalisation": "tokens",
    },
}

"""`kullback reproduce action-gap`: how far a log-policy in the reward drives actions apart.

Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.14430, section 4.2, measures the gap between the best and the second
action on Asterix: M-DQN and advantage learning widen it, the latter more and less evenly. Here on
MinAtar's Asterix, with alpha varied too: exactly (`kullback reproduce munchausen-theory`) the gap
is 1 / (1 - alpha) of that of the MDP with entropy (1 - alpha) tau. The gap is of the online values
on the batches learnt from.
"""

import dataclasses
import itertools

from kullback.experiments.reproductions import agent_runs, agent_studies
from kullback.experiments.reproductions.agent_studies import wider


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of the study of action gaps: what is varied, and the sizes."""

    game: str = "minatar/asterix"
    alphas: tuple[float, ...] = (0.5, 0.9)  # Of the bonus, ascending; 0 is Soft-DQN and is run too.
    steps: int = 150_000
    seeds: int = 3

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps) < 1:
            raise ValueError("seeds and steps must be >= 1")
        if not self.alphas or list(self.alphas) != sorted(set(self.alphas)):
            raise ValueError(f"alphas must ascend, got {self.alphas}")
        if not all(0 < alpha < 1 for alpha in self.alphas):
            raise ValueError(f"alphas must lie in (0, 1), got {self.alphas}")
        agent_runs.random_score(self.game)

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""

        def arm(label: str, agent: str, *settings: str) -> agent_runs.Arm:
            return agent_runs.Arm(label, agent, self.game, self.seeds, self.steps, settings)

        return [
            arm("dqn", "dqn"),
            arm("soft-dqn", "soft-dqn"),
            *(arm(f"m-dqn {a:g}", "m-dqn", f"log_policy_scale={a}") for a in self.alphas),
            *(arm(f"al-dqn {a:g}", "al-dqn", f"gap_scale={a}") for a in self.alphas),
        ]


def claims(config: Config) -> list[agent_studies.Claim]:
    """Returns the claims of gaps at the end, in times another's of the same seed."""
    largest = f"{config.alphas[-1]:g}"
    sentence = "the gap of {better} is wider than that of {over}, in times"
    compared = [
        wider(better, over, sentence=sentence)
        for over, better in itertools.pairwise(
            ["soft-dqn", *(f"m-dqn {alpha:g}" for alpha in config.alphas)]
        )
    ]
    compared += [
        wider(
            f"al-dqn {largest}", "dqn", sentence="the gap of {better} is wider than DQN's, in times"
        ),
        # The paper sees it on Atari; with how many seeds it would here is open.
        wider(
            f"al-dqn {largest}",
            f"m-dqn {largest}",
            sentence=f"advantage learning widens it more than M-DQN, alpha {largest}, in times",
            is_judged=False,
        ),
    ]
    compared += [
        wider(
            f"m-dqn {alpha:g}",
            "soft-dqn",
            sentence=f"times Soft-DQN's gap, alpha {alpha:g}; exactly 1/(1 - alpha) is "
            f"{1 / (1 - alpha):g}",
            threshold=None,
        )
        for alpha in config.alphas
    ]
    return compared


STUDY = agent_studies.make(
    claim="a log-policy in the reward widens the gap between the best action and the others",
    source="Vieillard, Pietquin & Geist 2020",
    config=Config(),
    figure="action_gap",
    claims=lambda config, runs: claims(config),
    panels=lambda config, runs: agent_studies.grid(
        runs, ("action_gap", None), ("return_mean", None), columns=2
    ),
)

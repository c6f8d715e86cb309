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
from collections.abc import Iterator

from kullback.core import ranges
from kullback.experiments.reproductions import agent_runs, agent_studies
from kullback.experiments.reproductions.agent_studies import wider


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of the study of action gaps: what is varied, and the sizes."""

    game: str = "minatar/asterix"
    alphas: tuple[float, ...] = (0.5, 0.9)  # Of the bonus, ascending; 0 is Soft-DQN and is run too.
    steps: int = 150_000
    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        agent_runs.check(self, self.game)
        ranges.inside("(0, 1)", self, "alphas")
        if list(self.alphas) != sorted(set(self.alphas)):
            raise ValueError(f"alphas must ascend, got {self.alphas}")

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        kinds = {
            **{agent: [agent] for agent in ("dqn", "soft-dqn")},
            **{f"m-dqn {a:g}": ["m-dqn", f"log_policy_scale={a}"] for a in self.alphas},
            **{f"al-dqn {a:g}": ["al-dqn", f"gap_scale={a}"] for a in self.alphas},
        }
        return agent_runs.arms(kinds, [self.game], self.seeds, self.steps, self.first_seed)


def claims(config: Config, runs: agent_runs.Runs) -> Iterator[agent_studies.Claim]:
    """Yields the claims of gaps at the end, in times another arm's."""
    del runs
    largest = f"{config.alphas[-1]:g}"
    ascending = ["soft-dqn", *(f"m-dqn {alpha:g}" for alpha in config.alphas)]
    for over, better in itertools.pairwise(ascending):
        yield wider(
            better, over, sentence="the gap of {better} is wider than that of {over}, in times"
        )
    yield wider(
        f"m-dqn {largest}",
        "dqn",
        sentence="the gap of {better} is wider than DQN's, in times",
        is_headline=True,
    )
    yield wider(
        f"al-dqn {largest}", "dqn", sentence="the gap of {better} is wider than DQN's, in times"
    )
    more = f"advantage learning widens it more than M-DQN, alpha {largest}, in times"
    yield wider(f"al-dqn {largest}", f"m-dqn {largest}", sentence=more, is_headline=True)
    for alpha in config.alphas:
        exactly = f"exactly 1/(1 - alpha) is {1 / (1 - alpha):g}"
        times = f"times Soft-DQN's gap, alpha {alpha:g}; {exactly}"
        yield wider(f"m-dqn {alpha:g}", "soft-dqn", sentence=times, is_judged=False)


STUDY = agent_studies.make(
    claim="a log-policy in the reward widens the gap between the best action and the others",
    source="Vieillard, Pietquin & Geist 2020",
    config=Config(),
    figure="action_gap",
    claims=claims,
    panels=lambda config, runs: agent_studies.grid(runs, "action_gap", "return_mean", columns=2),
)

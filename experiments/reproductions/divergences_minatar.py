"""`kullback reproduce divergences-minatar`: M-DQN with another f-divergence than KL. Ours.

What the log-policy of Vieillard, Pietquin & Geist, "Munchausen Reinforcement Learning", NeurIPS
2020, https://arxiv.org/abs/2007.14430, becomes for the regularisers of Roulet et al. 2025,
https://arxiv.org/abs/2501.18537, is in theory/munchausen_f.py: that theory promises of every f the
same average of errors and the same widening of gaps, 1 / (1 - alpha), and so gives no reason for
one to score above another: that they score alike, within 15%, is judged. Here that is run on
MinAtar with networks, beside DQN. Targets of KL
and of alpha-divergences of 1 or more differ by at most tau ln A, 0.05 at the paper's tau = 0.03
with six actions; `temperature` makes it more.
"""

import dataclasses
from collections.abc import Iterator

from kullback.agents import munchausen
from kullback.experiments.reproductions import agent_runs, agent_studies, charts
from kullback.experiments.reproductions.agent_studies import headline, reported, wider

PAPERS = "kl"
ALIKE = 0.15  # Of mean returns: what counts as no difference.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of M-DQN with other divergences: what is varied, and the sizes."""

    games: tuple[str, ...] = ("minatar/breakout", "minatar/asterix")
    regularizers: tuple[str, ...] = ("alpha-1.5", "alpha-2")  # Beside KL; the sparse ones.
    temperature: float = 0.03  # tau > 0, of all.
    steps: int = 150_000
    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.

    def __post_init__(self) -> None:
        agent_runs.check(self, *self.games)
        if not self.regularizers or PAPERS in self.regularizers:
            raise ValueError(f"regularizers are those beside {PAPERS}, got {self.regularizers}")
        for name in self.regularizers:
            munchausen.Config(regularizer=name, temperature=self.temperature)

    def arms(self) -> list[agent_runs.Arm]:
        """Returns all that is run."""
        kinds = {"dqn": ["dqn"]}
        for name in (PAPERS, *self.regularizers):
            settings = f"regularizer={name}", f"temperature={self.temperature}"
            kinds[labelled(name)] = ["m-dqn", *settings]
        return agent_runs.arms(kinds, self.games, self.seeds, self.steps, self.first_seed)


def labelled(regularizer: str) -> str:
    """Returns an arm's name in tables and figures."""
    return f"m-dqn {regularizer}"


def claims(config: Config, runs: agent_runs.Runs) -> Iterator[agent_studies.Claim]:
    """Yields the claims of each f against DQN and against KL."""
    del runs
    scores, kl = agent_runs.SCORE, labelled(PAPERS)
    for f in map(labelled, config.regularizers):
        yield headline(f, "dqn", "{game}: {better} scores above {over} over the run", scores)
        alike = f"{{game}}: {{better}} scores as {{over}} does, within {ALIKE:.0%}, over the run"
        yield headline(f, kl, alike, scores, share=ALIKE)
        yield wider(f, over="dqn")
        # 1 / f'' at 1 / A, what a policy near the uniform one moves by, is larger than KL's.
        nearer = "{game}: policies of {over} are nearer to one action than KL's, in nats"
        yield reported(kl, f, nearer, agent_runs.ENTROPY)


def panels(config: Config, runs: agent_runs.Runs) -> charts.Grid:
    """Returns a column a game: returns, gaps of actions, entropies of the policies."""
    # DQN evaluates the greedy policy, whose entropy is nothing.
    munchausen_dqn = [labelled(name) for name in (PAPERS, *config.regularizers)]
    return agent_studies.grid(runs, "return_mean", "action_gap", ("policy_entropy", munchausen_dqn))


STUDY = agent_studies.make(
    claim="Munchausen's bonus works with any f-divergence, not with KL alone",
    source="ours, after Vieillard et al. 2020 and Roulet et al. 2025",
    config=Config(),
    figure="divergences_minatar",
    learner="dqn",
    claims=claims,
    panels=panels,
    measures={"policy_entropy": agent_runs.ENTROPY},
)

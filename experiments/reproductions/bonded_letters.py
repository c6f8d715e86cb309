"""A small decoder of letters that learns the best of two, for `kullback reproduce bond`.

J-BOND against REINFORCE with leave-one-out baselines and a KL to the start, of several strengths,
at equal numbers of texts written. Gold is the reward (letters.py); reward and KL to the supervised
start are of held-out prompts. Runs learn from the same prompts in the same order.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import letters, rewarded, study
from kullback.experiments.reproductions.enumerated import J_BOND, by_beta
from kullback.lm import bond, gemma, rlhf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the decoder and its runs."""

    seeds: int = 5
    language: letters.Sizes = letters.SIZES
    width: int = 32
    num_layers: int = 2
    prompts: int = 32  # Of a step.
    learning_rate: float = 1e-3  # Of Adam, for all.
    # Learner steps of J-BOND, with three texts of each prompt; REINFORCE has half as many again.
    steps: int = 400
    # Points of a curve. Areas are under straight lines between them, and REINFORCE goes far in its
    # first steps: with ten its fronts were chords.
    records: int = 50
    betas: tuple[float, ...] = (0.03, 0.06, 0.1, 0.2)  # Of REINFORCE, in units of gold a nat.
    samples: int = 16  # Texts of each held-out prompt.
    reference_kl: float = 4.0  # Of areas under fronts, nats of a text.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "width", "num_layers", "prompts", "records", "samples")
        ranges.multiples(2 * self.records, self, "steps")
        ranges.inside("(0, inf)", self, "reference_kl", "betas")

    def bond(self, anchor_rate: float) -> bond.Config:
        """Returns the settings of J-BOND."""
        learning = self.language.learning(3 * self.prompts, self.learning_rate)
        return bond.Config(anchor_rate=anchor_rate, learning=learning)

    def reinforce(self, beta: float) -> rlhf.Config:
        """Returns the settings of REINFORCE, of two texts a prompt."""
        learning = self.language.learning(2 * self.prompts, self.learning_rate)
        return rlhf.Config(samples_per_prompt=2, kl_coefficient=beta, learning=learning)


def arms(sizes: Sizes, table: str, first_seed: int, anchor_rate: float) -> Iterator[study.Arm]:
    """Yields J-BOND with an anchor of a rate, and each run of REINFORCE, by seed."""
    model = gemma.make(sizes.language.decoder(sizes.width, sizes.num_layers))
    world = rewarded.world(model, sizes.language)
    evaluate = rewarded.evaluator(world, sizes.language.horizon, sizes.samples)
    agents = {J_BOND: (bond.make(model, sizes.bond(anchor_rate)), sizes.steps)}
    for beta in sizes.betas:
        agent = rlhf.make(model, config=sizes.reinforce(beta))
        agents[by_beta(beta)] = agent, 3 * sizes.steps // 2
    climbers = {
        name: rewarded.climber(world, agent, rewarded.GOLD) for name, (agent, _) in agents.items()
    }

    def learn(name: str, seed: int, journal: study.Journal) -> Iterator[study.Row]:
        agent, steps = agents[name]
        texts = sizes.prompts * agent.experience.samples_per_prompt
        for step, params in rewarded.records(
            climbers[name], seed, rewarded.LEARNING, steps, sizes.records
        ):
            written = evaluate(params, seed, rewarded.EVALUATION)
            reward, kl = (float(np.mean(x)) for x in (written.reward, written.kl))
            journal.tick(step, reward, "reward")
            yield {"steps": step, "texts": step * texts, "reward": reward, "kl": kl}

    for seed in range(first_seed, first_seed + sizes.seeds):
        for name, (_, steps) in agents.items():
            part = f"{table}-{name.replace(' ', '').replace('=', '-')}-{seed}"
            columns = {"arm": name, "seed": seed}
            run = functools.partial(learn, name, seed)
            yield study.Arm(part, steps, run, table=table, columns=columns)

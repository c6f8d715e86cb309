"""A small decoder of letters that learns of pairs, some labels wrong, for `reproduce preferences`.

Pairs, reward models and policies that climb these are those of `kullback reproduce warm`
(reward_letters.py). From the same supervised start the direct ways learn from the same pairs, by
the learner of runs (lm/dpo.py). KL to the start and gold are of held-out prompts.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import (
    reward_letters,
    reward_models,
    small_models,
    study,
)
from kullback.lm import dpo, preferences, warm

MODELS = dataclasses.replace(reward_letters.SIZES, records=20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the decoder, of reward models and of the direct ways."""

    seeds: int = 5
    kl: float = 4.0  # Nats > 0 of a text at which ways are compared, if all of them go so far.
    steps: int = 400  # Of a direct way.
    batch_size: int = 64  # Pairs.
    learning_rate: float = 1e-3  # Of Adam, for the direct ways.
    records: int = 20  # Points of a direct way.
    models: reward_letters.Sizes = MODELS

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "batch_size")
        ranges.multiples("records", self, "steps")
        ranges.inside("(0, inf)", self, "kl", "learning_rate")

    @property
    def work(self) -> int:
        """Amount of work of an arm, in learner steps: those of small networks all count alike."""
        models = self.models
        return models.members * models.steps + (models.singles + 2) * models.policy_steps


def arms(
    sizes: Sizes,
    table: str,
    first_seed: int,
    corruption: float,
    objectives: Mapping[str, dpo.Objective],
) -> Iterator[study.Arm]:
    """Yields all ways of each seed.

    Args:
      sizes: of all.
      table: of the rows.
      first_seed: of `sizes.seeds` ones.
      corruption: share of wrong labels.
      objectives: of the direct ways, by name.
    """
    experiment = reward_letters.make(sizes.models)
    descents = {name: direct(sizes, experiment, loss) for name, loss in objectives.items()}

    def compare(seed: int, journal: study.Journal) -> Iterator[study.Row]:
        data, members = reward_letters.tune(experiment, corruption, seed)
        done = sizes.models.members * sizes.models.steps
        alone = reward_models.split(members)[: sizes.models.singles]
        climbed = [("reward-model", m, ("single", params)) for m, params in enumerate(alone)]
        climbed += [
            ("warm", 0, ("single", warm.average(reward_models.split(members)))),
            ("gold", 0, ("gold", experiment.world.language(seed).tables)),
        ]
        for way, member, proxy in climbed:
            for row, _ in reward_letters.climb(experiment, proxy, seed):
                yield {"way": way, "member": member, **row}
                journal.tick(done + row["step"], row["gold"], "gold")
            done += sizes.models.policy_steps
        for way, descent in descents.items():
            for row in descent(preferences.Pairs(*data.train), seed):
                yield {"way": way, "member": 0, **row}

    for seed in range(first_seed, first_seed + sizes.seeds):
        columns = {"corruption": corruption, "seed": seed}
        run = functools.partial(compare, seed)
        yield study.Arm(f"{table}-{seed}", sizes.work, run, table=table, columns=columns)


def direct(
    sizes: Sizes, experiment: reward_letters.Letters, objective: dpo.Objective
) -> Callable[[preferences.Pairs, int], Iterator[study.Row]]:
    """Returns (pairs, seed) -> records of a direct way; compiled, for all seeds.

    A record has the step, the KL to the start, the share of pairs that are ranked as they are
    labelled, a tie counting half, and gold.
    """
    language, model = sizes.models.language, experiment.world.model
    learning = language.learning(sizes.batch_size, sizes.learning_rate)
    config = dpo.Config(objective=objective, learning=learning)
    context = dpo.Context(model=model, start=model, config=config)
    refer = jax.jit(functools.partial(dpo.of_both, context, model))
    trainer = small_models.trainer(dpo.make(model, config).learner)

    def records(pairs: preferences.Pairs, seed: int) -> Iterator[study.Row]:
        start, key = experiment.world.start(seed), jax.random.key(seed)
        state = trainer.learner.init(key)._replace(params=start)
        data = dpo.Referred(pairs, refer(start, pairs))
        stretch = sizes.steps // sizes.records
        for done in range(0, sizes.steps + 1, stretch):
            texts = experiment.evaluate(state.params, seed, reward_letters.EVALUATION)
            log_ratio = refer(state.params, pairs) - data.log_reference
            is_right = (jnp.sign(log_ratio[:, 0] - log_ratio[:, 1]) + 1) / 2
            measured = {"kl": texts.kl, "proxy": is_right, "gold": texts.reward}
            means = {name: float(np.mean(np.asarray(x))) for name, x in measured.items()}
            yield {"step": done, **means}
            items = small_models.take(data, stretch, sizes.batch_size, seed, done)
            state, _ = trainer.run(state, experiment.world.constants(seed), items, key)

    return records

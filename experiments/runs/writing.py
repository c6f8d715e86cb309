"""Writing the texts of a run in another process: what makes the program there.

A worker gets prompts as arrays, a key, and what a version of the parameters changes. It reads no
files, knows no task, and gives no rewards.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback import lm
from kullback.core import acting_elsewhere, platform, regularizers, sampling_ahead, types
from kullback.experiments.runs import model_files
from kullback.lm import completions, rollouts, shared_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """The policy of a run, by all that decides it but parameters; it can be pickled."""

    algorithm: str
    config: Any  # The algorithm's.
    shapes: tuple[model_files.Shape, ...]  # Of the student, and of a teacher.
    teacher_divergence: str = ""  # f of the teacher's operator; "" without one.

    def sampler(self) -> completions.Sampler:
        """Returns what samples the texts of a learner step."""
        decoders = shared_ids.shared([shape.make() for shape in self.shapes])
        more = {}
        if self.teacher_divergence:
            more["teacher_divergence"] = regularizers.named(self.teacher_divergence)
        entry = lm.ALGORITHMS[self.algorithm]
        agent: types.Agent = entry.make(*decoders, config=self.config, **more)
        experience = agent.experience
        samples = 1
        if isinstance(experience, rollouts.OnPolicy):
            samples = experience.samples_per_prompt
        horizon = agent.config.learning.max_new_tokens
        return completions.of_policy(agent.policy, decoders[0], horizon, samples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a worker in another process makes the program that writes; it is pickled."""

    policy: Policy
    parted: acting_elsewhere.Parted  # Of the acting parameters.

    def __call__(self) -> "Writer":
        """Makes the program, which is compiled by its first texts."""
        platform.run_large_programs()  # Before JAX is used.
        frozen = jax.tree.map(jnp.asarray, self.parted.frozen)
        return Writer(
            write=completions.compiled(self.policy.sampler().completions),
            parted=self.parted._replace(frozen=frozen),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """The writing of a worker, in its own process; see `acting_elsewhere.Acts`."""

    write: Callable[..., Any]  # See `sampling_ahead.Parts`.
    parted: acting_elsewhere.Parted

    def answer(self, ask: sampling_ahead.Ask, version: Sequence[np.ndarray]) -> Any:
        """Returns the texts of a shard, a `tokens.Completion` of NumPy arrays."""
        here = sampling_ahead.Thread(name="", write=self.write)
        return jax.tree.map(np.asarray, here.act(ask, self.parted.whole(version)))

    def close(self) -> None:
        """Frees nothing."""

"""What a run is: checked when built, saved as config.json, read from there to resume."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

from kullback import agents, environments, lm
from kullback.core import files, json_files, names, sharding, typed, types
from kullback.experiments import limits
from kullback.lm import control_tokens as reading

# The largest value of each number of a plan.
MOST = {
    "steps": limits.STEPS,
    "num_envs": limits.ROWS,
    "num_seeds": limits.NUM_SEEDS,
    "eval_episodes": limits.EPISODES,
    "eval_max_steps": limits.STEPS,
    **dict.fromkeys(("eval_every", "log_every", "checkpoint_every"), limits.PERIOD),
}

AnyEnvironment = types.Environment | types.HostEnvironment
MakeAgent = Callable[[types.Spec], types.Agent]
MakeEnvironment = Callable[[int], Any]  # Number of rows -> environment of either kind.

CUSTOM = "custom"  # Stands in config.json for what was handed over in Python.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """Of a family of environments, in agent steps over all of them."""

    steps: int
    num_envs: int
    log_every: int
    checkpoint_every: int


DEFAULTS = {
    # 200 million frames, as published.
    "atari": Defaults(steps=50_000_000, num_envs=4, log_every=1_000, checkpoint_every=50_000),
    "minatar": Defaults(steps=5_000_000, num_envs=16, log_every=5_000, checkpoint_every=20_000),
    "gym": Defaults(steps=100_000, num_envs=4, log_every=1_000, checkpoint_every=10_000),
    "toy": Defaults(steps=10_000, num_envs=4, log_every=500, checkpoint_every=2_000),
    # A step is a learner step there, and an environment a sequence: the agent's batch_size.
    "tokens": Defaults(steps=1_000, num_envs=1, log_every=10, checkpoint_every=200),
    CUSTOM: Defaults(steps=100_000, num_envs=4, log_every=1_000, checkpoint_every=10_000),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, by names and numbers; steps are agent steps over all environments of one seed.

    For language models ("tokens") they are learner steps.
    """

    agent: str
    environment: str
    family: str = ""  # Whose presets and defaults hold; "" is the environment's own.
    steps: int = 0  # 0, here and below, is the family's.
    seed: int = 0
    num_seeds: int = 1  # Seeds seed .. seed + num_seeds - 1.
    num_envs: int = 0
    eval_every: int = 0  # Agent steps; 0 is never.
    eval_episodes: int = 10
    # Agent steps after which an episode of evaluation is cut; 0 is 27,000 (an Atari game), or the
    # environment's own limit where that is longer.
    eval_max_steps: int = 0
    settings: tuple[str, ...] = ()  # field=value of the agent's configuration.
    environment_flags: tuple[str, ...] = ()  # flag=value of the environment's constructor.
    model: str = ""  # Of a language model: a folder, a run, or a preset.
    model_flags: tuple[str, ...] = ()  # field=value of the preset.
    tokenizer: str = ""  # Of a preset: a folder with one; "" is the teacher's, or a new BPE.
    teacher: str = ""  # A folder or a run.
    reward: str = ""  # Of reinforcement learning, see rewards.py; "" is the task's own rule.
    # What text is that spells control tokens: "text", or what it spells, "parse".
    control_tokens: reading.Reading = "text"
    mesh: str = ""  # DATAxMODEL devices, "4x2"; "" is one device.
    log_every: int = 0
    checkpoint_every: int = 0
    # Whether code that the plan names may run: what is typed is the user's word, what stands in a
    # file is not. It is no part of what is saved, or a file could say so of itself.
    trust_code: bool = dataclasses.field(default=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", tuple(self.settings))
        object.__setattr__(self, "environment_flags", tuple(self.environment_flags))
        object.__setattr__(self, "model_flags", tuple(self.model_flags))
        self._check_types()
        known = {**agents.AGENTS, **lm.ALGORITHMS}
        if self.agent != CUSTOM and self.agent not in known:
            raise ValueError(names.unknown("agent", self.agent, known))
        self._check_tenant()
        if self.environment != CUSTOM and not self.is_language:
            environments.check_name(self.environment)
        for name, given in (("agent", self.settings), ("environment", self.environment_flags)):
            if given and getattr(self, name) == CUSTOM:
                raise ValueError(
                    f"{given[0]!r}: the {name} was handed over in Python; set it there"
                )
        family = self.family or self.environment.split("/")[0]
        if family not in DEFAULTS:
            raise ValueError(names.unknown("family", family, DEFAULTS))
        object.__setattr__(self, "family", family)
        for name in ("steps", "num_envs", "log_every", "checkpoint_every"):
            self._check_range(name, 0)
            if getattr(self, name) == 0:
                object.__setattr__(self, name, getattr(DEFAULTS[family], name))
        for name, least in (
            *(("num_seeds", 1), ("eval_episodes", 1)),
            *(("eval_max_steps", 0), ("eval_every", 0)),
        ):
            self._check_range(name, least)
        if self.eval_max_steps and self.is_language:
            raise ValueError(f"eval_max_steps is for games, not for {self.environment}")
        if not 0 <= self.seed <= limits.SEED + 1 - self.num_seeds:
            raise ValueError(f"seed must lie in [0, 2^31 - num_seeds), got {self.seed}")

    def _check_types(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, typed.check(name, hint, getattr(self, name)))

    def _check_range(self, name: str, least: int) -> None:
        most, value = MOST[name], getattr(self, name)
        if not least <= value <= most:
            raise ValueError(f"{name} must lie in [{least}, {most:,}], got {value}")

    @property
    def seeds(self) -> range:
        """Seeds of the run."""
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def is_language(self) -> bool:
        """Whether this is a run of a language model."""
        return self.environment.startswith("tokens/")

    def _check_tenant(self) -> None:
        learns_language = self.agent in lm.ALGORITHMS
        if learns_language != self.is_language and CUSTOM not in (self.agent, self.environment):
            kind = "a language model's and learns in tokens/..." if learns_language else "of games"
            raise ValueError(f"{self.agent} is {kind}, got environment {self.environment!r}")
        if self.mesh:
            sharding.shape_of(self.mesh)
        for name in ("model", "model_flags", "tokenizer", "teacher", "reward", "mesh"):
            if getattr(self, name) and not self.is_language:
                raise ValueError(f"{name} is for language models, not for {self.environment}")
        if self.control_tokens not in reading.READINGS:
            raise ValueError(f"control_tokens must be text or parse, got {self.control_tokens!r}")
        if self.control_tokens != "text" and not self.is_language:
            raise ValueError(f"control_tokens is for language models, not for {self.environment}")
        if self.is_language and (self.num_envs > 1 or self.environment_flags):
            raise ValueError(
                "tokens/... takes no num_envs and no environment_flags; a step's sequences are "
                "--set batch_size=N"
            )

    def to_json(self) -> dict[str, Any]:
        """As config.json keeps it."""
        saved = dataclasses.asdict(self)
        del saved["trust_code"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in saved.items()}

    @classmethod
    def from_json(
        cls, saved: Any, *, trust_code: bool = False, file: files.Path = "config.json"
    ) -> "Plan":
        """Returns the plan that `to_json` gave.

        Args:
          saved: what stands in the file under "plan".
          trust_code: whether the user said that code which it names may run.
          file: where it stands, for messages.

        Raises:
          ValueError: if a field is missing or unknown, or holds what cannot be.
        """
        record = json_files.Record(str(file), (), {"plan": saved}).record("plan")
        if "trust_code" in record:
            raise record.error("trust_code", "absent: no file says that it is to be trusted")
        return dataclasses.replace(record.build(cls), trust_code=trust_code)

    @property
    def code(self) -> str:
        """What of the plan names code of other people's, which runs once it is used; "" if none."""
        if "python:" in self.reward.lower():
            return f"reward {self.reward!r}"
        if ":" in self.environment and not self.is_language:  # gymnasium's MODULE:ID.
            return f"environment {self.environment!r}"
        return ""

    def require_trust(self, file: files.Path = "config.json") -> None:
        """Refuses code that a file names, unless the user has said that it may run.

        Args:
          file: where the plan stands.

        Raises:
          ValueError: if the plan names code that is not trusted.
        """
        if self.code and not self.trust_code:
            raise ValueError(
                f"{file}: its {self.code} would run code of that module, found on this machine or "
                "in this folder; if you know it, add --trust-code (trust_code=True in Python)"
            )

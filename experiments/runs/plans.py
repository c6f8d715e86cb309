"""Plans of runs: checked when built, saved in config.json, and read from there to resume.

Their fields are the flags of `kullback train`, too: JAX is imported once a plan is made.
"""

import dataclasses
import typing
from typing import Any, Literal, NamedTuple

from kullback import agents, lm
from kullback.core import files, json_files, names, typed
from kullback.experiments import limits
from kullback.lm import forms, gemma_config
from kullback.lm.control_tokens import READINGS, Reading

ADAPTER = "+adapter:"  # Between a model and a folder of peft's, whose updates are merged into it.
CUSTOM = "custom"  # Stands in config.json for an agent or environment handed over in Python.

PanAndScan = Literal["folder", "on", "off"]  # The first is as the model's folder says.
Kind = Literal["games", "language", "preferences"]  # The last trains reward models.


class Flag(NamedTuple):
    """The flag of `kullback train` for a field of a plan."""

    name: str  # Without "--"; "" is the field's.
    metavar: str
    help: str | None
    # Its type is the flag's: a tuple takes the flag several times, and a bool is a switch.
    default: Any
    most: int  # The largest value of a number.


def _flag(
    default: Any, metavar: str, help: str | None = None, *, most: int = 0, name: str = ""
) -> Any:
    """Returns a field of a plan that has a flag."""
    flag = Flag(name, metavar, help, default, most)
    return dataclasses.field(default=default, metadata={"flag": flag})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default numbers of a family of environments; steps are agent steps over all environments."""

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
    # Steps are learner steps here; the number of sequences is the agent's batch_size.
    "tokens": Defaults(steps=1_000, num_envs=1, log_every=10, checkpoint_every=200),
    CUSTOM: Defaults(steps=100_000, num_envs=4, log_every=1_000, checkpoint_every=10_000),
}


def family_of(environment: str) -> str:
    """Returns the family whose presets and defaults an environment has.

    Of gymnax's environments, MinAtar's games have MinAtar's and all others those of "gym".
    """
    family, _, game = environment.partition("/")
    if family != "gymnax":
        return family
    return "minatar" if game.endswith("-MinAtar") else "gym"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, by names and numbers; steps are agent steps over all environments of one seed.

    For language models ("tokens") they are learner steps. A number of 0 or "" is the default. A
    plan with epochs has no steps until its data are read, see `work.Epoch`.
    """

    agent: str
    environment: str
    family: str = ""  # The family whose presets and defaults hold; "" is the environment's.
    steps: int = _flag(0, "N", most=limits.STEPS)
    epochs: int = _flag(
        0,
        "N",
        "passes over the examples of a language run, in place of --steps, which follow from them",
        most=limits.EPOCHS,
    )
    seed: int = _flag(0, "S", most=limits.SEED)
    num_seeds: int = _flag(
        1, "K", "seeds S to S+K-1; one program if compiled", most=limits.NUM_SEEDS
    )
    num_envs: int = _flag(0, "E", "environments side by side", most=limits.ROWS)
    eval_every: int = _flag(0, "N", "agent steps; default: never", most=limits.PERIOD)
    eval_episodes: int = _flag(10, "M", most=limits.EPISODES)
    eval_max_steps: int = _flag(
        0,
        "N",
        "agent steps after which an episode of evaluation is cut; default: 27,000, or the "
        "environment's own limit if that is longer",
        most=limits.STEPS,
    )
    settings: tuple[str, ...] = _flag(
        (),
        "field=value",
        "a field of the agent's configuration, bare or dotted; see kullback fields",
        name="set",
    )
    environment_flags: tuple[str, ...] = _flag(
        (),
        "flag=value",
        "of the environment, e.g. protocol=classic for Atari",
        name="environment-flag",
    )
    model: str = _flag(
        "",
        "MODEL",
        "of a language model: a folder, a .gguf file, a run, pretrained:NAME, or a preset, whose "
        "weights are random",
    )
    model_flags: tuple[str, ...] = _flag(
        (),
        "field=value",
        "of a preset, e.g. num_layers=4",
        name="model-flag",
    )
    tokenizer: str = _flag("", "DIR", "of a preset; default: the teacher's, or a BPE of the data")
    teacher: str = _flag(
        "", "MODEL", "of distillation: a folder, a .gguf file, a run, or pretrained:NAME"
    )
    reward: str = _flag(
        "",
        "NAME",
        "of reinforcement learning: exact, math, format:REGEX, length, reward-model:DIR, "
        "entailment:DIR, python:MODULE:FUNCTION, http://HOST/PATH, or a sum of them, "
        '"0.8*exact-0.01*length"; default: exact',
    )
    frozen: gemma_config.Storage = _flag(  # noqa: RUF009  # A text, which is immutable.
        "float32",
        "FORMAT",
        "of the matrices that a language run only reads, in memory: of teacher, reference, reward "
        "model, base of adapters; bfloat16, int8, int4, q4_0, q8_0 or sfp8, which on CPUs save "
        "memory and are no faster; default: float32",
    )
    # How a text that spells control tokens is read; other commands have the same flag.
    control_tokens: Reading = _flag("text", "")  # noqa: RUF009  # A text, which is immutable.
    images: bool = _flag(
        False,
        "",
        "read the images that rows name: the model, and a teacher's, is a multimodal folder or a "
        "run of one",
    )
    pan_and_scan: PanAndScan = _flag(  # noqa: RUF009  # A text, which is immutable.
        "folder",
        "on|off",
        "with --images: whether long images are given with crops; default: as the model's folder "
        "says, or as the run learnt that it is",
    )
    audio: bool = _flag(
        False,
        "",
        "hear the clips that rows name, WAV files: with sft and distillation, a preset, a run that "
        "hears, or a decoder whose tokenizer has ids of audio",
    )
    mesh: str = _flag(
        "",
        "DATAxMODEL",
        "devices of a language model, all there are: a batch's rows over DATA of them, "
        "weights over MODEL; e.g. 4x2; default: one device",
    )
    log_every: int = _flag(0, "N", "agent steps", most=limits.PERIOD)
    checkpoint_every: int = _flag(0, "N", "agent steps", most=limits.PERIOD)
    # Whether code that the plan names may run. A user's own words may; a file must not say so of
    # itself, and so this is not saved.
    trust_code: bool = dataclasses.field(default=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        from kullback import environments

        for name in ("settings", "environment_flags", "model_flags"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, hint in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, typed.check(name, hint, getattr(self, name)))
        known = {**agents.AGENTS, **lm.ALGORITHMS}
        if self.agent != CUSTOM and self.agent not in known:
            raise ValueError(names.unknown("agent", self.agent, known))
        self._check_kind()
        if self.environment != CUSTOM and self.kind == "games":
            environments.check_name(self.environment)
        for name, given in (("agent", self.settings), ("environment", self.environment_flags)):
            if given and getattr(self, name) == CUSTOM:
                raise ValueError(
                    f"{given[0]!r}: the {name} was handed over in Python; set it there"
                )
        family = self.family or family_of(self.environment)
        if family not in DEFAULTS:
            raise ValueError(names.unknown("family", family, DEFAULTS))
        object.__setattr__(self, "family", family)
        for name, flag in FLAGS.items():
            least, value = min(flag.default, 1) if flag.most else 0, getattr(self, name)
            if flag.most and name != "seed" and not least <= value <= flag.most:
                raise ValueError(f"{name} must lie in [{least}, {flag.most:,}], got {value}")
        defaults = dataclasses.asdict(DEFAULTS[family])
        if self.agent in known:
            defaults["num_envs"] = known[self.agent].num_envs.get(family, defaults["num_envs"])
        for name, value in defaults.items():
            if name != "steps" or not self.epochs:
                object.__setattr__(self, name, getattr(self, name) or value)
        if self.eval_max_steps and self.kind != "games":
            raise ValueError(f"eval_max_steps is for games, not for {self.environment}")
        if not 0 <= self.seed <= limits.SEED + 1 - self.num_seeds:
            raise ValueError(f"seed must lie in [0, 2^31 - num_seeds), got {self.seed}")

    @property
    def seeds(self) -> range:
        """Seeds of the run."""
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def modality(self) -> forms.Modality | None:
        """The kind of media that it reads in rows; None reads text alone."""
        return forms.IMAGES if self.images else forms.AUDIO if self.audio else None

    @property
    def crops(self) -> bool | None:
        """Whether long images are given with crops; None is as the model is read."""
        return {"folder": None, "on": True, "off": False}[self.pan_and_scan]

    @property
    def kind(self) -> Kind:
        """The kind of model that it trains."""
        if not self.environment.startswith("tokens/"):
            return "games"
        entry = lm.ALGORITHMS.get(self.agent)
        return "preferences" if entry is not None and entry.is_judge else "language"

    def _check_kind(self) -> None:
        from kullback.core import sharding

        learns_language, is_game = self.agent in lm.ALGORITHMS, self.kind == "games"
        if learns_language == is_game and CUSTOM not in (self.agent, self.environment):
            kind = "a language model's and learns in tokens/..." if learns_language else "of games"
            raise ValueError(f"{self.agent} is {kind}, got environment {self.environment!r}")
        if self.epochs and is_game:
            raise ValueError(
                f"epochs are passes over the examples of a language run; {self.environment} has "
                "none: give steps"
            )
        if self.epochs and self.steps:
            raise ValueError(
                f"steps={self.steps} and epochs={self.epochs} both say when the run ends; give one"
            )
        if self.mesh:
            sharding.shape_of(self.mesh)
        for name in ("model", "model_flags", "tokenizer", "teacher", "reward", "mesh"):
            if getattr(self, name) and is_game:
                raise ValueError(f"{name} is for language models, not for {self.environment}")
        if self.images and self.audio:
            raise ValueError("--images does not go with --audio yet: leave one out")
        if self.pan_and_scan != "folder" and not self.images:
            raise ValueError(f"--pan-and-scan {self.pan_and_scan} goes with --images: add it")
        for name in ("images", "audio"):
            if getattr(self, name) and is_game:
                raise ValueError(f"{name} is for language models, not for {self.environment}")
        if self.frozen != "float32" and is_game:
            raise ValueError(f"frozen is for language models, not for {self.environment}")
        if self.control_tokens not in READINGS:
            raise ValueError(f"control_tokens must be text or parse, got {self.control_tokens!r}")
        if self.control_tokens != "text" and is_game:
            raise ValueError(f"control_tokens is for language models, not for {self.environment}")
        if not is_game and (self.num_envs > 1 or self.environment_flags):
            raise ValueError(
                "tokens/... takes no num_envs and no environment_flags; a step's sequences are "
                "--set batch_size=N"
            )

    def of_seed(self, seed: int) -> "Plan":
        """Returns the plan of one seed alone, of several that run in turn."""
        return dataclasses.replace(self, seed=seed, num_seeds=1)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as config.json keeps them."""
        saved = dataclasses.asdict(self)
        del saved["trust_code"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in saved.items()}

    @classmethod
    def from_json(
        cls, saved: Any, *, trust_code: bool = False, file: files.Path = "config.json"
    ) -> "Plan":
        """Returns the plan that `to_json` gave.

        Args:
          saved: the value of "plan" in the file.
          trust_code: whether the user said that code which it names may run.
          file: the file's path, for messages.

        Raises:
          ValueError: if a field is missing, unknown or invalid.
        """
        record = json_files.Record(str(file), (), {"plan": saved}).record("plan")
        if "trust_code" in record:
            raise record.error("trust_code", "absent: no file says that it is to be trusted")
        return dataclasses.replace(record.build(cls), trust_code=trust_code)

    def require_functions(self, call: str, **functions: Any) -> None:
        """Raises ValueError if the plan's agent or environment was a function, and it is None."""
        for name, function in functions.items():
            if getattr(self, name) == CUSTOM and function is None:
                raise ValueError(f"the run's {name} was handed over in Python: pass it to {call}")

    @property
    def code(self) -> str:
        """The reward or the environment, if it names a module or a server that is used; else ""."""
        if names_code(self.reward):
            return f"reward {self.reward!r}"
        if ":" in self.environment and self.kind == "games":  # gymnasium's MODULE:ID.
            return f"environment {self.environment!r}"
        return ""

    def require_trust(self, file: files.Path = "config.json") -> None:
        """Refuses code that the plan names, unless the user has said that it may run.

        Args:
          file: the path of the plan's file, for messages.

        Raises:
          ValueError: if the plan names code that is not trusted.
        """
        if self.code and not self.trust_code:
            raise ValueError(
                f"{file}: its {self.code} would run code of that module, found on this machine or "
                "in this folder, or send texts to that server; if you know it, add --trust-code "
                "(trust_code=True in Python)"
            )


def names_code(reward: str) -> bool:
    """Returns whether a reward's name has a module or a server, which need a user's trust."""
    return any(kind in reward.lower() for kind in ("python:", "http:", "https:"))


def _flags() -> dict[str, Flag]:
    """Returns the flags of a plan by the names of their fields."""
    flags = {field.name: field.metadata.get("flag") for field in dataclasses.fields(Plan)}
    return {
        name: flag._replace(name=flag.name or name.replace("_", "-"))
        for name, flag in flags.items()
        if flag is not None
    }


FLAGS = _flags()

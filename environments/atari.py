"""Atari 2600 games as B rows in C++ threads: `ale_py.vector_env.AtariVectorEnv`.

The default protocol is that of Machado et al., 2018 (https://arxiv.org/abs/1709.06009), which the
Munchausen paper follows: sticky actions and whole games. "classic" is that of Mnih et al., 2015:
up to 30 no-ops at the start of a game, actions as sent, and each life is an episode.

In both: frame skip 4, the pixelwise maximum of the last two frames, 84x84 grey, a stack of 4,
the game's minimal action set, games cut after 108,000 frames, rewards as the game gives them.

The step that ends a game may stop before its fourth frame, and (as in gymnasium's
AtariPreprocessing) its observation then repeats earlier frames: after a true end it is never read,
after a cut it holds pixels of four frames ago.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import ale_py.vector_env
import numpy as np

from kullback.core import types

# The 60 games of the Munchausen paper.
GAMES = (
    *("air_raid", "alien", "amidar", "assault", "asterix", "asteroids", "atlantis", "bank_heist"),
    *("battle_zone", "beam_rider", "berzerk", "bowling", "boxing", "breakout", "carnival"),
    *("centipede", "chopper_command", "crazy_climber", "demon_attack", "double_dunk"),
    *("elevator_action", "enduro", "fishing_derby", "freeway", "frostbite", "gopher", "gravitar"),
    *("hero", "ice_hockey", "jamesbond", "journey_escape", "kangaroo", "krull", "kung_fu_master"),
    *("montezuma_revenge", "ms_pacman", "name_this_game", "phoenix", "pitfall", "pong", "pooyan"),
    *("private_eye", "qbert", "riverraid", "road_runner", "robotank", "seaquest", "skiing"),
    *("solaris", "space_invaders", "star_gunner", "tennis", "time_pilot", "tutankham"),
    *("up_n_down", "venture", "video_pinball", "wizard_of_wor", "yars_revenge", "zaxxon"),
)
FRAME_SKIP = 4
STACK = 4
SIZE = 84
MAX_FRAMES = 2**31 - 1  # The emulator counts them in int32.
MAX_THREADS = 1_024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Rules in which the published protocols differ."""

    repeat_probability: float  # Of repeating the last action, at each emulator frame; in [0, 1).
    max_noops: int  # A new game starts with 0 to this many frames of no-op, uniformly.
    life_loss: bool  # Whether a lost life ends the episode.


PROTOCOLS = {
    "sticky": Protocol(repeat_probability=0.25, max_noops=0, life_loss=False),
    "classic": Protocol(repeat_probability=0.0, max_noops=30, life_loss=True),
}


def complete(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns flags of `make` in which the protocol's rules replace its name."""
    rules = dataclasses.asdict(PROTOCOLS[flags["protocol"]])
    return {
        name: rules[name] if value is None and name in rules else value
        for name, value in flags.items()
        if name != "protocol"
    }


def make(
    game: str,
    num_envs: int,
    *,
    protocol: Literal["sticky", "classic"] = "sticky",
    repeat_probability: float | None = None,
    max_noops: int | None = None,
    life_loss: bool | None = None,
    max_frames: int = 108_000,
    num_threads: int = 0,
) -> "Atari":
    """Makes a game with `num_envs` rows.

    Args:
      game: One of GAMES.
      num_envs: B.
      protocol: One of PROTOCOLS, whose rules the next three arguments replace unless None.
      repeat_probability: See `Protocol`.
      max_noops: See `Protocol`.
      life_loss: See `Protocol`. Returns of whole games under the classic protocol, as published,
        come from an environment for evaluation with life_loss=False.
      max_frames: Frames of the emulator, no-ops aside, after which a game is cut: its last step
        keeps discount 1.
      num_threads: Threads of the emulators, at most one a core; 0 is one a row.

    Raises:
      ValueError: if an argument is outside its range.
    """
    if game not in GAMES:
        raise ValueError(f"game must be one of atari.GAMES, got {game!r}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    given = {
        "repeat_probability": repeat_probability,
        "max_noops": max_noops,
        "life_loss": life_loss,
    }
    rules = dataclasses.replace(
        PROTOCOLS[protocol], **{name: value for name, value in given.items() if value is not None}
    )
    if not 0 <= rules.repeat_probability < 1:
        raise ValueError(f"repeat_probability must lie in [0, 1), got {rules.repeat_probability}")
    if not 0 <= rules.max_noops < MAX_FRAMES:
        raise ValueError(f"max_noops must lie in [0, 2^31 - 1), got {rules.max_noops}")
    if not 1 <= max_frames <= MAX_FRAMES:
        raise ValueError(f"max_frames must lie in [1, 2^31), got {max_frames}")
    if not 0 <= num_threads <= MAX_THREADS:
        raise ValueError(
            f"num_threads must lie in [0, {MAX_THREADS}] (0 is one a row), got {num_threads}"
        )
    emulators = ale_py.vector_env.AtariVectorEnv(
        game,
        num_envs,
        batch_size=0,  # All rows in each tick.
        num_threads=num_threads,
        thread_affinity_offset=-1,  # None.
        max_num_frames_per_episode=max_frames,  # Its documentation says steps, but frames it is.
        repeat_action_probability=rules.repeat_probability,
        full_action_space=False,
        continuous=False,
        continuous_action_threshold=0.5,
        autoreset_mode="SameStep",
        img_height=SIZE,
        img_width=SIZE,
        grayscale=True,
        stack_num=STACK,
        frameskip=FRAME_SKIP,
        maxpool=True,
        noop_max=rules.max_noops + 1,  # It draws from [0, noop_max).
        # True would restart the game at each lost life, so that later lives were never seen.
        episodic_life=False,
        life_loss_info=rules.life_loss,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return Atari(emulators, life_loss=rules.life_loss, max_frames=max_frames)


class Atari:
    """B rows of one game; a `types.HostEnvironment`.

    If a lost life ends an episode, the game itself goes on: the next episode begins with the frame
    in which the life was lost, alone in its stack.
    """

    def __init__(
        self, emulators: ale_py.vector_env.AtariVectorEnv, *, life_loss: bool, max_frames: int
    ) -> None:
        self.num_envs = emulators.num_envs
        self.spec = types.Spec(
            shape=(STACK, SIZE, SIZE),
            dtype=np.uint8,
            num_actions=len(emulators.ale.get_action_set()),
            frame_stack=STACK,
            frames_per_step=FRAME_SKIP,
            max_episode_steps=-(-max_frames // FRAME_SKIP),
        )
        # Whether a game ended (or was cut) in the last tick; bool, [B]. LAST unless life_loss.
        self.game_over = np.zeros(self.num_envs, bool)
        self._emulators = emulators
        self._life_loss = life_loss
        self._first_frame = np.zeros(self.num_envs, np.int32)  # The emulator's clock at the start.
        self._age = np.ones(self.num_envs, np.int32)  # Frames of the stack in this episode.
        self._picture = np.zeros((SIZE, SIZE), np.uint8)
        self._sent = False

    def reset(self, seed: int) -> types.TimeStep:
        """Starts B games; each row has a seed of its own, drawn from `seed` (>= 0)."""
        if self._sent:
            self.recv()
        # seed, seed + 1, ... for the rows would share games between runs of neighbouring seeds.
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs) >> 1
        observation, info = self._emulators.reset(seed=seeds.astype(np.int32))
        self._first_frame = info["frame_number"] - info["episode_frame_number"]
        self._age = np.ones(self.num_envs, np.int32)
        self.game_over = np.zeros(self.num_envs, bool)
        self._picture = observation[0, -1].copy()  # The caller may change `observation`.
        return types.TimeStep(
            step_type=np.full(self.num_envs, types.FIRST, np.int8),
            reward=np.zeros(self.num_envs, np.float32),
            discount=np.ones(self.num_envs, np.float32),
            observation=observation,
            next_observation=observation,
        )

    def send(self, action: np.ndarray) -> None:
        """Starts a tick; `action` is int32, [B]."""
        action = np.asarray(action, np.int32)
        # Out of range, it would kill the emulator's thread and `recv` would wait for ever.
        if action.shape != (self.num_envs,) or not np.all(
            (action >= 0) & (action < self.spec.num_actions)
        ):
            raise ValueError(
                f"action must be {self.num_envs} integers in [0, {self.spec.num_actions}), "
                f"got {action.tolist()}"
            )
        if self._sent:
            raise RuntimeError("send was called twice; recv comes between")
        self._emulators.send(action)
        self._sent = True

    def recv(self) -> types.TimeStep:
        """Ends the tick."""
        if not self._sent:
            raise RuntimeError("recv was called without send")
        observation, reward, terminated, truncated, info = self._emulators.recv()
        self._sent = False
        last = terminated | truncated
        # The clock at a game's start changes only where a new game began.
        first_frame = info["frame_number"] - info["episode_frame_number"]
        self.game_over = first_frame != self._first_frame
        self._first_frame = first_frame
        next_observation = observation
        if np.any(self.game_over):
            restarted = self.game_over[:, None, None, None]
            next_observation = np.where(restarted, info["final_obs"], observation)
        if self._life_loss:
            age = np.minimum(self._age + 1, STACK)
            self._age = np.where(last, 1, age)
            next_observation = _without_older(next_observation, age)
            observation = _without_older(observation, self._age)
        self._picture = observation[0, -1].copy()  # The caller may change `observation`.
        return types.TimeStep(
            step_type=np.where(last, types.LAST, types.MID).astype(np.int8),
            reward=reward.astype(np.float32),
            discount=1 - terminated.astype(np.float32),
            observation=observation,
            next_observation=next_observation,
        )

    def render(self) -> np.ndarray:
        """Returns the newest frame of row 0 as the agent sees it: grey, uint8, [84, 84, 3]."""
        return np.repeat(self._picture[..., None], 3, axis=-1)

    def close(self) -> None:
        """Frees threads and emulators."""
        vars(self).pop("_emulators", None)  # Its destructor joins the threads.


def _without_older(observation: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Returns `observation` [B, STACK, ...] with all but its newest `age` [B] frames zeroed."""
    if np.all(age == STACK):
        return observation
    kept = np.arange(STACK) >= STACK - age[:, None]  # [B, STACK]
    return observation * kept[..., None, None]

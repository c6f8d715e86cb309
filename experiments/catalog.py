"""What there is, as a static table: `kullback list` answers without importing JAX.

A test holds it equal to the registries. Human and random scores on Atari are those of
Wang et al. 2016 (https://arxiv.org/abs/1511.06581) as DQN Zoo lists them: episodes that start
with no-ops and are cut at 108,000 frames. Random scores on MinAtar are means over 3,000 episodes
(Freeway: 200) with all six actions, sticky actions and difficulty ramping.
"""

from typing import NamedTuple

from kullback.core import names

AGENTS = {
    "dqn": "Deep Q-network, Mnih et al. 2015, with Adam",
    "m-dqn": "Munchausen DQN, Vieillard et al. 2020",
}


# Algorithms of language models, in tokens/...
ALGORITHMS = {
    "sft": "Supervised fine-tuning, with any f-divergence's loss",
    "distill": "Distillation on fixed sequences",
    "gkd": "Generalised knowledge distillation, Agarwal et al. 2024",
}
TASKS = {
    "tokens/arithmetic": "sums with exact answers",
    "tokens/summaries": "papers and their summaries, from the package aclsum",
    "tokens/jsonl:PATH": "rows of {prompt, completion}, {text} or {messages}",
}


# What `kullback reproduce` runs again: modules of reproductions/, with "_" for "-".
REPRODUCTIONS: dict[str, str] = {}


class Row(NamedTuple):
    """An environment; scores are mean returns, None where none is published."""

    name: str
    num_actions: int
    human: float | None
    random: float | None


ENVIRONMENTS = (
    Row("atari/air_raid", 6, None, None),
    Row("atari/alien", 18, 7127.7, 227.8),
    Row("atari/amidar", 10, 1719.5, 5.8),
    Row("atari/assault", 7, 742.0, 222.4),
    Row("atari/asterix", 9, 8503.3, 210.0),
    Row("atari/asteroids", 14, 47388.7, 719.1),
    Row("atari/atlantis", 4, 29028.1, 12850.0),
    Row("atari/bank_heist", 18, 753.1, 14.2),
    Row("atari/battle_zone", 18, 37187.5, 2360.0),
    Row("atari/beam_rider", 9, 16926.5, 363.9),
    Row("atari/berzerk", 18, 2630.4, 123.7),
    Row("atari/bowling", 6, 160.7, 23.1),
    Row("atari/boxing", 18, 12.1, 0.1),
    Row("atari/breakout", 4, 30.5, 1.7),
    Row("atari/carnival", 6, None, None),
    Row("atari/centipede", 18, 12017.0, 2090.9),
    Row("atari/chopper_command", 18, 7387.8, 811.0),
    Row("atari/crazy_climber", 9, 35829.4, 10780.5),
    Row("atari/demon_attack", 6, 1971.0, 152.1),
    Row("atari/double_dunk", 18, -16.4, -18.6),
    Row("atari/elevator_action", 18, None, None),
    Row("atari/enduro", 9, 860.5, 0.0),
    Row("atari/fishing_derby", 18, -38.7, -91.7),
    Row("atari/freeway", 3, 29.6, 0.0),
    Row("atari/frostbite", 18, 4334.7, 65.2),
    Row("atari/gopher", 8, 2412.5, 257.6),
    Row("atari/gravitar", 18, 3351.4, 173.0),
    Row("atari/hero", 18, 30826.4, 1027.0),
    Row("atari/ice_hockey", 18, 0.9, -11.2),
    Row("atari/jamesbond", 18, 302.8, 29.0),
    Row("atari/journey_escape", 16, None, None),
    Row("atari/kangaroo", 18, 3035.0, 52.0),
    Row("atari/krull", 18, 2665.5, 1598.0),
    Row("atari/kung_fu_master", 14, 22736.3, 258.5),
    Row("atari/montezuma_revenge", 18, 4753.3, 0.0),
    Row("atari/ms_pacman", 9, 6951.6, 307.3),
    Row("atari/name_this_game", 6, 8049.0, 2292.3),
    Row("atari/phoenix", 8, 7242.6, 761.4),
    Row("atari/pitfall", 18, 6463.7, -229.4),
    Row("atari/pong", 6, 14.6, -20.7),
    Row("atari/pooyan", 6, None, None),
    Row("atari/private_eye", 18, 69571.3, 24.9),
    Row("atari/qbert", 6, 13455.0, 163.9),
    Row("atari/riverraid", 18, 17118.0, 1338.5),
    Row("atari/road_runner", 18, 7845.0, 11.5),
    Row("atari/robotank", 18, 11.9, 2.2),
    Row("atari/seaquest", 18, 42054.7, 68.4),
    Row("atari/skiing", 3, -4336.9, -17098.1),
    Row("atari/solaris", 18, 12326.7, 1236.3),
    Row("atari/space_invaders", 6, 1668.7, 148.0),
    Row("atari/star_gunner", 18, 10250.0, 664.0),
    Row("atari/tennis", 18, -8.3, -23.8),
    Row("atari/time_pilot", 10, 5229.2, 3568.0),
    Row("atari/tutankham", 8, 167.6, 11.4),
    Row("atari/up_n_down", 6, 11693.2, 533.4),
    Row("atari/venture", 18, 1187.5, 0.0),
    Row("atari/video_pinball", 9, 17667.9, 16256.9),
    Row("atari/wizard_of_wor", 10, 4756.5, 563.5),
    Row("atari/yars_revenge", 18, 54576.9, 3092.9),
    Row("atari/zaxxon", 18, 9173.3, 32.5),
    Row("minatar/asterix", 6, None, 0.5),
    Row("minatar/breakout", 6, None, 0.5),
    Row("minatar/freeway", 6, None, 0.1),
    Row("minatar/seaquest", 6, None, 0.1),
    Row("minatar/space_invaders", 6, None, 2.8),
    Row("gym/CartPole-v1", 2, None, None),
    Row("gym/Acrobot-v1", 3, None, None),
    Row("gym/MountainCar-v0", 3, None, None),
    Row("toy/chain", 2, None, None),
)


def check(agent: str, environment: str) -> None:
    """Raises ValueError, with the nearest names, unless both are known by name or by family."""
    check_agent(agent)
    # Other ids of gymnasium than those listed are looked up in its own registry.
    known = [*(row.name for row in ENVIRONMENTS), *TASKS]
    if environment not in known and not environment.startswith(("gym/", "tokens/jsonl:")):
        raise ValueError(names.unknown("environment", environment, known))


def check_agent(agent: str) -> None:
    """Raises ValueError, with the nearest names, for an unknown agent."""
    known = {**AGENTS, **ALGORITHMS}
    if agent not in known:
        raise ValueError(names.unknown("agent", agent, known))

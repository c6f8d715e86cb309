"""Tests of core/registry.py and of the registries made of it."""

import subprocess
import sys

import pytest

from kullback import agents, lm
from kullback.core import registry


def test_registries_are_read_without_importing_an_algorithm():
    program = """
import sys
from kullback import agents, lm

assert all(entry.description for entry in (*agents.AGENTS.values(), *lm.ALGORITHMS.values()))
assert not {"jax", "kullback.agents.dqn", "kullback.lm.sft"} & sys.modules.keys()
agents.AGENTS["dqn"].make
assert "kullback.agents.dqn" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", [*agents.AGENTS, *lm.ALGORITHMS])
def test_an_entry_has_its_functions(name: str):
    entry: registry.Entry = {**agents.AGENTS, **lm.ALGORITHMS}[name]
    assert callable(entry.make) and callable(entry.presets)
    assert "\n" not in entry.description


def test_agents_stand_in_the_order_of_their_names():
    assert list(agents.AGENTS) == sorted(agents.AGENTS)

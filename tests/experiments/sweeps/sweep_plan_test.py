"""Tests of experiments/sweeps/sweep_plan.py: the product that a file asks for, and its errors."""

import pathlib
import tomllib
from typing import Any

import pytest

from kullback.experiments.runs import resolved
from kullback.experiments.sweeps import sweep_plan

EXAMPLE = """
agents = ["dqn", "m-dqn"]
environments = ["toy/chain", "gym/CartPole-v1"]
seeds = [4, 0, 1]
steps = 3e3
[plan]
log_every = 500
[settings]
learning_rate = [1e-3, 3e-3]
hidden = [[64, 32]]
[agent.m-dqn.settings]
temperature = [0.03, 0.1]
[environment."gym/CartPole-v1".plan]
num_envs = 8
steps = 5_000
[environment."toy/chain".environment_flags]
slip = 0.1
"""

SMALL: dict[str, Any] = {"agents": ["dqn"], "environments": ["toy/chain"]}


def test_the_product_is_written_out():
    configurations = sweep_plan.configurations(tomllib.loads(EXAMPLE))
    assert [configuration.name for configuration in configurations] == [
        # dqn has no axis but the learning rate; m-dqn has 2 x 2 points, the last axis the fastest.
        "dqn-toy-chain,learning_rate=0.001",
        "dqn-toy-chain,learning_rate=0.003",
        "dqn-gym-CartPole-v1,learning_rate=0.001",
        "dqn-gym-CartPole-v1,learning_rate=0.003",
        "m-dqn-toy-chain,learning_rate=0.001,temperature=0.03",
        "m-dqn-toy-chain,learning_rate=0.001,temperature=0.1",
        "m-dqn-toy-chain,learning_rate=0.003,temperature=0.03",
        "m-dqn-toy-chain,learning_rate=0.003,temperature=0.1",
        "m-dqn-gym-CartPole-v1,learning_rate=0.001,temperature=0.03",
        "m-dqn-gym-CartPole-v1,learning_rate=0.001,temperature=0.1",
        "m-dqn-gym-CartPole-v1,learning_rate=0.003,temperature=0.03",
        "m-dqn-gym-CartPole-v1,learning_rate=0.003,temperature=0.1",
    ]
    assert {configuration.seeds for configuration in configurations} == {(0, 1, 4)}
    plan = configurations[5].plan([0, 1])
    assert (plan.agent, plan.environment, plan.seed, plan.num_seeds) == ("m-dqn", "toy/chain", 0, 2)
    assert plan.settings == ("learning_rate=0.001", "hidden=64,32", "temperature=0.1")
    assert plan.environment_flags == ("slip=0.1",)
    assert (plan.steps, plan.log_every, plan.num_envs) == (3_000, 500, 4)
    other = configurations[2].plan([4])
    assert (other.steps, other.num_envs, other.environment_flags) == (5_000, 8, ())


def test_arms_are_an_axis_that_changes_several_fields_and_wins():
    arms = {"whole": {}, "small": {"settings": {"hidden": 8, "n_step": 1}, "plan": {"steps": 9}}}
    agent = {"dqn": {"settings": {"n_step": [2, 3]}}}
    table = {**SMALL, "steps": 7, "agent": agent, "arm": arms}
    configurations = sweep_plan.configurations(table)
    assert [configuration.name for configuration in configurations] == [
        "dqn-toy-chain,whole,n_step=2",
        "dqn-toy-chain,whole,n_step=3",
        "dqn-toy-chain,small",
    ]
    settings = [configuration.fields["settings"] for configuration in configurations]
    assert settings == [("n_step=2",), ("n_step=3",), ("n_step=1", "hidden=8")]
    assert [configuration.fields["steps"] for configuration in configurations] == [7, 7, 9]


@pytest.mark.parametrize(
    "file",
    ["examples/btr_ablations.toml", "results/minatar/btr.toml", "results/minatar/pqn.toml"],
    ids=["atari", "minatar", "pqn"],
)
def test_arms_are_settings_that_the_agent_has(file: str, root: pathlib.Path):
    configurations = sweep_plan.configurations(tomllib.loads((root / file).read_text()))
    kept = set()
    for configuration in configurations:
        named = resolved.resolve(configuration.plan(configuration.seeds[:1]))
        kept.add((named.plan.environment, named.plan.agent, str(named.config)))
    assert len(kept) == len(configurations)  # No two are one.


def test_seeds_are_counted_from_0_and_fields_of_the_plan_vary_too():
    configurations = sweep_plan.configurations({**SMALL, "seeds": 3, "plan": {"num_envs": [2, 4]}})
    assert [configuration.name for configuration in configurations] == [
        f"dqn-toy-chain,num_envs={n}" for n in (2, 4)
    ]
    assert [
        configuration.plan(configuration.seeds).num_envs for configuration in configurations
    ] == [2, 4]
    assert configurations[0].seeds == (0, 1, 2)
    (only,) = sweep_plan.configurations(SMALL)
    assert only.name == "dqn-toy-chain" and only.seeds == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": {"m-dqn": {}}}, "unknown agent 'm-dqn'"),
        ({"agent": {"dqn": {"setings": {}}}}, "did you mean settings"),
        ({"agent": {"dqn": 3}}, "agent.dqn must be a table of fields, got 3"),
        ({"arm": {"no-noise": {"setings": {}}}}, "key of arm.no-noise 'setings'; did you mean"),
        ({"arm": 3}, "arm must be a table of fields, got 3"),
        ({"agents": []}, "agents must be a list of names, got []"),
        ({"agents": "dqn"}, "agents must be a list of names, got 'dqn'"),
        ({"agents": ["dqn", "dqn"]}, "agents has a name twice"),
        ({"enviroments": ["toy/chain"]}, "did you mean environments"),
        ({"plan": {"num_env": 4}}, "did you mean num_envs"),
        ({"plan": {"num_envs": "many"}}, "num_envs must be int, got 'many'"),
        ({"plan": {"num_envs": 2.5}}, "num_envs must be int, got '2.5'"),
        ({"plan": {"seed": 3}}, "unknown field of [plan] 'seed'"),
        ({"plan": {"steps": 10}, "steps": 10}, "steps is given twice"),
        ({"seeds": 0}, "seeds must be a number >= 1 or a list of seeds >= 0, got 0"),
        ({"seeds": [0, -1]}, "got [0, -1]"),
        ({"seeds": True}, "got True"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"settings": {"learning_rate": []}}, "settings.learning_rate is an empty list"),
        ({"settings": {"learning_rate": [1e-3, 0.001]}}, "learning_rate=0.001 is asked for twice"),
        ({"settings": {"learning_rate": {"value": 1}}}, "must be a number, a text, true or false"),
        ({"settings": {"torso": ["x" * 200, "y"]}}, "is too long for a folder"),
    ],
)
def test_refuses_a_file(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:
        sweep_plan.configurations({**SMALL, **changes})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_checks_whether_seeds_share_a_program():
    table = {**SMALL, "environments": ["toy/chain", "gym/CartPole-v1"]}
    checked = [sweep_plan.check(entry) for entry in sweep_plan.configurations(table)]
    assert [entry.seeds_together for entry in checked] == [True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agents": ["dqm"]}, "dqm-toy-chain: unknown agent 'dqm'; did you mean dqn"),
        ({"environments": ["toy/chian"]}, "unknown environment 'toy/chian'; did you mean"),
        ({"settings": {"learning_rat": 1}}, "unknown field 'learning_rat'; did you mean"),
        ({"settings": {"temperature": 0.1}}, "dqn-toy-chain: unknown field 'temperature'"),
        ({"settings": {"batch_size": ["32", "many"]}}, "batch_size=many: learning.replay.batch"),
        ({"settings": {"discount": 1.5}}, "discount"),
        ({"environment_flags": {"slp": 1}}, "toy/chain: unknown flag 'slp'; did you mean slip?"),
        ({"plan": {"num_envs": 7}}, "samples_per_update"),
        ({"plan": {"model": "tiny"}}, "model is for language models"),
        ({"plan": {"eval_every": -1}}, "eval_every must lie in [0, 1,000,000,000,000], got -1"),
    ],
)
def test_refuses_what_no_run_could_be_started_with(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:
        for configuration in sweep_plan.configurations({**SMALL, **changes}):
            sweep_plan.check(configuration)
    assert message in str(error.value)


def test_a_language_model_is_built_to_be_checked():
    table = {
        "agents": ["sft", "gkd"],
        "environments": ["tokens/arithmetic"],
        "plan": {"model": "tiny"},
        "settings": {"max_prompt_length": 16, "max_new_tokens": 8},
    }
    sft, gkd = sweep_plan.configurations(table)
    assert not sweep_plan.check(sft).seeds_together
    with pytest.raises(ValueError, match="gkd-tokens-arithmetic: gkd needs --teacher"):
        sweep_plan.check(gkd)

"""Tests of experiments/catalog.py: the static table says what the registries say."""

import pathlib

import pytest

from kullback import environments
from kullback.core import types
from kullback.environments import atari
from kullback.experiments import catalog
from kullback.experiments.runs import plans
from kullback.lm import tasks

ROWS = {row.name: row for row in catalog.ENVIRONMENTS}
UNPUBLISHED = {"air_raid", "carnival", "elevator_action", "journey_escape", "pooyan"}


def test_the_environments_are_those_of_the_registry():
    assert len(ROWS) == len(catalog.ENVIRONMENTS)
    assert sorted(ROWS) == sorted(environments.names())


@pytest.mark.parametrize(
    ("family", "every"),
    [
        *((family, 8 if family == "atari" else 1) for family in environments.FAMILIES),
        pytest.param("atari", 1, marks=pytest.mark.slow),
    ],
)
def test_the_action_counts_are_those_of_the_environments(family: str, every: int):
    names = [name for name in ROWS if name.startswith(f"{family}/")]
    for name in names[::every]:
        environment = environments.make(name)
        assert ROWS[name].num_actions == environment.spec.num_actions, name
        if not isinstance(environment, types.Environment):
            environment.close()


def test_every_family_has_defaults():
    families = {plans.family_of(f"{family}/x") for family in environments.FAMILIES}
    assert set(plans.DEFAULTS) == {*families, "tokens", plans.CUSTOM}


def test_games_of_gymnax_have_the_defaults_of_what_they_are_like():
    catalog.check("dqn", "gymnax/Breakout-MinAtar")
    assert plans.family_of("gymnax/Breakout-MinAtar") == "minatar"
    assert plans.family_of("gymnax/CartPole-v1") == "gym"
    assert plans.Plan(agent="pqn", environment="gymnax/Breakout-MinAtar").num_envs == 128


def test_published_scores():
    for game in atari.GAMES:
        row = ROWS[f"atari/{game}"]
        if game in UNPUBLISHED:
            assert row.human is None and row.random is None, game
        else:
            assert row.human is not None and row.random is not None, game
            assert row.human > row.random, game
    # By hand, from the table of the paper.
    assert (ROWS["atari/pong"].human, ROWS["atari/pong"].random) == (14.6, -20.7)
    assert (ROWS["atari/breakout"].human, ROWS["atari/breakout"].random) == (30.5, 1.7)
    assert (ROWS["atari/zaxxon"].human, ROWS["atari/zaxxon"].random) == (9173.3, 32.5)


def test_scores_that_nobody_published_are_none():
    for name, row in ROWS.items():
        if not name.startswith("atari/"):
            assert row.human is None, name
        if name.startswith("minatar/"):
            assert row.random is not None and 0 < row.random < 5, name


@pytest.mark.parametrize(
    ("agent", "environment", "message"),
    [
        ("m-dqm", "toy/chain", "unknown agent 'm-dqm'; did you mean m-dqn"),
        ("dqn", "atari/pnog", "unknown environment 'atari/pnog'; did you mean atari/pong"),
        ("dqn", "custom", "unknown environment 'custom'"),
    ],
)
def test_unknown_names(agent: str, environment: str, message: str):
    with pytest.raises(ValueError) as error:
        catalog.check(agent, environment)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_task_is_one(tmp_path: pathlib.Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
    mixture = '{"tasks": [{"task": "tokens/arithmetic", "start": 1}]}'
    (tmp_path / "mixture.json").write_text(mixture)
    for name in catalog.TASKS:
        catalog.check("sft", name)
        path = name.replace("PATH", str(tmp_path / "rows.jsonl"))
        assert tasks.make(path.replace("FILE", str(tmp_path / "mixture.json"))).name


def test_ids_that_only_gymnasium_lists_pass():
    catalog.check("dqn", "gym/CartPole-v0")


def test_models_have_the_sizes_of_their_configurations():
    rows = {row.name: row for row in catalog.models()}
    preset, published = rows["gemma3-270m"], rows["pretrained:gemma3-270m"]
    assert preset[1:4] == published[1:4] == (268_098_176, 32_768, 4 * 268_098_176)
    assert preset.description == "a preset: random weights"
    assert published.description.startswith("published weights, Q4_K_M, 253 MB: ")

"""Tests of experiments/runs/games.py, simulators.py and kinds.py: what is built of a plan."""

from typing import Any

import pytest

from kullback.environments import toy
from kullback.experiments import plots
from kullback.experiments.runs import kinds, plans, resolved


def recipe(agent: str = "dqn", environment: str = "toy/chain", **fields: Any) -> kinds.Recipe:
    plan = plans.Plan(agent=agent, environment=environment, **fields)
    return kinds.Recipe(named=resolved.resolve(plan))


@pytest.mark.parametrize(
    ("environment", "loop", "seeds_together"),
    [("toy/chain", "compiled", True), ("gym/CartPole-v1", "host", False)],
)
def test_a_game_says_by_which_loop_it_runs(environment: str, loop: str, seeds_together: bool):
    with recipe(environment=environment).built() as work:
        assert work.details() == {"loop": loop} and work.seeds_together == seeds_together
        assert work.axes == plots.GAMES and not work.has_texts and not work.columns
        assert [*work.notes()] == []


def test_a_run_that_ends_before_it_learns_is_said():
    with recipe(steps=40, settings=("min_replay_size=50",)).built() as work:
        (note,) = work.notes()
    assert note.startswith("warning: learning begins after 50 steps, and the run ends at 40")


def test_what_can_never_be_drawn_is_refused_before_training():
    with recipe(
        settings=("capacity=4", "batch_size=4", "min_replay_size=4", "n_step=3")
    ).built() as work:
        with pytest.raises(ValueError, match="capacity=4 is 1 a row of num_envs=4"):
            work.check()


def test_what_a_users_function_evaluates_in_is_made_once_before_training():
    rows: list[int] = []

    def chain(num_envs: int) -> Any:
        rows.append(num_envs)
        return toy.chain(num_envs)

    plan = plans.Plan(agent="dqn", environment=plans.CUSTOM, family="toy", eval_every=100)
    named = resolved.resolve(plan, with_environment=False)
    with kinds.Recipe(named=named, make_environment=chain).built() as work:
        work.check()
    assert rows == [plan.num_envs, plan.eval_episodes]


def test_a_reward_model_is_built_as_one():
    with pytest.raises(ValueError, match="reward-model learns from pairs, tokens/preferences:"):
        with recipe("reward-model", "tokens/arithmetic", model="tiny").built():
            pass

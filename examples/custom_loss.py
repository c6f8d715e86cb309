"""A loss of your own, and with it an agent from the parts of `kullback.core`: Double DQN.

van Hasselt, Guez & Silver, AAAI 2016, https://arxiv.org/abs/1509.06461. Online values choose the
next action, target values evaluate it. (With target values alone, as in agents/dqn.py,
`q_learning.make` needs only the target.)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import rlax

from kullback import experiments
from kullback.core import learners, networks, policies, replay, types


def double_dqn_target(
    r_t: jax.Array, discount_t: jax.Array, q_t: jax.Array, target_q_t: jax.Array
) -> jax.Array:
    """Returns a transition's target, r_t + discount_t target_q_t(argmax_a q_t(a)), []."""
    return r_t + discount_t * target_q_t[jnp.argmax(q_t)]


def make(spec: types.Spec) -> types.Agent:
    """Returns Double DQN: its loss, its optimiser, its policy, and its replay."""
    network = networks.action_values(networks.torso("mlp_small", spec), spec.num_actions)

    def loss(params: Any, targets: Any, aux: Any, batch: types.Batch, key: Any, constants: Any):
        t = batch.data  # A `types.Transition`.
        q_tm1, q_t = (network.apply(params, x) for x in (t.observation, t.next_observation))
        target_q_t = network.apply(targets["periodic"], t.next_observation)
        target_tm1 = jax.vmap(double_dqn_target)(t.reward, t.discount, q_t, target_q_t)
        td_error = jax.lax.stop_gradient(target_tm1) - rlax.batched_index(q_tm1, t.action)
        metrics = {"mean_q": jnp.mean(q_tm1)}  # A column of metrics.csv.
        return jnp.mean(batch.weights * rlax.huber_loss(td_error)), (aux, types.Feedback(metrics))

    learner = learners.sgd(
        init_params=lambda key: network.init(key, spec.zeros()),
        loss=loss,
        optimizer=optax.adam(3e-3),
        targets={"periodic": learners.periodic(50)},
    )

    def acting(state: types.LearnerState, env_steps: Any, evaluate: bool, constants: Any):
        return {"params": state.params, "epsilon": jnp.asarray(0.0 if evaluate else 0.2)}

    memory = replay.Config(capacity=5_000, min_replay_size=500, discount=0.9)
    return types.Agent(policies.epsilon_greedy(network.apply), learner, acting, memory)


def main(steps: int = 8_000, out: str | None = None) -> experiments.Run:
    """Trains it on the toy corridor and returns the run."""
    path = experiments.train(make, "toy/chain", steps=steps, out=out)
    return experiments.load(path, agent=make)


if __name__ == "__main__":
    print(f"mean return: {main().evaluate(20).mean():.2f}")

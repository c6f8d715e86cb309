"""Best of N of a language model: of N answers to a prompt, the one of the highest reward."""

import jax
import numpy as np

from kullback.core import types
from kullback.experiments.runs import episodes, rewards
from kullback.lm import best_of_n, data, evaluation, rollouts


def measures(
    evaluator: evaluation.Evaluator,
    acting: types.Params,
    reward: rewards.Reward,
    *,
    n: int,
    count: int,
    key: types.Key,
) -> dict[str, np.ndarray]:
    """Returns, by held-out prompt, rewards of all answers and of the best, and the task's measures.

    Args:
      evaluator: of a task.
      acting: parameters of the policy.
      reward: decides which answer is the best.
      n: N, answers at temperature 1 to each prompt.
      count: prompts, at most: there may be fewer.
      key: of the answers.
    """
    actor = episodes.Actor(
        sampler=evaluator.sampler(samples_per_prompt=n), evaluator=evaluator, reward=reward
    )

    def columns(answers: rollouts.Episodes, examples: list[data.Example]) -> dict[str, np.ndarray]:
        scores = np.asarray(answers.rewards, np.float64)
        best = best_of_n.choose(scores, n)
        texts = evaluator.answer_texts(jax.tree.map(lambda x: x[best], answers.sequences))
        measured = [
            evaluator.measures(text, evaluator.example_texts(example)["target"])
            for text, example in zip(texts, examples, strict=True)
        ]
        return {
            "reward": actor.prompt_means(scores),
            f"reward_best_of_{n}": scores[best],
            **{f"{k}_best_of_{n}": np.array([x[k] for x in measured]) for k in measured[0]},
        }

    return actor.measured(acting, count, key, columns)

"""Best of N of a language model: of N answers to a prompt, the one that a reward likes best."""

import jax
import numpy as np

from kullback.core import types
from kullback.experiments.runs import episodes, rewards
from kullback.lm import best_of_n, evaluation


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
    found: dict[str, list[np.ndarray]] = {}
    for number, part in enumerate(evaluator.parts(count)):
        made = actor.episodes(acting, part, jax.random.fold_in(key, number))
        scores = np.asarray(made.rewards, np.float64)
        best = best_of_n.choose(scores, n)
        texts = evaluator.answer_texts(jax.tree.map(lambda x, rows=best: x[rows], made.sequences))
        columns = {"reward": scores.reshape(-1, n).mean(1), f"reward_best_of_{n}": scores[best]}
        pairs = zip(texts, part, strict=True)
        said = [
            evaluator.measures(text, evaluator.example_texts(one)["target"]) for text, one in pairs
        ]
        columns |= {f"{k}_best_of_{n}": np.array([one[k] for one in said]) for k in said[0]}
        for name, values in columns.items():
            found.setdefault(name, []).append(values)
    kept = evaluator.kept(count)
    return {name: np.concatenate(values)[:kept] for name, values in found.items()}

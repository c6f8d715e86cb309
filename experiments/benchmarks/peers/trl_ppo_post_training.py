"""Steps a second of TRL's trainer of PPO: SECONDS, ppo, SIZES, shapes of policy and reward model.

SIZES as for transformers_reinforce.py. The value network has the policy's shape. 1.12 is the last
version with this trainer.
"""

import json
import os
import sys

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
import transformers_model
import transformers_reinforce as reinforce
from datasets import Dataset
from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_steps import figures


class Enough(Exception):
    """The time is over; this trainer does not ask."""


class Clock(reinforce.Clock):
    """The clock of a trainer that tells of the end of a step alone; the first is left out."""

    def on_step_end(self, args, state, control, **kwargs):
        """Ends a step, and starts the next."""
        self.on_step_begin(args, state, control)
        super().on_step_end(args, state, control)
        if control.should_training_stop:
            raise Enough


def ppo(seconds, sizes, shapes, scratch):
    """Returns the clock of steps."""
    (prompts, samples, prompt_tokens, new_tokens, beta), (shape, reward_shape) = sizes, shapes
    assert samples == 1, "the trainer writes one text of each prompt"
    policy, reference = transformers_model.make(shape), transformers_model.make(shape)
    value = Gemma3TextForSequenceClassification(Gemma3TextConfig(**shape, num_labels=1)).float()
    reward, clock = reinforce.scorer(reward_shape), Clock(seconds)
    vocab_size = shape["vocab_size"]
    ids = torch.randint(3, vocab_size - 1, (prompts, prompt_tokens)).tolist()
    trainer = PPOTrainer(
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        args=PPOConfig(
            **reinforce.settings(scratch, prompts) | {"max_steps": -1},
            total_episodes=1_000 * prompts,
            num_ppo_epochs=4,
            num_mini_batches=1,
            num_sample_generations=0,
            local_rollout_forward_batch_size=prompts,
            response_length=new_tokens,
            temperature=1.0,
            kl_coef=beta,
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids * 1_000}),
        processing_class=reinforce.word_tokenizer(vocab_size),
        callbacks=[clock],
    )
    write, score = ppo_trainer.batch_generation, ppo_trainer.get_reward

    def score_or_value(model, *arguments):
        return (clock.without(score) if model is reward else score)(model, *arguments)

    ppo_trainer.batch_generation = clock.without(write)
    ppo_trainer.get_reward = score_or_value
    try:
        trainer.train()
    except Enough:
        pass
    finally:
        ppo_trainer.batch_generation, ppo_trainer.get_reward = write, score
    return clock


def main():
    """Prints the figures."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    seconds, _, sizes, *shapes = sys.argv[1:]
    seconds, sizes, shapes = float(seconds) / 2, json.loads(sizes), list(map(json.loads, shapes))
    print(json.dumps(figures(lambda scratch: (ppo(seconds, sizes, shapes, scratch), {}))))


if __name__ == "__main__":
    main()

"""Steps a second of TRL's trainers of GRPO and DPO: SECONDS, CASE, SIZES, MODELS.

GRPO: SIZES and shapes of policy and reward model as for transformers_reinforce.py. DPO: SIZES are
pairs, tokens of their prompts and beta; MODELS a folder with the models `policy` and `reference`,
and `pairs.json`, ids of chosen and of rejected rows, the last of which ends them.
"""

import json
import os
import pathlib
import sys

import torch
import transformers_reinforce as reinforce
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from trl_steps import figures

BATCHES = 30  # Of an epoch of DPO, whose beginning takes time.


def grpo(seconds, sizes, models, scratch):
    """Returns the clock of steps of GRPO, as its paper divides losses, and no other figure."""
    prepared = reinforce.prepared(models, scratch)
    trainer = {"trains": GRPOTrainer, "make_config": GRPOConfig, "loss_type": "grpo"}
    return reinforce.times(seconds, sizes, *prepared, scratch, **trainer), {}


def dpo(seconds, sizes, models, scratch):
    """Returns the clock of steps of DPO, and the loss before the first."""
    (rows, prompt_tokens, beta), folder = sizes, pathlib.Path(models[0])
    chosen, rejected = json.loads((folder / "pairs.json").read_text())
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for name in ("policy", "reference")
    )
    # The trainer ends each answer itself.
    texts = {
        "prompt": reinforce.spelled(row[:prompt_tokens] for row in chosen),
        "chosen": reinforce.spelled(row[prompt_tokens:-1] for row in chosen),
        "rejected": reinforce.spelled(row[prompt_tokens:-1] for row in rejected),
    }
    # Words are cut apart at spaces, with which the prompt ends.
    texts["prompt"] = [f"{text} " for text in texts["prompt"]]
    clock = reinforce.Clock(seconds)
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            **reinforce.settings(scratch, rows), beta=beta, precompute_ref_log_probs=True
        ),
        train_dataset=Dataset.from_dict({name: x * BATCHES for name, x in texts.items()}),
        processing_class=reinforce.word_tokenizer(policy.config.vocab_size),
        callbacks=[clock],
    )
    first = [trainer.train_dataset[n] for n in range(rows)]
    ids = [row["prompt_ids"] + row["chosen_ids"] for row in first]
    assert ids == chosen, "the trainer reads other ids than those of pairs.json"
    with torch.no_grad():
        loss = trainer.compute_loss(policy, trainer.data_collator(first)).item()
    trainer.train()
    return clock, {"loss": loss}


def main():
    """Prints the figures."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    seconds, case, sizes, *models = sys.argv[1:]
    seconds, sizes, step = float(seconds) / 2, json.loads(sizes), {"grpo": grpo, "dpo": dpo}[case]
    print(json.dumps(figures(lambda scratch: step(seconds, sizes, models, scratch))))


if __name__ == "__main__":
    main()

"""Seconds of a step of TRL's RLOO trainer: SECONDS, SIZES, shapes of policy and reward model.

SIZES is a JSON list: prompts, texts of each, tokens of a prompt, new tokens, beta. The shapes are
as config.json has them. A token is a word, so that texts of words have as many tokens as ours. The
time is the better of two: as torch is, and keeping freed memory, which no user gets by default.
"""

import json
import pathlib
import sys
import tempfile
import time

import torch
import transformers
import transformers_model
from datasets import Dataset
from rate import keep_freed_memory
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification
from trl import RLOOConfig, RLOOTrainer


class Clock(transformers.TrainerCallback):
    """Notes how long each step takes, until the time is over."""

    def __init__(self, seconds):
        self.seconds, self.times, self.began, self.first = seconds, [], None, None

    def on_step_begin(self, args, state, control, **kwargs):
        """Starts a step."""
        now = time.perf_counter()
        if self.began is not None:
            self.times.append(now - self.began)  # From one step to the next, data and all.
        self.began, self.first = now, self.first or now

    def on_step_end(self, args, state, control, **kwargs):
        """Ends it."""
        enough = len(self.times) > 3 and time.perf_counter() - self.first > self.seconds
        control.should_training_stop = enough


def word_tokenizer(vocab_size):
    """Makes a tokenizer with a token for each word."""
    special = {"<pad>": 0, "</s>": 1, "<s>": 2}
    ids = special | {f"w{n}": n for n in range(3, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )


def best_step(seconds, sizes, policy_shape, reward_shape, folder):
    """Returns the seconds of the fastest step."""
    prompts, samples, prompt_tokens, new_tokens, beta = sizes
    tokenizer = word_tokenizer(policy_shape["vocab_size"])
    transformers_model.make(policy_shape).save_pretrained(folder)  # The reference is read again.
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = Gemma3TextConfig(**reward_shape, num_labels=1)
    config.pad_token_id = 0
    scorer = Gemma3TextForSequenceClassification(config).float().eval()
    ids = torch.randint(3, policy_shape["vocab_size"], (prompts, prompt_tokens)).tolist()
    texts = [" ".join(f"w{n}" for n in row) for row in ids] * 1_000
    clock = Clock(seconds)
    trainer = RLOOTrainer(
        model=str(folder),
        reward_funcs=scorer,
        args=RLOOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=prompts * samples,
            num_generations=samples,
            max_completion_length=new_tokens,
            beta=beta,
            learning_rate=1e-5,
            max_steps=1_000,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        reward_processing_classes=word_tokenizer(reward_shape["vocab_size"]),
        callbacks=[clock],
    )
    trainer.train()
    return min(clock.times)


def main():
    """Prints the seconds of a step."""
    seconds, sizes, *shapes = float(sys.argv[1]), *map(json.loads, sys.argv[2:])
    fastest = []
    for prepare in (lambda: None, keep_freed_memory):
        prepare()
        with tempfile.TemporaryDirectory() as folder:
            fastest.append(best_step(seconds / 2, sizes, *shapes, pathlib.Path(folder)))
    print(json.dumps({"seconds": min(fastest), "default_seconds": fastest[0]}))


if __name__ == "__main__":
    main()

"""Seconds of a step of TRL's RLOO trainer: SECONDS, SIZES, shapes of policy and reward model.

SIZES is a JSON list: prompts, texts of each, tokens of a prompt, new tokens, beta. The shapes are
as config.json has them; one argument in their place is the folder of a published policy, whose
reward is the share of even ids. A token is a word, so that texts of words have as many tokens as
ours. The time is the better of two: as torch is, and keeping freed memory, which no user gets by
default. That of a published policy is of torch as it is.
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
from rate import keep_freed_memory, peak_memory
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification
from trl import RLOOConfig, RLOOTrainer


class Clock(transformers.TrainerCallback):
    """Notes how long each step takes, with and without what is left out, until the time is over."""

    def __init__(self, seconds):
        self.seconds, self.times, self.rests, self.began, self.first = seconds, [], [], None, None
        self.aside = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        """Starts a step."""
        now = time.perf_counter()
        if self.began is not None:
            self.times.append(now - self.began)  # From one step to the next, data and all.
            self.rests.append(self.times[-1] - self.aside)
        self.began, self.first, self.aside = now, self.first or now, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        """Ends it."""
        elapsed = time.perf_counter() - self.first
        enough = len(self.times) > (3 if elapsed < 20 else 1) and elapsed > self.seconds
        control.should_training_stop = enough

    def without(self, function):
        """Wraps a function whose seconds `rests` leave out."""

        def timed(*arguments, **named):
            start = time.perf_counter()
            result = function(*arguments, **named)
            self.aside += time.perf_counter() - start
            return result

        return timed


def word_tokenizer(vocab_size):
    """Makes a tokenizer with a token for each word; its end is one that no model writes."""
    special = {"<pad>": 0, "</s>": vocab_size - 1, "<s>": 2}
    ids = special | {f"w{n}": n for n in range(3, vocab_size - 1)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )


def scorer(shape):
    """Makes a reward model."""
    torch.manual_seed(1)
    config = Gemma3TextConfig(**shape, num_labels=1)
    config.pad_token_id = 0
    return Gemma3TextForSequenceClassification(config).float().eval()


def share_of_even_ids(completion_ids, **columns):
    """Returns the rewards of texts."""
    return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]


def settings(scratch, rows):
    """Returns the arguments that all trainers have: float32 on the CPU, and nothing is kept."""
    return {
        "output_dir": str(scratch / "out"),
        "per_device_train_batch_size": rows,
        "learning_rate": 1e-5,
        "max_steps": 1_000,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def spelled(rows):
    """Returns the text of rows of ids."""
    return [" ".join(f"w{n}" for n in row) for row in rows]


def times(
    seconds,
    sizes,
    policy,
    vocab_size,
    reward,
    reward_tokenizer,
    scratch,
    trains=RLOOTrainer,
    make_config=RLOOConfig,
    **given,
):
    """Returns the clock of steps; `policy` is a folder, which is read twice."""
    prompts, samples, prompt_tokens, new_tokens, beta = sizes
    ids = torch.randint(3, vocab_size - 1, (prompts, prompt_tokens)).tolist()
    clock = Clock(seconds)
    trainer = trains(
        model=str(policy),
        reward_funcs=reward,
        args=make_config(
            **settings(scratch, prompts * samples),
            num_generations=samples,
            max_completion_length=new_tokens,
            beta=beta,
            model_init_kwargs={"dtype": "float32"},
            **given,
        ),
        train_dataset=Dataset.from_dict({"prompt": spelled(ids) * 1_000}),
        processing_class=word_tokenizer(vocab_size),
        reward_processing_classes=reward_tokenizer,
        callbacks=[clock],
    )
    # Writing and scoring.
    for name in ("_generate", "_calculate_rewards"):
        setattr(trainer, name, clock.without(getattr(trainer, name)))
    trainer.train()
    return clock


def prepared(models, scratch):
    """Returns policy, size of the vocabulary, reward and the reward's tokenizer."""
    if len(models) == 1:
        config = json.loads((pathlib.Path(models[0]) / "config.json").read_text())
        return models[0], config["vocab_size"], share_of_even_ids, None
    policy, reward = map(json.loads, models)
    transformers_model.make(policy).save_pretrained(scratch / "policy")
    word_tokenizer(policy["vocab_size"]).save_pretrained(scratch / "policy")
    reward_tokenizer = word_tokenizer(reward["vocab_size"])
    return scratch / "policy", policy["vocab_size"], scorer(reward), reward_tokenizer


def main():
    """Prints the seconds of a step, and the peak in bytes of torch as it comes."""
    seconds, sizes, models = float(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    fastest, peaks = [], []
    for prepare in (lambda: None, keep_freed_memory)[: len(models)]:
        prepare()
        with tempfile.TemporaryDirectory() as folder:
            scratch = pathlib.Path(folder)
            clock = times(seconds / 2, sizes, *prepared(models, scratch), scratch)
            fastest.append(min(clock.times))
        peaks.append(peak_memory())
    figures = {"seconds": min(fastest), "default_seconds": fastest[0], "peak_bytes": peaks[0]}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

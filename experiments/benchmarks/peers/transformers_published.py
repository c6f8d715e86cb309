"""A published Gemma 3 in transformers: SECONDS, KIND, SIZES, FOLDER, DTYPE.

KIND and SIZES, a JSON list, are

    generation  texts, tokens of a prompt, new tokens: rate of new tokens, seconds to the first
    prefill     tokens of a prompt: rate of its tokens, seconds to the first new one
    sft         texts, tokens of each, all of them learnt but for the first: rate of steps
    lora        the same, and the rank of peft's adapters beside all matrices of layers

What is compared is torch as it comes; "kept_rate" is that where it keeps freed memory.
"""

import json
import os
import sys
import time

import torch
import transformers_model
from rate import best_rate, both_ways, peak_memory
from transformers import Gemma3ForCausalLM
from transformers_tuning import descender


def load(folder, dtype):
    """Returns the model of a folder, on all cores that we may use; nothing ends its texts."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = Gemma3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    return model


def random_text(model, rows, length):
    """Draws random text."""
    return torch.randint(1_000, model.config.vocab_size * 3 // 4, (rows, length))


def least_seconds(work, times=2):
    """Returns the fewest seconds of a call."""
    fewest = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        fewest = min(fewest, time.perf_counter() - start)
    return fewest


def generation(model, seconds, rows, prompt_tokens, new_tokens):
    """Measures texts that are written side by side."""
    prompts = random_text(model, rows, prompt_tokens)

    def work():
        generated = transformers_model.generate(model, prompts, new_tokens)
        assert generated.shape == (rows, prompt_tokens + new_tokens), generated.shape
        return rows * new_tokens

    transformers_model.generate(model, prompts, 2)
    first = least_seconds(lambda: transformers_model.generate(model, prompts, 1))
    return {"rate": best_rate(work, seconds), "first_seconds": first}


def prefill(model, seconds, prompt_tokens):
    """Measures one long prompt, of which the last token's logits are computed."""
    prompt = random_text(model, 1, prompt_tokens)

    def work():
        with torch.inference_mode():
            model(prompt, use_cache=True, logits_to_keep=1)
        return prompt_tokens

    work()
    first = least_seconds(lambda: transformers_model.generate(model, prompt, 1))
    return {"rate": best_rate(work, seconds), "first_seconds": first}


def sft(model, seconds, rows, length):
    """Measures steps of supervised fine-tuning with all logits in memory, as trainers have them."""
    text, descend = random_text(model, rows, length), descender(model)
    rate, kept, peak = both_ways(lambda: descend(text), seconds)
    return {"rate": rate, "kept_rate": kept, "peak_bytes": peak}


def lora(model, seconds, rows, length, rank):
    """Measures steps of supervised fine-tuning by peft's adapters."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules="all-linear")
    return sft(get_peft_model(model, config), seconds, rows, length)


def main():
    """Prints the figures of a kind of work."""
    seconds, kind, sizes = float(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    model = load(*sys.argv[4:])
    if kind in ("sft", "lora"):
        figures = {"sft": sft, "lora": lora}[kind](model.train(), seconds, *sizes)
    else:
        measure = {"generation": generation, "prefill": prefill}[kind]
        figures = measure(model.eval(), seconds, *sizes)
    print(json.dumps({"peak_bytes": peak_memory()} | figures))


if __name__ == "__main__":
    main()

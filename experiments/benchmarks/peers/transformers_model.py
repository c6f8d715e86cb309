"""Gemma 3 as transformers has it, with random weights."""

import os

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig


def make(shape):
    """Makes the model of a config.json, float32, on all cores that we may use."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape)).float()


def generate(model, prompts, new_tokens):
    """Generates `new_tokens` after each prompt, drawn at temperature 1; nothing ends a text."""
    with torch.inference_mode():
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=None,
            pad_token_id=0,
        )

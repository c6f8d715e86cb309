"""New tokens a second of transformers' `generate`: SECONDS, CASES.

CASES is JSON: name -> [config.json, rows, tokens of the prompt, new tokens].
"""

import torch
import transformers_model
from rate import print_cases


def sampler(shape, rows, prompt_tokens, new_tokens):
    """Makes a function that generates the tokens of all rows."""
    model = transformers_model.make(shape).eval()
    model.generation_config.eos_token_id = None
    prompts = torch.randint(3, shape["vocab_size"], (rows, prompt_tokens))

    def work():
        generated = transformers_model.generate(model, prompts, new_tokens)
        assert generated.shape == (rows, prompt_tokens + new_tokens), generated.shape
        return rows * new_tokens

    return work


if __name__ == "__main__":
    print_cases(sampler)

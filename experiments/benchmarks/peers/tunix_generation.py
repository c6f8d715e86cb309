"""New tokens a second of tunix's sampler on its Gemma 3 model: SECONDS, CASES.

CASES is JSON: name -> [config.json, rows, tokens of the prompt, new tokens].
"""

import jax
import numpy as np
from flax import nnx
from rate import print_cases
from tunix.generate import sampler as samplers
from tunix.models.gemma3 import model as gemma3

NEVER = 2**30  # An id that is no token: nothing ends a text.


class Words:
    """A tokenizer whose texts are numbers already."""

    def encode(self, text):
        """Parses the ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids):
        """Returns an empty text, which nobody reads."""
        return ""

    def bos_id(self):
        """Returns the id that begins a text."""
        return 2

    def eos_id(self):
        """Returns the id that ends a text."""
        return NEVER

    def pad_id(self):
        """Returns the id of padding."""
        return 0


def make(shape):
    """Makes the model, float32."""
    return gemma3.Gemma3(
        gemma3.ModelConfig(
            num_layers=shape["num_hidden_layers"],
            num_embed=shape["vocab_size"],
            embed_dim=shape["hidden_size"],
            hidden_dim=shape["intermediate_size"],
            num_heads=shape["num_attention_heads"],
            head_dim=shape["head_dim"],
            num_kv_heads=shape["num_key_value_heads"],
            sliding_window_size=shape["sliding_window"],
            local_base_frequency=int(shape["rope_local_base_freq"]),
            global_base_frequency=int(shape["rope_theta"]),
            param_dtype=jax.numpy.float32,
        ),
        rngs=nnx.Rngs(0),
    )


def sampler(shape, rows, prompt_tokens, new_tokens):
    """Makes a function that generates the tokens of all rows."""
    sample = samplers.Sampler(
        make(shape),
        Words(),
        samplers.CacheConfig(
            cache_size=prompt_tokens + new_tokens,
            num_layers=shape["num_hidden_layers"],
            num_kv_heads=shape["num_key_value_heads"],
            head_dim=shape["head_dim"],
        ),
    )
    # The sampler puts the beginning of the text before the prompt.
    ids = np.random.default_rng(0).integers(3, shape["vocab_size"], (rows, prompt_tokens - 1))
    texts, calls = [" ".join(map(str, row)) for row in ids], 0

    def work():
        nonlocal calls
        calls += 1
        sampled = sample(
            texts,
            max_generation_steps=new_tokens,
            max_prompt_length=prompt_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            seed=calls,
        )
        lengths = {len(row) for row in sampled.tokens}
        assert lengths == {new_tokens}, lengths
        return rows * new_tokens

    return work


if __name__ == "__main__":
    print_cases(sampler)

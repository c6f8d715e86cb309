"""Writes small Gemma 3 models and what transformers makes of them: FOLDER.

For each model NAME.json (config.json as a folder of Hugging Face has it), NAME.safetensors and
NAME.npz: tokens int32 [B, T], their logits float32 [B, T, V], the greedy continuation of row 0
int32 [n] with the gap between the best two logits of each step, float32 [n].
"""

import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "head_dim": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
# In the dialect of transformers 4; `transformers_5` has the fields of the other.
MODELS = {
    "one_period": {
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
    },
    "scaled_rope": {
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "sliding_window": 4,
        "query_pre_attn_scalar": 11,
        "rope_scaling": LINEAR,
    },
    "one_layer": {
        "num_hidden_layers": 1,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "sliding_window": 3,
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 100.0,
    },
    "transformers_5": {
        "num_hidden_layers": 13,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "sliding_window": 3,
        "query_pre_attn_scalar": 8,
        "rope_parameters": {
            "full_attention": {"rope_theta": 50_000.0, **LINEAR},
            "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
        },
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2 + ["sliding_attention"],
    },
}
ROWS, LENGTH, CONTINUED = 2, 16, 12


def main(folder):
    """Writes the files of all models."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, shape) in enumerate(MODELS.items()):
        fields = {**SHAPE, **shape}
        # A copy: the configuration edits the dictionaries that it is given.
        config = Gemma3TextConfig(**json.loads(json.dumps(fields)), attn_implementation="eager")
        torch.manual_seed(seed)
        model = Gemma3ForCausalLM(config).eval()
        with torch.no_grad():
            for path, weight in model.named_parameters():
                # The scales too, which begin as zeros and would hide one another.
                scale = 0.3 if path.endswith("norm.weight") else weight.shape[-1] ** -0.5
                weight.copy_(torch.randn_like(weight) * scale)
            tokens = torch.randint(3, config.vocab_size, (ROWS, LENGTH))
            logits = model(tokens, use_cache=False).logits
            row, gaps = tokens[:1], []
            for _ in range(CONTINUED):
                best = model(row, use_cache=False).logits[0, -1].topk(2)
                gaps.append(float(best.values[0] - best.values[1]))
                row = torch.cat([row, best.indices[None, :1]], 1)
        weights = {k: v.contiguous() for k, v in model.state_dict().items() if "lm_head" not in k}
        save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})
        fields["model_type"] = "gemma3_text"
        (folder / f"{name}.json").write_text(json.dumps(fields, indent=1) + "\n")
        np.savez_compressed(
            folder / f"{name}.npz",
            tokens=tokens.numpy().astype(np.int32),
            logits=logits.numpy(),
            greedy=row[0, LENGTH:].numpy().astype(np.int32),
            gaps=np.asarray(gaps, np.float32),
        )
        print(name, f"smallest gap {min(gaps):.4f}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""Adapters of peft beside the models of `write_fixtures.py`: write FIXTURES, or load FOLDER.

`write` makes FIXTURES/peft, an adapter of `one_period` with ranks, scales and rows of its own, and
FIXTURES/peft.npz, its tokens int32 [B, T] and logits float32 [B, T, V]. `load` has peft load the
adapter that `write_adapters.py` wrote beside its base, and compares logits.
"""

import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def model_of(folder):
    """Returns the model of a folder, for logits to 1e-6."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def write(fixtures):
    """Writes the fixture."""
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        shutil.copyfile(fixtures / "one_period.json", base / "config.json")
        shutil.copyfile(fixtures / "one_period.safetensors", base / "model.safetensors")
        config = LoraConfig(
            task_type="CAUSAL_LM",
            target_modules="all-linear",
            r=3,
            lora_alpha=5,
            rank_pattern={"q_proj": 2},
            alpha_pattern={"down_proj": 7},
            use_rslora=True,
            trainable_token_indices=[9, 4],
        )
        torch.manual_seed(0)
        model = get_peft_model(model_of(base), config)
        with torch.no_grad():
            for path, weight in model.named_parameters():
                if "lora_B" in path or "trainable_tokens" in path:
                    weight.copy_(torch.randn_like(weight) * 0.3)
            tokens = torch.from_numpy(np.load(fixtures / "one_period.npz")["tokens"]).long()
            logits = model(input_ids=tokens, use_cache=False).logits
        model.peft_config["default"].base_model_name_or_path = "one_period"
        model.save_pretrained(fixtures / "peft")
    (fixtures / "peft" / "README.md").unlink(missing_ok=True)
    np.savez(fixtures / "peft.npz", tokens=tokens.int(), logits=logits)


def load(folder):
    """Prints the largest difference of logits; exits with 1 if it is too large."""
    base, expected = model_of(folder / "base"), np.load(folder / "expected.npz")
    tokens = torch.from_numpy(expected["tokens"]).long()
    with torch.no_grad():
        before = base(tokens, use_cache=False).logits.numpy()
        logits = PeftModel.from_pretrained(base, folder / "peft")(
            input_ids=tokens, use_cache=False
        ).logits
    difference = float(np.abs(logits.numpy() - expected["logits"]).max())
    change = float(np.abs(before - expected["logits"]).max())
    print(f"adapters: {difference:.1e} between logits, which they change by {change:.1e}")
    sys.exit(0 if difference < TOLERANCE < change else 1)


if __name__ == "__main__":
    {"write": write, "load": load}[sys.argv[1]](pathlib.Path(sys.argv[2]))
